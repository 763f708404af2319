"""The state of a training at the end of an epoch, on disk, so that it can go on from there bit for bit.

A state is a tree of dicts, lists, tensors, arrays and plain numbers. Its file is one safetensors file: nothing in it is
code. Its name holds the epoch and a hash of its content: a file that was not written to its end is not taken for one.
"""

import contextlib
import hashlib
import json
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save as packed
from torch import Tensor

FIRST = 1.0  # seconds until the first file: there is little to lose before
REST = 19  # times what a file took: writing takes at most a twentieth of the time
SMALL = 4e6  # bytes of a state that is copied after every epoch: in less than a millisecond
KEPT = 2  # files: the newest, and the one before it should that one be damaged
State = dict[str, Any]


class Writer:
    """Writes states in the background; of those that come while one is being written, the newest.

    After each file it rests `REST` times as long as that took, unless it is asked to finish: a kill then costs the
    epochs of so much time, which are trained again bit for bit.

    Args:
        folder: Where to; made when the first state comes.
        size: Bytes that a state will have, about.
    """

    def __init__(self, folder: Path, size: int = 0) -> None:
        self.folder = folder
        self.waiting: deque[tuple[int, State]] = deque(maxlen=1)
        self.error: BaseException | None = None  # why the last state was not written
        self.finishing = False
        self.busy = False
        self.size = size
        self.rested = time.monotonic() + FIRST  # when it may write
        self.news: queue.SimpleQueue[bool] = queue.SimpleQueue()  # False: a state waits; True: it is the last one
        self.thread = threading.Thread(target=self._work, daemon=True)

    @property
    def wants(self) -> bool:
        """Whether a state is worth its copy now: it is small, or would be written at once."""
        return self.size < SMALL or not (self.busy or self.waiting or time.monotonic() < self.rested)

    def put(self, epoch: int, state: State) -> None:
        """Hand over the state after an epoch; nobody may change it afterwards."""
        self.waiting.append((epoch, state))
        if not self.thread.ident and not self.finishing:
            self.thread.start()
        self.news.put(False)

    def finish(self, timeout: float = 60.0) -> None:
        """Write what was handed over last, and no more."""
        self.finishing = True
        self.news.put(True)
        if self.thread.ident:
            self.thread.join(timeout)

    def __enter__(self) -> Self:
        """Nothing to do before the first state."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish. A disk that refuses, or whatever else goes wrong, costs the checkpoint, not the training."""
        self.finish()
        if self.error:
            print(f"the state was not kept: {type(self.error).__name__}: {self.error}", file=sys.stderr)

    def _work(self) -> None:
        """Told of states by a queue: a Condition that Ctrl-C finds in `with` stays locked."""
        last = False
        while not last:
            last = self.news.get()
            while not last and (left := self.rested - time.monotonic()) > 0:
                with contextlib.suppress(queue.Empty):
                    last = self.news.get(timeout=left)
            self.busy = True
            if self.waiting:
                self._write(*self.waiting.pop())
            self.busy = False

    def _write(self, epoch: int, state: State) -> None:
        start = time.monotonic()
        try:
            self.size = save(self.folder, epoch, state).stat().st_size
            self.error = None
        except BaseException as error:  # a thread that died of it would be waited for in vain
            self.error = error
        self.rested = time.monotonic() + REST * (time.monotonic() - start)


def save(folder: Path, epoch: int, state: State) -> Path:
    """Write a state under a temporary name, force it to the disk, and give it its name; remove older ones."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps(_split(state, "", tensors))
    content = packed(tensors, {"state": skeleton})
    path = folder / f"epoch-{epoch:06d}-{_hash(content)}.safetensors"
    hidden = folder / f".{os.getpid()}.tmp"
    with hidden.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    hidden.replace(path)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the name too
    finally:
        os.close(descriptor)
    for old in files(folder)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def files(folder: Path) -> list[Path]:
    """The checkpoints of one run, newest first."""
    return sorted(folder.glob("epoch-*.safetensors"), reverse=True)


def load(folder: Path) -> State:
    """The newest state that is whole.

    Raises:
        ValueError: There is none, or it is no state.
    """
    for path in files(folder):
        try:
            if path.stem.rpartition("-")[2] == _hash(path.read_bytes()):
                return _read(path)
        except Exception as error:  # of the file system, of safetensors, of JSON, of a tree that is none
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{path} must be a state that a training has written, but it cannot be read "
                f"({type(error).__name__}: {reason}). Move it away: then the one before it is taken."
            ) from None
    raise ValueError(f"{folder} must hold a checkpoint that is whole, but there is none.")


def _read(path: Path) -> State:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        state = _joined(json.loads(file.metadata()["state"]), tensors)
    if not isinstance(state, dict):
        raise TypeError(f"a {type(state).__name__}")
    return state


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _split(node: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """A tree as JSON knows it, its tensors and arrays named in their place."""
    if isinstance(node, Tensor | np.ndarray):
        tensors[path] = node.detach().contiguous() if isinstance(node, Tensor) else torch.from_numpy(node.copy())
        return {"array" if isinstance(node, np.ndarray) else "tensor": path}
    if isinstance(node, Mapping):
        return {"dict": [[key, _split(value, f"{path}/{key}", tensors)] for key, value in node.items()]}
    if isinstance(node, list | tuple):
        return {type(node).__name__: [_split(value, f"{path}/{i}", tensors) for i, value in enumerate(node)]}
    return node


def _joined(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    match kind:
        case "tensor":
            return tensors[content]
        case "array":
            return tensors[content].numpy()
        case "dict":
            return {key: _joined(value, tensors) for key, value in content}
    parts = [_joined(value, tensors) for value in content]
    return tuple(parts) if kind == "tuple" else parts
