"""A study that several processes share: trials are claimed in rounds, and those of the dead are done again.

Every claim is made under the study's lock. So whatever a killed process left half done is seen by the next claim, and a
trial that is RUNNING without an owner cannot be one that a living process is just asking for. Optuna's heartbeats
cannot do this: with ask and tell none is ever written. The lock is a file, so it holds on one machine; in PostgreSQL it
is the database's own and holds across machines. Who is alive is seen on one machine only: a trial that another host
owns counts as living, and when that host died, only a process there gives it back.
"""

import contextlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import optuna
import sqlalchemy
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, Trial, TrialState

from manyfit.config.errors import ConfigError
from manyfit.sweeps import space as spaces
from manyfit.sweeps.fingerprint import require_same
from manyfit.sweeps.locks import Locks
from manyfit.sweeps.space import Space
from manyfit.tracking.sqlite import write_ahead

REASKED = 4  # times that a sampler may propose a point that was tried, before chance decides
Direction = Literal["minimize", "maximize"]


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna says nothing but errors: a line per trial says less than our progress display."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


class Ledger:
    """The trials of one study; a context manager that leaves none RUNNING, whatever ends it.

    Args:
        url: Of Optuna's storage; a relative SQLite file is relative to the working directory.
        name: Of the study, which is made if it is not there.
        direction: minimize or maximize.
        fingerprint: What must be the same whenever the study goes on.
        space: What is searched.
        total: Trials that the study is to have, over all sessions and processes; no more than the space has points.
        sampler: Makes the sampler of a claim from the number of trials that exist.
        points: What is to be tried in the place of a sampler's values: a grid.
        folder: Of the lock files.

    Raises:
        ConfigError: The study exists with another fingerprint, or the storage cannot be used.
    """

    def __init__(
        self,
        url: str,
        name: str,
        direction: Direction,
        fingerprint: Mapping[str, Any],
        space: Space,
        total: int,
        sampler: Callable[[int], tuple[BaseSampler, int]],
        points: list[dict[str, Any]] | None,
        folder: Path,
    ) -> None:
        self.space, self.sampler, self.points = space, sampler, points
        self.total = min(total, spaces.size(space) or total)
        self.locks, self.url = Locks(folder), url
        self.open: dict[int, Trial] = {}
        with self._lock("create"):  # two first touches of one SQLite file would break each other
            self.storage, self.study = _study(url, name, direction)
            require_same(self.study, fingerprint)

    def __enter__(self) -> Self:
        """Show that we are alive."""
        self.locks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give back what was claimed and not told."""
        try:
            if self.open:
                with self.alone():
                    trials = self.trials()
                    for number in list(self.open):
                        self._give_up(trials[number], trials)
        finally:
            self.locks.__exit__()

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number; some are lost."""
        return self.study.get_trials(deepcopy=False)

    def done(self) -> int:
        """How many have been told, by whomever."""
        return sum(trial.state.is_finished() and not lost(trial) for trial in self.trials())

    def claim(self, size: int) -> list[Trial]:
        """Up to `size` trials to be run by this process; none when the total is met or others run the rest."""
        with self.alone():
            for trial in (trials := self.trials()):
                if trial.state == TrialState.RUNNING and self._ownerless(trial):
                    self._give_up(trial, trials)
            trials = self.trials()
            known = {self._point(t) for t in trials if not lost(t)}
            tried = {self._point(t) for t in trials if not lost(t) and t.state != TrialState.WAITING}
            if self.points is not None:
                self._enqueue_points(known, max(0, self.total - len(known)))
            self.study.sampler, seed = self.sampler(len(trials))
            left = min(max(self.total, len(known)), spaces.size(self.space) or math.inf) - len(tried)
            for trial in (t for t in trials if t.state == TrialState.WAITING):
                if left <= 0 or self._point(trial) in tried:  # it would wait for ever
                    self._set_aside(trial)
            return [self._untried(seed, tried) for _ in range(int(min(size, left)))]

    def tell(
        self,
        trial: Trial,
        state: TrialState,
        value: float | None,
        attributes: Mapping[str, Any],
        curve: Sequence[float] = (),
    ) -> None:
        """Finish a trial.

        Args:
            trial: A claimed one.
            state: How it ended.
            value: Its value, if it is complete; of a pruned one Optuna takes the last of the curve.
            attributes: For its user attributes.
            curve: Intermediate values, from step 0 on.
        """
        self._write(trial, attributes, curve)
        self.study.tell(trial, value, state)
        self.open.pop(trial.number, None)

    def _untried(self, seed: int, tried: set[tuple[float, ...]]) -> Trial:
        """A trial at a point that has none: trained again it would be a copy, and no observation.

        A sampler that proposes a point again is asked anew; then one of those that are left is drawn.
        """
        for _ in range(REASKED):
            trial = self._ask(seed)
            if (point := spaces.point(self.space, trial.params)) not in tried:
                tried.add(point)
                return trial
            self._set_aside(trial)
        self.study.enqueue_trial(self._drawn(self.trials()[-1], seed, tried))
        return self._untried(seed, tried)

    def _drawn(self, trial: FrozenTrial, seed: int, tried: set[tuple[float, ...]]) -> dict[str, Any]:
        """Values at random that were not tried."""
        chance = RandomSampler(seed=seed + trial.number)
        while True:
            values = {key: chance.sample_independent(self.study, trial, key, d) for key, d in self.space.items()}
            if spaces.point(self.space, values) not in tried:
                return values

    def _point(self, trial: FrozenTrial) -> tuple[float, ...]:
        """Where a trial lies; one without all values, or with others, as a user may enqueue: at a point of its own."""
        values = values_of(trial)
        return spaces.point(self.space, values) if spaces.holds(self.space, values) else (-1.0 - trial.number,)

    def _ask(self, seed: int) -> Trial:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Clip non-finite values")  # GP, of what diverged
            trial = self.study.ask(dict(self.space))
        self.open[trial.number] = trial
        self._write(trial, {"owner": self.locks.owner, "sampler_seed": seed})
        return trial

    def _write(self, trial: Trial, attributes: Mapping[str, Any], curve: Sequence[float] = ()) -> None:
        """In one transaction: Optuna's own set_user_attr and report commit each value, a second for fifty epochs."""
        numbers = [models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value) for value in curve]
        rows: dict[type, list[dict[str, Any]]] = {
            models.TrialUserAttributeModel: [
                {"key": key, "value_json": json.dumps(content)} for key, content in attributes.items()
            ],
            models.TrialIntermediateValueModel: [
                {"step": step, "intermediate_value": value, "intermediate_value_type": kind}
                for step, (value, kind) in enumerate(numbers)
            ],
        }
        with self.storage.engine.begin() as connection:
            for model, its in rows.items():
                if its:
                    connection.execute(sqlalchemy.insert(model), [{"trial_id": trial._trial_id, **row} for row in its])

    def _ownerless(self, trial: FrozenTrial) -> bool:
        owner = trial.user_attrs.get("owner")
        return owner is None or self.locks.dead(owner)

    def _give_up(self, trial: FrozenTrial, trials: list[FrozenTrial]) -> None:
        """Enqueue the values once more, then fail the trial: killed in between, it is found again and not doubled."""
        values = values_of(trial)
        again = any(other.user_attrs.get("retry_of") == trial.number for other in trials)
        if not again and values.keys() == self.space.keys():  # else it had not come to its values
            self.study.enqueue_trial(values, user_attrs={"retry_of": trial.number})
        self._set_aside(trial)

    def _set_aside(self, trial: FrozenTrial | Trial) -> None:
        """Fail a trial that another stands for."""
        self.storage.set_trial_user_attr(trial._trial_id, "lost", True)
        self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)  # study.tell takes none that waits
        self.open.pop(trial.number, None)

    def _enqueue_points(self, known: set[tuple[float, ...]], count: int) -> None:
        assert self.points is not None
        for values in [values for values in self.points if spaces.point(self.space, values) not in known][:count]:
            self.study.enqueue_trial(values)

    def alone(self) -> contextlib.AbstractContextManager[Any]:
        """The study's lock: one process at a time."""
        return self._lock(self.study.study_name)

    def _lock(self, name: str) -> contextlib.AbstractContextManager[Any]:
        return _advisory(self.url, name) if self.url.startswith("postgresql") else self.locks.named(name)


