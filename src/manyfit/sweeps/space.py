"""The search space: Hydra's grammar for sweeps becomes Optuna's distributions, and a trial's values overrides again."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    json_to_distribution,
)

from manyfit.config.errors import ConfigError

Space = Mapping[str, BaseDistribution]

FORMS = "interval(1e-5,1e-1), tag(log,interval(1e-5,1e-1)), int(interval(1,9)), range(1,9) or choice(16,32)"


def space(overrides: Sequence[Override]) -> dict[str, BaseDistribution]:
    """The distributions of sweep overrides, by config key; of two for one key the later holds.

    Raises:
        ConfigError: A space that is empty, upside down or tagged with something else than log.
    """
    return {override.get_key_element(): distribution(override) for override in overrides}


def distribution(override: Override) -> BaseDistribution:
    """What one sweep override may become.

    `interval` is uniform, `tag(log,...)` uniform in the logarithm, `int(interval(a,b))` every integer from a to b,
    `range` every number that Hydra's range gives, `choice` (or `a,b,c`) one of the values, without order.
    """
    key, value = override.get_key_element(), override.value()
    if not override.is_sweep_override():
        raise ConfigError(f"sweep.space.{key} must be a space, such as {FORMS}, but got {override.input_line}.")
    if unknown := set(getattr(value, "tags", ())) - {"log"}:
        raise ConfigError(f"sweep.space.{key} must be tagged log or nothing, but got tag {', '.join(sorted(unknown))}.")
    log = "log" in getattr(value, "tags", ())
    try:
        if isinstance(value, IntervalSweep):
            return _interval(value, log)
        if isinstance(value, RangeSweep):
            return _range(value, log)
        if log:
            raise ValueError("a choice has no order")
        values = list(dict.fromkeys(override.sweep_iterator(Transformer.encode)))
        return CategoricalDistribution(values)  # type: ignore[arg-type]  # encode leaves None, bool, int, float, str
    except ValueError as error:
        raise ConfigError(
            f"sweep.space.{key} must be a space, such as {FORMS}, but got {override.input_line!r}: {error}."
        ) from None


def overrides(values: Mapping[str, Any]) -> tuple[str, ...]:
    """What a trial's values are on Hydra's command line."""
    return tuple(f"{key}={'null' if value is None else value}" for key, value in values.items())


def grid(space: Space) -> list[dict[str, Any]]:
    """Every point of a space that can be listed, the last key fastest.

    Raises:
        ConfigError: A key has infinitely many values.
    """
    axes = [_values(key, distribution) for key, distribution in space.items()]
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*axes)]


def size(space: Space) -> int | None:
    """How many points it has; None: without end."""
    counts = [_count(distribution) for distribution in space.values()]
    return None if None in counts else math.prod(count for count in counts if count)


def holds(space: Space, values: Mapping[str, Any]) -> bool:
    """Whether these are values of the space, all of them."""
    return values.keys() == space.keys() and within(space, values)


def within(space: Space, values: Mapping[str, Any]) -> bool:
    """Whether these are values of the space, of some of its keys: of the very types, as they become overrides."""
    return all(key in space and _is_of(space[key], value) for key, value in values.items())


def _is_of(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return any(type(value) is type(choice) and value == choice for choice in distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    number = isinstance(value, int if isinstance(distribution, IntDistribution) else int | float)
    inside = number and not isinstance(value, bool) and distribution.low <= value <= distribution.high
    return bool(inside and distribution._contains(value))


def point(space: Space, values: Mapping[str, Any]) -> tuple[float, ...]:
    """Where values lie; equal for two that train the same, whatever the rounding of a step."""
    place = []
    for key, distribution in space.items():
        inner, step = distribution.to_internal_repr(values[key]), getattr(distribution, "step", None)
        place.append(round((inner - distribution.low) / step) if step else inner)  # type: ignore[attr-defined]
    return tuple(place)


def quasi_random(space: Space, n: int) -> list[dict[str, Any]]:
    """N points that fill a space of intervals evenly, always the same: scrambled Halton points (Owen 2017).

    Numbers are rounded to four digits.
    """
    from scipy.stats import qmc

    points = []
    for row in qmc.Halton(len(space), rng=0).random(n):
        points.append({key: _at(interval, share) for (key, interval), share in zip(space.items(), row, strict=True)})
    return points


def _at(distribution: BaseDistribution, share: float) -> int | float:
    """The value below which this share of an interval's distribution lies."""
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    low, high = float(distribution.low), float(distribution.high)
    if isinstance(distribution, IntDistribution):
        high += 1  # every integer has as much room
    value = low * (high / low) ** share if distribution.log else low + (high - low) * share
    return int(value) if isinstance(distribution, IntDistribution) else float(f"{value:.4g}")


def extent(space: Space) -> dict[str, tuple[float, float] | list[Any]]:
    """By key the lowest and highest value that was searched, or the list of choices."""
    found: dict[str, tuple[float, float] | list[Any]] = {}
    for key, distribution in space.items():
        if isinstance(distribution, CategoricalDistribution):
            found[key] = list(distribution.choices)
        else:
            assert isinstance(distribution, IntDistribution | FloatDistribution)
            found[key] = (distribution.low, distribution.high)
    return found


def _interval(sweep: IntervalSweep, log: bool) -> BaseDistribution:
    assert sweep.start is not None
    assert sweep.end is not None
    if isinstance(sweep.start, int):
        return IntDistribution(sweep.start, int(sweep.end), log=log)
    if not (math.isfinite(sweep.start) and math.isfinite(sweep.end)):
        raise ValueError("the ends must be finite")
    return FloatDistribution(sweep.start, sweep.end, log=log)


def _range(sweep: RangeSweep, log: bool) -> BaseDistribution:
    values = sorted(sweep.range())
    if not values:
        raise ValueError("the range is empty")
    if all(isinstance(value, int) for value in values):
        return IntDistribution(int(values[0]), int(values[-1]), log=log, step=abs(int(sweep.step)))
    return FloatDistribution(values[0], values[-1], log=log, step=abs(float(sweep.step)))


def _values(key: str, distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    assert isinstance(distribution, FloatDistribution)
    if distribution.step is None:
        raise ConfigError(f"sweep.space.{key} must be choice or range with sampler=grid, but got an interval.")
    count = round((distribution.high - distribution.low) / distribution.step) + 1
    return [distribution.low + i * distribution.step for i in range(count)]


def _count(distribution: BaseDistribution) -> int | None:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    if distribution.step is None:
        return 1 if distribution.single() else None
    return round((distribution.high - distribution.low) / distribution.step) + 1


def described(space: Space) -> dict[str, str]:
    """Each key's distribution in words that compare equal if and only if the distributions do."""
    return {key: json.dumps([type(d).__name__, d._asdict()], sort_keys=True) for key, d in sorted(space.items())}


def of_words(described: Mapping[str, str]) -> dict[str, BaseDistribution]:
    """The space that was described; raises ValueError or TypeError where none was."""
    parts = {key: json.loads(text) for key, text in described.items()}
    return {key: json_to_distribution(json.dumps({"name": n, "attributes": a})) for key, (n, a) in parts.items()}
