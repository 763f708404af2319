"""What a reader must know before believing the result of a sweep. Pure."""

import math
from collections import Counter
from collections.abc import Sequence

from manyfit.sweeps.findings import Row, Setting, Space, Value, is_number, text, varying

RIM = 0.02
"""At the edge of a continuous range: within this share of its length, in decades where it spans at least one."""

BAD = 0.1
"""Share of failed and diverged runs from which the report warns."""


def sentences(
    rows: Sequence[Row], settings: Sequence[Setting], space: Space | None = None, confirmed: bool = False
) -> list[str]:
    """What a reader must know before believing the result, one sentence each; `confirmed`: on fresh seeds."""
    found = _edges(settings, space, "search's best" if confirmed else "best") + (
        [] if confirmed else _seeds(settings, searched=space is not None)
    )
    bad = [row for row in rows if row.state in ("failed", "diverged")]
    if len(bad) >= BAD * max(len(rows), 1) and bad:
        kinds = Counter(row.state for row in bad)
        words = " and ".join(f"{count} {state}" for state, count in sorted(kinds.items()))
        found.append(f"{words} of {len(rows)} runs: what is said here rests on the others.")
    epochs = sorted({row.config.epochs for row in rows if row.config is not None})
    if len(epochs) > 1:
        found.append(f"budgets were unequal: epochs from {epochs[0]} to {epochs[-1]}; longer runs have the advantage.")
    return found


def _edges(settings: Sequence[Setting], space: Space | None, which: str) -> list[str]:
    if not settings or math.isnan(settings[0].mean):
        return []
    found = []
    for key in varying(settings):
        best = settings[0].params.get(key)
        if not is_number(best):
            continue
        tried = [value for setting in settings if is_number(value := setting.params.get(key))]
        given = (space or {}).get(key, list(tried))
        side = _side(float(best), given)
        if side:
            word = "searched" if space and key in space else "tried"
            found.append(f"the {which} {key}, {text(best)}, is the {side} {word}: {_beyond(side)} may be better.")
    return found


def _side(best: float, given: tuple[float, float] | Sequence[Value]) -> str | None:
    """`lowest` or `highest` when a value is on the edge of a range (low, high) or of a list of choices.

    0 is never too high a lowest value: rates, shares and decays end there.
    """
    numbers = [float(value) for value in given if is_number(value)]
    if len(set(numbers)) < 2:
        return None
    low, high = min(numbers), max(numbers)
    rim = RIM if isinstance(given, tuple) and len(given) == 2 else 0.0
    log = low > 0 and high / low >= 10
    place = math.log(best / low) / math.log(high / low) if log else (best - low) / (high - low)
    if place <= rim and low > 0:
        return "lowest"
    return "highest" if place >= 1 - rim - 1e-12 else None


def _beyond(side: str) -> str:
    return "lower ones" if side == "lowest" else "higher ones"


def _seeds(settings: Sequence[Setting], searched: bool = False) -> list[str]:
    known = [setting for setting in settings if math.isfinite(setting.mean)]
    if len(known) < 2:
        return []
    first, second = known[:2]
    if min(len(first.counted), len(second.counted)) < 2:
        advice = "; sweep.seeds=4 trains several" if searched else "; add seeds, such as 'seed=range(0,8)'"
        return [f"one seed per setting cannot tell close settings apart{advice}."]
    if first.low <= second.high and second.low <= first.high:
        what = "seeds" if first.rows[0].fold is None else "folds"
        return [f"too few {what} to tell the best from the second, {second.name}: their intervals overlap."]
    return []
