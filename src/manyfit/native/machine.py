"""The kernel's machine code: compiled once for a machine, in a process of its own, and kept where the user may write.

To load it takes a few milliseconds, and no Numba.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from llvmlite import binding
from numpy.typing import NDArray

from manyfit.config import place
from manyfit.config.errors import TrainingError
from manyfit.native.compile import NAME, machine

Kind = Literal["float32", "float64"]
Kernel = Callable[[NDArray[Any]], None]
HERE = Path(__file__).parent
HASH = 16  # bytes


class Compilation:
    """Of a kernel that is not there yet; it goes on while the process does something else.

    Args:
        kind: Of numbers.
        path: Where it is to be kept.
    """

    def __init__(self, kind: Kind, path: Path) -> None:
        print("compiling for this machine, once: it takes some ten seconds", file=sys.stderr)
        self.path = path
        self.folder = tempfile.TemporaryDirectory(prefix="manyfit-")
        self.file = Path(self.folder.name) / path.name
        command = [sys.executable, "-P", "-m", "manyfit.native.compile", kind, str(self.file)]
        found = os.pathsep.join([str(HERE.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        given = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_")}
        self.process = subprocess.Popen(
            command, env={**given, "PYTHONPATH": found}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def result(self) -> bytes:
        """The object code, kept for later if the folder can be written to.

        Raises:
            TrainingError: It could not be compiled; says why, and what to do.
        """
        with self.folder, self.process:
            _, said = self.process.communicate()
            if self.process.returncode or not self.file.exists():
                raise TrainingError(
                    f"the kernel could not be compiled: {said.decode(errors='replace').strip()[-1000:]}\n"
                    "Use trainer.engine=batched."
                )
            code = self.file.read_bytes()
        with contextlib.suppress(OSError):  # a read-only home costs later commands a compilation
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.path.parent) as temporary:
                (part := Path(temporary) / self.path.name).write_bytes(_hash(code) + code)
                part.replace(self.path)  # all or nothing
        return code


def kind_of(dtype: torch.dtype) -> Kind:
    """Of numbers that torch has so."""
    return "float64" if dtype == torch.float64 else "float32"


def path_of(kind: Kind) -> Path:
    """Where the kernel of this machine, this source and these compilers is kept."""
    source = b"".join(path.read_bytes() for path in sorted(HERE.glob("*.py")))
    versions = [importlib.metadata.version(name) for name in ("numba", "llvmlite")]
    known = [source, *map(str.encode, [*versions, kind, binding.get_host_cpu_name()])]
    known.append(binding.get_host_cpu_features().flatten().encode())
    digest = hashlib.blake2b(b"\0".join(known), digest_size=12).hexdigest()
    return place.cache() / f"kernel-{kind}-{digest}.o"


@functools.cache
def compilation(kind: Kind) -> Compilation | None:
    """Of a kernel that is not there: begun with the first call. None: it is."""
    path = path_of(kind)
    return None if path.exists() else Compilation(kind, path)


def _kept(path: Path) -> bytes | None:
    """What a file holds, if it is whole: its hash stands before it."""
    with contextlib.suppress(OSError):
        content = path.read_bytes()
        if content[:HASH] == _hash(content[HASH:]):
            return content[HASH:]
    return None


def _hash(code: bytes) -> bytes:
    return hashlib.blake2b(code, digest_size=HASH).digest()


def missing(kind: Kind) -> bool:
    """Whether `load` takes seconds."""
    return _kept(path_of(kind)) is None


@functools.cache
def load(kind: Kind) -> Kernel:
    """The kernel, ready to be called with a table of `tables.Call`; the interpreter's lock is free meanwhile."""
    code = _kept(path_of(kind))
    if code is None:
        begun = compilation(kind) or Compilation(kind, path_of(kind))
        compilation.cache_clear()  # whatever comes of it, the next is another
        code = begun.result()
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine())
    engine.add_object_file(binding.object_file.ObjectFileRef.from_data(code))
    engine.finalize_object()
    pointer = ctypes.c_void_p
    function = ctypes.CFUNCTYPE(ctypes.c_int, pointer, pointer, pointer)(engine.get_function_address(NAME))
    nothing = ctypes.create_string_buffer(64)  # Numba's place for a result, and for an exception: there are none

    def call(table: NDArray[np.int64]) -> None:
        code = function(ctypes.addressof(nothing), ctypes.addressof(nothing), table.ctypes.data)
        assert code == 0, code

    call.engine = engine  # type: ignore[attr-defined]  # lives as long as its code is called
    return call
