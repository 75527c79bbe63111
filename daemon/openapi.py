"""The HTTP interface described as OpenAPI 3.1, made of the route table and the records on the wire. Pure.

There is no second list of routes, fields or errors: what is not in the table is not described, and what is described is
what the table serves.
"""

import types
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

from .. import __version__, limits
from ..clients import wire
from ..codec.level import EXACT, LOSSY_LEVELS, Level
from ..errors import BodyTooLarge, Forbidden, InvalidRequest, KvloomError, Overloaded, TenantOverloaded, Unauthenticated
from ..kvstore.tiered.pins import LEASE_ID_BYTES
from .call import OPEN, SESSION
from .http_route import KEY_SCHEMA, LAYERS, LEVEL, Answer, Field, Route, Schema

__all__ = ["describe"]

_SECURITY: Final = "key"
_COOKIE: Final = "session"
_DIGITS: Final = "^([0-9a-f]{2})*$"
_PATH: Final[dict[str, Field]] = {
    "key": Field("key", KEY_SCHEMA, "The content key of a chunk."),
    "digest": Field("digest", KEY_SCHEMA, "The BLAKE3 digest of a profile."),
    "file": Field("file", {"type": "string", "pattern": "^[a-z_]{1,40}[.](css|js|svg)$"}, "A file of the dashboard."),
    "lease": Field("lease", {"type": "string", "pattern": f"^[0-9a-f]{{{2 * LEASE_ID_BYTES}}}$"}, "A lease."),
}
_KEYS: Final[Schema] = {"type": "array", "items": KEY_SCHEMA, "maxItems": limits.KEYS_PER_REQUEST_MAX}
_BY_NAME: Final[dict[str, Schema]] = {
    "keys": _KEYS,
    "key": KEY_SCHEMA,
    "fingerprint": KEY_SCHEMA,
    "layout_digest": KEY_SCHEMA,
    "lease_seconds": {"type": "number", "minimum": 0.001, "maximum": limits.LEASE_SECONDS_MAX},
    "chunk_tokens": {"type": "integer", "minimum": 1, "maximum": limits.CHUNK_TOKENS_MAX},
    "adapter": {"type": "string", "maxLength": limits.ADAPTER_BYTES_MAX // 4},
    "tokens": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": limits.VOCABULARY_MAX}},
}
"""Fields whose types say less than is known of them; ``tokens`` where it is a list."""
_QUESTIONS: Final = ("BatchQuestion",)


def describe(routes: Iterable[Route], *, cookie: str) -> Schema:
    """The document, as JSON values; ``cookie`` is the name of the one that the dashboard's sessions go by."""
    schemas: dict[str, Schema] = {}
    paths: dict[str, dict[str, Schema]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kvloom",
            "version": __version__,
            "description": "KV caches of language models. What the calls mean: docs/API.md.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {
                _SECURITY: {"type": "http", "scheme": "bearer"},
                _COOKIE: {"type": "apiKey", "in": "cookie", "name": cookie},
            },
        },
    }


def _operation(route: Route, schemas: dict[str, Schema]) -> Schema:
    names = [piece[1:-1] for piece in route.path.split("/") if piece.startswith("{")]
    parameters = [
        *(_parameter(_PATH[name], "path") for name in names),
        *(_parameter(item, "query") for item in route.query),
        *(_parameter(item, "header") for item in route.headers),
    ]
    operation: Schema = {
        "operationId": f"{route.method.lower()}_{route.call.name.lower()}",
        "summary": route.call.does,
        "security": _security(route),
        "x-kvloom-scope": str(route.needs.value),
        "parameters": parameters,
        "responses": {
            **{str(item.status): _answer(item, schemas) for item in route.answers},
            **{str(status): _refusal(route, codes, schemas) for status, codes in sorted(_errors_of(route).items())},
        },
    }
    if route.body is not None:
        content = _schema(route.body.record, schemas) if route.body.record is not None else _BYTES
        operation["requestBody"] = {"required": True, "content": {route.body.media: {"schema": content}}}
    return operation


def _security(route: Route) -> list[Schema]:
    """Any one of these is enough."""
    if route.needs is OPEN:
        return []
    return [{_SECURITY: []}, {_COOKIE: []}] if route.needs is SESSION else [{_SECURITY: []}]


