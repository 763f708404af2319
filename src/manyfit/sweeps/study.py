"""A study that several processes share: trials are claimed in rounds, and those of the dead are done again.

Every claim is made under the study's lock. So whatever a killed process left half done is seen by the next claim, and a
trial that is RUNNING without an owner cannot be one that a living process is just asking for. Optuna's heartbeats
cannot do this: with ask and tell none is ever written.
"""

import contextlib
import hashlib
import math
import re
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
import optuna
from filelock import FileLock
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from pydantic import Field, TypeAdapter

from manyfit.config.errors import ConfigError
from manyfit.config.secrets import mask
from manyfit.sweeps import space as spaces
from manyfit.sweeps.fingerprint import require_same, searched
from manyfit.sweeps.locks import lives, locks_of
from manyfit.sweeps.outcomes import readable
from manyfit.sweeps.space import Space
from manyfit.sweeps.storage import OutageError, is_busy, open_storage, patiently, sqlite_file, usable, write
from manyfit.tracking import journal

T = TypeVar("T")
Record = dict[str, Any]
LOOK = 1.0  # seconds between looks at what others run
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


@dataclass(frozen=True)
class Told:
    """What is told of a trial.

    Attributes:
        number: Of the trial.
        state: How it ended, by name.
        value: Its value, if it is complete; of a pruned one Optuna takes the last of the curve.
        attributes: For its user attributes.
        curve: Intermediate values, from step 0 on.
    """

    number: int
    state: Annotated[str, Field(pattern="^(COMPLETE|PRUNED|FAIL)$")]
    value: float | None
    attributes: Mapping[str, Any]
    curve: Sequence[float] = ()


TOLD = TypeAdapter(Told)


