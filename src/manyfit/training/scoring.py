"""The metrics that a config asks for besides loss and accuracy: of the outputs of all members on a split."""

from collections.abc import Sequence

import numpy as np
import torch

from manyfit.measures import Function, called, measure
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
    functions: dict[tuple[str, int], dict[str, Function]] = {}  # of a task and so many classes
    for split in splits if names else ():
        every = engine.outputs(split, best)
        for k, one in enumerate(every):
            data, classes = one.data, len(one.data.classes)
            its = functions.get((data.task, classes))
            if its is None:
                its = functions[data.task, classes] = {n: measure(n, data.task, classes, trusted) for n in names}
            values = answers(one.outputs, data).float()
            targets = one.targets.long() if classes else own_units(one.targets, data)
            finite = bool(values.isfinite().all())
            for name, function in its.items():
                value = np.nan
                if finite:
                    with engine.faults.of(k), torch.random.fork_rng(devices=[]):
                        value = float(function(values if classes else values[:, 0], targets))
                found.setdefault(f"{called(name)}/{split}", np.empty(len(every)))[k] = value
    return found
