"""The documentation and the example: made from, and held against, the tables that files are read by."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.settings import document, keys, tenants
from gateway.settings.document import Listing, Node, Source, Table
from gateway.settings.loader import load, read_sources, warnings_for
from gateway.settings.reference import every_key, is_later, reference
from gateway.settings.shape import Later
from gateway.settings.tenants import load_tenants
from tests.support.configs import KEY

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config"
REGIONS = ["us-east-1", "eu-west-1", "ap-southeast-2"]
DEFAULT = re.compile(r'^( *)#( {2,}|)(?=(?:- )?"?[a-z_:*]+"?:(?: |$))', re.MULTILINE)
"""A line that shows a default: commented out as `#key:`, or `#  key:` below one; prose is `# `."""


def environ(region: str) -> dict[str, str]:
    return {"LANDBRIDGE_REGION": region, "LANDBRIDGE_HOP_KEY": KEY}


@pytest.mark.parametrize("region", REGIONS)
def test_the_example_is_valid_in_every_region_and_warns_of_nothing(region: str) -> None:
    sources = read_sources(CONFIG / "gateway.yaml", environ(region))
    assert sources.overlay_text is not None
    settings = load(sources, environ(region))
    assert settings.region == region
    assert warnings_for(settings, sources) == []
    found = load_tenants("tenants.yaml", (CONFIG / "tenants.yaml").read_bytes(), settings)
    assert {tenant.home for tenant in found} == set(REGIONS)


def _paths(node: Node, path: str = "") -> set[str]:
    """Every key of a document, written as the reference writes them."""
    found = {path}
    if isinstance(node, Table):
        for key, value in node.entries.items():
            found |= _paths(value, f"{path}.{key}" if path else key)
    elif isinstance(node, Listing):
        for item in node.items:
            found |= _paths(item, f"{path}[]")
    return found


def _schematic(path: str) -> str:
    path = re.sub(r"^regions\.[^.]+", "regions.<region>", path)
    return re.sub(r"^clusters\.(app|region:\*)(?=\.|$)", "clusters.<cluster>", path)


def uncommented() -> str:
    return DEFAULT.sub(r"\1\2", (CONFIG / "gateway.yaml").read_text())


def test_every_key_stands_in_the_example_and_its_commented_defaults_are_the_defaults(tmp_path: Path) -> None:
    text = uncommented()
    root, problems = document.parse(Source("gateway.yaml"), text)
    assert problems == []
    written = {_schematic(path) for path in _paths(root)}
    wanted = {
        path
        for path, key, _ in every_key(keys.ROOT)
        if not (is_later(key) and isinstance(key.kind, Later) and not key.kind.empty_is_fine)
    }
    none = (
        "admin.tokens[].",
        "throttle",
        "shedding",
        "clusters.<cluster>.hash",
        "clusters.<cluster>.breaker.fallback",
        "clusters.<cluster>.health.body",
        "routes[].throttle",
        "routes[].priority",
        "routes[].allow",
        "routes[].deny",
        "tenancy.resolvers[].",
        "tenant_map.redis",
    )  # the default is to have none
    entries = {path for path in wanted if path.startswith(none)}
    assert wanted - written == entries
    for path in entries - {"throttle", "shedding"}:
        assert re.search(rf"^ *#.*[{{ ]{path.rpartition('.')[2]}: ", text, re.MULTILINE), path
    (tmp_path / "gateway.yaml").write_text(text)
    with_defaults = load(read_sources(tmp_path / "gateway.yaml", environ("us-east-1")), environ("us-east-1"))
    (tmp_path / "gateway.yaml").write_text((CONFIG / "gateway.yaml").read_text())
    without = load(read_sources(tmp_path / "gateway.yaml", environ("us-east-1")), environ("us-east-1"))
    assert with_defaults == without


def test_every_key_of_a_tenant_stands_in_the_example() -> None:
    text = (CONFIG / "tenants.yaml").read_text()
    for name, key in tenants.TENANT_KEYS.items():
        assert is_later(key) or re.search(rf"^ +{name}:", text, re.MULTILINE), name


def test_the_documentation_is_what_the_tables_say() -> None:
    """To write it anew: `python -m gateway.settings.reference > docs/configuration.md`."""
    assert (ROOT / "docs" / "configuration.md").read_text() == reference()


def test_every_key_is_documented_with_a_sentence() -> None:
    text = reference()
    for root in (keys.ROOT, tenants.ROOT):
        for path, key, _ in every_key(root):
            assert f"`{path}`" in text, path
            assert key.about.endswith("."), path
            assert not (key.required and key.default), path


def test_the_example_of_a_replicated_map_is_valid(tmp_path: Path) -> None:
    overlay = (CONFIG / "regions" / "us-east-1.yaml").read_text()
    text = re.sub(r"^#(?=(?:tenant_map:|  +\S))", "", overlay, flags=re.MULTILINE)
    text = text.replace("/run/secrets/redis_password", str(tmp_path / "password")).replace("  ACL SETUSER", "# ACL")
    (tmp_path / "password").write_text("p@ss/word\n")
    (tmp_path / "regions").mkdir()
    (tmp_path / "regions" / "us-east-1.yaml").write_text(text)
    (tmp_path / "gateway.yaml").write_text((CONFIG / "gateway.yaml").read_text())
    sources = read_sources(tmp_path / "gateway.yaml", environ("us-east-1"))
    settings = load(sources, environ("us-east-1"))
    assert warnings_for(settings, sources) == []
    redis = settings.tenant_map.redis
    assert redis is not None
    assert redis.tls is not None
    assert redis.url == "rediss://landbridge:p%40ss%2Fword@valkey.us-east-1.internal:6379/0"
    assert redis.peers.keys() == set(REGIONS) - {"us-east-1"}
