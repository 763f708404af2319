"""The queue on disk: what is written is there, whoever dies."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from conftest import interrupted
from manyfit.tracking import journal


@pytest.fixture
def session(tmp_path: Path) -> journal.Journal:
    """A living session under tmp_path/mlruns."""
    return journal.Journal(journal.mlruns(tmp_path) / "spool", {"op": "session", "uri": None})


def file_of(session: journal.Journal) -> Path:
    return session.folder / journal.JOURNAL


def test_records_come_back_in_order(session: journal.Journal) -> None:
    """Records read back as written, and reading goes on from where it stopped."""
    session.append({"op": "a", "value": float("inf"), "text": "ä\n"})
    records, offset = journal.read(file_of(session))
    assert records[1:] == [{"op": "a", "value": float("inf"), "text": "ä\n"}]
    session.append({"op": "b"})
    assert journal.read(file_of(session), offset)[0] == [{"op": "b"}]


def test_ctrl_c_locks_nothing(session: journal.Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """At whatever moment of a write it comes, the next one is written, and nobody waits for ever."""
    monkeypatch.setattr(journal, "EVERY", 1e-4)  # so that the thread is as often at work as it can be
    assert interrupted(lambda: session.append({"op": "a"}), 3.0) > 100
    ended = threading.Thread(target=lambda: (session.append({"op": "b"}), session.release()), daemon=True)
    ended.start()
    ended.join(20)
    assert not ended.is_alive()
    assert journal.read(file_of(session))[0][-1] == {"op": "b"}


def test_torn_last_line_is_ignored(session: journal.Journal) -> None:
    """A line without its end does not count, and does not hide those before it."""
    session.append({"op": "a"})
    with file_of(session).open("ab") as file:
        file.write(b'{"op":"b","val')
    records, offset = journal.read(file_of(session))
    assert [r["op"] for r in records] == ["session", "a"]
    assert offset == file_of(session).read_bytes().rindex(b"\n") + 1


def test_damaged_line_spares_the_others(session: journal.Journal) -> None:
    """A line that cannot be read is reported as such; the next one is read."""
    with file_of(session).open("ab") as file:
        file.write(b"\0\0\0\n")
    session.append({"op": "a"})
    assert [r["op"] for r in journal.read(file_of(session))[0]] == ["session", "unreadable", "a"]


def test_threads_do_not_mix_lines(session: journal.Journal) -> None:
    """Records appended from many threads at once are all there, whole."""
    threads = [
        threading.Thread(target=lambda n=n: [session.append({"op": "m", "n": n, "i": i}) for i in range(200)])
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {(r["n"], r["i"]) for r in journal.read(file_of(session))[0][1:]}
    assert found == {(n, i) for n in range(8) for i in range(200)}


def test_full_disk_holds_back_and_goes_on(session: journal.Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that the disk refuses raises nothing, says why, and is made good by the next one."""
    write = os.write

    def half_then_full(descriptor: int, data: bytes) -> int:
        if len(data) > 10:
            return write(descriptor, bytes(data[:10]))
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half_then_full)
        session.append({"op": "a", "value": 1})
    assert "No space left" in str(session.refused)
    session.append({"op": "b"})
    assert session.refused is None
    assert [r["op"] for r in journal.read(file_of(session))[0]] == ["session", "a", "b"]


