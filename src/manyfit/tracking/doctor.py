"""What is wrong with a store and its runs, and how it is mended."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from manyfit.config.secrets import mask
from manyfit.tracking import journal, leftovers, records, rejected, sqlite, store
from manyfit.tracking.store import Store, explain
from manyfit.tracking.upkeep import quiet, sync


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


def doctor(root: Path, uri: str | None = None, fix: bool = False) -> list[str]:
    """One line per finding; see `Finding.told`. Without `fix` nothing is changed."""
    quiet()
    address = journal.resolve_uri(uri, root)
    told = []
    for look in (_store, _held_back, _running, _rejected, _lying_about):  # in this order they are mended
        told += [finding.told(fix) for finding in look(address, root)]
    living = sum(journal.alive(folder) for folder in journal.sessions(root))
    return [*told, f"ok: {living} sessions are running"] if living else told


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

    for folder in journal.sessions(root):
        damaged = sum(records.parse(line)[0] is None for line in journal.lines(folder / journal.JOURNAL)[0])
        if damaged:
            yield Finding(f"{folder} has {damaged} damaged records, which its delivery sets aside", lambda: None)
    if waiting:
        yield Finding(f"{len(waiting)} sessions are held back in mlruns/spool", deliver)


def _running(address: str, root: Path) -> Iterator[Finding]:
    """RUNNING runs of this machine and root whose session's folder is gone."""
    file = journal.file_of(address)
    if file and (not file.exists() or sqlite.half_made(file, store.tables()) or store.older(file)):
        return  # which was told
    try:
        its = Store(address, root, lambda _: None)
        running = its.running()
    except Exception:
        return  # likewise
    here = f"{os.uname().nodename}:{journal.mlruns(root) / 'spool'}{os.sep}"
    present = {folder.name for folder in journal.sessions(root)}  # living; or held back, and their delivery ends them
    dead = [run for run, home in running.items() if home.startswith(here) and Path(home).name not in present]

    def bury() -> None:
        for run_id in dead:
            its.end(run_id, "KILLED")

    if dead:
        yield Finding(f"{len(dead)} runs were left RUNNING by sessions that are gone: they are KILLED", bury)


def _rejected(_: str, root: Path) -> Iterator[Finding]:
    def deliver() -> None:
        report = sync(root, rejects=True)
        if report.held or report.refused:
            raise ValueError("; ".join(report.held) or "some of it was refused again")

    if found := rejected.files(root):
        names = ", ".join(path.name for path in found)
        yield Finding(f"mlruns/rejected holds what the store refused ({names}), to be delivered into new runs", deliver)


def _lying_about(_: str, root: Path) -> Iterator[Finding]:
    def remove() -> None:
        for path in leftovers.find(root):
            leftovers.remove(path)

    if found := leftovers.find(root):
        names = ", ".join(str(path) for path in found[:3]) + (f" and {len(found) - 3} more" if found[3:] else "")
        yield Finding(f"killed processes left {names}", remove)
