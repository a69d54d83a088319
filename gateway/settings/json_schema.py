"""The JSON Schema of `gateway.yaml` (draft 2020-12), for editors that complete and check while one types.

Made from the same tables as the loader, and looser than it, never stricter: a value may hold a `${…}` that only the
loader can follow; overlays and the environment may add what is required, so that no single file has to hold it; and
what one key says of another is the loader's. Keys of later versions are left out, so an editor marks them too.

`landbridge check --schema > config/gateway.schema.json` writes it; a test holds the file and this module together.
"""

from __future__ import annotations

import json
from typing import Any, Final

import yaml

from gateway.settings import identity, keys, templates
from gateway.settings.shape import Choice, FilePath, Free, Items, Key, Kind, Later, Named, OrNone, Record, Scalar

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
REFERENCE: Final = r"\$\{"
"""A text with a reference in it may stand for anything."""

RESOLVERS: Final = {
    "host": (r"\{tenant\}", "A template of the Host, such as `{tenant}.example.com`."),
    "header": ("", "A field's name, such as X-Tenant-ID."),
    "path": (r"\{tenant\}", "A template of the path, such as /t/{tenant}/."),
    "query": ("", "A parameter's name."),
    "cookie": ("", "A cookie's name."),
    "fixed": ("", "The tenant of every request."),
}
"""By kind: a pattern that every value of it fits, and what it is."""

TOKENS: Final = {
    "jwt": "A claim of a signed token.",
    "alb": "A claim of what AWS's load balancer says of a user that it authenticated.",
}


def json_schema() -> dict[str, Any]:
    """The whole document's schema."""
    return {"$schema": DIALECT, "title": "Landbridge gateway.yaml", **_of(keys.ROOT)}


def text() -> str:
    """As `landbridge check --schema` prints it."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False)


def _of(kind: Kind, whole: bool = False) -> dict[str, Any]:
    """The schema of one value. `whole`: it cannot be completed by an overlay, as what stands in a list."""
    match kind:
        case Record():
            return _record(kind, whole)
        case Named():
            return _named(kind, whole)
        case Items():
            return {"type": "array", "items": _of(kind.kind, whole=True), "uniqueItems": kind.distinct}
        case OrNone():
            return {"anyOf": [{"const": "none"}, _of(kind.kind, whole)]}
        case Choice():
            return {"anyOf": [{"enum": list(kind.words)}, {"type": "string", "pattern": REFERENCE}]}
        case Scalar():
            return _scalar(kind)
        case FilePath():
            return {"type": "string", "minLength": 1}
        case Free():
            return {"type": "object"}
        case Later():
            return {"type": "array", "maxItems": 0}
        case identity.OneOrMore():
            one = _of(kind.kind)
            return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1, "uniqueItems": True}]}
        case identity.KeyPlace():
            return {"type": "string", "minLength": 1}
        case keys.ResolverKind():
            known = {kind: _resolver(kind) for kind in templates.RESOLVERS}
            known |= {
                name: {"description": TOKENS[name], **_record(record, whole=True)}
                for name, record in identity.TOKENS.items()
            }
            return {"type": "object", "properties": known,
                    "additionalProperties": False, "minProperties": 1, "maxProperties": 1}  # fmt: skip
        case _:
            raise TypeError(f"no JSON Schema for {type(kind).__name__}")


def _scalar(kind: Scalar) -> dict[str, Any]:
    schema: dict[str, Any] = dict(kind.schema)
    assert schema, f"{kind.type_name}: a scalar without a schema"
    said = {"patternErrorMessage": f"expected {kind.expected}"}  # understood by the YAML language server
    if "pattern" in schema:
        return {**schema, "pattern": f"{schema['pattern']}|{REFERENCE}", **said}
    choices = schema.get("anyOf", [schema])
    return {"anyOf": [*choices, {"type": "string", "pattern": REFERENCE, **said}]}


def _resolver(kind: str) -> dict[str, Any]:
    pattern, about = RESOLVERS[kind]
    fits = {"pattern": f"{pattern}|{REFERENCE}"} if pattern else {}
    return {"description": about, "type": ["string", "number", "boolean"], **fits}


def _named(kind: Named, whole: bool) -> dict[str, Any]:
    special = kind.special("region:*")
    extra = {"patternProperties": {"^region:": _of(special, whole)}} if special else {}
    names = {"pattern": kind.name.schema["pattern"]}
    return {"type": "object", "propertyNames": names, **extra, "additionalProperties": _of(kind.kind, whole)}


def _record(record: Record, whole: bool) -> dict[str, Any]:
    known = {n: k for n, k in record.keys.items() if not isinstance(k.kind, Later) or k.kind.empty_is_fine}
    required = [name for name, key in known.items() if key.required]
    return {
        "type": "object",
        "properties": {name: _described(key, whole) for name, key in known.items()},
        **({"required": required} if whole and required else {}),
        "additionalProperties": False,
    }


def _described(key: Key, whole: bool) -> dict[str, Any]:
    described: dict[str, Any] = {"description": key.about + (f" Default: {key.default}" if key.default else "")}
    if key.default:
        described["default"] = yaml.safe_load(key.default)
    return described | _of(key.kind, whole)
