"""From a URL of the configuration to a client of redis-py: a server, a socket, Sentinel or Cluster; TLS, ACL users.

The one place where redis-py is told how to connect. It retries nothing by itself: whoever asks knows whether a second
try is harmless, and counts it.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway.settings.redis_url import Layout, RedisUrl
from gateway.settings.schema import TlsSettings

Client = Redis | RedisCluster


class Connected(NamedTuple):
    """The client to use, and those that it asks for the way."""

    client: Client
    guides: tuple[Redis, ...] = ()

    async def close(self, limit_s: float) -> None:
        """Close all, each within the limit; errors of a server that is gone do not matter any more."""
        for client in (self.client, *self.guides):
            try:
                async with asyncio.timeout(limit_s):
                    await client.aclose()
            except (RedisError, OSError, TimeoutError):
                pass

    async def hang_up(self) -> None:
        """Drop pooled connections: after a failover the name may lead to another server."""
        pool = getattr(self.client, "connection_pool", None)
        if pool is not None:
            try:
                await pool.disconnect(inuse_connections=False)
            except (RedisError, OSError):
                pass


def connect(url: RedisUrl, tls: TlsSettings | None, timeout_s: float, name: str) -> Connected:
    """A client, not connected yet. `name` is what `CLIENT LIST` shows; `timeout_s` is for a connection to be made."""
    options: dict[str, Any] = {
        # A blocking read waits longer than a write may take, so each call has a limit of its own instead.
        "socket_timeout": None,
        "socket_connect_timeout": timeout_s,
        "client_name": name or None,
        "protocol": 2,
        "username": url.user or None,
        "password": url.password or None,
        "retry": Retry(NoBackoff(), 0),
    }
    if url.is_tls:
        options |= {"ssl": True} | _files(tls)
    match url.layout:
        case Layout.SOCKET:
            return Connected(Redis(unix_socket_path=url.path, db=url.db, **options))
        case Layout.SENTINEL:
            return _sentinel(url, options)
        case Layout.CLUSTER:
            nodes = [ClusterNode(server.host, server.port) for server in url.servers]
            return Connected(RedisCluster(startup_nodes=nodes, **options))
        case Layout.SERVER:
            server = url.servers[0]
            return Connected(Redis(host=server.host, port=server.port, db=url.db, **options))


def _files(tls: TlsSettings | None) -> dict[str, Any]:
    """The server's certificate is always verified; what is not named is the system's."""
    if tls is None:
        return {}
    return {"ssl_ca_certs": tls.ca, "ssl_certfile": tls.cert, "ssl_keyfile": tls.key}


def _sentinel(url: RedisUrl, options: dict[str, Any]) -> Connected:
    """The credentials are those of the data servers; sentinels are asked without any."""
    asked = {key: value for key, value in options.items() if key not in ("username", "password", "client_name")}
    asked["socket_timeout"] = options["socket_connect_timeout"]  # one that hangs must not keep us from the next one
    sentinel = Sentinel([(server.host, server.port) for server in url.servers], sentinel_kwargs=asked)  # type: ignore[no-untyped-call]
    return Connected(sentinel.master_for(url.service, db=url.db, **options), tuple(sentinel.sentinels))
