"""URLs of Redis: how an operator writes one, and the one way in which it is kept.

    redis://USER:PASSWORD@HOST:6379/DB            rediss:// is the same over TLS
    unix:///run/valkey.sock?db=DB                 credentials before the path, as above
    redis+sentinel://USER:PASSWORD@H1:26379,H2:26379/SERVICE/DB          rediss+sentinel:// over TLS
    redis+cluster://USER:PASSWORD@H1:6379,H2:6379                        rediss+cluster:// over TLS

Everything but the place is optional. A password out of a secret store may hold any character, so the credentials end at
the last `@` and whatever is in them is taken; `%` stands only before two hex digits. `str()` of what was read encodes
them, so that each reader of URLs finds the same parts. What was expected is told without a word of the value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import quote, unquote

from gateway.settings import units
from gateway.settings.schema import Address
from gateway.settings.units import Wanted

REDIS_PORT: Final = 6379
SENTINEL_PORT: Final = 26379
DB_MAX: Final = 9999
"""Redis has 16 unless told otherwise; nobody has more than this."""
SERVERS_MAX: Final = 32
"""Sentinels or nodes to begin with: each knows the others."""

EXPECTED: Final = "a URL such as redis://127.0.0.1:6379/0"
LIKE: Final = r"(?:rediss?(?:\+sentinel|\+cluster)?|unix)://[\s\S]+"
"""What such a URL looks like, for editors: looser than `read`."""

_BAD_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SERVICE: Final = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_REFERENCE: Final = re.compile(r"\$\{[^{}]*\}")


class Layout(StrEnum):
    """What stands behind a URL. The value is what follows `redis` in its scheme."""

    SERVER = ""
    SENTINEL = "+sentinel"
    CLUSTER = "+cluster"
    SOCKET = "unix"


SCHEMES: Final[dict[str, tuple[Layout, bool]]] = {
    **{f"redis{layout}": (layout, False) for layout in (Layout.SERVER, Layout.SENTINEL, Layout.CLUSTER)},
    **{f"rediss{layout}": (layout, True) for layout in (Layout.SERVER, Layout.SENTINEL, Layout.CLUSTER)},
    "unix": (Layout.SOCKET, False),
}
"""Every scheme, with its layout and whether it is TLS."""


@dataclass(frozen=True, slots=True, repr=False)
class RedisUrl:
    """A URL in parts. `servers` is empty for a socket, one for a server; `service` is the sentinels' name for it."""

    layout: Layout
    is_tls: bool = False
    user: str = ""
    password: str = ""
    servers: tuple[Address, ...] = ()
    service: str = ""
    path: str = ""
    db: int = 0

    def __str__(self) -> str:
        """The whole URL, password included, in its one written form."""
        return self._written(f"{quote(self.user, safe='')}:{quote(self.password, safe='')}@" if self.password else "")

    def __repr__(self) -> str:
        return f"RedisUrl({self.bare()!r})"

    def bare(self) -> str:
        """The URL without user and password: what a message or a log may name."""
        return self._written("")

    def _written(self, credentials: str) -> str:
        if self.layout is Layout.SOCKET:
            return f"unix://{credentials}{quote(self.path)}" + (f"?db={self.db}" if self.db else "")
        place = ",".join(map(str, self.servers)) + (f"/{self.service}" if self.service else "")
        db = "" if self.layout is Layout.CLUSTER else f"/{self.db}"
        return f"redis{'s' if self.is_tls else ''}{self.layout.value}://{credentials}{place}{db}"