class Ledger:
    """The trials of one study; a context manager that leaves none RUNNING, whatever ends it.

    A storage that does not answer is waited for. What it does not take in the end lies in a file, and the next session
    of this folder tells it.

    Args:
        url: Of Optuna's storage; a relative SQLite file is relative to the working directory.
        name: Of the study, which is made if it is not there.
        direction: minimize or maximize.
        fingerprint: What must be the same whenever the study goes on; None: nobody goes on with it.
        space: What is searched.
        total: Trials that the study is to have, over all sessions and processes; no more than the space has points.
        sampler: Makes the sampler of a claim from the number of trials that exist.
        points: What is to be tried in the place of a sampler's values: a grid.
        folder: For what could not be told.
        waits: Told why, when the storage does not answer.

    Raises:
        ConfigError: The study exists with another fingerprint, or the storage cannot be used.
    """

    def __init__(
        self,
        url: str,
        name: str,
        direction: Direction,
        fingerprint: Mapping[str, Any] | None,
        space: Space,
        total: int,
        sampler: Callable[[int], tuple[BaseSampler, int]],
        points: list[dict[str, Any]] | None,
        folder: Path,
        waits: Callable[[str], None] = print,
    ) -> None:
        self.space, self.sampler, self.points, self.waits = space, sampler, points, waits
        self.total = min(total, spaces.size(space) or total)
        self.open: dict[int, Trial] = {}
        self._judged: dict[int, bool] = {}  # whether trials that have ended are ours, by number
        self.failed_before: set[int] = set()
        self.silent: str | None = None  # why nothing more is asked of the storage
        self.forgotten: dict[int, OSError] = {}  # why what came of a trial could not be kept, by its number
        self.untold = folder / f"{_file_name(name)}-{hashlib.sha256(url.encode()).hexdigest()[:8]}.jsonl"

        def opened() -> tuple[BaseStorage, optuna.Study]:
            with self.locks.named("create"):  # two first touches of one database would break each other
                storage = open_storage(url, waits)
                study = optuna.create_study(storage=storage, study_name=name, direction=direction, load_if_exists=True)
                _look_through(study)
                return storage, study

        with usable(url):
            self.locks = patiently(lambda: locks_of(url), waits, is_busy)
            self.storage, self.study = patiently(opened, waits, is_busy)
        if fingerprint is not None:
            self._answered(lambda: require_same(self.study, fingerprint))

    def __enter__(self) -> Self:
        """Show that we are alive, and tell what an earlier session of this folder could not."""
        self._answered(self.locks.__enter__)
        try:
            self._answered(self._tell_the_untold)
            self.failed_before = {trial.number for trial in self.ours() if failed(trial)}
        except BaseException:
            self.locks.__exit__()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give back what was claimed and not told; where the storage is silent, the next session does."""
        try:
            if self.open and not self.silent:
                self._answered(self._give_back)
        finally:
            self.locks.__exit__()

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number; some are lost, or none of ours."""
        return self._answered(self._read)

    def ours(self) -> list[FrozenTrial]:
        """Those that are of this search; some are lost."""
        return [trial for trial in self.trials() if self.is_ours(trial)]

    def strangers(self) -> int:
        """How many there are besides."""
        return sum(not lost(trial) and not self.is_ours(trial) for trial in self.trials())

    def is_ours(self, trial: FrozenTrial) -> bool:
        """Whether a search of this space may have made it, or a user have asked for it.

        Whoever may write to a study may put anything into it: any other trial is nothing to be composed.
        """
        if not trial.state.is_finished():  # it may have some of its values
            fixed = trial.system_attrs.get("fixed_params", {})
            inside = isinstance(fixed, dict) and spaces.within(self.space, values_of(trial))
            return inside and readable(trial) and all(self.space[key] == of for key, of in trial.distributions.items())
        if trial.number not in self._judged:
            self._judged[trial.number] = spaces.holds(self.space, trial.params) and readable(trial)
        return self._judged[trial.number]

    def ended(self) -> list[FrozenTrial]:
        """Those that have been told, by whomever; one that failed, only where its point was not tried again since."""
        told = [trial for trial in self.ours() if trial.state.is_finished() and not lost(trial)]
        well = {self._point(trial) for trial in told if not failed(trial)}
        return [trial for trial in told if not failed(trial) or self._point(trial) not in well]

    def done(self) -> int:
        """How many have come to a value, or were pruned or diverged, by whomever: towards the total."""
        return sum(trial.state.is_finished() and counts(trial) for trial in self.ours())

    def elsewhere(self) -> set[int]:
        """The numbers of those that are being run, by other processes where nothing was claimed."""
        return {trial.number for trial in self.ours() if trial.state == TrialState.RUNNING}

    def wait(self, running: Collection[int]) -> None:
        """Until one of these trials has ended, or its process has."""

        def changed() -> bool:
            going = [trial for trial in self._read() if trial.number in running and trial.state == TrialState.RUNNING]
            return len(going) < len(running) or bool(self._ownerless(going))

        while not self._answered(changed):
            time.sleep(LOOK)

    def claim(self, size: int) -> list[Trial]:
        """Up to `size` trials to be run by this process; none when the total is met or others run the rest."""
        held = dict(self.open)

        def claimed() -> list[Trial]:
            self.open = dict(held)  # what it asked for before the storage fell silent is nobody's
            return self._claim(size)

        return self._answered(claimed)

    def _claim(self, size: int) -> list[Trial]:
        with self.alone():
            self._clear_up()
            for stranger in (t for t in self._read() if t.state == TrialState.WAITING and not self.is_ours(t)):
                self._set_aside(stranger)  # else Optuna would take it for the next
            known = [trial for trial in self._read() if self.is_ours(trial) and not lost(trial)]
            trials = [trial for trial in known if trial.number not in self.failed_before]
            wanted = {self._point(trial) for trial in trials if counts(trial)}  # done, running or waiting
            begun = {self._point(t) for t in trials if counts(t) and t.state != TrialState.WAITING}
            tried = begun | {self._point(trial) for trial in trials if failed(trial)}
            if self.points is not None:
                self._enqueue_points(wanted | tried, max(0, self.total - len(wanted)))
            self.study.sampler, seed = self.sampler(len(self._read()))
            untried = (spaces.size(self.space) or math.inf) - len(tried)
            kept = begun | {self._point(t) for t in trials if counts(t) and "drawn" not in t.user_attrs}
            left = min(max(self.total, len(kept)) - len(begun), untried)  # what others chose is beyond the total, too
            for trial in (t for t in trials if t.state == TrialState.WAITING):
                if left <= 0 or self._point(trial) in tried:  # it would wait for ever
                    self._set_aside(trial)
            return [self._untried(seed, tried) for _ in range(int(min(size, left)))]

    def hand_back(self) -> int:
        """Have the trials of the dead done again by whoever claims next, as a claim does; how many."""

        def handed() -> int:
            with self.alone():
                return self._clear_up()

        return self._answered(handed)

    def ownerless(self) -> int:
        """How many trials are RUNNING of processes that are gone."""
        return len(self._answered(lambda: self._ownerless(self._read())))

    def _clear_up(self) -> int:
        trials = self._read()
        ownerless = self._ownerless(trials)
        for trial in ownerless:
            self._give_up(trial, trials)
        return len(ownerless)

    def tell(self, told: Told) -> bool:
        """Finish a claimed trial; False: meanwhile another was made in its place, since we counted as dead.

        What the storage does not take is written to a file; the next claim raises why, and what the file did not take.
        """
        trial = self.open.pop(told.number)
        try:
            return self._answered(lambda: self._tell(trial._trial_id, told))
        except OutageError:
            try:
                with self._untold_alone():
                    journal.note(self.untold, {"owner": self.locks.owner, **asdict(told)})
            except OSError as error:  # a full disk: the trial is made again
                self.forgotten[told.number] = error
            return True

    def _tell(self, trial_id: int, told: Told) -> bool:
        if not self.storage.get_trial(trial_id).state.is_finished():  # else it arrived, but not the answer
            with contextlib.suppress(UpdateFinishedTrialError):  # by another, in between
                write(self.storage, trial_id, told.attributes, told.curve)
                self.study.tell(told.number, told.value, TrialState[told.state], skip_if_finished=True)
        return not lost(self.storage.get_trial(trial_id))

    def _tell_the_untold(self) -> None:
        """What is of no trial that is there, as the study was removed, is let go; so is a line that a kill cut off."""
        if self.untold.exists():
            with self.alone(), self._untold_alone():
                trials = {(trial.number, str(trial.user_attrs.get("owner"))): trial for trial in self._read()}
                for known in journal.read(self.untold)[0]:
                    try:
                        told = TOLD.validate_python(known)
                        if trial := trials.get((told.number, str(known.get("owner")))):
                            self._tell(trial._trial_id, told)
                    except ValueError:
                        self.waits(f"{self.untold} has a line that tells nothing of a trial: it is let go")
                self.untold.unlink(missing_ok=True)

    def _untold_alone(self) -> FileLock:
        """Nobody adds to the file while it is told, and removed."""
        self.untold.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.untold.parent / "lock")

    def notes(self, key: str) -> dict[str, Record]:
        """What processes have noted of the study under this name, by their own; an earlier version noted it once.

        What somebody else has written, and is no such thing, is left out.
        """
        known = self._answered(lambda: self.study.user_attrs)
        found = {name.partition(" ")[2]: note for name, note in known.items() if name.partition(" ")[0] == key}
        return {owner: note for owner, note in found.items() if isinstance(note, dict)}

    def note(self, key: str, make: Callable[[], Record | None]) -> None:
        """Note what is made under the study's lock; None takes back what was noted.

        Each process writes lines of its own: one that had lost the lock meanwhile spoils no other's.
        """
        own = f"{key} {self.locks.owner}"

        def noted() -> None:
            with self.alone():
                if (after := make()) != self.study.user_attrs.get(own):
                    self.study.set_user_attr(own, after)

        self._answered(noted)

    def _answered(self, attempt: Callable[[], T]) -> T:
        """What the storage says, however long it takes; when it took too long, nothing more is asked of it."""
        if not self.silent:
            try:
                return patiently(attempt, self.waits)
            except OutageError as error:
                self.silent = str(error)
        raise OutageError(f"{self.silent} {self._kept()}")

    def _kept(self) -> str:
        """What becomes of trials that could not be told."""
        if not self.forgotten:
            return "The study has lost nothing: what was trained, the next start tells."
        numbers, error = ", ".join(map(str, self.forgotten)), next(iter(self.forgotten.values()))
        return f"What came of trial{'s' * (len(self.forgotten) > 1)} {numbers} is lost ({error}): it trains them again."

    def _read(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _give_back(self) -> None:
        with self.alone():
            trials = self._read()
            for trial in trials:
                if trial.state == TrialState.RUNNING and trial.user_attrs.get("owner") == self.locks.owner:
                    self._give_up(trial, trials)

    def _untried(self, seed: int, tried: set[tuple[float, ...]]) -> Trial:
        """A trial at a point that has none: trained again it would be a copy, and no observation.

        A sampler that proposes a point again is asked anew; then one of those that are left is drawn.
        """
        for _ in range(REASKED):
            trial = self._ask(seed)
            if (
                spaces.holds(self.space, trial.params)
                and (point := spaces.point(self.space, trial.params)) not in tried
            ):
                tried.add(point)
                return trial
            self._set_aside(trial)
        self.study.enqueue_trial(self._drawn(self._read()[-1], seed, tried))
        return self._untried(seed, tried)

    def _drawn(self, trial: FrozenTrial, seed: int, tried: set[tuple[float, ...]]) -> dict[str, Any]:
        """Values at random that were not tried."""
        chance = RandomSampler(seed=seed + trial.number)
        while True:
            values = {key: chance.sample_independent(self.study, trial, key, d) for key, d in self.space.items()}
            if spaces.point(self.space, values) not in tried:
                return values

    def _point(self, trial: FrozenTrial) -> tuple[float, ...]:
        """Where a trial lies; one without all values, as a user may enqueue: at a point of its own."""
        values = values_of(trial)
        return spaces.point(self.space, values) if spaces.holds(self.space, values) else (-1.0 - trial.number,)

    def _ask(self, seed: int) -> Trial:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Clip non-finite values")  # GP, of what diverged
            try:
                trial = self.study.ask(dict(self.space))
            except ValueError as error:  # trials that somebody else has put there have other distributions
                raise ConfigError(
                    f"sweep.study must be one that can be searched, but {self.study.study_name} cannot: {error}. Give "
                    "sweep.study another name."
                ) from None
        self.open[trial.number] = trial
        write(self.storage, trial._trial_id, {"owner": self.locks.owner, "sampler_seed": seed})
        return trial

    def _ownerless(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Those that are RUNNING of the dead, and of our own those that nobody has in hand."""
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        owners = {str(trial.user_attrs.get("owner")) for trial in running}
        living = {owner for owner in owners if lives(self.locks, owner)}
        return [
            trial
            for trial in running
            if (owner := str(trial.user_attrs.get("owner"))) not in living
            or (owner == self.locks.owner and trial.number not in self.open)
        ]

    def _give_up(self, trial: FrozenTrial, trials: list[FrozenTrial]) -> None:
        """Enqueue the values once more, then fail the trial: killed in between, it is found again and not doubled.

        Those that a sampler has drawn are marked: whoever lost its lock may have asked for more than the total.
        """
        values = values_of(trial)
        again = any(other.user_attrs.get("retry_of") == trial.number for other in trials)
        if not again and spaces.holds(self.space, values):  # else it had not come to its values, or to strange ones
            chosen = "fixed_params" in trial.system_attrs and "drawn" not in trial.user_attrs
            drawn = {} if chosen else {"drawn": True}
            self.study.enqueue_trial(values, user_attrs={"retry_of": trial.number, **drawn})
        self._set_aside(trial)

    def _set_aside(self, trial: FrozenTrial | Trial) -> None:
        """Fail a trial that another stands for."""
        with contextlib.suppress(UpdateFinishedTrialError):  # its owner lives after all, and has told it
            self.storage.set_trial_user_attr(trial._trial_id, "lost", True)
            self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)  # study.tell takes none that waits
        self.open.pop(trial.number, None)

    def _enqueue_points(self, known: set[tuple[float, ...]], count: int) -> None:
        assert self.points is not None
        for values in [values for values in self.points if spaces.point(self.space, values) not in known][:count]:
            self.study.enqueue_trial(values)

    def alone(self) -> contextlib.AbstractContextManager[object]:
        """The study's lock: one process at a time."""
        return self.locks.named(self.study.study_name)


def reopened(url: str, name: str, folder: Path) -> Ledger:
    """The ledger of a study as it is there, to be looked after; claims are not to be made of it.

    Raises:
        ConfigError: There is no such study.
    """
    path = sqlite_file(url) if url.startswith("sqlite") else None
    with usable(url):
        storage = open_storage("sqlite://" if path and not path.exists() else url)  # a new one has no study
        names = optuna.get_all_study_names(storage)
        if name not in names:
            raise ConfigError(f"study must be one of {', '.join(names) or 'none'} in {mask(url)}, but got {name}.")
        study = optuna.load_study(study_name=name, storage=storage)
        _look_through(study)
        space = searched(study)
    return Ledger(
        url=url,
        name=name,
        direction="minimize" if study.direction == StudyDirection.MINIMIZE else "maximize",
        fingerprint=None,
        space=space,
        total=0,
        sampler=lambda _: (RandomSampler(), 0),
        points=None,
        folder=folder,
    )


def _look_through(study: optuna.Study) -> None:
    """Read all of a study, which raises now if it is none that Optuna can read, or one of several objectives."""
    study.get_trials(deepcopy=False)
    _ = study.direction


def lost(trial: FrozenTrial) -> bool:
    """Whether another trial has its values and stands in its place: its process died, or it repeats what was tried."""
    return "lost" in trial.user_attrs


def failed(trial: FrozenTrial) -> bool:
    """Whether it raised, or could not be trained at all; an earlier version told those that diverged as failed, too."""
    return trial.state == TrialState.FAIL and not lost(trial) and trial.user_attrs.get("ended") != "diverged"


def counts(trial: FrozenTrial) -> bool:
    """Whether it is one of the study's total, done or to be done."""
    return not lost(trial) and not failed(trial)


def values_of(trial: FrozenTrial) -> dict[str, Any]:
    """A trial's values, also while it waits."""
    fixed = trial.system_attrs.get("fixed_params")
    return {**(fixed if isinstance(fixed, dict) else {}), **trial.params}


def derived_seed(seed: int, trials: int) -> int:
    """A sampler's seed: another one for each claim, since the same would give the same values again."""
    return int(np.random.SeedSequence([seed, trials]).generate_state(1)[0])


def _file_name(study: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", study)
