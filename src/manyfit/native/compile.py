"""`python -m manyfit.native.compile float32 FILE`: the kernel as object code of this machine, by Numba."""

import os
import sys
from pathlib import Path
from typing import Any

from llvmlite import binding

NAME = "manyfit_train"  # of the function in the file


def main(kind: str, path: Path) -> None:
    """Write it."""
    # Vectors as wide as the processor has them: some are told to prefer shorter ones, and gain a fifth here.
    os.environ["NUMBA_CPU_FEATURES"] = f"{binding.get_host_cpu_features().flatten()},-prefer-256-bit"
    import numba
    from numba import types

    from manyfit.native.compiled import OPTIONS
    from manyfit.native.kernel import entry

    signature: Any = types.void(types.CPointer(types.int64))
    made: Any = numba.njit(signature, **OPTIONS)(entry(getattr(types, kind)))
    module = binding.parse_assembly(made.inspect_llvm(made.signatures[0]))
    inner = made.overloads[made.signatures[0]].fndesc.llvm_func_name
    for function in module.functions:
        if function.name == inner:
            function.name = NAME
        elif not function.is_declaration:
            function.linkage = "internal"
    path.write_bytes(machine().emit_object(module))


def machine() -> binding.TargetMachine:
    """This one, as LLVM knows it."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=3, jit=True
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
