"""An exported network, read as data: what torch's own reader is handed holds nothing that it would run.

`torch.export.load` unpickles, evaluates sizes and guards as Python, loads compiled libraries, and calls any function
that a graph names. A stored file may be anybody's, so it is written anew of what a network of ours consists of.
It travels with a model (`tracking/packaging.py`), and needs nothing else of ours.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

GRAPH, SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
TENSORS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
KNOWN = re.compile(  # what is beside them: raw bytes, and what says how they are written
    r"data/weights/weight_\d+|data/constants/tensor_\d+|archive_format|archive_version|byteorder"
    r"|\.data/(version|serialization_id)"
)
TENSOR = re.compile(r"(weight|tensor)_\d+")
TARGET = re.compile(
    r"torch\.ops\.aten\.(?!(from_file|save)\.)\w+\.\w+|torch\.sym_\w+"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|eq|ne|lt|le|gt|ge)"
)
OPTION = re.compile(  # what operations take as text, and equations
    r"none|tanh|floor|trunc|same|valid|constant|reflect|replicate|circular|sum|prod|mean|amax|amin"
    r"|[A-Za-z,. ]*->[A-Za-z. ]*"
)
SIZE = re.compile(
    r"(Symbol\('\w+'(, (positive|integer|nonnegative)=True)*\)|Integer|Mul|Add|Pow|Max|Min|[\d ()+*,/-])*"
)
SPEC = {"builtins.tuple", "builtins.list", "builtins.dict", "null", "[]"}
WORD = re.compile(r"[\w.:+-]*")


def load(path: Path) -> "nn.Module":
    """The network of a file that `torch.export.save` wrote.

    Raises:
        ValueError: The file has something that is no part of a network of ours.
    """
    import torch

    try:
        network: nn.Module = torch.export.load(_rewritten(path)).module()
    except Exception as error:  # whatever torch, or json, makes of a damaged one
        raise ValueError(f"{path} must be an exported network as it was stored, but {error or repr(error)}") from error
    return network


def _rewritten(path: Path) -> io.BytesIO:
    """A new file of the parts that were judged: another reader might find others in the old one."""
    written = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(written, "w") as new:
        names = old.namelist()
        if len(names) != len({*names}):
            raise ValueError("it holds a part twice.")
        for name in names:
            part, content = name.partition("/")[2], old.read(name)
            if part == SAMPLES:
                content = b""  # pickled, and of no use
            elif part == GRAPH:
                content = json.dumps(_graph(json.loads(content))).encode()
            elif part in TENSORS:
                content = json.dumps(_tensors(json.loads(content))).encode()
            elif not KNOWN.fullmatch(part):
                raise ValueError(f"it holds {name}.")
            new.writestr(f"archive/{part}", content)
    written.seek(0)
    return written


def _tensors(config: dict[str, Any]) -> dict[str, Any]:
    for name, tensor in config["config"].items():
        if tensor["use_pickle"] is not False or not TENSOR.fullmatch(tensor["path_name"]):
            raise ValueError(f"its {name} is no tensor of plain bytes.")
    return config


def _graph(program: dict[str, Any]) -> dict[str, Any]:
    """Without what is for people; raises ValueError if it names what is no operation of a network, or holds code."""
    graph = program["graph_module"]["graph"]
    for node in graph["nodes"]:
        node["metadata"] = {}
    program["graph_module"]["metadata"] = {}
    for key, text in _texts(program):
        form = {"target": TARGET, "expr_str": SIZE, "as_string": OPTION}.get(key, WORD)
        if key in ("in_spec", "out_spec"):
            known = {word for _, word in _texts(json.loads(text))} <= SPEC | {"type", "context", "children_spec"}
        else:
            known = bool(form.fullmatch(text))
        if not known:
            raise ValueError(f"its {key} is {text[:200]!r}.")
    if program.get("guards_code"):
        raise ValueError("it holds guards, which are code.")
    return program


def _texts(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a tree, keys too, with the key that it stands under."""
    if isinstance(node, str):
        yield key, node
    elif isinstance(node, Mapping):
        for name, inner in node.items():
            yield "key", name
            yield from _texts(inner, name)
    elif isinstance(node, list):
        for inner in node:
            yield from _texts(inner, key)
