"""The units in deploy/systemd say what the supervisor and the example configuration say."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.settings.loader import load, read_sources
from gateway.settings.schema import Settings
from gateway.systemd import LISTENERS

ROOT = Path(__file__).resolve().parents[1]
UNITS = ROOT / "deploy" / "systemd"
SOCKETS = sorted(UNITS.glob("*.socket"))


def options(path: Path) -> dict[str, str]:
    """Every assignment of a unit; a key that is repeated would be a list, which ours are not."""
    found: dict[str, str] = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            assert key not in found or key in ("After", "Wants"), f"{path}: {key} stands twice"
            found[key] = value
    return found


@pytest.fixture(scope="module")
def settings() -> Settings:
    environ = {"LANDBRIDGE_HOP_KEY": "k" * 32}
    return load(read_sources(ROOT / "config" / "gateway.yaml", environ), environ)


def test_the_service_gives_the_drain_its_time_and_stops_at_a_bad_configuration(settings: Settings) -> None:
    service = options(UNITS / "landbridge.service")
    assert int(service["TimeoutStopSec"]) > settings.drain.limit
    assert (service["KillMode"], service["RestartPreventExitStatus"]) == ("mixed", "2")
    assert (service["Type"], service["NotifyAccess"], service["ExecReload"]) == (
        "notify",
        "main",
        "/bin/kill -HUP $MAINPID",
    )
    assert settings.state_dir == f"/var/lib/{service['StateDirectory']}"


@pytest.mark.parametrize("path", SOCKETS, ids=lambda path: path.name)
def test_sockets_have_the_names_and_addresses_of_listeners(path: Path, settings: Settings) -> None:
    unit = options(path)
    name = unit["FileDescriptorName"]
    assert name in LISTENERS
    assert unit["ListenStream"] == str(getattr(settings.listen, name))
    assert unit["Service"] == "landbridge.service"
    assert path.name in options(UNITS / "landbridge.service")["After"]
