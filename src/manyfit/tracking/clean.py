"""What takes room and is needed no more: states of finished runs, Hydra's folders, runs that were deleted in the UI."""

import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from manyfit.config.secrets import mask
from manyfit.tracking import journal
from manyfit.tracking.store import Store, is_own
from manyfit.tracking.upkeep import busy_in, quiet

MARGIN = 60.0  # seconds before the oldest living session from which its command's folder may be
QUIET = 3600.0  # seconds without a change after which a command without a session (tracking=off) is taken to be over


@dataclass(frozen=True)
class Kind:
    """What can be removed of a kind.

    Attributes:
        words: What it is.
        count: How many.
        size: Bytes.
        remove: Removes them all.
    """

    words: str
    count: int
    size: int
    remove: Callable[[], None]


def kinds(root: Path) -> list[Kind]:
    """What could go. What a run needs that is RUNNING, held back, or stopped before its end, is never among it.

    Raises:
        ValueError: The store does not answer, so that nobody knows which runs are finished.
    """
    quiet()
    store = Store(journal.resolve_uri(None, root), root)
    busy = busy_in(root)
    states = [path for path in journal.mlruns(root).glob("checkpoints/*") if _done(path, store, busy)]
    jobs = list(_jobs(root))
    return [
        Kind(f"state{_s(states)} of finished and deleted runs, in mlruns/checkpoints", len(states), *_all(states)),
        Kind(f"folder{_s(jobs)} of commands, Hydra's, in mlruns/jobs (but of the last hour)", len(jobs), *_all(jobs)),
        _deleted(store, busy),
    ]


def _deleted(store: Store, busy: set[str]) -> Kind:
    """Runs of ours that were deleted; those with artifacts at a place that is not their own stay."""
    found = [run for run in store.deleted() if run.info.run_id not in busy]
    places = {run.info.run_id: store.places(run) for run in found}
    runs = [run for run in found if all(is_own(place, of) for of, place in places[run.info.run_id].items())]
    parents = {mask(place.rsplit("/", 2)[0]) for run in runs for place in places[run.info.run_id].values()}

    def erase() -> None:
        for run in runs:
            store.erase(run.info.run_id)

    words = f"deleted run{_s(runs)}, with all artifacts" + (f" in {', '.join(sorted(parents))}" if parents else "")
    if left := len(found) - len(runs):
        words += f" ({left} more stay: their artifacts lie at a place that is not theirs)"
    return Kind(words, len(runs), sum(_size(path) for run in runs for path in store.folders(run)), erase)


def _s(things: Sequence[object]) -> str:
    return "s" * (len(things) != 1)


def _done(path: Path, store: Store, busy: set[str]) -> bool:
    """Whether a folder of states is of a run that is finished, or was deleted; of one that nobody knows it is not."""
    if not re.fullmatch("[0-9a-f]{32}", path.name) or path.is_symlink() or path.name in busy:
        return False
    runs = store.by_own_id(path.name)
    done = [run.info.status == "FINISHED" or run.info.lifecycle_stage == "deleted" for run in runs]
    return bool(done) and all(done) and not busy & {run.info.run_id for run in runs}


def _jobs(root: Path) -> Iterator[Path]:
    """Folders of commands that are over."""
    locks = [folder / journal.LOCK for folder in journal.sessions(root) if journal.alive(folder)]
    before = min([time.time() - QUIET, *(lock.stat().st_mtime - MARGIN for lock in locks)])
    for path in journal.mlruns(root).glob("jobs/*/*"):
        if path.is_dir() and not path.is_symlink() and _changed(path) < before:
            yield path


def _changed(folder: Path) -> float:
    """When anything in a folder changed last."""
    return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))


def _all(paths: list[Path]) -> tuple[int, Callable[[], None]]:
    """The size of all, and what removes them, and the folder of a day that is empty then."""

    def remove() -> None:
        for path in paths:
            shutil.rmtree(path)
            if path.parent.parent.name == "jobs" and not any(path.parent.iterdir()):
                path.parent.rmdir()

    return sum(map(_size, paths)), remove


def _size(path: Path) -> int:
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
