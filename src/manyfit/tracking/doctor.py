"""What is wrong with a store and its runs, and how it is mended."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from manyfit.config.secrets import mask
from manyfit.tracking import journal, leftovers, records, rejected, sqlite, store
from manyfit.tracking.store import Store, explain
from manyfit.tracking.unfinished import Unfinished
from manyfit.tracking.upkeep import busy_in, quiet, sync

FORGOTTEN = 30 * 24 * 3600.0  # seconds after which nobody is expected to go on with what was stopped
T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """Something that was looked at.

    Attributes:
        words: What it is like.
        mend: Puts it right, and raises if it cannot; None: it is right, or nobody here can.
        wrong: Whether it is.
    """

    words: str
    mend: Callable[[], None] | None = None
    wrong: bool = True

    def told(self, fix: bool) -> str:
        """One line, beginning with `ok`, `problem` or `mended`; with `fix` it is put right if that can be done."""
        if not self.wrong:
            return f"ok: {self.words}"
        if not self.mend:
            return f"problem: {self.words}"
        if not fix:
            return f"problem: {self.words} (manyfit doctor --fix mends it)"
        try:
            self.mend()
        except Exception as error:
            return f"problem: {self.words}, and could not be mended: {explain(error)}"
        return f"mended: {self.words}"


def doctor(root: Path, uri: str | None = None, fix: bool = False, more: Iterable[Finding] = ()) -> list[str]:
    """One line per finding; see `Finding.told`. Without `fix` nothing is changed. `more` is found by others."""
    quiet()
    address = journal.resolve_uri(uri, root)
    told = []
    looks = _store, _held_back, _running, _rejected, _unfinished, _lying_about  # in this order they are mended
    for look in looks:
        told += [finding.told(fix) for finding in look(address, root)]
    told += [finding.told(fix) for finding in more]
    living = sum(journal.alive(folder) for folder in journal.sessions(root))
    return [*told, f"ok: {_are(living, 'session')} running"] if living else told


def _are(number: int, name: str, verb: tuple[str, str] = ("is", "are")) -> str:
    return f"{number} {name} {verb[0]}" if number == 1 else f"{number} {name}s {verb[1]}"


def _store(address: str, root: Path) -> Iterator[Finding]:
    def opened() -> None:
        Store(address, root, lambda _: None)

    file = journal.file_of(address)
    if file and not file.exists():
        yield Finding(f"store {mask(address)} is not there yet; the first run makes it", wrong=False)
        return
    if file and (older := store.older(file)):
        yield Finding(f"store {mask(address)} is of an older MLflow (its tables are {older}); a copy stays", opened)
        return
    if file and sqlite.half_made(file, store.tables()):
        yield Finding(f"store {mask(address)} was left half made, with nothing in it", opened)
        return
    try:
        opened()
    except Exception as error:
        yield Finding(f"store {mask(address)} does not answer: {explain(error)}")
        return
    size = f" ({file.stat().st_size / 1e6:.1f} MB)" if file else ""
    yield Finding(f"store {mask(address)} answers{size}", wrong=False)
    if not file and not address.startswith(("http", "databricks")):
        yield Finding(
            f"artifacts of new experiments go to {mask(journal.artifacts(root))}; where several machines share a "
            "database, MLFLOW_DEFAULT_ARTIFACT_ROOT must name a place that all of them reach, or they use a tracking "
            "server before it",
            wrong=False,
        )


def _held_back(_: str, root: Path) -> Iterator[Finding]:
    waiting = [folder for folder in journal.sessions(root) if not journal.alive(folder)]

    def deliver() -> None:
        if held := sync(root).held:
            raise ValueError("; ".join(held))

    if not waiting:
        return
    words = f"{_are(len(waiting), 'session')} held back in mlruns/spool"
    lines = (line for folder in waiting for line in journal.lines(folder / journal.JOURNAL)[0])
    if damaged := sum(records.parse(line)[0] is None for line in lines):
        words += f", with {damaged} damaged record{'s' * (damaged != 1)}, to be set aside"
    yield Finding(words, deliver)


def _ask(address: str, root: Path, question: Callable[[Store], T]) -> T | None:
    """What the store answers; None: it does not, which was told."""
    file = journal.file_of(address)
    if file and (not file.exists() or sqlite.half_made(file, store.tables()) or store.older(file)):
        return None
    try:
        return question(Store(address, root, lambda _: None))
    except Exception:
        return None


def _running(address: str, root: Path) -> Iterator[Finding]:
    """RUNNING runs of this machine and root whose session's folder is gone."""
    running = _ask(address, root, Store.running) or {}
    here = f"{os.uname().nodename}:{journal.mlruns(root) / 'spool'}{os.sep}"
    present = {folder.name for folder in journal.sessions(root)}  # living; or held back, and their delivery ends them
    dead = [run for run, home in running.items() if home.startswith(here) and Path(home).name not in present]

    def bury() -> None:
        its = Store(address, root, lambda _: None)
        for run_id in dead:
            its.end(run_id, "KILLED")

    if dead:
        words = _are(len(dead), "run", ("was", "were"))
        yield Finding(f"{words} left RUNNING by sessions that are gone, to be KILLED", bury)


def _rejected(_: str, root: Path) -> Iterator[Finding]:
    def deliver() -> None:
        report = sync(root, rejects=True)
        if report.held or report.refused:
            raise ValueError("; ".join(report.held) or "some of it was refused again")

    if found := rejected.files(root):
        names = ", ".join(path.name for path in found)
        yield Finding(f"mlruns/rejected holds what the store refused ({names}), to be delivered into new runs", deliver)


def _unfinished(address: str, root: Path) -> Iterator[Finding]:
    """Notes of what the same command would go on with, but cannot, or will not."""
    notes: dict[Path, str | None] = {}
    for path in (journal.mlruns(root) / "unfinished").glob("*"):
        with Unfinished(root, path.name) as noted:
            if not noted.living:
                notes[path] = noted.run
    old = {path for path in notes if time.time() - path.stat().st_mtime > FORGOTTEN}
    held, states = busy_in(root), journal.mlruns(root) / "checkpoints"
    begun = {path: run for path, run in notes.items() if run and run not in held and not (states / run).exists()}
    gone = _ask(address, root, lambda its: {path for path, run in begun.items() if not its.by_own_id(run)}) or set()

    def forget() -> None:
        for path in old | gone:
            leftovers.remove_unheld(path)

    if found := len(old | gone):
        words = (
            f"{_are(found, 'command')} noted in mlruns/unfinished for a month, or with a run that is not in the store"
        )
        yield Finding(words, forget)


def _lying_about(_: str, root: Path) -> Iterator[Finding]:
    def remove() -> None:
        for path in leftovers.find(root):
            leftovers.remove(path)

    if found := leftovers.find(root):
        names = ", ".join(str(path) for path in found[:3]) + (f" and {len(found) - 3} more" if found[3:] else "")
        yield Finding(f"killed processes left {names}", remove)
