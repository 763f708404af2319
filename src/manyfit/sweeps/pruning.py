"""Whether a member is to stop: Optuna's pruners, asked after every epoch without a write to the storage."""

import math
from collections.abc import Callable, Sequence

import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState, create_trial

from manyfit.sweeps.outcomes import DIVERGED, curve_of


class Judge:
    """Asks a pruner about the members of a round.

    A report per epoch and member would cost milliseconds each on SQLite. So the pruner sees a copy of the study in
    memory: the same name and trial numbers, with the curves that finished trials were told with. A trial
    that another process finished is replayed into the copy, since some pruners keep what they decided.

    Args:
        study: The study in its storage.
        pruner: Sees the copy only.
        ours: Whether a trial is to be learnt from; the others have their numbers in the copy, no more.
    """

    def __init__(
        self, study: optuna.Study, pruner: BasePruner, ours: Callable[[FrozenTrial], bool] = lambda _: True
    ) -> None:
        self.pruner, self.ours = pruner, ours
        self.storage = optuna.storages.InMemoryStorage()
        self.copy = optuna.create_study(
            storage=self.storage, study_name=study.study_name, direction=study.direction, pruner=pruner
        )
        self.open: dict[int, int] = {}  # trial number -> its id in the copy
        self.stopped: set[tuple[int, int]] = set()  # trial numbers and epochs

    def refresh(self, trials: Sequence[FrozenTrial]) -> None:
        """Bring the copy up to date with all trials of the study."""
        for trial in trials[len(self.copy.get_trials(deepcopy=False)) :]:
            params, space = (trial.params, trial.distributions) if self.ours(trial) else ({}, {})
            self.copy.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=space))
            self.open[trial.number] = self.copy.get_trials(deepcopy=False)[trial.number]._trial_id
        for number in [number for number in self.open if trials[number].state.is_finished()]:
            known = self.storage.get_trial(self.open[number]).intermediate_values
            ours = self.ours(trials[number])
            for epoch, value in curve_of(trials[number]).items() if ours else ():
                if epoch and epoch not in known and not math.isnan(value):  # epoch 0 is before training
                    self.stops(number, epoch, value)
            diverged = trials[number].user_attrs.get("ended") == DIVERGED  # its value is a sampler's, not a pruner's
            none = diverged or not ours
            state, values = (TrialState.FAIL, None) if none else (trials[number].state, trials[number].values)
            self.storage.set_trial_state_values(self.open.pop(number), state, values)

    def stops(self, number: int, epoch: int, value: float) -> bool:
        """Whether a trial is to stop after an epoch that gave this value; asked again, the answer is the same."""
        trial = self.open[number]
        if epoch not in self.storage.get_trial(trial).intermediate_values:
            self.storage.set_trial_intermediate_value(trial, epoch, value)
            if self.pruner.prune(self.copy, self.storage.get_trial(trial)) and not math.isnan(value):
                self.stopped.add((number, epoch))
        return (number, epoch) in self.stopped
