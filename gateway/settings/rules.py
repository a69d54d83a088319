"""What one key says of another: references, requirements and clashes, and what is valid but probably not meant.

Runs also on a configuration with problems, on stand-ins for what could not be read, so that an operator sees a
dangling reference next to a misspelt unit. A rule that would only repeat a problem already noted stays silent.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final

from gateway.core.balancing import Balancer, HashBy
from gateway.core.placement import Misroute
from gateway.core.view import REGION_CLUSTER
from gateway.settings import redis_url, shedding, throttling, units
from gateway.settings.document import Leaf, Listing, Node, Path, Table, described, dotted, find
from gateway.settings.problems import nearest, shown
from gateway.settings.scalars import FILTERS
from gateway.settings.schema import Address, MapSource, RouteSettings, Settings
from gateway.settings.shape import Walk

APP: Final = "app"
KEEPALIVE_MIN_S: Final = 60.0
"""AWS's load balancer reuses connections that were idle for so long; who closes earlier makes 502s."""
IDLE_MAX_S: Final = 5.0
"""Node and uvicorn close idle connections after it; a request sent at that moment is lost."""
WIDE_V4: Final = 16
WIDE_V6: Final = 48
"""A larger network than a VPC's is rarely all load balancers, and each of its hosts may forge a client's address."""
WILDCARDS: Final = ("0.0.0.0", "::")


def judge(settings: Settings, root: Table, walk: Walk, chosen: str) -> None:
    """Note every rule that `settings` breaks. `chosen` is the region whose overlay was taken; empty: none was."""
    rules = _Rules(settings, root, walk, chosen)
    rules.region()
    rules.clusters()
    rules.tenancy()
    rules.between_regions()
    rules.listeners()
    rules.admin()
    rules.replication()
    rules.times()
    throttling.judge(settings, rules.note, rules.is_bad)
    shedding.judge(settings, rules.note, rules.is_bad)


def judge_filters(
    settings: Settings, root: Table, walk: Walk, unmatched: Collection[str], paths: Sequence[object]
) -> None:
    """Note `paths` (as the walk read them) that stand for no file, and options whose filter nobody can know.

    Where there are files, only executing them tells which filters there are: `filter_check` judges the names.
    """
    rules = _Rules(settings, root, walk, "")
    for index, path in enumerate(paths):
        if path in unmatched:
            rules.note(("filters", "paths", index), "a file with filters, or a folder or pattern that has some")
    table = find(root, ("filters", "options"))
    if settings.filter_files or unmatched or not isinstance(table, Table) or not rules.has(("filters", "options")):
        return
    for name, node in table.entries.items():
        if name not in FILTERS and ("filters", "options", name) not in walk.bad:
            expected, path = f"a filter: one of {', '.join(FILTERS)}", ("filters", "options", name)
            walk.note_at(node.source, table.lines[name], path, expected, f"the key {shown(name)}")


