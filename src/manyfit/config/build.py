"""From what a config names to the object: `_target_` and its arguments, checked."""

import contextlib
import functools
import inspect
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from manyfit.config.errors import ConfigError
from manyfit.config.schema import Component, sentence
from manyfit.config.trust import resolved

T = TypeVar("T")


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
    homes = str(Path(__file__).parents[1]), "<", *map(sysconfig.get_path, ("stdlib", "purelib", "platlib"))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(homes)]
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno}, {frames[-1].line})" if frames else ""


def _typed(target: Callable[..., Any], key: str, name: str, value: Any) -> Any:
    """A value as our own target's annotation says; what others annotate is theirs to check."""
    function = target.__init__ if inspect.isclass(target) else target
    hint = get_type_hints(function).get(name) if target.__module__.startswith("manyfit.") else None
    if hint is None:
        return value
    try:
        return _adapter(hint).validate_python(value)
    except ValidationError as error:
        (first, *_) = error.errors()
        raise ConfigError(sentence({**first, "loc": (key, name, *first["loc"])})) from None


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)
