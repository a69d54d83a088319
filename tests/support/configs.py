"""Configurations for tests: a small valid one, and the lines that a change to it provokes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gateway.settings.loader import load, read_sources
from gateway.settings.problems import Invalid
from gateway.settings.schema import Settings

KEY = "0123456789abcdef0123456789abcdef"
ENVIRON = {"HOP_KEY": KEY}

SMALL = """\
region: here
listen: {http: 127.0.0.1:8080, hop: 127.0.0.1:8082}
state_dir: state
regions:
  here: {public: "https://{tenant}.here.example.com", gateways: ["gw.here:8082"]}
  there: {public: "https://{tenant}.there.example.com", gateways: ["gw.there:8082"]}
hop_keys: ["${HOP_KEY}"]
clusters: {app: {endpoints: ["127.0.0.1:9000"]}}
"""
"""Two regions, one application, one key from the environment. Eight lines."""


def write(folder: Path, text: str, overlay: tuple[str, str] | None = None) -> Path:
    """`gateway.yaml` in `folder`, and an overlay (region, text) beside it."""
    path = folder / "gateway.yaml"
    path.write_text(text, "utf-8")
    if overlay:
        (folder / "regions").mkdir(exist_ok=True)
        (folder / "regions" / f"{overlay[0]}.yaml").write_text(overlay[1], "utf-8")
    return path


def settings_of(path: Path, environ: Mapping[str, str] = ENVIRON) -> Settings:
    return load(read_sources(path, environ), environ)


def problems_of(path: Path, environ: Mapping[str, str] = ENVIRON) -> list[str]:
    """Every problem as its line, with the test's folder left out."""
    try:
        settings_of(path, environ)
    except Invalid as error:
        return [str(problem).replace(f"{path.parent}/", "") for problem in error.problems]
    return []