class _Rules:
    def __init__(self, settings: Settings, root: Table, walk: Walk, chosen: str) -> None:
        self.settings = settings
        self.root = root
        self.walk = walk
        self.chosen = chosen
        self.bad = {path[:depth] for path in walk.bad for depth in range(1, len(path) + 1)}

    def note(self, path: Path, expected: str, found: str = "") -> None:
        """A problem at the value of `path`, or at what stands nearest to where it is missing."""
        node = find(self.root, path)
        self.walk.note(node, path, expected, found or (described(node) if self.has(path) else "nothing"))

    def has(self, path: Path) -> bool:
        if not path:
            return True
        above = find(self.root, path[:-1])
        last = path[-1]
        if isinstance(above, Table):
            return last in above.entries and self.has(path[:-1])
        return isinstance(above, Listing) and isinstance(last, int) and last < len(above.items)

    def is_bad(self, *path: str | int) -> bool:
        """Whether something at or below `path` could not be read."""
        return path in self.bad

    def region(self) -> None:
        settings = self.settings
        if self.is_bad("region") or ("regions",) in self.walk.bad:
            return
        if self.chosen and settings.region != self.chosen:
            self.note(("region",), f"{self.chosen}, the region whose overlay this is")
        elif settings.region not in settings.regions:
            self.note(("region",), f"one of regions{nearest(settings.region, settings.regions)}")

    def clusters(self) -> None:
        settings = self.settings
        known = [name for name in settings.clusters if not name.startswith(REGION_CLUSTER)]
        for name in getattr(find(self.root, ("clusters",)), "entries", {}):
            region = name.removeprefix(REGION_CLUSTER)
            if region in (name, "*") or ("regions",) in self.walk.bad or self.is_bad("clusters", name):
                continue
            if region not in settings.regions:
                expected = f"region:* or the name of one of regions{nearest(region, settings.regions)}"
                self.note(("clusters", name), expected, f"the key {shown(name)}")
        for name in settings.clusters:
            self.breaker(name, known)
            self.outliers(name)
            self.balance(name)
            self.retries(name)
        if ("clusters",) in self.walk.bad or ("routes",) in self.walk.bad:
            return
        self.routes(known)

    def retries(self, name: str) -> None:
        """A pause that is longer than the longest, or a try that takes all the time there is, has no meaning."""
        where: Path = ("clusters", name, "retries")
        cluster = self.settings.clusters[name]
        retries, backoff = cluster.retries, cluster.retries.backoff
        if not self.has(where) or self.is_bad("clusters", name):
            return
        if backoff.base > backoff.max:
            key = "base" if self.has((*where, "backoff", "base")) else "max"
            expected = f"at most backoff.max ({backoff.max:g}s)" if key == "base" else f"at least {backoff.base:g}s"
            self.note((*where, "backoff", key), expected)
        response = cluster.timeouts.response
        if retries.per_try_timeout is not None and retries.per_try_timeout >= response:
            self.note((*where, "per_try_timeout"), f"less than timeouts.response ({response:g}s)")

    def balance(self, name: str) -> None:
        where: Path = ("clusters", name, "hash")
        cluster = self.settings.clusters[name]
        key = cluster.hash
        if self.is_bad(*where) or self.is_bad("clusters", name, "balance"):
            return
        if (cluster.balance is Balancer.HASH) is not (key is not None):
            expected = "what to hash by, since balance is hash" if key is None else "no such key unless balance is hash"
            self.note(where, expected)
        elif key is not None and (key.by is HashBy.TENANT) is bool(key.name):
            self.note((*where, "name"), "no such key, since by is tenant" if key.name else f"the {key.by}'s name")
        elif key is not None and key.sticky is not None and key.by is not HashBy.COOKIE:
            self.note((*where, "sticky"), "no such key, unless by is cookie")

    def outliers(self, name: str) -> None:
        where: Path = ("clusters", name, "outliers")
        outliers = self.settings.clusters[name].outliers
        if outliers is not None and outliers.eject > outliers.eject_max and self.has(where) and not self.is_bad(*where):
            key = "eject" if self.has((*where, "eject")) else "eject_max"
            expected = f"at most eject_max ({outliers.eject_max:g}s)"
            self.note((*where, key), expected if key == "eject" else f"at least eject ({outliers.eject:g}s)")

    def breaker(self, name: str, known: list[str]) -> None:
        where: Path = ("clusters", name, "breaker")
        breaker = self.settings.clusters[name].breaker
        if breaker is None or self.is_bad(*where):
            return
        if breaker.open > breaker.open_max and self.has(where):
            key = "open" if self.has((*where, "open")) else "open_max"
            limits = {
                "open": f"at most open_max ({breaker.open_max:g}s)",
                "open_max": f"at least open ({breaker.open:g}s)",
            }
            self.note((*where, key), limits[key])
        if breaker.fallback is not None and (breaker.fallback not in known or breaker.fallback == name):
            others = [other for other in known if other != name]
            self.note((*where, "fallback"), f"another one of clusters{nearest(breaker.fallback, others)}")

    def routes(self, known: list[str]) -> None:
        seen: dict[str, int] = {}
        for index, route in self.written_routes():
            if route.cluster not in known and not self.is_bad("routes", index, "cluster"):
                self.note(("routes", index, "cluster"), f"one of clusters{nearest(route.cluster, known)}")
            if route.prefix in seen and not self.is_bad("routes", index, "prefix"):
                self.note(
                    ("routes", index, "prefix"), "each prefix once", f"that of routes[{seen[route.prefix]}] again"
                )
            seen.setdefault(route.prefix, index)
        if APP not in known and "/" not in seen and not self.is_bad("routes"):
            self.note(("clusters", APP), "the cluster app, to which everything goes that no route matches")

    def written_routes(self) -> list[tuple[int, RouteSettings]]:
        """The file's routes with their places in it: one that could not be read at all is not among the settings."""
        places = [index for index in range(len(_listed(self.root, "routes"))) if ("routes", index) not in self.walk.bad]
        return list(zip(places, self.settings.routes, strict=False))

    def tenancy(self) -> None:
        self.agreeing()
        unknown = self.settings.tenancy.unknown
        if unknown is not None and unknown not in self.settings.regions and not self.is_bad("regions"):
            self.note(("tenancy", "unknown"), f"reject or one of regions{nearest(unknown, self.settings.regions)}")

    def agreeing(self) -> None:
        """What is to agree has to be asked at all; and the load balancer's word is believed from it alone."""
        if self.is_bad("tenancy", "resolvers") or self.is_bad("tenancy", "agree"):
            return
        resolvers, agree = self.settings.tenancy.resolvers, self.settings.tenancy.agree
        kinds = {resolver.kind for resolver in resolvers}
        for index, kind in enumerate(agree):
            if kind not in kinds and kind != "host":  # `hosts` and regions' `public` speak for Host besides
                self.note(("tenancy", "agree", index), "a kind of resolver that tenancy.resolvers has", shown(kind))
        if len(agree) == 1:
            self.note(("tenancy", "agree"), "two kinds or more, or none", shown(agree[0]))
        for index, resolver in enumerate(resolvers):
            if resolver.kind == "alb" and not self.settings.trusted_proxies and not self.is_bad("trusted_proxies"):
                expected = "trusted_proxies with the load balancer's subnets, since nobody else is believed"
                self.note(("tenancy", "resolvers", index, "alb"), expected, "none")

    def between_regions(self) -> None:
        """What gateways need to carry requests to each other, or to send clients there instead."""
        settings = self.settings
        others = [name for name in settings.regions if name != settings.region]
        if not others or self.is_bad("region") or ("regions",) in self.walk.bad or self.is_bad("misroute"):
            return
        if settings.misroute is Misroute.EXTERNAL:
            if not settings.hop_keys and not self.is_bad("hop_keys"):
                for name in others:
                    if settings.regions[name].public is None and not self.is_bad("regions", name):
                        self.note(("regions", name, "public"), "a URL, since misroute is external")
            return
        why = f"since misroute is {settings.misroute.value} and there is more than one region"
        if not settings.hop_keys and not self.is_bad("hop_keys"):
            self.note(("hop_keys",), f"a key, {why}", "an empty list" if self.has(("hop_keys",)) else "")
        if settings.listen.hop is None and not self.is_bad("listen"):
            self.note(("listen", "hop"), f"an address, {why}")
        for name in others:
            if not settings.regions[name].gateways and not self.is_bad("regions", name):
                path = ("regions", name, "gateways")
                expected = f"at least one gateway, since misroute is {settings.misroute.value}"
                self.note(path, expected, "an empty list" if self.has(path) else "")

    def listeners(self) -> None:
        listen = self.settings.listen
        placed = [(name, address) for name, address in
                  (("http", listen.http), ("hop", listen.hop), ("admin", listen.admin))
                  if address is not None and not self.is_bad("listen", name)]  # fmt: skip
        for index, (name, address) in enumerate(placed):
            for earlier, other in placed[:index]:
                if _clash(address, other):
                    # a default that clashes has no place of its own: the other one has
                    here, there = (name, earlier) if self.has(("listen", name)) else (earlier, name)
                    taken = other if here == name else address
                    self.note(("listen", here), f"an address that listen.{there} ({taken}) leaves free")
        if units.is_loopback(listen.admin.host) or self.is_bad("listen", "admin") or self.is_bad("admin"):
            return
        if not self.settings.admin.tokens:
            self.note(("listen", "admin"), "a loopback address, since admin.tokens has none")

    def admin(self) -> None:
        """A name or a token that two entries share would leave open who it was."""
        places = [i for i in range(len(_listed(self.root, "admin", "tokens"))) if ("admin", "tokens", i) not in
                  self.walk.bad]  # fmt: skip
        names: set[str] = set()
        tokens: set[str] = set()
        for index, entry in zip(places, self.settings.admin.tokens, strict=False):
            where: Path = ("admin", "tokens", index)
            if entry.name in names and not self.is_bad(*where, "name"):
                self.note((*where, "name"), "each name once", f"{shown(entry.name)} again")
            if entry.token in tokens and not self.is_bad(*where, "token"):
                self.note((*where, "token"), "a token for each", "another's again")
            names.add(entry.name)
            tokens.add(entry.token)

    def replication(self) -> None:
        """What the replicated map needs, and whom it can follow."""
        settings, where = self.settings, ("tenant_map", "redis")
        if ("tenant_map",) in self.walk.bad or where in self.walk.bad:
            return
        redis = settings.tenant_map.redis
        if redis is None:
            if settings.tenant_map.source is MapSource.REDIS and not self.is_bad("tenant_map", "source"):
                self.note((*where, "url"), f"{redis_url.EXPECTED}, since tenant_map.source is redis")
            return
        others = [name for name in settings.regions if name != settings.region]
        for name in () if self.is_bad("regions") else redis.peers:
            if name == settings.region and not self.is_bad("region"):
                expected = "other regions only (this region's own is tenant_map.redis.url)"
            elif name not in settings.regions:
                expected = f"one of regions{nearest(name, others)}"
            else:
                continue
            self.note((*where, "peers", name), expected, f"the key {shown(name)}")
        if redis.tls is None or self.is_bad(*where):
            return
        if not any(redis_url.read(url).is_tls for url in (redis.url, *redis.peers.values())):
            self.note((*where, "tls"), "no such key, since no URL begins with rediss")
        if (redis.tls.cert is None) is not (redis.tls.key is None):
            lacking, given = ("key", "cert") if redis.tls.key is None else ("cert", "key")
            self.note((*where, "tls", lacking), f"a path, since tls.{given} is set")

    def times(self) -> None:
        drain, probes, names = self.settings.drain, self.settings.probes, self.settings.dns
        if names.ttl_min > names.ttl_max and not self.is_bad("dns"):
            key = "ttl_min" if self.has(("dns", "ttl_min")) else "ttl_max"
            expected = f"at most dns.ttl_max ({names.ttl_max:g}s)"
            if key == "ttl_max":
                expected = f"at least dns.ttl_min ({names.ttl_min:g}s)"
            self.note(("dns", key), expected)
        if drain.grace >= drain.limit and not self.is_bad("drain"):
            key = "grace" if self.has(("drain", "grace")) else "limit"
            expected = f"less than drain.limit ({drain.limit:g}s)"
            if key == "limit":
                expected = f"more than drain.grace ({drain.grace:g}s)"
            self.note(("drain", key), expected)
        if probes.live == probes.ready and not self.is_bad("probes"):
            key = "ready" if self.has(("probes", "ready")) else "live"
            self.note(("probes", key), f"a path other than that of probes.{'live' if key == 'ready' else 'ready'}")


