"""What did not get into a store: refused for good, or no record at all. It is kept, and can go into new runs.

`mlruns/rejected/<session>.jsonl` has a line for each refusal, `mlruns/rejected/<session>/` the files they point to.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from manyfit.tracking import journal, limits, records
from manyfit.tracking.journal import Record

LONGEST = 100_000  # characters that are kept of a line that is no record
EXPERIMENT = "rejected"  # of what belongs to no run that is known
MOVED = ("metrics", "tags", "file", "model")  # records that a new run takes as they are


def folder_of(root: Path) -> Path:
    """Where they are."""
    return journal.mlruns(root) / "rejected"


def files(root: Path) -> list[Path]:
    """One for each session that has any."""
    return sorted(folder_of(root).glob("*.jsonl"))


def keep(session: Path, run: Mapping[str, Any], reason: str, refused: Sequence[Record], line: bytes = b"") -> None:
    """Note a refusal, and take its files out of the session's folder, which is removed.

    Args:
        session: The session's folder.
        run: Which it is: id, run_id (MLflow's), experiment, name, uri; as far as is known.
        reason: In a sentence.
        refused: Records.
        line: What was no record.
    """
    folder = folder_of(session.parents[2])
    folder.mkdir(exist_ok=True)
    for record in refused:
        own = journal.own_file(session, record["path"]) if "path" in record else None
        if own and own.exists():
            place = folder / session.name / record["path"]
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(own, place)
    told = {"run": dict(run), "reason": reason[:2000], "refused": list(refused)}
    told |= {"line": line.decode(errors="replace")[:LONGEST]} if line else {}
    journal.note(folder / f"{session.name}.jsonl", told)


def release_all(root: Path) -> list[str]:
    """`release` what can be; why the rest stays for now, in sentences."""
    lock = journal.claim(folder_of(root) / ".lock") if files(root) else None
    if lock is None:
        return ["mlruns/rejected: another process is delivering it"] if files(root) else []
    stays = []
    try:
        for path in files(root):
            try:
                with _nobody_adds(path):
                    release(path)
            except OSError as error:
                stays.append(f"{path.name}: {error}")
    finally:
        os.close(lock)
    return stays


@contextlib.contextmanager
def _nobody_adds(path: Path) -> Iterator[None]:
    """Keep whoever delivers the session of a file from keeping more in it.

    Raises:
        BlockingIOError: One is at work.
    """
    session = journal.mlruns(path.parents[2]) / "spool" / path.stem
    if not session.exists():  # all of it was delivered
        yield
        return
    lock = None if journal.alive(session) else journal.claim(session / journal.UPLOADER_LOCK)
    if lock is None:
        raise BlockingIOError("its session is at work, and may add to it; try again when it has ended")
    try:
        yield
    finally:
        os.close(lock)


def release(path: Path) -> journal.Journal:
    """Make of what is kept in a file a session that ended, with a new run for each that lacks something.

    What the new runs do not take either, such as a line that was no record, is in their artifact rejected.jsonl.

    Raises:
        OSError: The disk refuses: all stays as it is.
    """
    root = path.parents[2]
    told = [one for one in journal.read(path)[0] if isinstance(one.get("run"), dict)]
    uri = next((one["run"]["uri"] for one in told if one["run"].get("uri")), None)
    made = journal.Journal(journal.mlruns(root) / "spool", {"op": "session", "uri": uri})
    try:
        _fill(made, path, told)
        if why := made.refused or made.unsure:
            raise OSError(why)
        path.unlink()
    except OSError:
        made.release()
        journal.discard(made.folder)
        raise
    shutil.rmtree(path.with_suffix(""), ignore_errors=True)
    made.release()
    return made


def _fill(made: journal.Journal, path: Path, told: Sequence[Record]) -> None:
    """Write the new runs into a session."""
    by_run: dict[str, list[Record]] = {}
    for one in told:
        by_run.setdefault(str(one["run"].get("id")), []).append(one)
    for run, its in by_run.items():
        for record in _renewed(path.stem, run, its, made, path.with_suffix("")):
            if records.parse(json.dumps(record).encode())[0]:
                made.append(record)
    made.append({"op": "close"})


def _renewed(session: str, run: str, told: Sequence[Record], made: journal.Journal, folder: Path) -> list[Record]:
    """The records of a new run with what another lacks; its id is the same whenever this is done again."""
    known = told[0]["run"]
    own = hashlib.blake2b(f"{session}/{run}".encode(), digest_size=16).hexdigest()
    everything = [record for one in told for record in one["refused"]]
    first: Record = next((record for record in everything if record["op"] == "start"), {})
    begun = {key: first.get(key) or known.get(key) for key in ("experiment", "name")}
    times = [record["time"] for record in everything if "time" in record]
    time = min(times, default=journal.now())
    tags = {"manyfit.rejected.of": str(known.get("run_id") or known.get("id")), "manyfit.rejected.session": session}
    start = {
        "op": "start",
        "run": own,
        "time": time,
        "experiment": limits.cut(begun["experiment"] or EXPERIMENT, limits.MAX_EXPERIMENT),
        "name": limits.cut(f"{begun['name'] or session} (rejected)", limits.MAX_RUN),
        "params": _clean({key: text for one in everything for key, text in one.get("params", {}).items()}),
        "tags": _clean(first.get("tags", {})) | tags,
        "parent": None,
        "dataset": next((one["dataset"] for one in everything if one.get("dataset")), None),
        "run_id": None,
    }
    text = "".join(json.dumps(one) + "\n" for one in told).encode()
    held = {"op": "file", "run": own, "path": made.file("rejected.jsonl", text), "folder": None}
    ended = next((record for record in everything if record["op"] == "end"), {"status": "FINISHED", "time": time})
    rest = [_moved(record, made, folder) | {"run": own} for record in everything if record["op"] in MOVED]
    return [start, *rest, held, {**ended, "op": "end", "run": own}]


def _moved(record: Record, made: journal.Journal, folder: Path) -> Record:
    """The same with names that a store takes, and with its file in the new session's folder."""
    match record["op"]:
        case "metrics":
            return record | {"rows": [(_name(key), value, step) for key, value, step in record["rows"]]}
        case "tags":
            return record | {"tags": _clean(record["tags"])}
        case "file" | "model":
            source = journal.own_file(folder, record["path"])
            place = made.place(Path(record["path"]).name)
            if source and source.exists():
                shutil.copyfile(source, place)
            return record | {"path": str(place.relative_to(made.folder))}
    return record


def _clean(texts: Mapping[str, str]) -> dict[str, str]:
    return {_name(key): value for key, value in texts.items()}


def _name(key: str) -> str:
    return limits.cut(limits.STRANGE.sub("_", key), limits.MAX_KEY)
