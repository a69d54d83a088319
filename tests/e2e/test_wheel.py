"""The wheel, installed where nothing of the source tree is in reach."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from gateway import __version__

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """\
region: here
listen: {http: 127.0.0.1:18080}
state_dir: state
misroute: external
regions: {here: {public: "https://{tenant}.here.example.com"}}
clusters: {app: {endpoints: ["127.0.0.1:9000"]}}
tenancy: {resolvers: [{host: "{tenant}.example.com"}]}
tenant_map: {file: tenants.yaml}
"""


def online() -> bool:
    """Whether pip has somewhere to install from: an index that is set, or the public one."""
    if any(os.environ.get(name) for name in ("PIP_INDEX_URL", "PIP_FIND_LINKS", "HTTPS_PROXY", "https_proxy")):
        return True
    try:
        socket.create_connection(("pypi.org", 443), timeout=3.0).close()
    except OSError:
        return False
    return True


def run(*command: str | Path, cwd: Path) -> str:
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environ = {name: value for name, value in environ.items() if not name.startswith("LANDBRIDGE")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.skipif(not online(), reason="no network: the wheel's dependencies cannot be installed")
def test_the_wheel_works_on_its_own(tmp_path: Path) -> None:
    source, away, venv = tmp_path / "source", tmp_path / "away", tmp_path / "venv"
    away.mkdir()
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "gateway", "filters"):  # a build writes beside its source
        run("cp", "-r", ROOT / name, source, cwd=tmp_path)
    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
    run(sys.executable, *pip, "wheel", "--no-deps", "--wheel-dir", away, source, cwd=away)
    (wheel,) = away.glob("landbridge-*.whl")
    assert wheel.name.startswith(f"landbridge-{__version__}-py3-none-any")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"gateway/py.typed", "filters/py.typed", "filters/inbound/tenant.py", "gateway/supervisor.py"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "bench/"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)

    run(sys.executable, "-m", "venv", venv, cwd=away)
    run(venv / "bin" / "python", *pip, "install", wheel, cwd=away)
    landbridge = venv / "bin" / "landbridge"
    assert run(landbridge, "--version", cwd=away) == f"landbridge {__version__}\n"
    (away / "gateway.yaml").write_text(CONFIG)
    (away / "tenants.yaml").write_text("tenants: {acme: {home: here}}\n")
    assert "valid" in run(landbridge, "check", "-c", "gateway.yaml", cwd=away)
    where = "import filters.inbound.tenant as t, gateway.proxy.main, gateway.control.main; print(t.__file__)"
    assert str(venv) in run(venv / "bin" / "python", "-c", where, cwd=away)
