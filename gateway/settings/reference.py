"""`docs/configuration.md`, made from the very tables that the loader reads by, so that neither can forget a key.

`python -m gateway.settings.reference > docs/configuration.md` writes it; a test holds the two together.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Final, NamedTuple

from gateway.settings import identity, keys, tenants
from gateway.settings.shape import NOT_YET, Effect, Items, Key, Kind, Later, Named, OrNone, Record

INTRODUCTION: Final = """\
# Configuration

`config/gateway.yaml` configures one gateway, `config/tenants.yaml` says who lives where; both are commented examples.
This page is made from the tables in `gateway/settings/keys.py` and `tenants.py`, by which files are read; a test holds
them together. To write it anew: `python -m gateway.settings.reference > docs/configuration.md`.

## How a configuration is put together

1. `gateway.yaml`.
2. `regions/<region>.yaml` beside it, where there is one, merged over it: mappings merge key by key, lists and single
   values replace. The region is `LANDBRIDGE_REGION`, else `LANDBRIDGE__region`, else `region` in `gateway.yaml`.
3. Environment variables `LANDBRIDGE__a__b=value` set the key `a.b`. A value that is JSON (a list, a mapping, a quoted
   text) is read as such, anything else is the text as it stands: `LANDBRIDGE__drain__grace=5s`,
   `LANDBRIDGE__trusted_proxies='["10.20.0.0/24"]'`. A list is given whole.

In values, `${NAME}` stands for an environment variable and `${file:path}` for the content of a file, without its last
line break; `$${` stands for `${` itself. Files are read again at each reload, variables are as they were at the start.
Relative paths start at the folder of the file that names them (for an environment variable: that of `gateway.yaml`).
Anchors and aliases work; tags and merge keys (`<<`) are refused. In `tenants.yaml` nothing is expanded.

`landbridge check -c config/gateway.yaml` names every mistake in all of them at once, a line each, and exits with 2:

    config/gateway.yaml:12: clusters.app.timeouts.connect: expected a duration such as 250ms, got "fast"
    LANDBRIDGE__drain__grace: drain.grace: expected a duration such as 250ms, got 5

A mistake is: a key that is not known, stands twice, or is not supported yet; a value of another type, without its
unit or out of its range; a name that nothing bears. A reload that does not validate changes nothing.

## How values are written

| type | examples | |
|---|---|---|
| duration | `250ms`, `1.5s`, `2m`, `1h` | a unit is required |
| size | `512B`, `64KiB`, `8MiB`, `1GiB` | a unit is required |
| percentage | `5%` | |
| address, host:port | `0.0.0.0:8080`, `app.internal:9000`, `"[::1]:8081"` | IPv6 in brackets; listeners: no names |
| network | `10.20.0.0/24`, `2001:db8::/48` | no bits beyond the mask |
| name | `us-east-1` | 1 to 32 of `a-z 0-9 -` |
| ids and names | `no`, `007`, `12:30` | taken as written, before YAML's typing |

*Change* says what a changed key takes: `reload` is applied in place; `new workers` needs worker processes to be
replaced; `restart` needs a new start. New workers that do not serve change nothing.
"""

GATEWAY: Final = """
## `gateway.yaml`
"""

AFTER_GATEWAY: Final = """\
`clusters."region:*"` and `clusters."region:NAME"` take `timeouts`, `retries` and `limits` for the gateways of all other
regions, and of one; what the latter says goes before.

Each entry of `tenancy.resolvers` is one of:

| resolver | example | |
|---|---|---|
| `host` | `"{tenant}.example.com"` | `{tenant}` is one whole label, not the last |
| `header` | `X-Tenant-ID` | not a field of the gateway's own or of HTTP; removed where another resolver answered |
| `path` | `/t/{tenant}/` | matches the raw path, which is never stripped |
| `query` | `tenant` | a parameter's name |
| `cookie` | `tenant` | a cookie's name |
| `jwt` | a mapping, above | a signed token's claim ([how](protection.md#identity)) |
| `alb` | a mapping, above | what AWS's load balancer says of a user that it authenticated; trusted proxies only |
| `fixed` | `acme` | every request is this tenant's |

A Redis URL names Redis, Valkey or what speaks their protocol:

