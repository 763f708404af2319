"""Journals of a broken disk, or of somebody who means harm: what is no record is set aside, the rest is delivered."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.entities import LoggedModel

from manyfit.tracking import journal, rejected, upkeep
from manyfit.tracking.delivery import Session
from manyfit.tracking.store import Point, Values, packed
from manyfit.tracking.tracker import Tracker

MEMORY = next(filter(Path.is_dir, [Path("/dev/shm")]), None)  # removing folders may cost ten times the test elsewhere
GOOD, BAD = "a" * 32, "b" * 32
DATA = {"name": "d", "digest": "0", "source": "s", "rows": 1, "features": 1, "targets": 1}
START = {"op": "start", "time": 5, "experiment": "e", "name": "n", "params": {"lr": "1"}, "tags": {"t": "1"}}
START |= {"parent": None, "dataset": DATA, "run_id": None}
MODEL = {"op": "model", "path": "files/2/m", "inputs": ["float32", [4]], "outputs": ["float32", [3]]}
MODEL |= {"versions": {"torch": "2.13"}, "rows": None}
RECORDS: list[dict[str, Any]] = [
    START,
    {"op": "metrics", "time": 6, "rows": [["m", 0.5, 1], ["m", float("nan"), 2]]},
    {"op": "tags", "tags": {"a": "b"}},
    {"op": "file", "path": "files/1/f", "folder": None},
    MODEL,
    {"op": "end", "time": 7, "status": "FINISHED"},
]
LOGGED = LoggedModel("1", "m-1", "model", "/artifacts", 0, 0)
KEYS = sorted({key for record in RECORDS for key in record})


class Memory:
    """A store that takes what a database would, and remembers it."""

    def __init__(self) -> None:
        self.points: dict[str, list[Point]] = {}
        self.files: list[str] = []
        self.ended: dict[str, str] = {}

    def find(self, experiment: str, own_id: str) -> None:
        return None

    def create(self, experiment: str, start: journal.Record, tags: Mapping[str, str]) -> str:
        _take(experiment, start["name"], start["time"], *tags, *tags.values())
        return str(tags["manyfit.id"])

    def place(self, run_id: str) -> tuple[str, str]:
        return "1", run_id

    def reopen(self, run_id: str) -> None:
        return None

    def dataset(self, run_id: str, record: journal.Record) -> None:
        _take(*record.values())

    def log_all(self, values: Mapping[str, Values]) -> set[str]:
        for run_id, its in values.items():
            _take(*(part for point in its.points for part in point), *(text for pair in its.params for text in pair))
            self.points.setdefault(run_id, []).extend(its.points)
        return set(values)

    def file(self, run_id: str, path: Path, folder: str | None) -> None:
        self.files.append(path.read_text())

    def model(self, run_id: str, path: Path, item: journal.Record, own_id: str) -> None:
        if item["run"] == BAD:
            packed(path, item, run_id, LOGGED)
        self.files.append(path.read_text())
        _take(*item["inputs"][1], *item["outputs"][1], *item["versions"].values())

    def end(self, run_id: str, status: str, when: int) -> None:
        _take(when)
        self.ended[run_id] = status


def _take(*values: object) -> None:
    for value in values:
        if isinstance(value, str):
            value.encode()
        else:
            assert isinstance(value, int | float)
            assert not isinstance(value, int) or -(2**63) <= value < 2**63


def line(record: Mapping[str, Any], run: str) -> bytes:
    return json.dumps({**record, "run": run}).encode()


SCALARS = st.none() | st.booleans() | st.integers() | st.integers(2**62, 2**70) | st.floats() | st.text(max_size=9)
SCALARS |= st.sampled_from(
    ["\ud800", "\0", "/etc/passwd", "../../x", "files/../../x", "files", "acks.jsonl", "x" * 9999]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=3,
)


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A record of the bad run with something else in the place of one value, or without it; or any bytes."""
    record = {**draw(st.sampled_from(RECORDS)), "run": BAD}
    record |= {"path": "files/3/x"} if "path" in record else {}
    match draw(st.sampled_from(["bytes", "drop", "change", "cut", "value"])):
        case "bytes":
            return draw(st.binary(max_size=60)).replace(b"\n", b"")
        case "drop":
            record.pop(draw(st.sampled_from(sorted(record))))
        case "change":
            record[draw(st.sampled_from(KEYS))] = draw(VALUES)
        case "cut":
            whole = json.dumps(record).encode()
            return whole[: draw(st.integers(0, len(whole) - 1))]
        case "value":
            return json.dumps(draw(VALUES)).encode()
    return json.dumps(record).encode()


