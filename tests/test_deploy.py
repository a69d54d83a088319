"""What is shipped beside the code says what the code understands: compose, Dockerfile, example configuration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.control.replication.region_map import MapUnavailable, RegionMap, Write, Written
from gateway.core.placement import Placement
from gateway.core.replication import encode_body
from gateway.settings.loader import load, read_sources, warnings_for
from gateway.settings.schema import MapSource
from gateway.settings.tenants import load_tenants
from tests.support.valkey import Valkey

ROOT = Path(__file__).resolve().parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
GATEWAYS = [name for name in COMPOSE["services"] if name.startswith("gateway-")]


def test_three_regions_with_an_application_each() -> None:
    assert GATEWAYS == ["gateway-us-east-1", "gateway-eu-west-1", "gateway-ap-southeast-2"]
    for name in GATEWAYS:
        service, region = COMPOSE["services"][name], name.removeprefix("gateway-")
        assert service["environment"]["LANDBRIDGE_REGION"] == region
        assert COMPOSE["services"][f"app-{region}"]["command"][:2] == ["--region", region]


GIVEN = {"LANDBRIDGE_HOP_KEY": "k" * 32, "LANDBRIDGE_VALKEY_PASSWORD": "p/w+d=@x"}
_VARIABLE = re.compile(r"\$\$|\$\{([A-Z_]+):\?[^}]*\}")


def interpolated(text: str) -> str:
    """As compose does it: `$$` is a dollar, a variable is required."""
    assert "$" not in _VARIABLE.sub("", text), text
    return _VARIABLE.sub(lambda found: GIVEN[found[1]] if found[1] else "$", text)


@pytest.mark.parametrize("name", GATEWAYS)
def test_compose_configures_valid_gateways(name: str) -> None:
    service = COMPOSE["services"][name]
    environ = {key: interpolated(value) for key, value in service["environment"].items()}
    settings = load(read_sources(ROOT / "deploy" / "compose" / "gateway.yaml", environ), environ)
    assert f"gateway-{settings.region}" == name
    (endpoint,) = settings.clusters["app"].endpoints
    assert str(endpoint) == f"app-{settings.region}:9000"
    assert {str(gateway.gateways[0]) for gateway in settings.regions.values()} == {f"{g}:8082" for g in GATEWAYS}
    public = settings.regions[settings.region].public
    assert public is not None
    assert service["ports"] == [f"127.0.0.1:{public.rpartition(':')[2]}:{settings.listen.http.port}"]
    assert float(service["stop_grace_period"].removesuffix("s")) > settings.drain.limit
    state = f"state-{settings.region}"
    assert service["volumes"] == ["./compose:/etc/landbridge:ro", f"{state}:{settings.state_dir}"]
    assert {state, f"valkey-{settings.region}"} <= COMPOSE["volumes"].keys()
    text = (ROOT / "deploy" / "compose" / "tenants.yaml").read_bytes()
    assert len(load_tenants("tenants.yaml", text, settings)) == 4


@pytest.mark.parametrize("name", GATEWAYS)
def test_compose_gives_each_region_its_valkey_and_the_others_as_peers(name: str) -> None:
    environ = {key: interpolated(value) for key, value in COMPOSE["services"][name]["environment"].items()}
    sources = read_sources(ROOT / "deploy" / "compose" / "gateway.yaml", environ)
    settings = load(sources, environ)
    assert warnings_for(settings, sources) == []
    redis = settings.tenant_map.redis
    assert settings.tenant_map.source is MapSource.REDIS
    assert redis is not None
    regions = {settings.region: redis.url, **redis.peers}
    assert set(regions) == set(settings.regions)
    for region, url in regions.items():
        assert url == f"redis://landbridge:p%2Fw%2Bd%3D%40x@valkey-{region}:6379/0"
        assert COMPOSE["services"][f"valkey-{region}"]["volumes"] == [f"valkey-{region}:/data"]


async def test_the_user_that_compose_makes_may_do_all_that_a_gateway_does(tmp_path: Path) -> None:
    words = [interpolated(word) for word in COMPOSE["services"]["valkey-us-east-1"]["command"]]
    assert words[:1] == ["valkey-server"]
    off = words.index("default") - 1
    assert words[off : off + 3] == ["--user", "default", "off"]
    with Valkey(tmp_path, extra=(*words[1:off], *words[off + 3 :])) as server:
        place = f"127.0.0.1:{server.port}"
        gateway = RegionMap(f"redis://landbridge:p%2Fw%2Bd%3D%40x@{place}", "us-east-1")
        written = Placement(tenant="acme", home="us-east-1")
        [done] = await gateway.write([Write("acme", None, 1, encode_body(written))])
        assert isinstance(done, Written)
        assert await gateway.acquire("token", 1000)
        assert (await gateway.head()).records == 1
        assert [rows async for rows in gateway.scan()]
        assert await gateway.read_log(0, 10, 100)
        await gateway.close()
        wrong = RegionMap(f"redis://landbridge:guess@{place}", "us-east-1")
        with pytest.raises(MapUnavailable):
            await wrong.head()
        await wrong.close()


def test_the_image_runs_unprivileged_with_what_it_needs() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    words = [line.split()[0] for line in lines if line and line[0].isalpha()]
    assert words.count("FROM") == 2
    assert "HEALTHCHECK" in words
    assert "USER landbridge" in lines
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = {
        source for line in lines if line.startswith("COPY") and "--from" not in line for source in line.split()[1:-1]
    }
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, source