def _unlooked_at(settings: Settings) -> Iterator[tuple[int, str]]:
    """The resolvers of tokens that a Host makes moot."""
    tenancy = settings.tenancy
    public = any(region.public is not None and "{tenant}" in region.public for region in settings.regions.values())
    if not public and not any(resolver.kind == "host" for resolver in tenancy.resolvers):
        return
    for index, resolver in enumerate(tenancy.resolvers):
        if resolver.kind in ("jwt", "alb") and not {"host", resolver.kind} <= set(tenancy.agree):
            yield index, resolver.kind


def _clash(a: Address, b: Address) -> bool:
    """Whether binding one address takes the other's port."""
    if a.port != b.port or a.port == 0:
        return False
    hosts = {"127.0.0.1" if address.host == "localhost" else address.host for address in (a, b)}
    return len(hosts) == 1 or bool(hosts & set(WILDCARDS))


def warnings(settings: Settings, root: Table) -> list[str]:
    """One line each: `file:line: path: what, and why`."""
    lines: list[str] = []

    def warn(path: Path, text: str) -> None:
        node = find(root, path)
        where = f"{node.source.name}:{node.line}" if node.line else node.source.name
        lines.append(f"{where}: {dotted(path)}: {text}")

    for index, network in enumerate(settings.trusted_proxies):
        parsed = ipaddress.ip_network(network)
        if parsed.prefixlen < (WIDE_V4 if parsed.version == 4 else WIDE_V6):
            warn(("trusted_proxies", index), f"{network} is wide: each of its hosts can forge a client's address")
    if settings.timeouts.keepalive < KEEPALIVE_MIN_S:
        warn(("timeouts", "keepalive"), f"{settings.timeouts.keepalive:g}s is below the 60s of AWS's load balancer, "
             "which may send a request into the close")  # fmt: skip
    for name, cluster in settings.clusters.items():
        if name.startswith(REGION_CLUSTER):
            continue
        if cluster.timeouts.idle >= IDLE_MAX_S:
            warn(("clusters", name, "timeouts", "idle"), f"{cluster.timeouts.idle:g}s is not below the 5s after which "
                 "Node and uvicorn close a connection")  # fmt: skip
        if not cluster.endpoints:
            warn(("clusters", name, "endpoints"), "no endpoint: this region cannot serve this cluster")
    for index, kind in _unlooked_at(settings):
        warn(("tenancy", "resolvers", index, kind), "a request whose Host names a tenant is served without a look at a "
             f"token; `agree: [host, {kind}]` holds both against each other")  # fmt: skip
    if len(settings.regions) > 1 and not settings.hop_keys:
        warn(("hop_keys",), "no key: what no redirect can answer (API calls, uploads, failover) cannot be carried")
    for index, node in enumerate(_listed(root, "hop_keys")):
        if isinstance(node, Leaf) and node.line and "${" not in node.text:
            warn(("hop_keys", index), "the key stands in the file: ${NAME} or ${file:path} keeps it out")
    for index, node in enumerate(_listed(root, "admin", "tokens")):
        written = node.entries.get("token") if isinstance(node, Table) else None
        if isinstance(written, Leaf) and written.line and "${" not in written.text:
            path = ("admin", "tokens", index, "token")
            warn(path, "the token stands in the file: ${NAME} or ${file:path} keeps it out")
    _warn_of_replication(settings, root, warn)
    if not settings.admin.hosts and not units.is_loopback(settings.listen.admin.host):
        warn(("listen", "admin"), "admin.hosts is empty: the API answers only to the address that was connected to")
    return lines


def _warn_of_replication(settings: Settings, root: Table, warn: Callable[[Path, str], None]) -> None:
    tenant_map, where = settings.tenant_map, ("tenant_map", "redis")
    others = [name for name in settings.regions if name != settings.region]
    if tenant_map.partition_after is not None and not others:
        warn(("tenant_map", "partition_after"), "there is no other region to hear from: it has no effect")
    if tenant_map.redis is None:
        return
    if tenant_map.source is not MapSource.REDIS:
        warn(where, "not used, since tenant_map.source is yaml")
    for name in others:
        if name not in tenant_map.redis.peers:
            warn((*where, "peers"), f"{name} is not named: what is written there does not come here")
    for path in [(*where, "url"), *((*where, "peers", name) for name in tenant_map.redis.peers)]:
        node = find(root, path)
        if isinstance(node, Leaf) and node.line and redis_url.shows_password(node.text):
            warn(path, "the password stands in the file: ${NAME} or ${file:path} keeps it out")


def _listed(root: Table, *path: str) -> list[Node]:
    node = find(root, path)
    return node.items if isinstance(node, Listing) else []