| URL | |
|---|---|
| `redis://USER:PASSWORD@HOST:6379/0` | one server, a database's number after it |
| `unix:///run/valkey.sock?db=0` | its socket on this machine |
| `redis+sentinel://USER:PASSWORD@H1:26379,H2:26379/SERVICE/0` | the master that the sentinels name |
| `redis+cluster://USER:PASSWORD@H1:6379,H2:6379` | a cluster, which tells its other nodes |

`rediss` instead of `redis` is the same over TLS; certificates are always verified. Everything but the place may be left
out: the port, the database, `USER:PASSWORD@`, or `USER` alone, which then is Redis's `default`. The credentials are
those of the servers; sentinels are asked without any. Whatever stands between `://` and the last `@` are credentials,
so that a password from a secret store goes in as it is, as in `rediss://landbridge:${file:/run/secrets/redis}@valkey:6379`;
only `%` has a meaning there: `%25` is the sign itself. Anything else after the place is refused. No message, log or
answer of the admin API ever shows the credentials.
"""

TENANTS: Final = """
## `tenants.yaml`

The file is watched; a change is applied as a whole once it stood still for 200 ms, and never when it holds a mistake.
An emptied file is a mistake: no tenant at all is written `tenants: {}`. Ids are 1 to 63 of `a-z 0-9 - _`, in lower
case. A host that two tenants claim, or that a host template gives to another tenant, is a mistake naming both lines.
"""

NOT_YET_TEXT: Final = """
## Not supported yet

Refused by name, never ignored: {keys}.
"""


class Documented(NamedTuple):
    """A key by its full path, `clusters.<cluster>.timeouts.connect`; `effect` includes what its parents need."""

    path: str
    key: Key
    effect: Effect


def every_key(root: Record, path: str = "", effect: Effect = Effect.RELOAD) -> Iterator[Documented]:
    """Every key of a schema, in its order, those of later versions included."""
    for name, key in root.keys.items():
        inner = f"{path}.{name}" if path else name
        own = key.effect if key.effect is not Effect.RELOAD else effect
        yield Documented(inner, key, own)
        yield from _below(key.kind, inner, own)


def _below(kind: Kind, path: str, effect: Effect) -> Iterator[Documented]:
    match kind:
        case Record():
            yield from every_key(kind, path, effect)
        case OrNone() | Items():
            yield from _below(kind.kind, f"{path}[]" if isinstance(kind, Items) else path, effect)
        case Named():
            yield from _below(kind.kind, f"{path}.{kind.label}", effect)
        case keys.ResolverKind():
            for name, record in identity.TOKENS.items():
                yield from every_key(record, f"{path}.{name}", effect)


def is_later(key: Key) -> bool:
    return isinstance(key.kind, Later)


def _rows(root: Record, tenants_file: bool = False) -> Iterator[str]:
    for path, key, effect in every_key(root):
        if is_later(key) and not (isinstance(key.kind, Later) and key.kind.empty_is_fine):
            continue
        default = "required" if key.required else f"`{key.default}`" if key.default else ""
        row = f"| `{path}` | {_type(key.kind)} | {default} | {key.about} |"
        yield row if tenants_file else f"{row} {effect.value} |"


def _type(kind: Kind) -> str:
    if isinstance(kind, Later):
        return f"list ({NOT_YET})"
    if isinstance(kind, Named):
        return f"mapping of {kind.name.type_name}s"
    if isinstance(kind, Items) and isinstance(kind.kind, Record):
        return "list of mappings"
    return kind.type_name


def reference() -> str:
    """The text of `docs/configuration.md`."""
    later = [d for root in (keys.ROOT, tenants.ROOT) for d in every_key(root) if is_later(d.key)]
    refused = [f"`{d.path}`" for d in later]
    parts = [
        INTRODUCTION,
        GATEWAY,
        "| key | type | default | what it does | change |",
        "|---|---|---|---|---|",
        *_rows(keys.ROOT),
        "",
        AFTER_GATEWAY.rstrip(),
        TENANTS,
        "| key | type | default | what it does |",
        "|---|---|---|---|",
        *_rows(tenants.ROOT, tenants_file=True),
        *([NOT_YET_TEXT.format(keys=", ".join(refused)).rstrip()] if refused else []),
        "",
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(reference())
