"""What is wrong with the searches of a folder, and how it is mended."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import optuna

from manyfit.config.secrets import mask
from manyfit.sweeps.locks import locks_of
from manyfit.sweeps.settings import Settings
from manyfit.sweeps.storage import open_storage, tables
from manyfit.sweeps.study import Ledger, quiet, reopened
from manyfit.tracking import journal, sqlite
from manyfit.tracking.doctor import Finding

URL = Settings().storage  # of a search that names none
UNTOLD = Path("mlruns/untold")


def findings() -> Iterator[Finding]:
    """Of the working directory: its own database of searches, and what other databases did not take."""
    path = Path("mlruns/optuna.db").absolute()

    def make() -> None:
        with quiet(), locks_of(URL).named("create"):
            open_storage(URL, lambda _: None)

    ours: set[Path] = set()
    if path.exists() and sqlite.half_made(path, tables()):
        yield Finding(f"{path} was left half made, with nothing in it", make)
    elif path.exists():
        try:
            with quiet():
                ledgers = [reopened(URL, name, UNTOLD) for name in optuna.get_all_study_names(open_storage(URL))]
                ours = {ledger.untold for ledger in ledgers}
                found = [finding for ledger in ledgers for finding in _study(ledger)]
        except Exception as error:
            reason = mask(str(error.__cause__ or error).splitlines()[0])
            found = [Finding(f"{path} does not answer: {reason}")]
        yield from found
    for file in sorted(set(UNTOLD.glob("*.jsonl")) - ours):
        told = "which the next start of its study tells, or manyfit doctor --study NAME --storage URL"
        yield Finding(f"{file} holds {_results(file)} of a search, {told}", wrong=False)


def _study(ledger: Ledger) -> Iterator[Finding]:
    """Trials of the dead, and what is not told yet."""
    name, gone = ledger.study.study_name, ledger.ownerless()
    words = [f"{gone} trial{'s' * (gone != 1)} of processes that are gone, to be handed back"] if gone else []
    words += [f"{_results(ledger.untold)} in {ledger.untold}, to be told"] if ledger.untold.exists() else []
    if words:
        yield Finding(f"study {name} has {' and '.join(words)}", partial(_mend, name))


def _mend(study: str) -> None:
    with quiet(), reopened(URL, study, UNTOLD) as ledger:  # which tells what is untold
        ledger.hand_back()


def _results(file: Path) -> str:
    count = len(journal.lines(file)[0])
    return f"{count} result{'s' * (count != 1)}"
