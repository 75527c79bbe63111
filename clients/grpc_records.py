"""Records of :mod:`.wire` as messages of the proto file and back: fields of one name are one field.

Keys are hexadecimal text in records that JSON carries too, bytes in messages; levels are their names; absent is absent.
"""

import types
from collections.abc import Hashable
from dataclasses import fields, is_dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from ..codec.level import Level, parse_level
from ..errors import InvalidRequest, KvloomError

__all__ = ["fill", "parse_message", "read_record", "to_message"]

M = TypeVar("M", bound=Message)
T = TypeVar("T")
Field = Any
"""A descriptor of a field: each implementation of protobuf has a class of its own."""


def to_message(record: object, kind: type[M]) -> M:
    """The record as a new message of ``kind``; every field of the record must be one of the message."""
    message = kind()
    fill(message, record)
    return message


def fill(message: Message, record: Any) -> None:
    """Set the fields of ``message`` to what ``record`` has."""
    described = message.DESCRIPTOR.fields_by_name
    for item in fields(record):
        value, field = getattr(record, item.name), described[item.name]
        if value is None:
            continue
        if isinstance(value, tuple):
            into = getattr(message, item.name)
            if field.message_type is not None:
                for part in value:
                    fill(into.add(), part)
            else:
                into.extend(value if _is_plain(field) else [_scalar(part, field) for part in value])
        elif field.message_type is not None:
            nested = getattr(message, item.name)
            nested.SetInParent()
            fill(nested, value)
        else:
            setattr(message, item.name, _scalar(value, field))


def parse_message(kind: type[M], data: bytes) -> M:
    """A message of ``kind``; :class:`InvalidRequest` for bytes that are none."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidRequest(f"{len(data)} bytes are no {kind.DESCRIPTOR.name}: {error}") from error


def read_record(kind: type[T], message: Message) -> T:
    """Build a ``kind`` from a message; what is absent takes its default. :class:`InvalidRequest` for what cannot be."""
    hints = _hints(cast("Hashable", kind))
    given: dict[str, Any] = {}
    for name, field in message.DESCRIPTOR.fields_by_name.items():
        hint = hints.get(name)
        if hint is None:
            continue
        hint, optional = _without_none(hint)
        value = getattr(message, name)
        if field.is_repeated:
            if value or not optional:
                given[name] = _read_many(get_args(hint)[0], value, field)
        elif not field.has_presence or message.HasField(name):
            given[name] = _read(hint, value, field)
    try:
        return kind(**given)
    except InvalidRequest:
        raise
    except (KvloomError, ValueError, TypeError) as error:
        raise InvalidRequest(f"{message.DESCRIPTOR.name}: {error}") from error


def _read_many(hint: Any, values: Any, field: Field) -> tuple[Any, ...]:
    if hint in (int, bool, float) or (_is_plain(field) and not _is_ours(hint)):
        return tuple(values)
    return tuple(_read(hint, value, field) for value in values)


def _read(hint: Any, value: Any, field: Field) -> Any:
    if is_dataclass(hint) and field.message_type is not None:
        return read_record(cast("type[Any]", hint), value)
    if field.enum_type is not None:
        return _choice(hint, _name_of(value, field), field)
    if hint is Level:
        return parse_level(value)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return _choice(hint, value, field)
    return value.hex() if hint is str and isinstance(value, bytes) else value


def _choice(hint: Any, name: str, field: Field) -> Any:
    try:
        return hint(name)
    except ValueError as error:
        raise InvalidRequest(f"{field.name} is {name[:40]!r}, not one of {', '.join(hint)}") from error


def _scalar(value: Any, field: Field) -> Any:
    if field.enum_type is not None:
        return field.enum_type.values_by_name[f"{field.enum_type.name.upper()}_{value.upper()}"].number
    if isinstance(value, Level):
        return value.name
    if field.type == FieldDescriptor.TYPE_BYTES and isinstance(value, str):
        return bytes.fromhex(value)
    return value


def _name_of(number: int, field: Field) -> str:
    found = field.enum_type.values_by_number.get(number) if field.enum_type is not None else None
    if found is None:
        raise InvalidRequest(f"{field.name} is {number}, which has no meaning")
    prefix = f"{found.type.name}_"
    name: str = found.name[len(prefix) :]
    return name.lower()


def _is_plain(field: Field) -> bool:
    """Whether values need no translation one by one: numbers, truth values and texts."""
    return field.enum_type is None and field.type != FieldDescriptor.TYPE_BYTES and field.message_type is None


def _is_ours(hint: Any) -> bool:
    return hint is Level or (isinstance(hint, type) and issubclass(hint, StrEnum))


def _without_none(hint: Any) -> tuple[Any, bool]:
    if get_origin(hint) in (Union, types.UnionType):
        return next(item for item in get_args(hint) if item is not type(None)), True
    return hint, False


@lru_cache(maxsize=64)
def _hints(kind: Hashable) -> dict[str, Any]:
    return get_type_hints(kind)
