"""What others hand over, configs, tables and states: nothing in it runs, and what is wrong is said in a sentence."""

import json
import re
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.numpy import save_file
from torch import nn

from conftest import Compose, command
from hydra_plugins.manyfit.harmless import require_harmless
from manyfit import measures, resume
from manyfit.config.build import target_of
from manyfit.config.errors import ConfigError
from manyfit.config.schema import Component, parse
from manyfit.config.trust import TRUSTED
from manyfit.data import sources
from manyfit.data.encoding import fitted
from manyfit.data.table import Table
from manyfit.experiments import claims
from manyfit.losses import Loss
from manyfit.schedules import Schedule
from manyfit.sweeps import search
from manyfit.training import checkpoints
from test_cli import client, runs

# ------------------------------------------------------------------------------------------- a file executes nothing

TARGETS = [
    "torch.fx.graph_module.reduce_graph_module",
    "os.system",
    "posix.system",
    "subprocess.Popen",
    "subprocess.run",
    "pandas.read_pickle",
    "builtins.eval",
    "builtins.exec",
    "builtins.__import__",
    "numpy.load",
    "torch.load",
    "torch.hub.load",
    "torch.jit.load",
    "torch.package.PackageImporter",
    "pickle.loads",
    "marshal.loads",
    "shelve.open",
    "importlib.import_module",
    "runpy.run_path",
    "functools.partial",
    "ctypes.CDLL",
    "joblib.load",
    "yaml.unsafe_load",
    "evil.Net",
    "evil",
    ".evil.Net",
    # beside the command, but no file of one's own
    "mlruns.artifacts.evil.Net",
    # through what a trusted module has imported
    "torch.nn.modules.module.torch.fx.graph_module.reduce_graph_module",
    "torch.nn.modules.module.OrderedDict",
    "torch.nn.parallel.distributed.os.system",
    "torch.optim.optimizer.functools.partial",
    "optuna.trial.numpy.load",
    "optuna.study.study.os.system",
    "manyfit.cli.subprocess.run",
    "manyfit.cli:subprocess.run",
    "manyfit.data.sources.np.load",
    "manyfit.training.checkpoints.safe_open",
    "pytorch_lightning.trainer.trainer.os.system",
    # private
    "manyfit.cli._ui",
    "optuna._imports.try_import",
    "torch.nn.Module.__init__.__globals__",
    "torch.nn.Linear.__subclasshook__",
]
KINDS = {
    "data": Table,
    "model": nn.Module,
    "loss": Loss,
    "optimizer": torch.optim.Optimizer,
    "schedule": Schedule,
    "sampler": optuna.samplers.BaseSampler,
    "pruner": optuna.pruners.BasePruner,
}
LEAVES_A_TRACE = "import pathlib\npathlib.Path({!r}).touch()\nclass Net: pass\n"


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there once a hostile module has run: one that can be imported, one among stored artifacts."""
    here, trace = tmp_path / "here", tmp_path / "trace"
    for folder in (tmp_path / "elsewhere", here / "mlruns" / "artifacts"):
        folder.mkdir(parents=True)
        (folder / "evil.py").write_text(LEAVES_A_TRACE.format(str(trace)))
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    monkeypatch.syspath_prepend(here)
    return trace


def _component(group: str, target: str, tree: Mapping[str, Any]) -> None:
    """As the command comes to it: the tree is parsed, then the component built."""
    parse({**tree, group: {**tree.get(group, {}), "_target_": target}})
    searched = group in ("sampler", "pruner")
    cfg = OmegaConf.create({group: {"_target_": target}})
    component = search._component(cfg, group) if searched else Component(_target_=target)
    target_of(component, group, KINDS[group])


def _hydras(path: str, target: str) -> None:
    cfg = OmegaConf.create({"hydra": {"launcher": {}, "sweeper": {}, "job_logging": {}}, "trusted": []})
    OmegaConf.update(cfg, f"hydra.{path}", target, force_add=True)
    require_harmless(cfg)


def _nested(node: Any, tree: Mapping[str, Any]) -> None:
    parse({**tree, "model": {**tree["model"], "layers": node}})


def _aliased(target: str, tree: Mapping[str, Any]) -> None:
    text = yaml.safe_dump({**tree, "model": {**tree["model"], "a": 1}})
    text = f"name: &hidden {{_target_: '{target}'}}\n" + text.replace("  a: 1\n", "  a: [[*hidden]]\n")
    parse({**yaml.safe_load(text), "name": None})


def _stored(target: str, tree: Mapping[str, Any]) -> None:
    stored = {"source": {**tree, "trusted": [target, target.rpartition(".")[0]]}, "choices": {}}
    stored["source"]["schedule"] = {"_target_": target}
    cfg = OmegaConf.create({"trusted": [], "tracking": {"kind": "off"}})
    config = resume._changed(stored, cfg, [])
    target_of(config.schedule, "schedule", Schedule)


PLACES: dict[str, Callable[[str, Mapping[str, Any]], Any]] = {
    **{group: lambda target, tree, group=group: _component(group, target, tree) for group in KINDS},
    "a list": lambda target, tree: _nested([1, [{"_target_": target}]], tree),
    "a tree": lambda target, tree: _nested({"inner": {"_target_": target, "x": 1}}, tree),
    "an alias": _aliased,
    "a stored config": _stored,
    "probes": lambda target, _: measures.function_of(target, "probes"),
    "claim": lambda target, _: claims.find(target, []),
    "hydra.sweeper": lambda target, _: _hydras("sweeper._target_", target),
    "hydra.launcher": lambda target, _: _hydras("launcher._target_", target),
    "hydra.callbacks": lambda target, _: _hydras("callbacks.mine._target_", target),
    "a hydra.callback's own": lambda target, _: _hydras("callbacks.mine.inner._target_", target),
    "a formatter": lambda target, _: _hydras("job_logging.formatters.simple.()", target),
    "a handler": lambda target, _: _hydras("hydra_logging.handlers.console.class", target),
    "a stream": lambda target, _: _hydras("job_logging.handlers.console.stream", f"ext://{target}"),
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_file_executes_nothing(composed: Compose, trace: Path, target: str) -> None:
    """Wherever it stands a hostile name is refused in a sentence, and its module is not imported to find out."""
    tree = dict(composed("data=iris", "tracking=off").source)
    for name in PLACES.values():
        before = set(sys.modules)
        with pytest.raises(ConfigError, match="^[^\n]* must [^\n]*$"):
            name(target, tree)
        if not target.startswith(tuple(f"{module}." for module in TRUSTED)):
            assert not [m for m in {*sys.modules} - before if f"{target}.".startswith(f"{m}.")]
        assert not trace.exists()


TOUCH = "args: [touch, trace]"
CODE = "body: {_code: \"import pathlib; pathlib.Path('trace').touch()\"}\nimport_block: ''\n"
GLOBAL = "# @package _global_\n"
FILES = {
    "model/run": f"_target_: torch.fx.graph_module.reduce_graph_module\n{CODE}",
    "model/walked": f"_target_: torch.nn.modules.module.torch.fx.graph_module.reduce_graph_module\n{CODE}",
    "model/deep": f"hidden: [8]\nbody: &a {{_target_: subprocess.Popen, {TOUCH}}}\nmore: [*a]\n",
    "data/tagged": "!!python/object/apply:os.system ['touch trace']\n",
    "experiment/called": f"{GLOBAL}hydra: {{callbacks: {{x: {{_target_: subprocess.Popen, {TOUCH}}}}}}}\n",
    "experiment/walking": f"{GLOBAL}hydra: {{callbacks: {{x: {{_target_: manyfit.cli.subprocess.Popen, {TOUCH}}}}}}}\n",
    "experiment/logged": f"{GLOBAL}hydra: {{job_logging: {{handlers: {{x: {{(): subprocess.Popen, {TOUCH}}}}}}}}}\n",
    "experiment/swept": f"{GLOBAL}hydra: {{sweeper: {{_target_: subprocess.Popen}}}}\n",
    "experiment/preloaded": f"{GLOBAL}hydra: {{job: {{env_set: {{LD_PRELOAD: ./evil.so}}}}}}\n",
    "experiment/written": f"{GLOBAL}hydra: {{job_logging: {{handlers: {{file: {{filename: trace}}}}}}}}\n",
}


@pytest.mark.parametrize("option", FILES)
def test_a_file_of_a_config_folder_executes_nothing(tmp_path: Path, option: str) -> None:
    """One chosen on the command line: a sentence, no run, and nothing ran."""
    group, _, name = option.partition("/")
    (tmp_path / "given" / group).mkdir(parents=True)
    (tmp_path / "given" / group / f"{name}.yaml").write_text(FILES[option])
    done = command(tmp_path, f"--config-dir={tmp_path / 'given'}", f"{group}={name}", "epochs=1", "tracking=off")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search("^error: [^\n]* must ", done.stderr, re.MULTILINE), done.stderr
    assert not (tmp_path / "trace").exists()


def _put(folder: Path, state: checkpoints.State) -> None:
    """In the place of those that are there, with a hash that is right."""
    for file in checkpoints.files(folder):
        file.unlink()
    checkpoints.save(folder, 2, state)


@pytest.mark.slow
def test_a_state_executes_nothing(tmp_path: Path) -> None:
    """Nor does it read the environment, or say where results go: the run that it belongs to stays as it is."""
    assert command(tmp_path, "data=iris", "epochs=2").returncode == 0
    (run,) = runs(tmp_path)
    folder = tmp_path / "mlruns" / "checkpoints" / run.data.tags["manyfit.id"]
    state = checkpoints.load(folder)
    ((given),) = json.loads(state["configs"])
    source = given["source"]
    called = {"_target_": "torch.fx.graph_module.reduce_graph_module", **yaml.safe_load(CODE)}
    for change, said in (
        ({"model": called}, "model._target_ must be of a module beside run.py"),
        ({"model": called, "trusted": ["torch.fx"]}, "model._target_ must be of a module beside run.py"),
        ({"loss": {**source["loss"], "x": [called]}}, "loss.x.0._target_ must be of a module beside run.py"),
        ({"name": "${oc.env:SECRET}"}, "name must be written out in a stored config"),
        ({"model": {**source["model"], "x": ["${oc.decode:${oc.env:SECRET}}"]}}, "model.x must be written out"),
        ({"data": "${hydra:runtime.cwd}"}, "data must be written out in a stored config"),
    ):
        configs = json.dumps([{**given, "source": {**source, **change}}])
        _put(folder, {**state, "configs": configs})
        done = command(tmp_path, f"resume={run.info.run_id}", "epochs=3", SECRET="hunter2")
        assert done.returncode == 1
        assert said in done.stderr.splitlines()[-1]
        assert "hunter2" not in done.stderr + done.stdout
        assert not (tmp_path / "trace").exists()
    again = {
        **given,
        "source": {**source, "name": "${oc.env:NAME}", "tracking": {"kind": "server", "uri": "http://evil"}},
    }
    _put(folder, {**state, "configs": json.dumps([again])})
    assert client(tmp_path).get_run(run.info.run_id).info.status == "FINISHED"
    said_again = "++name='${oc.env:NAME}'"
    done = command(tmp_path, f"resume={run.info.run_id}", "epochs=3", said_again, NAME="mine")
    assert done.returncode == 0, done.stderr
    assert len(client(tmp_path).get_metric_history(run.info.run_id, "loss/val")) == 4


# ------------------------------------------------------------------------------------------------------------- fuzzed

FUZZED = settings(
    max_examples=500,
    derandomize=True,  # the same cases everywhere, and every time
    database=None,
    deadline=timedelta(seconds=20),
    suppress_health_check=list(HealthCheck),
)
NUMBERS = st.one_of(st.integers(), st.floats(), st.integers(-9, 9))
ODD = st.one_of(
    NUMBERS.map(str),
    st.sampled_from(
        ["", "?", "NA", "nan", "inf", "-inf", "true", "FALSE", "null", "1e999", "0x1F", "1_000", "1,5", "'", '"']
    ),
    st.sampled_from(["5%", "1+1j", "(2-3j)", "12:30", "2024-05-31", "31.5.2024", "2024-05-31T12:00+02:00", "9" * 400]),
    st.text(max_size=6),
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[bytes, dict[str, Any]]:
    """Delimited text that may be a table, of columns of a few words each; and options that mostly suit it."""
    marks = draw(st.sampled_from([",", ";", "tab"])), draw(st.sampled_from([".", ","]))
    header, columns = draw(st.booleans()), draw(st.integers(2, 5))
    usual = [draw(st.lists(ODD, min_size=1, max_size=4)) for _ in range(columns)]
    lines = [[f"c{i}" for i in range(columns)]] * header
    for row in range(draw(st.integers(1, 30))):
        cells = [words[row % len(words)] for words in usual]
        if draw(st.integers(0, 5)) == 0:
            cells[draw(st.integers(0, columns - 1))] = draw(ODD)
        lines.append(cells)
    separator = {"tab": "\t"}.get(marks[0], marks[0])
    text = draw(st.sampled_from(["\n", "\r\n"])).join(separator.join(line) for line in lines)
    target = draw(st.sampled_from([*(["c0", "c1"] if header else ["0", 1]), "c9"]))
    options = {"target": target, "header": header, "separator": marks[0], "decimal": marks[1]}
    options |= {"task": draw(st.sampled_from(["auto", "classification", "regression"]))}
    options |= {"separator": draw(st.sampled_from([",", ";", ",,", ""]))} if draw(st.integers(0, 9)) == 0 else {}
    return text.encode(draw(st.sampled_from(["utf-8"] * 5 + ["utf-16", "latin-1"])), "replace"), options


def _read(path: Path, source: Callable[..., Table] = sources.csv, **options: Any) -> None:
    """As a run comes to it; what is refused is refused in our words."""
    try:
        table = source(str(path), **options)
    except ValueError as error:
        refusal = error
    else:
        fitted(table, np.arange(len(table.target))[: len(table.target) // 2 + 1])
        return
    assert type(refusal) is ValueError
    assert re.match(r"data\S* must ", str(refusal)), refusal


@FUZZED
@given(st.one_of(tables(), tables(), st.tuples(st.binary(max_size=200), st.just({"target": "c0"}))))
def test_any_text_is_a_table_or_refused(
    tmp_path_factory: pytest.TempPathFactory, given: tuple[bytes, dict[str, Any]]
) -> None:
    """Tables of odd cells, and random bytes."""
    content, options = given
    path = tmp_path_factory.getbasetemp() / "fuzzed.csv"
    path.write_bytes(content)
    _read(path, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of each kind that is as it should be."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("whole")
    frame = pd.DataFrame({"a": rng.normal(size=40), "b": rng.choice(["u", "v"], 40), "y": rng.normal(size=40)})
    frame.to_parquet(folder / "t.parquet")
    frame.to_csv(folder / "t.csv.gz", index=False)
    x, y = rng.normal(size=(20, 3)).astype(np.float32), np.arange(20) % 2
    np.savez(folder / "t.npz", x=x, y=y)
    torch.save({"x": torch.from_numpy(x), "y": torch.from_numpy(y)}, folder / "t.pt")
    save_file({"x": x, "y": y}, folder / "t.safetensors")
    return folder


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """What happens to a file: some bytes become others, its end is missing, a part is there twice."""
    flips = draw(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4))
    end, doubled = draw(st.one_of(st.just(1.0), st.floats(0, 1))), draw(st.one_of(st.just(0.0), st.floats(0, 1)))

    def damaged(content: bytes) -> bytes:
        found = bytearray(content)
        for place, byte in flips:
            found[int(place * len(content))] = byte
        return bytes(found[: int(end * len(content))] + found[: int(doubled * len(content))])

    return damaged


@FUZZED
@given(kind=st.sampled_from(["parquet", "csv.gz", "npz", "pt", "safetensors"]), damage=damages())
def test_a_damaged_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, whole: Path, kind: str, damage: Callable[[bytes], bytes]
) -> None:
    """Of every kind that a run reads its data from: never another library's error."""
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind}"
    path.write_bytes(damage((whole / f"t.{kind}").read_bytes()))
    if kind in ("parquet", "csv.gz"):
        _read(path, target="y")
    else:
        _read(path, source=sources.arrays)
