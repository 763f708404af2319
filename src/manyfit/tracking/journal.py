"""The durable queue between training and MLflow: what training hands over is on disk before anything else happens.

A session (one command) owns a folder `<root>/mlruns/spool/<session>/`:

    lock            held (flock) while the session's process lives, so that nobody else replays it
    journal.jsonl   one record per line, appended by the session
    files/          the artifacts that records point to
    acks.jsonl      what MLflow has: ids of its runs, and up to which byte of the journal everything arrived
    courier.lock    held by whoever delivers (see uploader.py); how that goes on it tells, too (see pulse.py)
    courier.log     what the delivering process had to say
"""

import contextlib
import fcntl
import json
import os
import queue
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from manyfit.config.secrets import mask

JOURNAL, ACKS, LOCK, UPLOADER_LOCK, LOG = "journal.jsonl", "acks.jsonl", "lock", "courier.lock", "courier.log"

EVERY = 1.0  # seconds between two times that a journal is forced to the disk: what a power cut may cost

Record = dict[str, Any]


def mlruns(root: Path) -> Path:
    """The folder of the default store, the artifacts and the spool."""
    return Path(root).absolute() / "mlruns"


def artifacts(root: Path) -> str:
    """Where the artifacts of new experiments go in a database that no server stands before.

    It is MLflow's own variable: a server that is started here takes it, too.
    """
    return os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT") or str(mlruns(root) / "artifacts")


def resolve_uri(uri: str | None, root: Path) -> str:
    """The MLflow store to use: `uri`, else `MLFLOW_TRACKING_URI`, else SQLite under `<root>/mlruns`.

    Raises:
        ValueError: for a file store (a plain path or `file:`), which MLflow no longer opens.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(root)
    if ("://" not in uri and not uri.startswith("databricks")) or uri.startswith("file:"):
        raise ValueError(
            f"tracking.uri must be a database or a server, but got {mask(uri)}. Use sqlite:///path/to/mlflow.db, "
            "postgresql://... or http://host:port: MLflow has given up its file store."
        )
    path = uri.removeprefix("sqlite:///")
    if path != uri and not path.startswith("/"):
        return f"sqlite:///{Path(root).absolute() / path}"
    return uri


def default_uri(root: Path) -> str:
    """SQLite under `<root>/mlruns`, absolute."""
    return f"sqlite:///{mlruns(root) / 'mlflow.db'}"


def file_of(uri: str) -> Path | None:
    """The file of a store that is an SQLite database in one."""
    kind, _, path = uri.partition(":///")
    path = path.partition("?")[0]
    in_file = kind.partition("+")[0] == "sqlite" and path not in ("", ":memory:") and not path.startswith("file:")
    return Path(unquote(path)).absolute() if in_file else None


def within(uri: str, root: Path) -> bool:
    """Whether a store is a file below this folder, which whoever writes the folder may write, too."""
    file = file_of(uri)
    return file is not None and file.resolve().is_relative_to(root.resolve())


def now() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return time.time_ns() // 1_000_000


def claim(path: Path) -> int | None:
    """Take the lock file `path`; None when someone else holds it. Close the descriptor to give it back."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