def read(text: str) -> RedisUrl:
    """A URL in parts. Raises Wanted, which says what was expected and nothing of what was found."""
    scheme, found, rest = text.partition("://")
    if not found or scheme not in SCHEMES:
        raise Wanted(f"{EXPECTED} (schemes: {', '.join(SCHEMES)})")
    if any(ord(c) <= 0x20 or ord(c) == 0x7F for c in text):
        raise Wanted("a URL without blanks and control characters")
    layout, is_tls = SCHEMES[scheme]
    credentials, at, place = rest.rpartition("@")
    user, password = _credentials(credentials) if at else ("", "")
    if layout is Layout.SOCKET:
        path, db = _socket(place)
        return RedisUrl(layout, user=user, password=password, path=path, db=db)
    if "?" in place or "#" in place:
        raise Wanted("a URL without ? and #")
    hosts, _, below = place.partition("/")
    parts = below.split("/") if below else []
    service = ""
    if layout is Layout.SENTINEL:
        service = parts.pop(0) if parts else ""
        if not _SERVICE.match(service):
            raise Wanted(f"a URL such as {scheme}://h1:26379,h2:26379/service-name/0, with the name of the service")
    if layout is Layout.CLUSTER and parts not in ([], ["0"]):
        raise Wanted("a URL without a database: a cluster has one only")
    if len(parts) > 1:
        raise Wanted("a URL that ends with the number of the database")
    servers = _servers(hosts, layout)
    db = 0 if layout is Layout.CLUSTER or not parts else _db(parts[0])
    return RedisUrl(layout, is_tls, user, password, servers, service, db=db)


def kept(text: str) -> str:
    """A URL as the settings keep it. Raises Wanted."""
    return str(read(text))


def shows_password(text: str) -> bool:
    """Whether a URL, as it is written in a file, holds its password there instead of a reference to it."""
    plain = _REFERENCE.sub("\0", text)  # which may hold a colon, a slash or an @ of its own
    credentials, at, _ = plain.partition("://")[2].rpartition("@")
    password = credentials.partition(":")[2] if at else ""
    return bool(password) and "\0" not in password


def _credentials(text: str) -> tuple[str, str]:
    user, colon, password = text.partition(":")
    if not colon or not password:
        raise Wanted("a password before the @, as in redis://USER:PASSWORD@HOST")
    if _BAD_PERCENT.search(text):
        raise Wanted("a user and a password in which a percent sign is written %25")
    try:
        return unquote(user, errors="strict"), unquote(password, errors="strict")
    except UnicodeDecodeError:
        raise Wanted("a user and a password that are UTF-8") from None


def _socket(place: str) -> tuple[str, int]:
    path, question, query = place.partition("?")
    if not path.startswith("/") or len(path) < 2 or "#" in place or _BAD_PERCENT.search(path):
        raise Wanted("a URL such as unix:///run/valkey.sock, with an absolute path")
    name, _, db = query.partition("=")
    if question and name != "db":
        raise Wanted("a URL such as unix:///run/valkey.sock?db=0, with no other parameter")
    return unquote(path), _db(db) if question else 0


def _servers(hosts: str, layout: Layout) -> tuple[Address, ...]:
    port = SENTINEL_PORT if layout is Layout.SENTINEL else REDIS_PORT
    found = hosts.split(",")
    if len(found) > (1 if layout is Layout.SERVER else SERVERS_MAX):
        most = "one host" if layout is Layout.SERVER else f"at most {SERVERS_MAX} hosts"
        raise Wanted(f"a URL with {most}")
    try:
        servers = tuple(_address(host, port) for host in found)
    except ValueError:
        raise Wanted(f"a URL with a host such as valkey.internal:{port} after its credentials") from None
    if len(set(servers)) < len(servers):
        raise Wanted("a URL with each host once")
    return servers


def _address(text: str, port: int) -> Address:
    with_port = text if re.search(r":[0-9]+\Z", text) and not text.endswith("]") else f"{text}:{port}"
    return units.endpoint(with_port)


def _db(text: str) -> int:
    try:
        value = units.whole(text)
    except ValueError:
        value = DB_MAX + 1
    if value > DB_MAX:
        raise Wanted(f"a URL whose database is a number from 0 to {DB_MAX}")
    return value
