"""A switch is no number, though Python takes true for 1."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin


def holds_a_switch(value: Any, hint: Any) -> bool:
    """Whether true or false stands in a value, or in a list of it, whose type is numbers."""
    return _has_switch(value) and is_of_numbers(hint)


def is_of_numbers(hint: Any) -> bool:
    """Whether a type has numbers in it, and no switches."""
    found = set(kinds(hint))
    return bool(found & {int, float}) and not found & {bool, Any, object}


def kinds(hint: Any) -> Iterator[Any]:
    """The plain types that a type is made of: int and None of `list[int] | None`."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        yield from map(type, inner)
    elif origin is Annotated:
        yield from kinds(inner[0])
    elif inner:
        for part in inner:
            if part is not ...:
                yield from kinds(part)
    else:
        yield hint


def _has_switch(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(_has_switch, value)))
