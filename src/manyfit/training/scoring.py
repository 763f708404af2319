"""The metrics that a config asks for besides loss and accuracy: of the outputs of all members on a split."""

from collections.abc import Sequence

import numpy as np
import torch

from manyfit.measures import called, measure
from manyfit.models import answers
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
    if not names:
        return {}
    data, found = engine.examples.data, dict[str, np.ndarray]()
    functions = {called(name): measure(name, data.task, len(data.classes), trusted) for name in names}
    for split in splits:
        outputs = answers(engine.outputs(split, best), len(data.classes), data.y_mean, data.y_std).float()
        y = engine.examples.split(split)[1]
        targets = y.long() if data.classes else y * data.y_std + data.y_mean
        finite = outputs.isfinite().all((1, 2)).tolist()
        for name, function in functions.items():
            values = np.full(len(outputs), np.nan)
            for k, rows in enumerate(outputs if data.classes else outputs[..., 0]):
                if finite[k]:
                    with torch.random.fork_rng(devices=[]):
                        values[k] = float(function(rows, targets[k if len(targets) > 1 else 0]))
            found[f"{name}/{split}"] = values
    return found