_BYTES: Final[Schema] = {"type": "string", "format": "binary"}


def _parameter(item: Field, place: str) -> Schema:
    required = {"required": True} if place == "path" else {}
    return {"name": item.name, "in": place, "description": item.means, "schema": item.schema, **required}


def _answer(item: Answer, schemas: dict[str, Schema]) -> Schema:
    answer: Schema = {"description": "As asked."}
    if item.headers:
        answer["headers"] = {
            header.name: {"description": header.means, "schema": header.schema, "required": header.always}
            for header in item.headers
        }
    if item.media is not None:
        content = _BYTES if item.record is None else _schema(item.record, schemas)
        answer["content"] = {media: {"schema": content} for media in (item.media, *item.media_too)}
    return answer


def _refusal(route: Route, errors: set[type[KvloomError]], schemas: dict[str, Schema]) -> Schema:
    names = ", ".join(sorted(error.code for error in errors))
    refusal: Schema = {"description": f"{names} and what is below them."}
    if route.method != "HEAD":
        refusal["content"] = {wire.JSON_TYPE: {"schema": _schema(wire.ErrorBody, schemas)}}
    return refusal


def _errors_of(route: Route) -> dict[int, set[type[KvloomError]]]:
    """The errors that a route may answer, by their status; an error stands for those below it in the tree."""
    listed: list[type[KvloomError]] = [InvalidRequest, Forbidden, *route.refusals]
    if route.needs is not OPEN:
        listed.append(Unauthenticated)
    if route.admitted:
        listed += [Overloaded, TenantOverloaded]
    if route.body is not None:
        listed.append(BodyTooLarge)
    by_status: dict[int, set[type[KvloomError]]] = {}
    for error in listed:
        by_status.setdefault(error.http_status, set()).add(error)
    return by_status


def _schema(kind: Any, schemas: dict[str, Schema]) -> Schema:
    """The JSON Schema of a type as :func:`.wire.dump` writes it; records become components."""
    kind = getattr(kind, "__supertype__", kind)
    if get_origin(kind) in (Union, types.UnionType):
        known = [_schema(item, schemas) for item in get_args(kind) if item is not type(None)]
        return {"anyOf": [*known, {"type": "null"}]}
    if get_origin(kind) is tuple:
        return {"type": "array", "items": _schema(get_args(kind)[0], schemas)}
    if kind is Level:
        return {"type": "string", "enum": [level.name for level in (*LOSSY_LEVELS, EXACT)]}
    if is_dataclass(kind):
        return _record(kind, schemas)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return {"type": "string", "enum": [item.value for item in kind]}
    if kind is bytes:
        return {"type": "string", "pattern": _DIGITS}
    plain = {bool: "boolean", int: "integer", float: "number", str: "string", dict: "object"}
    return {"type": plain[kind]}


def _record(kind: Any, schemas: dict[str, Schema]) -> Schema:
    name = kind.__name__
    if name not in schemas:
        schemas[name] = {}  # it may stand in itself
        hints = get_type_hints(kind)
        required = [item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING]
        schemas[name] = {
            "type": "object",
            "description": (kind.__doc__ or "").split("\n")[0],
            "properties": {item.name: _field(name, item.name, hints[item.name], schemas) for item in fields(kind)},
            "required": required,
            "additionalProperties": False,
        }
    return {"$ref": f"#/components/schemas/{name}"}


def _field(record: str, name: str, hint: Any, schemas: dict[str, Schema]) -> Schema:
    optional = get_origin(hint) in (Union, types.UnionType)
    bare = next((item for item in get_args(hint) if item is not type(None)), hint) if optional else hint
    known = _BY_NAME.get(name)
    if record in _QUESTIONS:
        known = {"level": LEVEL.schema, "layers": LAYERS.schema}.get(name, known)
    if known is None or (name == "tokens" and get_origin(bare) is not tuple):
        return _schema(hint, schemas)
    if name == "keys" and get_origin(bare) is not tuple:
        return _schema(hint, schemas)
    return {"anyOf": [known, {"type": "null"}]} if optional else known
