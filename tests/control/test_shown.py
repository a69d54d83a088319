"""What the admin API shows of the configuration holds no credential."""

from __future__ import annotations

import json
from pathlib import Path

from gateway.control.shown import config
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
