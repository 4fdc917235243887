"""JSON documents as dataclasses with every field checked: any forged value is a `ValueError`."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

Document = TypeVar("Document")
_INT_LIMIT = 1 << 63


def parse(text: bytes) -> dict[str, Any]:
    """Parse a JSON object; whatever is none is a ValueError."""
    try:
        document = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return _object(document)


def build(kind: type[Document], document: object) -> Document:
    """Build a dataclass from a JSON object; a ValueError names the field that does not fit.

    Lists become tuples, objects become mappings or nested dataclasses.
    """
    document = _object(document)
    hints, required = _fields_of(kind)
    for name in sorted(document.keys() - hints.keys()):
        raise ValueError(f"{name} is no field of it")
    for name in sorted(required - document.keys()):
        raise ValueError(f"{name} is missing")
    return kind(**{name: _value(value, hints[name], name) for name, value in document.items()})


@cache
def _fields_of(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:  # noqa: ANN401 - a dataclass
    hints = get_type_hints(kind)
    init = [field for field in fields(kind) if field.init]
    required = (field.name for field in init if field.default is field.default_factory is MISSING)
    return {field.name: hints[field.name] for field in init}, frozenset(required)


def _object(document: object) -> dict[str, Any]:
    if isinstance(document, dict):
        return cast("dict[str, Any]", document)
    raise ValueError(f"an object was expected, not {_shown(document)}")


def _value(value: Any, hint: Any, name: str) -> Any:  # noqa: ANN401 - of any type
    if type(value) is hint and (hint is not int or -_INT_LIMIT <= value < _INT_LIMIT):
        return value
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or (origin is Literal and value in inner):
        return value
    if origin is UnionType:
        return None if value is None else _value(value, inner[0], name)
    if origin is tuple and isinstance(value, list):
        return tuple([_value(item, inner[0], name) for item in value])
    if origin is Mapping and isinstance(value, dict):
        return {_key(k, inner[0], name): _value(v, inner[1], name) for k, v in value.items()}
    if is_dataclass(hint):
        return build(cast("type", hint), value)
    raise ValueError(f"{name} has {_shown(value)}, expected {getattr(hint, '__name__', hint)}")


def _key(key: str, hint: Any, name: str) -> Any:  # noqa: ANN401 - str or int
    if hint is not int:
        return key
    if not key.isdecimal() or len(key) > 18:
        raise ValueError(f"{name} has the key {key[:40]!r}, expected a number")
    return int(key)


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:40]}..."
