"""How models are made of JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import field
from datetime import datetime, timezone
from typing import Any, TypeVar

from .errors import ProtocolError

M = TypeVar("M")


def read(model: type[M], fields: Any) -> M:
    """Makes a model of an answer's JSON.

    Raises:
        ProtocolError: a field is missing, or is not what it should be.
    """
    try:
        values = {
            name: convert(fields[key]) if convert is not None else fields[key]
            for name, key, convert in _fields(model)
            if key in fields
        }
        return model(**values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"no {model.__name__} in the server's answer: {error}") from error


def read_list(model: type[M], items: Any) -> list[M]:
    """Makes models of a list in an answer's JSON; errors as :func:`read`."""
    if not isinstance(items, list):
        raise ProtocolError(f"no list of {model.__name__} in the server's answer")
    return [read(model, item) for item in items]  # pyright: ignore[reportUnknownVariableType]


_FIELDS: dict[type[Any], list[tuple[str, str, Callable[[Any], Any] | None]]] = {}


def _fields(model: type[Any]) -> list[tuple[str, str, Callable[[Any], Any] | None]]:
    """Each field's name, its name in JSON, and what makes its value of that in JSON."""
    if model not in _FIELDS:
        _FIELDS[model] = [
            (each.name, each.metadata.get("key", each.name), each.metadata.get("convert"))
            for each in dataclasses.fields(model)
        ]
    return _FIELDS[model]


def as_(convert: Callable[[Any], Any], key: str | None = None) -> Any:
    """A field that JSON has in another form, or under another name."""
    metadata: dict[str, Any] = {"convert": convert}
    if key is not None:
        metadata["key"] = key
    return field(metadata=metadata)


def or_none(convert: Callable[[Any], Any], key: str | None = None) -> Any:
    """The same for one that may be ``null`` or absent."""

    def nothing_or(value: Any) -> Any:
        return None if value is None else convert(value)

    metadata: dict[str, Any] = {"convert": nothing_or}
    if key is not None:
        metadata["key"] = key
    return field(default=None, metadata=metadata)


def time_(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, timezone.utc)


def seconds_(milliseconds: int) -> float:
    return milliseconds / 1000
