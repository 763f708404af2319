"""The runs of a grid -> rows: what varies is found by comparing their configs."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from manyfit.config.schema import Config
from manyfit.sweeps.findings import Row, Value, value_of
from manyfit.sweeps.parent import Child
from manyfit.sweeps.rerun import written


def rows_of(children: Mapping[int, Child], objective: str = "best loss/val", direction: str = "minimize") -> list[Row]:
    """The runs of a grid, in order. What varies is found by comparing their configs."""
    ordered = [children[number] for number in sorted(children)]
    params = _varied([child.config for child in ordered])
    rows = [row_of(child, varied) for child, varied in zip(ordered, params, strict=True)]
    return [replace(row, value=value_of(row.result, objective, direction)) if row.result else row for row in rows]


def row_of(child: Child, params: Mapping[str, Value]) -> Row:
    """The row of one run, whose objective is the best validation loss."""
    result = child.result
    state = {"diverged": "diverged", "pruned": "pruned"}.get(result.reason, "finished") if result else "failed"
    return Row(
        number=child.number, params=params, state=state, seed=child.config.seed,
        run=None if child.kept else child.run,
        run_id=child.run.run_id, config=child.config, result=result,
        value=result.summary.best_loss_val if result else math.nan,
        loss_val=result.metrics["loss/val"] if result else None,
    )  # fmt: skip


def _varied(configs: Sequence[Config]) -> list[dict[str, Value]]:
    """What differs between configs, seed and fold aside: chosen options, then keys that differ among equal choices."""
    options = {group for config in configs for group in config.choices}
    groups = sorted(g for g in options if len({config.choices.get(g) for config in configs}) > 1)
    flats = [config.flat() for config in configs]
    named = {key for flat in flats for key in flat} - {"seed", "data.fold"}
    seen: dict[tuple[str, Any], set[str]] = defaultdict(set)
    for config, flat in zip(configs, flats, strict=True):
        chosen = tuple(config.choices.get(group) for group in groups)
        for key in named:
            seen[key, chosen].add(json.dumps(flat.get(key), default=str))
    keys = sorted({key for (key, _), values in seen.items() if len(values) > 1})
    return [
        {g: _scalar(config.choices.get(g)) for g in groups} | {key: _scalar(flat.get(key)) for key in keys}
        for config, flat in zip(configs, flats, strict=True)
    ]


def _scalar(value: Any) -> Value:
    return value if isinstance(value, str | int | float | bool | None) else written(value)