class Journal:
    """The folder of a living session: append-only, thread-safe, never waits for anything but the local disk.

    What was appended survives the death of the process at once, and a power cut from `EVERY` seconds later on: a thread
    forces it to the disk.

    Args:
        parent: Where sessions live, `<root>/mlruns/spool`.
        header: The journal's first record.

    Attributes:
        refused: Why records wait in memory: the disk does not take them (full, read-only). None: all are written.
        unsure: Why what is written was not forced to the disk, when that was last tried. None: it was.
    """

    def __init__(self, parent: Path, header: Record) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        self.session = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
        hidden = parent / f".{self.session}"
        hidden.mkdir(mode=0o700)
        self.lock = claim(hidden / LOCK)  # taken before the folder can be seen: nobody finds it without an owner
        self.folder = hidden.rename(parent / self.session)
        self.refused: str | None = None
        self.unsure: str | None = None
        self._journal = os.open(self.folder / JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._pending = bytearray()
        self._torn = bytearray()  # of the first record that is pending, what is on the disk
        self._files = 0
        self._now = 0
        self._mutex = threading.Lock()
        self._fresh: list[Path] = [parent, self.folder]  # what is to be forced to the disk beside the journal
        self._news: queue.SimpleQueue[bool] = queue.SimpleQueue()  # False: something is new; True: nothing follows
        self._flusher = threading.Thread(target=self._flush, daemon=True)
        self._flusher.start()
        self.append(header)

    def now(self) -> int:
        """Milliseconds since 1970; within a session they never go back, as a clock may."""
        self._now = max(self._now, now())
        return self._now

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a record; when the disk refuses, keep it and try again with the next one."""
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        with self._mutex:
            if self.lock is None:
                raise ValueError(f"a tracker must be open when it is used, but {self.session} is closed")
            self._pending += line
            try:
                while self._pending:
                    size = os.write(self._journal, self._pending)
                    self._torn = (self._torn + self._pending[:size]).rpartition(b"\n")[2]
                    del self._pending[:size]
                self.refused = None
            except OSError as error:
                self.refused = f"cannot write to {self.folder}: {error}"
        self._news.put(False)

    def place(self, name: str) -> Path:
        """A fresh path in the session's folder that ends in `name`; its folder exists."""
        with self._mutex:
            self._files += 1
            path = self.folder / "files" / str(self._files) / name
        path.parent.mkdir(parents=True)
        return path

    def file(self, name: str, content: bytes) -> str:
        """Store an artifact; its path inside the session's folder. Raises OSError when the disk refuses."""
        path = self.place(name)
        try:
            path.write_bytes(content)
        except OSError:
            shutil.rmtree(path.parent, ignore_errors=True)  # half a file takes room, too
            raise
        with self._mutex:
            self._fresh.append(path)
        return str(path.relative_to(self.folder))

    def unwritten(self) -> list[Record]:
        """The records that wait for room on the disk."""
        with self._mutex:
            return [_parse(line) for line in (self._torn + self._pending).splitlines()]

    def release(self) -> None:
        """Stop writing and give the folder free: from here on anybody may deliver what is left."""
        self._news.put(True)
        self._flusher.join()
        with self._mutex:
            if self.lock is not None:
                os.close(self._journal)
                os.close(self.lock)
                self.lock = None

    def _flush(self) -> None:
        """Force what is new to the disk, once in a while, and at the end.

        Told of it by a queue: an Event that Ctrl-C finds in `set` stays locked, and the next `set` waits for ever.
        """
        over = False
        while not over:
            over, due = self._news.get(), time.monotonic() + EVERY
            while not over and (left := due - time.monotonic()) > 0:
                with contextlib.suppress(queue.Empty):
                    over = self._news.get(timeout=left)
            try:
                self._force()
                self.unsure = None
            except OSError as error:
                self.unsure = f"cannot force {self.folder} to the disk: {error}"

    def _force(self) -> None:
        """Files first; one that is refused stays for the next time, and the journal is forced all the same."""
        try:
            while self._fresh:
                with contextlib.suppress(FileNotFoundError):  # it was delivered meanwhile
                    _fsync(self._fresh[0])
                with self._mutex:
                    del self._fresh[0]
        finally:
            os.fsync(self._journal)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lines(path: Path, offset: int = 0, limit: int = -1) -> tuple[list[bytes], int]:
    """Complete lines of a journal in the `limit` bytes (-1: all) after a byte offset, and where they end.

    A torn last line (its writer was killed) does not count.
    """
    if not path.exists():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(limit)
    data = data[: data.rfind(b"\n") + 1]
    return data.split(b"\n")[:-1], offset + len(data)


def read(path: Path, offset: int = 0, limit: int = -1) -> tuple[list[Record], int]:
    """The same as records; a damaged line reads as `{"op": "unreadable"}`."""
    found, end = lines(path, offset, limit)
    return [_parse(line) for line in found], end


def own_file(folder: Path, name: str) -> Path | None:
    """The path of a session's artifact, which need not be there; None: it is not among the session's own files."""
    parts = PurePosixPath(name).parts
    if parts[:1] != ("files",) or ".." in parts or "\0" in name:
        return None
    path = folder.joinpath(*parts)
    try:
        inside = path.resolve() == folder.resolve().joinpath(*parts)  # no link on the way
        return path if inside and (path.is_file() or not path.exists()) else None
    except OSError:  # a loop of links, a name that is too long
        return None


def _parse(line: bytes | bytearray) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {"op": "unreadable"}
    return record if isinstance(record, dict) else {"op": "unreadable"}


def note(path: Path, record: Record) -> None:
    """Append one record to a journal nobody else writes; a torn line before it is closed first."""
    with path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
        torn = size and file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + json.dumps(record).encode() + b"\n")


@dataclass(frozen=True)
class Acks:
    """What is known to have arrived.

    Attributes:
        ids: MLflow's run ids by our own.
        offset: Up to which byte of the journal.
        error: The last obstacle.
        places: The experiment's id and the address of the artifacts, by our own run id.
        said: What the deliverer has to tell a person, in sentences.
        refused: Why deliveries were set aside, one sentence each.
    """

    ids: dict[str, str]
    offset: int
    error: str | None
    places: dict[str, tuple[str, str]] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


def acks(folder: Path) -> Acks:
    """Read a session's acknowledgements."""
    ids: dict[str, str] = {}
    places: dict[str, tuple[str, str]] = {}
    offset, error = 0, None
    said, refused = list[str](), list[str]()
    for record in read(folder / ACKS)[0]:
        match record:
            case {"run": str(run), "run_id": str(run_id), **rest}:
                ids[run] = run_id
                match rest:
                    case {"place": [str(experiment), str(artifacts)]}:
                        places[run] = experiment, artifacts
            case {"said": str(words)}:
                said.append(words)
            case {"refused": str(reason)}:
                refused.append(reason)
            case {"offset": int(byte)} if byte >= 0:
                offset, error = byte, None
            case {"error": str(obstacle)}:
                error = obstacle
    return Acks(ids, offset, error, places, tuple(said), tuple(refused))


def sessions(root: Path) -> list[Path]:
    """Every session's folder, oldest first."""
    parent = mlruns(root) / "spool"
    return sorted(p for p in parent.glob("[0-9]*") if p.is_dir() and not p.is_symlink()) if parent.exists() else []


def alive(folder: Path) -> bool:
    """Whether the session's own process still holds it."""
    return _held(folder / LOCK)


def attended(folder: Path) -> bool:
    """Whether somebody is delivering it."""
    return _held(folder / UPLOADER_LOCK)


def _held(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def orphans(root: Path) -> Iterator[Path]:
    """Sessions whose process is gone, oldest first; each is ours, against other deliverers, while it is yielded."""
    for folder in sessions(root):
        if alive(folder):
            continue
        lock = claim(folder / UPLOADER_LOCK) if folder.exists() else None
        if lock is not None:
            try:
                yield folder
            finally:
                os.close(lock)


def empty(folder: Path) -> bool:
    """Whether a session was killed before its first record."""
    return not lines(folder / JOURNAL)[0]


def discard(folder: Path) -> None:
    """Remove a session of which everything arrived: the journal first, so that nothing is replayed by halves."""
    (folder / JOURNAL).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
