"""URLs of Redis: what is taken, in which one form it is kept, and that nothing of a password is ever told."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.settings.problems import masked_url, shown
from gateway.settings.redis_url import SCHEMES, Layout, RedisUrl, kept, read, shows_password
from gateway.settings.schema import Address, RedisSettings
from gateway.settings.units import Wanted

KEPT = [
    ("redis://127.0.0.1", "redis://127.0.0.1:6379/0"),
    ("redis://Valkey.Internal:7000/3", "redis://valkey.internal:7000/3"),
    ("redis://[2001:db8::1]", "redis://[2001:db8::1]:6379/0"),
    ("redis://h/", "redis://h:6379/0"),
    ("rediss://:secret@h:6380", "rediss://:secret@h:6380/0"),
    ("redis://landbridge:s%40c%2Fret@h", "redis://landbridge:s%40c%2Fret@h:6379/0"),
    ("redis://u:a/b@c:d?e#f@h:1/2", "redis://u:a%2Fb%40c%3Ad%3Fe%23f@h:1/2"),
    ("redis://u:$%7BX%7D@h", "redis://u:%24%7BX%7D@h:6379/0"),
    ("unix:///run/valkey.sock", "unix:///run/valkey.sock"),
    ("unix:///run/valkey.sock?db=0", "unix:///run/valkey.sock"),
    ("unix://u:p@/run/valkey.sock?db=2", "unix://u:p@/run/valkey.sock?db=2"),
    ("redis+sentinel://u:p@h1:26379,h2/main/1", "redis+sentinel://u:p@h1:26379,h2:26379/main/1"),
    ("rediss+sentinel://h1/main", "rediss+sentinel://h1:26379/main/0"),
    ("redis+cluster://h1,[::1]:7001", "redis+cluster://h1:6379,[::1]:7001"),
    ("rediss+cluster://u:p@h1:7000/0", "rediss+cluster://u:p@h1:7000"),
]


@pytest.mark.parametrize(("text", "url"), KEPT)
def test_a_url_is_kept_in_one_form(text: str, url: str) -> None:
    assert kept(text) == url
    assert kept(url) == url


REFUSED = [
    ("", "a URL such as redis://127.0.0.1:6379/0 (schemes: redis, redis+sentinel, redis+cluster, rediss, "
     "rediss+sentinel, rediss+cluster, unix)"),
    ("127.0.0.1:6379", "a URL such as redis://127.0.0.1:6379/0 (schemes"),
    ("http://u:hunter2@h", "a URL such as redis://127.0.0.1:6379/0 (schemes"),
    ("Redis://h", "a URL such as redis://127.0.0.1:6379/0 (schemes"),
    ("redis://", "a URL with a host such as valkey.internal:6379 after its credentials"),
    ("redis://u:hunter2@", "a URL with a host such as"),
    ("redis://u:hunter2@h:0", "a URL with a host such as"),
    ("redis://u:hunter2@h:99999", "a URL with a host such as"),
    ("redis://u:hunter2@h_!:1", "a URL with a host such as"),
    ("redis://u:hunter2@h/x", "a URL whose database is a number from 0 to 9999"),
    ("redis://u:hunter2@h/1/2", "a URL that ends with the number of the database"),
    ("redis://u:hunter2@h/01", "a URL whose database is a number"),
    ("redis://u:hunter2@h/0?timeout=1", "a URL without ? and #"),
    ("redis://h/0?password=hunter2", "a URL without ? and #"),
    ("redis://u:hunter2@a,b", "a URL with one host"),
    ("redis://hunter2@h", "a password before the @, as in redis://USER:PASSWORD@HOST"),
    ("redis://u:@h", "a password before the @"),
    ("redis://u:hunter%2@h", "a user and a password in which a percent sign is written %25"),
    ("redis://u:%ff@h", "a user and a password that are UTF-8"),
    ("redis://u:hunter 2@h", "a URL without blanks and control characters"),
    ("unix://u:hunter2@run/x.sock", "a URL such as unix:///run/valkey.sock, with an absolute path"),
    ("unix:///", "a URL such as unix:///run/valkey.sock, with an absolute path"),
    ("unix:///x?password=hunter2", "a URL such as unix:///run/valkey.sock?db=0, with no other parameter"),
    ("redis+sentinel://u:hunter2@h", "a URL such as redis+sentinel://h1:26379,h2:26379/service-name/0, with the name"),
    ("redis+sentinel://h/a b", "a URL without blanks"),
    ("redis+sentinel://h/a/b", "a URL whose database is a number"),
    ("redis+sentinel://h:1,h:1/a", "a URL with each host once"),
    ("redis+sentinel://" + ",".join(f"h{i}" for i in range(33)) + "/a", "a URL with at most 32 hosts"),
    ("redis+cluster://u:hunter2@h/1", "a URL without a database: a cluster has one only"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), REFUSED)
def test_anything_else_is_refused_and_not_told(text: str, expected: str) -> None:
    with pytest.raises(Wanted) as caught:
        read(text)
    assert str(caught.value).startswith(expected)
    assert "hunter" not in str(caught.value)


SECRETS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=20)


@given(SECRETS, SECRETS, st.sampled_from(sorted(SCHEMES)))
def test_whatever_a_password_holds_comes_back_and_is_masked(user: str, password: str, scheme: str) -> None:
    place = {"unix": "/x.sock"}.get(scheme, "h1:1/main/2" if "sentinel" in scheme else "h1:1")
    user = user.replace(":", "")
    raw = f"{scheme}://{user.replace('%', '%25')}:{password.replace('%', '%25')}@{place}"
    url = read(raw)
    assert (url.user, url.password) == (user, password)
    parts = urlsplit(str(url))
    assert parts.password is not None
    assert unquote(parts.password) == password
    assert str(read(str(url))) == str(url)
    bare = read(f"{scheme}://{place}")
    assert url.bare() == str(bare)
    assert repr(url) == repr(bare)
    assert str(RedisSettings(str(url), {"x": str(url)})) == str(
        RedisSettings(f"{scheme}://u:p@{url.bare().partition('://')[2]}", {"x": str(url)})
    )
    assert masked_url(raw) == f"{scheme}://***@{place}"


def test_a_message_shows_no_credentials_however_long_they_are() -> None:
    assert shown(f"redis://u:{'x' * 200}@h") == '"redis://***@h"'
    assert shown("redis://u:a@b/c@h, redis://u:d@i") == '"redis://***@i"'


WRITTEN = [
    ("redis://h", False),
    ("redis://u:hunter2@h", True),
    ("redis://:hunter2@${HOST}", True),
    ("redis://${USER}:hunter2@h", True),
    ("redis://u:${PASSWORD}@h", False),
    ("redis://u:${file:/run/a:b@c}@h", False),
    ("redis://${file:/run/a:b}:hunter2@h", True),
    ("redis://u:pre${PASSWORD}@h", False),
    ("${URL}", False),
    ("${URL}:1/0", False),
]


@pytest.mark.parametrize(("text", "shows"), WRITTEN)
def test_a_password_that_stands_in_a_file_is_seen(text: str, shows: bool) -> None:
    assert shows_password(text) is shows


def test_the_parts_of_a_url() -> None:
    assert read("rediss+sentinel://u:p@a,b:1/main/4") == RedisUrl(
        Layout.SENTINEL, True, "u", "p", (Address("a", 26379), Address("b", 1)), "main", "", 4
    )
    assert read("unix:///a%20b?db=3") == RedisUrl(Layout.SOCKET, path="/a b", db=3)