def written(root: Path, lines: list[bytes]) -> Path:
    """A session that left these lines, and the files of both runs."""
    folder = root / "mlruns" / "spool" / "20250101-000000-00000000"
    for number, name in ((1, "f"), (2, "m"), (3, "x")):
        (folder / "files" / str(number)).mkdir(parents=True)
        (folder / "files" / str(number) / name).write_text(name)
    (folder / journal.JOURNAL).write_bytes(b"".join(one + b"\n" for one in lines))
    return folder


@settings(
    max_examples=500,
    derandomize=True,
    deadline=timedelta(seconds=20),
    suppress_health_check=list(HealthCheck),
    database=None,
)
@given(st.lists(st.tuples(st.integers(0, len(RECORDS)), broken()), min_size=1, max_size=3))
def test_whatever_stands_in_a_journal(faults: list[tuple[int, bytes]]) -> None:
    """Reading and delivering raises for no line; every good record arrives."""
    lines = [line(record, GOOD) for record in RECORDS]
    for place, fault in faults:
        lines.insert(place, fault)
    with tempfile.TemporaryDirectory(dir=MEMORY) as root:
        folder = written(Path(root), lines)
        store = Memory()
        session = Session(store, folder)  # type: ignore[arg-type]
        session.advance(abandoned=True)
        assert [point[:1] + point[2:] for point in store.points[GOOD]] == [("m", 6, 1), ("m", 6, 2)]
        assert {"f", "m"} <= set(store.files)
        assert store.ended[GOOD] == "FINISHED"
        kept = [len(journal.read(path)[0]) for path in rejected.files(Path(root))]
        assert sum(kept) == session.refused
        assert journal.acks(folder).offset == len((folder / journal.JOURNAL).read_bytes())