def test_it_is_forced_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most once in a while, by another thread than the one that appends, and at the end with all of it."""
    forced: list[tuple[int, int, float]] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        assert threading.current_thread() is not threading.main_thread()
        found = os.fstat(descriptor)
        forced.append((found.st_ino, found.st_size, time.monotonic()))

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(journal, "EVERY", 0.2)
    session = journal.Journal(journal.mlruns(tmp_path) / "spool", {"op": "session"})
    artifact = session.folder / session.file("a.txt", b"x")
    for i in range(100):
        session.append({"op": "m", "i": i})
        time.sleep(0.01)
    session.release()
    its = [(size, when) for inode, size, when in forced if inode == file_of(session).stat().st_ino]
    assert its[-1][0] == file_of(session).stat().st_size
    assert {path.stat().st_ino for path in (artifact, session.folder)} <= {inode for inode, _, _ in forced}
    assert len(its) >= 3
    assert all(later - sooner >= 0.2 for (_, sooner), (_, later) in itertools.pairwise(its[:-1]))


def test_what_was_not_forced_to_the_disk_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error of fsync (a quota, a network's): nothing waits, and with the next success nothing is unsure."""
    forced, honest = set[int](), os.fsync

    def refused(_: int) -> None:
        raise OSError(122, "Disk quota exceeded")

    def noted(descriptor: int) -> None:
        honest(descriptor)
        forced.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(journal, "EVERY", 0.02)
    monkeypatch.setattr(os, "fsync", refused)
    session = journal.Journal(journal.mlruns(tmp_path) / "spool", {"op": "session"})
    artifact = session.folder / session.file("a.txt", b"x")
    deadline = time.monotonic() + 30
    while not session.unsure and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "Disk quota exceeded" in str(session.unsure)
    assert (session.refused, session.unwritten()) == (None, [])
    monkeypatch.setattr(os, "fsync", noted)
    session.append({"op": "m"})
    session.release()
    assert session.unsure is None
    assert {path.stat().st_ino for path in (artifact, session.folder, file_of(session))} <= forced


def test_living_session_is_no_orphan(session: journal.Journal, tmp_path: Path) -> None:
    """A session is an orphan only when its process has let go of it."""
    assert journal.alive(session.folder)
    assert list(journal.orphans(tmp_path)) == []
    session.release()
    assert not journal.alive(session.folder)
    assert list(journal.orphans(tmp_path)) == [session.folder]


def test_killed_session_is_an_orphan_with_all_it_wrote(tmp_path: Path) -> None:
    """After kill -9 every record that was appended is there."""
    code = (
        "import sys, time; from pathlib import Path; from manyfit.tracking import journal\n"
        "s = journal.Journal(Path(sys.argv[1]), {'op': 'session'})\n"
        "for i in range(1000): s.append({'op': 'm', 'i': i})\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(journal.mlruns(tmp_path) / "spool")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert list(journal.orphans(tmp_path)) == []
        process.send_signal(signal.SIGKILL)
    (orphan,) = journal.orphans(tmp_path)
    assert [r["i"] for r in journal.read(orphan / journal.JOURNAL)[0][1:]] == list(range(1000))


def test_one_deliverer_at_a_time(session: journal.Journal, tmp_path: Path) -> None:
    """While one delivers an orphan, nobody else gets it."""
    session.release()
    with_it = journal.orphans(tmp_path)
    next(with_it)
    assert list(journal.orphans(tmp_path)) == []
    with_it.close()  # type: ignore[attr-defined]
    assert len(list(journal.orphans(tmp_path))) == 1


def test_acks_survive_a_torn_line(session: journal.Journal) -> None:
    """An acknowledgement cut short is forgotten; the next one is still read."""
    path = session.folder / journal.ACKS
    journal.note(path, {"run": "a", "run_id": "1"})
    with path.open("ab") as file:
        file.write(b'{"offs')
    journal.note(path, {"offset": 7, "error": None})
    assert journal.acks(session.folder) == journal.Acks({"a": "1"}, 7, None)


def test_artifacts_of_one_name_do_not_meet(session: journal.Journal) -> None:
    """Two artifacts of the same name are two files until both are delivered."""
    first, second = session.file("a.txt", b"1"), session.file("a.txt", b"2")
    assert [(session.folder / path).read_bytes() for path in (first, second)] == [b"1", b"2"]


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/x", "mlruns"])
def test_file_store_is_refused(uri: str, tmp_path: Path) -> None:
    """MLflow's file store is refused with what to use instead."""
    with pytest.raises(ValueError, match=r"tracking.uri must be a database or a server, but got .*sqlite:///"):
        journal.resolve_uri(uri, tmp_path)


def test_store_is_chosen_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The config's address, else the environment's, else SQLite under mlruns; a relative database lies under root."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert journal.resolve_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there:1")
    assert journal.resolve_uri(None, tmp_path) == "http://there:1"
    assert journal.resolve_uri("sqlite:///a.db", tmp_path) == f"sqlite:///{tmp_path}/a.db"
