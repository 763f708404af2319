"""The metrics that a config asks for besides loss and accuracy: of the outputs of all members on a split."""

from collections.abc import Sequence

import numpy as np
import torch

from manyfit.measures import called, measure
from manyfit.models import answers, own_units
from manyfit.training.best import Best
from manyfit.training.engine import Engine


def scores(
    engine: Engine, names: Sequence[str], splits: Sequence[str], trusted: Sequence[str], best: Best | None = None
) -> dict[str, np.ndarray]:
    """Each metric (members,) of each split, named `auc/val`; NaN of a member whose outputs are not finite.

    Args:
        engine: Has the members.
        names: Of metrics, see `manyfit.measures`.
        splits: train, val or test.
        trusted: Modules that the user vouches for.
        best: As for `Engine.measure`.
    """
    found: dict[str, np.ndarray] = {}
    for split in splits if names else ():
        of_all = engine.outputs(split, best)
        for k, one in enumerate(of_all):
            data, values = (
                one.data,
                answers(one.outputs, one.data).float(),
            )
            targets = one.targets.long() if data.classes else own_units(one.targets, data)
            finite = bool(values.isfinite().all())
            for name in names:
                value = np.nan
                if finite:
                    function = measure(name, data.task, len(data.classes), trusted)
                    with torch.random.fork_rng(devices=[]):
                        value = float(function(values if data.classes else values[:, 0], targets))
                found.setdefault(f"{called(name)}/{split}", np.empty(len(of_all)))[k] = value
    return found