@pytest.mark.parametrize(
    "fault",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"op":"end"}',
        b'{"op":"new","run":"' + BAD.encode() + b'"}',
        line({"op": "metrics", "time": 1, "rows": [["m", 1.0, 2**63]]}, BAD),
        line({"op": "metrics", "time": 1, "rows": [["\ud800", 1.0, 1]]}, BAD),
        line({"op": "tags", "tags": {"a": "\0"}}, BAD),
        line(START, GOOD),
    ],
    ids=["empty", "cut", "deep", "without keys", "unknown", "large", "no text", "NUL", "twice"],
)
def test_a_damaged_line_is_set_aside_with_its_reason(tmp_path: Path, fault: bytes) -> None:
    """And is counted, so that the command can say so."""
    lines = [line(record, GOOD) for record in RECORDS]
    folder = written(tmp_path, [*lines[:2], fault, *lines[2:]])
    session = Session(Memory(), folder)  # type: ignore[arg-type]
    session.advance(abandoned=True)
    assert session.refused == 1
    (reason,) = journal.acks(folder).refused
    assert reason.startswith("it is no record: ")
    (kept,) = rejected.files(tmp_path)
    assert json.loads(kept.read_text())["reason"].startswith("it is no record: ")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"versions": {"numpy": "2"}}, "it is no record: model.versions"),
        ({"inputs": ["float8", [4]]}, "it is no record: model.inputs"),
        ({"outputs": ["bool8", [4]]}, "it is no record: model.outputs"),
        ({"path": "files/4/model"}, "a file must have a name that there is room for"),
        ({"path": "files/5/m"}, "a file must have a name that there is room for"),
        ({"path": f"files/{'d/' * 250}m"}, "it is no record: model.path"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_model_that_cannot_be_packed(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    """It is set aside with its reason, and holds nothing back."""
    hostile = MODEL | change
    folder = written(tmp_path, [*(line(r, BAD) for r in (START, hostile)), *(line(record, GOOD) for record in RECORDS)])
    for name in ("files/4/model", "files/5/m", "files/5/model"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    store = Memory()
    session = Session(store, folder)  # type: ignore[arg-type]
    session.advance(abandoned=True)
    assert sorted(store.files) == ["f", "m"]
    assert session.refused == 1
    assert journal.acks(folder).refused[0].startswith(reason)


@pytest.mark.parametrize(
    ("recorded", "goes_to"),
    [
        (None, "sqlite:///{root}/mlruns/mlflow.db"),
        ("sqlite:///{root}/other/own.db", "sqlite:///{root}/other/own.db"),
        ("http://current", "http://me:secret@current"),
        ("https://named", "https://named"),
        ("http://evil", None),
        ("http://current.evil", None),
        ("sqlite:///{root}/../private.db", None),
        ("sqlite:///{root}/link/private.db", None),
        ("postgresql://evil/db", None),
    ],
)
def test_the_store_that_a_journal_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: str | None, goes_to: str | None
) -> None:
    """It is gone to if it lies in the folder, or if whoever syncs names it; no other is sent a password."""
    root = tmp_path / "root"
    uri = "http://***@current" if recorded == "http://current" else recorded and recorded.format(root=root)
    folder = written(root, [json.dumps({"op": "session", "uri": uri}).encode()])
    (root / "link").symlink_to(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@current")
    if goes_to:
        assert upkeep.target(folder, root, None, "https://named") == goes_to.format(root=root)
        return
    with pytest.raises(ValueError, match=rf"which the session names.*MLFLOW_TRACKING_URI={uri} manyfit sync delivers"):
        upkeep.target(folder, root, None, "https://named")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(uri))
    assert upkeep.target(folder, root, None) == uri


def test_what_delivers_to_a_store_elsewhere(tmp_path: Path) -> None:
    """The command says so where `manyfit sync` by itself would hold it back."""

    def sync(uri: str) -> str:
        tracker = SimpleNamespace(uri=uri, root=tmp_path, elsewhere=f"MLFLOW_TRACKING_URI={uri} ")
        return str(Tracker.sync.fget(tracker))  # type: ignore[attr-defined]

    assert sync("http://server") == "MLFLOW_TRACKING_URI=http://server manyfit sync"
    assert sync(f"sqlite:///{tmp_path}/other.db") == "manyfit sync"


# Files: only those of the session's own folder.


def absolute(folder: Path, outside: Path) -> str:
    return str(outside)


def above(folder: Path, outside: Path) -> str:
    return os.path.relpath(outside, folder)


def above_files(folder: Path, outside: Path) -> str:
    return "files/../" + os.path.relpath(outside, folder)


def a_link(folder: Path, outside: Path) -> str:
    (folder / "files" / "9").mkdir()
    (folder / "files" / "9" / "x").symlink_to(outside)
    return "files/9/x"


def a_linked_folder(folder: Path, outside: Path) -> str:
    (folder / "files" / "9").symlink_to(outside.parent)
    return f"files/9/{outside.name}"


def the_journal_itself(folder: Path, outside: Path) -> str:
    return journal.JOURNAL


def a_pipe(folder: Path, outside: Path) -> str:
    os.mkfifo(folder / "files" / "9")
    return "files/9"


@pytest.mark.parametrize("record", [RECORDS[3], MODEL], ids=["file", "model"])
@pytest.mark.parametrize("path", [absolute, above, above_files, a_link, a_linked_folder, the_journal_itself, a_pipe])
def test_a_file_of_somebody_elses(tmp_path: Path, path: Callable[[Path, Path], str], record: dict[str, Any]) -> None:
    """It is not delivered, not removed, and the record is set aside with its reason; the good ones arrive."""
    outside = tmp_path / "private" / "key.txt"
    outside.parent.mkdir()
    outside.write_text("secret")
    folder = written(tmp_path, [])
    hostile = record | {"path": path(folder, outside)}
    (folder / journal.JOURNAL).write_bytes(
        b"".join(one + b"\n" for one in [line(START, BAD), line(hostile, BAD), *(line(r, GOOD) for r in RECORDS)])
    )
    store = Memory()
    session = Session(store, folder)  # type: ignore[arg-type]
    session.advance(abandoned=True)
    assert outside.read_text() == "secret"
    assert sorted(store.files) == ["f", "m"]
    assert session.refused == 1
    assert "a file must be one of the session's own" in journal.acks(folder).refused[0]
    journal.discard(folder)
    assert outside.read_text() == "secret"
    made = rejected.release(rejected.files(tmp_path)[0])  # nor later
    assert not [file for file in made.folder.rglob("*") if file.is_file() and b"secret" in file.read_bytes()]
    assert outside.read_text() == "secret"
