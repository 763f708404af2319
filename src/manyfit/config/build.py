"""From what a config names to the object: `_target_` and its arguments, checked."""

import builtins
import contextlib
import functools
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from manyfit.config.code import is_own
from manyfit.config.errors import ConfigError
from manyfit.config.numbers import holds_a_switch, kinds
from manyfit.config.schema import Component, sentence
from manyfit.config.trust import resolved

T = TypeVar("T")
LIBRARIES = "torch.", "optuna."
PLAIN = {int, float, bool, str, type(None)}


def target_of(component: Component, key: str, kind: type[T]) -> Callable[..., T]:
    """The class or function that a component names. Only what yields a `kind` is let through.

    Raises:
        ConfigError: It does not exist, or is neither a subclass of `kind` nor a function annotated to return one.
    """
    try:
        target = resolved(component.target)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{key}._target_ must name something that can be imported, but got {component.target!r} ({error})."
        ) from None
    yields = target if inspect.isclass(target) else _returned(target) if inspect.isfunction(target) else None
    if not (inspect.isclass(yields) and issubclass(yields, kind)):
        raise ConfigError(
            f"{key}._target_ must name a subclass of {kind.__module__}.{kind.__qualname__}, or a function annotated to "
            f"return one, but got {component.target!r}."
        )
    return target  # type: ignore[no-any-return]


def _returned(function: Callable[..., Any]) -> Any:
    """What a function is annotated to return; None where that is not known at run time."""
    with contextlib.suppress(Exception):
        return inspect.get_annotations(function, eval_str=True).get("return")
    return None


def build(component: Component, key: str, kind: type[T], **available: Any) -> T:
    """Call a component's target with its arguments and with those of `available` that it asks for.

    Raises:
        ConfigError: An argument that the target does not know, or that it refuses.
    """
    target = target_of(component, key, kind)
    known = inspect.signature(target).parameters
    flexible = any(p.kind is p.VAR_KEYWORD for p in known.values())
    for name in component.arguments:
        if name not in known and not flexible:
            has = ", ".join(known) or "none"
            raise ConfigError(f"{key}.{name} must be an argument of {component.target}; it has {has}.")
    given = {name: _typed(target, key, name, value) for name, value in component.arguments.items()}
    try:
        return target(**{name: value for name, value in available.items() if name in known} | given)
    except Exception as error:
        if str(error).startswith((f"{key}.", f"{key} must")):
            raise ConfigError(str(error)) from error
        raise ConfigError(
            f"{key} must be accepted by {component.target}, but it says: {error}{place_of(error)}."
        ) from error


def place_of(error: Exception) -> str:
    """The last line of the user's own code that an exception went through: ` (nets.py:12, return x @ y)`; or ""."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_own(frame.filename)]
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno}, {frames[-1].line})" if frames else ""


def _typed(target: Callable[..., Any], key: str, name: str, value: Any) -> Any:
    """A value as the target's annotation says: ours, or a library's of plain types; the rest is theirs to check."""
    hint = _hints(target).get(name)
    if hint is None:
        return value
    if holds_a_switch(value, hint):
        raise ConfigError(f"{key}.{name} must be a number, but got {value}.")
    home = f"{target.__module__}."
    if not (home.startswith("manyfit.") or (home.startswith(LIBRARIES) and PLAIN.issuperset(kinds(hint)))):
        return value
    try:
        return _adapter(hint).validate_python(value)
    except ValidationError as error:
        (first, *_) = error.errors()
        raise ConfigError(sentence({**first, "loc": (key, name, *first["loc"])})) from None


class _Unknown:
    """Stands for a type that is imported for checkers alone."""

    def __class_getitem__(cls, item: Any) -> Any:
        return cls


class _Names(dict[str, Any]):
    """What the names of annotations mean that a module does not have."""

    def __init__(self, module: str) -> None:
        super().__init__()
        self.present = {*vars(builtins), *vars(sys.modules[module])}

    def __missing__(self, name: str) -> Any:
        if name in self.present:
            raise KeyError(name)
        return _Unknown


@functools.cache
def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    with contextlib.suppress(Exception):  # of annotations that are none
        return get_type_hints(function, localns=_Names(function.__module__))
    return {}


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)