def lost(trial: FrozenTrial) -> bool:
    """Whether another trial has its values and stands in its place: its process died, or it repeats what was tried."""
    return "lost" in trial.user_attrs


def values_of(trial: FrozenTrial) -> dict[str, Any]:
    """A trial's values, also while it waits."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def derived_seed(seed: int, trials: int) -> int:
    """A sampler's seed: another one for each claim, since the same would give the same values again."""
    return int(np.random.SeedSequence([seed, trials]).generate_state(1)[0])


@contextlib.contextmanager
def _advisory(url: str, name: str) -> Iterator[None]:
    """PostgreSQL's lock of this name, which it takes back when the connection ends, also by kill -9."""
    try:
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT")
        connection = engine.connect()
    except Exception as error:  # SQLAlchemy's and the drivers' own, of many kinds
        raise _unusable(url, error) from None
    with connection:  # its end is the lock's end
        connection.execute(sqlalchemy.text("select pg_advisory_lock(hashtext(:name))"), {"name": name})
        yield


def _study(url: str, name: str, direction: Direction) -> tuple[RDBStorage, optuna.Study]:
    try:
        address = sqlalchemy.make_url(url)
        if address.get_backend_name() == "sqlite" and address.database and address.database[0] != ":":
            path = Path(address.database.removeprefix("file:")).resolve()
            path.parent.mkdir(parents=True, exist_ok=True)
            if "uri" not in address.query and not path.exists():  # a URI may say anything
                write_ahead(path)
        storage = RDBStorage(url)
        return storage, optuna.create_study(storage=storage, study_name=name, direction=direction, load_if_exists=True)
    except Exception as error:  # SQLAlchemy's and the drivers' own, of many kinds
        raise _unusable(url, error) from None


def _unusable(url: str, error: Exception) -> ConfigError:
    reason = str(error).splitlines()[0]
    return ConfigError(f"sweep.storage must be a database that can be used, but got {url}: {reason}")
