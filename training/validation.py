"""Dataclasses from plain values, such as JSON's, checked field by field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Described = TypeVar("Described", bound="DataclassInstance")


def check_types(described: Any, title: str) -> None:
    """Check every field against its annotation. Raises ValueError, naming the field, for a value of another type.

    title: what the dataclass describes, for messages.
    """
    for each in fields(described):
        fits, allowed = _TYPES[str(each.type)]
        if not fits(value := getattr(described, each.name)):
            raise ValueError(f"{title}: {each.name} must be {allowed}, got {value!r}.")


def from_values(kind: type[Described], values: Any, title: str) -> Described:
    """Make a dataclass of these values, lists as tuples. Raises ValueError for missing and for unknown fields."""
    if not isinstance(values, Mapping):
        raise ValueError(f"A {title} is a set of named values, got {values!r}.")
    known = {each.name: each for each in fields(kind)}
    if unknown := sorted(set(values) - known.keys(), key=str):
        raise ValueError(f"A {title} has no {', '.join(map(str, unknown))}; it has {', '.join(sorted(known))}.")
    needed = [n for n, each in known.items() if each.default is MISSING and each.default_factory is MISSING]
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"This is not a whole {title}: it does not say {', '.join(missing)}.")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_whole(value)


def _is_tuple(of: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, tuple) and all(map(of, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


# By the annotation of a field: a check of values, and what it allows, in words
_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (_is_whole, "a whole number"),
    "float": (_is_number, "a number"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "str": (_is_text, "a text"),
    "dict[str, str]": (lambda value: isinstance(value, dict), "a set of named values"),
    "dict[str, float]": (
        lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
        "a set of named numbers",
    ),
    "tuple[float, ...]": (lambda value: _is_tuple(_is_number, value), "a list of numbers"),
    "tuple[int, ...]": (lambda value: _is_tuple(_is_whole, value), "a list of whole numbers"),
    "tuple[str, ...]": (lambda value: _is_tuple(_is_text, value), "a list of texts"),
    "tuple[Concept, ...]": (lambda value: _is_tuple(is_dataclass, value), "a list of concepts"),
}
