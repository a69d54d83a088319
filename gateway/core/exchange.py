"""The Exchange: one request and its response passing through, with everything known of it so far.

Made by the worker once per request, filled by filters in order, read by the access log last. State that outlives a
request (pools, the map, counters) reaches filters as `services`, never by import.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from gateway.core.placement import NO_VERSION, Placement, Version

if TYPE_CHECKING:
    from gateway.core.errors import Flag
    from gateway.core.following import Overrides
    from gateway.core.hop import Hop
    from gateway.core.http1.head import Request, Response
    from gateway.core.limits import Bucket, Refusal
    from gateway.core.routing import Decision
    from gateway.core.shedding import Priority
    from gateway.core.tenancy import Memo, Resolved
    from gateway.core.tokens import Tokens
    from gateway.core.view import View


class Held(Protocol):
    """What an exchange takes up until it is over, such as a place among the requests at once."""

    def release(self, exchange: Exchange, now: float) -> None:
        """The exchange is over; called once."""
        ...


class Limiting(Protocol):
    """What keeps the limits of `throttle` and of tenants."""

    def admit(self, exchange: Exchange) -> Refusal | None:
        """Charge this request to every limit that holds for it; what the first one says that has no room."""
        ...


class InHand(Protocol):
    """Counts what an application has in hand."""

    def uploaded(self, exchange: Exchange, now: float) -> None:
        """The application has the whole of a request whose body was still coming when it was let in."""
        ...

    def release(self, exchange: Exchange, now: float) -> None:
        """The head of its answer is here, or the exchange is over; `counted_by` is None again."""
        ...


class Shedder(Protocol):
    """Refuses what is too much."""

    def admit(self, exchange: Exchange, priority: Priority) -> None:
        """Let a request in. Raises GatewayError(shed)."""
        ...


class Services(Protocol):
    """What a filter may ask of the worker. Everything here answers at once: nothing waits for I/O."""

    @property
    def memo(self) -> Memo:
        """What `tenancy.resolve` remembers of Hosts, for as long as this View and map stand."""
        ...

    @property
    def overrides(self) -> Overrides:
        """What other regions' gateways knew better than the map."""
        ...

    @property
    def tokens(self) -> Tokens:
        """Who verifies the tokens that name tenants."""
        ...

    @property
    def limiter(self) -> Limiting:
        """This worker's share of every limit."""
        ...

    @property
    def shedder(self) -> Shedder:
        """Who refuses load that is too much."""
        ...

    def map_complete(self) -> bool:
        """Whether the tenant map's completeness mark stands."""
        ...

    def placement(self, tenant: str) -> Placement | None:
        """The tenant's record, from a bounded cache above the store."""
        ...

    def host_owner(self, host: str) -> str | None:
        """The tenant that claims `host` (lower case, no port) in its `hosts`."""
        ...

    def count_map(self, metric: str) -> None:
        """Count `map_behind` or `map_differs`."""
        ...

    def count_hop_rejected(self, reason: str) -> None:
        """Count a hop that was not valid: missing, form, key, clock or destination."""
        ...

    def takes_on(self, reason: str) -> bool:
        """Whether the application here gets one more request, decided for `reason`: the View's `max_traffic`."""
        ...

    def count_denied(self, scope: str) -> None:
        """Count a client whose address a list refuses: of its route or tenant."""
        ...

    def random_id(self) -> str:
        """A fresh request id."""
        ...

    def ready(self) -> bool:
        """Whether this gateway should get traffic: the readiness probe's answer."""
        ...

    def peer_answer(self) -> bytes:
        """What this gateway says of itself to another region's control: JSON."""
        ...

    def log_exchange(self, exchange: Exchange) -> None:
        """Write the access log's line."""
        ...


class Exchange:
    """One request's typed context. Times: `started` is monotonic seconds, `wall_ms` gives Unix milliseconds.

    `listener` is `http` or `hop`; `forwarded` collects the fields that filters add for the application, as whole lines
    without CRLF (one item may hold several); `destination` are those that depend on where it goes, written anew when
    that changes. `placement` is the record decided by (`recorded` false: from no map); `waited_s` is what tries have
    used up of the time to answer, `timeout_s` how long the client says that it waits (0: it does not say). `endpoint`
    names the endpoint filter that answers; `flag` is set when the gateway itself did, `retry_after_s` where it knows
    better than the flag when to come back. `refusal` is a limit's, `limited` the one to tell the client of, `held`
    is released when the exchange is over; `charged`: limits were, before it was parked.
    `priority` is the class that a hop carries where load is shed; `counted_by`
    who counts it while the application has it, since `in_hand_since` where that is not `started` (below 0: it has not
    the whole of it yet); `whole` once a body has come to its end. What is not known yet is a class attribute: making
    one costs nine stores, not thirty, and further ones would cost more: CPython keeps up to 30 names for all of them.
    """

    client = ""
    request_id = ""
    tenant = ""
    hop: Hop | None = None
    resolved: Resolved | None = None
    placement: Placement | None = None
    recorded = True
    version: Version = NO_VERSION
    home = ""
    decision: Decision | None = None
    endpoint = "reply"
    cluster = ""
    reason = ""
    scheme: str | None = None
    forwarded_for = b""
    destination = b""
    hop_signature = ""
    waited_s = 0.0
    timeout_s = 0.0
    verdict = b""
    response: Response | None = None
    status = 0
    flag: Flag | None = None
    retry_after_s = 0
    priority: Priority | None = None
    counted_by: InHand | None = None
    in_hand_since = 0.0
    whole = False
    refusal: Refusal | None = None
    limited: Bucket | None = None
    held: tuple[Held, ...] | None = None
    charged = False
    bytes_in = 0
    bytes_out = 0

    def __init__(
        self,
        request: Request,
        view: View,
        services: Services,
        listener: str,
        peer: str,
        local_port: int,
        started: float,
        wall_ms: Callable[[], int],
    ) -> None:
        self.request = request
        self.view = view
        self.services = services
        self.listener = listener
        self.peer = peer
        self.local_port = local_port
        self.started = started
        self.wall_ms = wall_ms
        self.forwarded: list[bytes] = []
