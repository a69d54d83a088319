"""The JSON Schema of `gateway.yaml` (draft 2020-12), for editors that complete and check while one types.

Made from the same tables as the loader, and looser than it: a value may be a `${…}` that only the loader can follow,
and units, references and requirements between keys are the loader's. Keys of later versions are left out.
"""

from __future__ import annotations

from typing import Any, Final

from gateway.settings import keys, templates
from gateway.settings.shape import Choice, FilePath, Free, Items, Kind, Later, Named, OrNone, Record, Scalar

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
REFERENCE: Final = r"\$\{[^{}]+\}"


def json_schema() -> dict[str, Any]:
    """The whole document's schema."""
    return {"$schema": DIALECT, "title": "Landbridge gateway.yaml", **_of(keys.ROOT)}


def _of(kind: Kind) -> dict[str, Any]:
    match kind:
        case Record():
            return _record(kind)
        case Named():
            special = kind.special("region:*")
            extra = {"patternProperties": {"^region:": _of(special)}} if special else {}
            return {"type": "object", **extra, "additionalProperties": _of(kind.kind)}
        case Items():
            return {"type": "array", "items": _of(kind.kind), "uniqueItems": kind.distinct}
        case OrNone():
            return {"anyOf": [{"const": "none"}, _of(kind.kind)]}
        case Choice():
            return {"anyOf": [{"enum": list(kind.words)}, {"type": "string", "pattern": REFERENCE}]}
        case Scalar():
            return {"type": ["string", "number", "boolean"], "description": f"expected: {kind.expected}"}
        case FilePath():
            return {"type": "string"}
        case Free():
            return {"type": "object"}
        case Later():
            return {"type": "array", "maxItems": 0}
        case keys.ResolverKind():
            kinds = {name: {"type": "string"} for name in templates.RESOLVERS}
            return {"type": "object", "properties": kinds, "additionalProperties": False, "minProperties": 1,
                    "maxProperties": 1}  # fmt: skip
        case _:
            raise TypeError(f"no JSON Schema for {type(kind).__name__}")


def _record(record: Record) -> dict[str, Any]:
    properties = {}
    for name, key in record.keys.items():
        if isinstance(key.kind, Later) and not key.kind.empty_is_fine:
            continue
        properties[name] = {"description": key.about + (f" Default: {key.default}" if key.default else "")}
        inner = _of(key.kind)
        if "description" in inner:
            inner["description"] = f"{properties[name]['description']} ({inner['description']})"
        properties[name] |= inner
    # overlays and the environment may add what is required, so that no single file has to hold it
    return {"type": "object", "properties": properties, "additionalProperties": False}
