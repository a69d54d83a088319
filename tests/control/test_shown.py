"""What the admin API shows of the configuration holds no credential; of a tenant it shows everything."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from gateway.control.shown import config, tenant
from gateway.core.placement import Partition, Placement, Version
from gateway.settings import tenants
from tests.support.configs import SMALL, settings_of, write

REDIS = """\
tenant_map:
  source: redis
  redis: {url: "redis://u:hunter2/hunter2@h", peers: {there: "rediss+sentinel://:hunter2@s/main"}}
filters: {options: {log: {upstream: "redis://a:b@c", note: hunter2/hunter2, other: hunter2%2Fhunter2}}}
"""


def test_no_url_of_a_redis_shows_its_password_nor_does_any_other_place(tmp_path: Path) -> None:
    shown = config(settings_of(write(tmp_path, SMALL + REDIS)))
    assert shown["tenant_map"]["redis"] == {
        "url": "redis://***@h:6379/0",
        "peers": {"there": "rediss+sentinel://***@s:26379/main/0"},
        "tls": None,
    }
    assert shown["filter_options"]["log"] == {"upstream": "redis://***@c", "note": "***", "other": "***"}
    assert "hunter2" not in json.dumps(shown)


def test_a_tenant_is_shown_with_all_its_keys() -> None:
    made = {"partition": Partition.READ_ONLY, "by": "alice", "why": "drill", "takeover": True}
    shown = msgspec.to_builtins(tenant(Placement(tenant="acme", home="here", version=Version(2, 3, "there"), **made)))
    keys = {key for key in tenants.TENANT_KEYS if key != "epoch"}
    stored = {"written_in", "written", "arrived", "waiting"}
    assert shown.keys() == {"tenant", "version", "by", "why", "takeover", *stored, *keys}
    assert {key: shown[key] for key in made} == made
    assert shown["version"] == "2.3.there"
