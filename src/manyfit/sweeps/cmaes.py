"""Optuna's CMA-ES without the pickle that it keeps in the study: whoever may write there could have code run."""

from collections import defaultdict
from typing import Any

import numpy as np
from optuna.samplers import BaseSampler, CmaEsSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial


class Replayed(CmaEsSampler):
    """Its distribution is made again, generation by generation, of what trials have come to.

    Optuna unpickles the one of the last generation. It is the same, but where one of the earlier trials of a generation
    came to its value after the next had begun.
    """

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> None:
        """There is none: `_init_optimizer` is asked for one next."""
        self._completed = completed_trials

    def _init_optimizer(self, trans: Any, direction: StudyDirection) -> Any:
        chance = self._cma_rng.rng.get_state()
        optimizer = super()._init_optimizer(trans, direction)
        sign = 1.0 if direction == StudyDirection.MINIMIZE else -1.0
        generations: dict[str, list[tuple[np.ndarray, float]]] = defaultdict(list)
        for trial in self._completed:
            assert trial.value is not None  # it is complete
            margin = np.array(trial.system_attrs.get("x_for_tell"), float) if self._with_margin else None
            place = trans.transform(trial.params) if margin is None else margin
            generations[str(trial.system_attrs.get(self._attr_key_generation))].append((place, sign * trial.value))
        if generations.keys() - {"None", "0"}:  # then Optuna would have a pickle, and draw no number for a new one
            self._cma_rng.rng.set_state(chance)
        while len(found := generations[str(optimizer.generation)]) >= optimizer.population_size:
            optimizer.tell(found[: optimizer.population_size])
        return optimizer


def replayed(sampler: BaseSampler) -> BaseSampler:
    """A sampler that unpickles nothing."""
    if isinstance(sampler, CmaEsSampler):
        sampler.__class__ = Replayed  # it has its arguments already, judged by the signature of Optuna's
    return sampler
