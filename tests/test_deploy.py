"""What is shipped beside the code says what the code understands: compose, Dockerfile, example configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.settings.loader import load, read_sources
from gateway.settings.tenants import load_tenants

ROOT = Path(__file__).resolve().parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
GATEWAYS = [name for name in COMPOSE["services"] if name.startswith("gateway-")]


def test_three_regions_with_an_application_each() -> None:
    assert GATEWAYS == ["gateway-us-east-1", "gateway-eu-west-1", "gateway-ap-southeast-2"]
    for name in GATEWAYS:
        service, region = COMPOSE["services"][name], name.removeprefix("gateway-")
        assert service["environment"]["LANDBRIDGE_REGION"] == region
        assert COMPOSE["services"][f"app-{region}"]["command"][:2] == ["--region", region]


@pytest.mark.parametrize("name", GATEWAYS)
def test_compose_configures_valid_gateways(name: str) -> None:
    service = COMPOSE["services"][name]
    environ = dict(service["environment"]) | {"LANDBRIDGE_HOP_KEY": "k" * 32}
    settings = load(read_sources(ROOT / "deploy" / "compose" / "gateway.yaml", environ), environ)
    assert f"gateway-{settings.region}" == name
    (endpoint,) = settings.clusters["app"].endpoints
    assert str(endpoint) == f"app-{settings.region}:9000"
    assert {str(gateway.gateways[0]) for gateway in settings.regions.values()} == {f"{g}:8082" for g in GATEWAYS}
    public = settings.regions[settings.region].public
    assert public is not None
    assert service["ports"] == [f"127.0.0.1:{public.rpartition(':')[2]}:{settings.listen.http.port}"]
    assert float(service["stop_grace_period"].removesuffix("s")) > settings.drain.limit
    assert service["volumes"] == ["./compose:/etc/landbridge:ro"]
    text = (ROOT / "deploy" / "compose" / "tenants.yaml").read_bytes()
    assert len(load_tenants("tenants.yaml", text, settings)) == 4


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
