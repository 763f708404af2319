"""What others hand over, configs, tables and states: nothing in it runs, and what is wrong is said in a sentence."""

import contextlib
import copy
import functools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
import yaml
from hydra.types import RunMode
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.numpy import save_file
from torch import nn

from conftest import CONF, Compose, _composer, command
from hydra_plugins.manyfit.composing import Composer
from hydra_plugins.manyfit.harmless import require_harmless
from hydra_plugins.manyfit.starting import hydra_on, in_our_words, mode_of
from manyfit import cli, measures, predicting, resume
from manyfit.config.build import target_of
from manyfit.config.errors import ConfigError
from manyfit.config.schema import Component, parse
from manyfit.config.stored import restored
from manyfit.config.trust import TRUSTED
from manyfit.data import sources
from manyfit.data.encoding import fitted
from manyfit.data.table import Table
from manyfit.experiments import claims
from manyfit.losses import Loss
from manyfit.schedules import Schedule
from manyfit.sweeps import search
from manyfit.tracking import reading
from manyfit.training import checkpoints
from manyfit.training.fitting import fit
from manyfit.training.prepared import Preparation, prepare
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


def _artifact(target: str, tree: Mapping[str, Any]) -> reading.Kept:
    """A run of a store whose config vouches for itself."""
    named = {"trusted": [target, target.rpartition(".")[0]], "schedule": {"_target_": target}}
    return reading.Kept("run", "FINISHED", {}, {}, "", yaml.safe_dump({**tree, **named}), None, 1)


def _trained_again(target: str, tree: Mapping[str, Any]) -> None:
    cfg = OmegaConf.create({"trusted": [], "tracking": {"kind": "off"}})
    resume.job_of(_artifact(target, tree), resume._of_the_command(cfg), "resume")


PLACES: dict[str, Callable[[str, Mapping[str, Any]], Any]] = {
    **{group: lambda target, tree, group=group: _component(group, target, tree) for group in KINDS},
    "a list": lambda target, tree: _nested([1, [{"_target_": target}]], tree),
    "a tree": lambda target, tree: _nested({"inner": {"_target_": target, "x": 1}}, tree),
    "an alias": _aliased,
    "a stored config": _stored,
    "a config of the store": _trained_again,
    "a config of the store, to predict": lambda target, tree: predicting._trained_again(_artifact(target, tree), ""),
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


LOGGED = "hydra.job_logging"
TOLD = {  # what a file of a config folder says -> of which key it is refused
    "trusted: [shutil]": "trusted",
    "trusted: '${pruner}'": "trusted",
    "grids: [{trusted: '[shutil]', seed: '1,2'}]": "grids",
    "tune_beside: [{++trusted.0: shutil}]": "tune_beside",
    "sweep: {space: {+hydra.job.env_set: 'choice(1,2)'}}": "sweep.space",
    "hydra: {sweeper: {params: {'trusted': '[shutil]'}}}": "hydra.sweeper.params",
    "hydra: {callbacks: '${pruner}'}": "hydra.callbacks",
    "hydra: {callbacks: {x: '${pruner}'}}": "hydra.callbacks.x",
    "hydra: {callbacks: {x: ['${pruner}']}}": "hydra.callbacks.x",
    "hydra: {sweeper: {max_batch_size: '${pruner}'}}": "hydra.sweeper.max_batch_size",
    "hydra: {launcher: {workers: '${pruner}'}}": "hydra.launcher.workers",
    "hydra: {job: {env_set: {MLFLOW_TRACKING_URI: x}}}": "hydra.job.env_set",
    "hydra: {job: {env_set: '${pruner}'}}": "hydra.job.env_set",
    "hydra: {job: {env_copy: [PATH]}}": "hydra.job.env_set",
    "hydra: {job: {chdir: true}}": "hydra.job.chdir",
    "hydra: {job: {name: ../../x}}": f"{LOGGED}.handlers.file.filename",
    "hydra: {job_logging: '${pruner}'}": LOGGED,
    "hydra: {job_logging: {handlers: '${pruner}'}}": f"{LOGGED}.handlers",
    "hydra: {job_logging: {handlers: {x: {class: logging.handlers.SocketHandler}}}}": f"{LOGGED}.handlers.x.class",
    "hydra: {job_logging: {handlers: {x: {class: logging.handlers.QueueHandler}}}}": f"{LOGGED}.handlers.x.class",
    "hydra: {job_logging: {handlers: {console: {queue: os.system}}}}": f"{LOGGED}.handlers.console.queue",
    "hydra: {job_logging: {handlers: {console: {listener: os.system}}}}": f"{LOGGED}.handlers.console.listener",
    "hydra: {job_logging: {handlers: {console: {.: {x: y}}}}}": f"{LOGGED}.handlers.console...x",
    "hydra: {job_logging: {handlers: {file: {filename: /etc/x.log}}}}": f"{LOGGED}.handlers.file.filename",
    "hydra: {job_logging: {handlers: {file: {mode: w}}}}": f"{LOGGED}.handlers.file.mode",
    "hydra: {job_logging: {root: {handlers: ['ext://os.system']}}}": f"{LOGGED}.root.handlers",
    "hydra: {job_logging: {formatters: {simple: {format: 'ext://os.system'}}}}": f"{LOGGED}.formatters.simple.format",
    "hydra: {job_logging: {formatters: {simple: {class: x.Y}}}}": f"{LOGGED}.formatters.simple.class",
    "hydra: {hydra_logging: {filters: {x: {(): os.system}}}}": "hydra.hydra_logging.filters.x.()",
}


def _mode_of(folder: Path, said: str, *overrides: str) -> None:
    (folder / "experiment").mkdir()
    (folder / "experiment" / "given.yaml").write_text(GLOBAL + said)
    with hydra_on([folder, CONF]) as app, in_our_words(app.config_loader, overrides):
        mode_of(app.config_loader, list(overrides), multirun=False)


@pytest.mark.parametrize("said", TOLD)
def test_a_file_does_not_vouch_for_itself(tmp_path: Path, said: str) -> None:
    """Nor does it say what Hydra builds, logs or sets in any other words than those that are judged."""
    with pytest.raises(ConfigError) as refused:
        _mode_of(tmp_path, said, "experiment=given")
    assert re.match(rf"{re.escape(TOLD[said])} must [^\n]*$", str(refused.value))


def test_the_command_line_vouches(tmp_path: Path) -> None:
    """Also for what a file asks for; and what is usual of logging is let pass."""
    usual = "hydra: {job_logging: {loggers: {a.b: {level: DEBUG}}, formatters: {simple: {datefmt: '%H'}}}}"
    _mode_of(
        tmp_path, f"trusted: [shutil]\n{usual}", "experiment=given", "trusted=[shutil]", "hydra/hydra_logging=none"
    )


@pytest.mark.parametrize("said", ["trusted: [shutil]", "hydra: {job: {env_set: {LD_PRELOAD: x}}}"])
def test_an_option_that_is_swept_over_does_not_vouch_for_itself(tmp_path: Path, said: str) -> None:
    """It is composed job by job, and judged as often."""
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "given.yaml").write_text(GLOBAL + said)
    with hydra_on([tmp_path, CONF]) as app:
        given = ["loss=auto,given"]
        config = app.config_loader.load_configuration("config", given, RunMode.MULTIRUN)
        composer = Composer(app.config_loader, config)
        composer.load(["loss=auto"], 0)
        with pytest.raises(ConfigError, match=r"^(trusted|hydra\.job\.env_set) must "):
            composer.load(["loss=given"], 1)


def test_jobs_that_are_composed_unjudged(tmp_path: Path) -> None:
    """Hydra's own launcher composes the jobs of its own sweeper."""
    how = ("hydra/sweeper=basic", "hydra/launcher=basic")
    with pytest.raises(ConfigError, match=r"^hydra/launcher must be fused with hydra/sweeper=basic, but got basic"):
        _mode_of(tmp_path, "", *how)


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


@pytest.mark.slow
def test_a_config_of_the_store_executes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of a sweep, which kept neither state nor network, is to be trained again as its artifact says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", "hunter2")
    Path("t.csv").write_text("a,y\n" + "".join(f"{i / 7},{'uv'[i % 2]}\n" for i in range(60)))
    table = ["data=csv", "data.path=t.csv", "data.target=y", "model.hidden=[4]", "tracking.artifacts=none"]
    assert command(tmp_path, "-m", *table, "epochs=1", "seed=0,1").returncode == 0
    run_id = next(run.info.run_id for run in runs(tmp_path) if "manyfit.kind" not in run.data.tags)
    (file,) = (path for path in tmp_path.rglob("config.yaml") if run_id in path.parts)
    source = yaml.safe_load(file.read_text())
    called = {"_target_": "torch.fx.graph_module.reduce_graph_module", **yaml.safe_load(CODE)}
    vouched, secret = {"model": called, "trusted": ["torch.fx.graph_module"]}, {"name": "${oc.env:SECRET}"}
    for change, said, resumed in (
        (vouched, "model._target_ must be of a module", True),
        ({"loss": {**source["loss"], "x": [called]}}, "loss.x.0._target_ must be of a module", False),
        (secret, "name must be written out in a stored config", True),
        ({"trusted": ["torch.fx"], "data": "${oc.env:SECRET}"}, "data must be written out in a stored config", False),
        ([called], "must name a run with a config, but got one whose config is none", False),
    ):
        file.write_text(yaml.safe_dump({**source, **change} if isinstance(change, dict) else change))
        assert cli.main(["predict", run_id, "t.csv"]) == 1
        errors = [capsys.readouterr().err]
        errors += [command(tmp_path, f"resume={run_id}", "epochs=3").stderr] if resumed else []
        for text in errors:
            assert said in text.splitlines()[-1]
            assert "Traceback" not in text
            assert "hunter2" not in text
        assert not Path("trace").exists()


@pytest.mark.parametrize(
    ("stored", "key"),
    [
        ({"trainer": "${asked:}"}, "trainer"),
        ({"trainer": {"patience": "${asked:}"}}, "trainer.patience"),
        ({"model": {"x": [{"y": "${asked:}"}]}}, "model.x"),
        ({"trainer.devices": "${asked:}"}, "trainer.devices"),
        ("trainer: ${asked:}", "trainer"),
    ],
    ids=str,
)
def test_a_stored_config_asks_nothing(stored: dict[str, Any] | str, key: str) -> None:
    """What stands for something is refused before it is looked up, also on the way to what the command says."""
    asked: list[int] = []
    OmegaConf.register_new_resolver("asked", lambda: asked.append(1) or {}, replace=True)
    try:
        with pytest.raises(ConfigError, match=f"^{re.escape(key)} must be written out in a stored config"):
            restored(stored, {"tracking": {"kind": "off"}, "trainer.devices": 2}, "resume", "Add ++{name}={value}.")
        assert restored({"name": "${asked:}", "epochs": 3}, {"name": "mine"}, "resume", "") == {
            "name": "mine",
            "epochs": 3,
        }
    finally:
        OmegaConf.clear_resolver("asked")
    assert not asked


# ------------------------------------------------------------------------------------------------------------- fuzzed

FUZZED = settings(
    max_examples=500,
    derandomize=True,  # the same cases everywhere, and every time
    database=None,
    deadline=timedelta(seconds=20),
    phases=[Phase.generate],  # a failing case is shown as it was found: to make it small may take minutes
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


SHAPES = st.sampled_from([(1, 1)] * 30 + [(1, 1500), (1, 4000), (200, 1), (30, 60)])  # times so many rows, columns
ENCODINGS = st.sampled_from(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252", "utf-7"])
QUOTED: list[Callable[[str], str]] = [
    lambda cell: '"' + cell.replace('"', '""') + '"',
    lambda cell: f'"{cell}\n{cell},;"',
    lambda cell: f'"{cell}',
    lambda cell: f'{cell}"x"',
    lambda cell: f" '{cell}' ",
    lambda cell: cell + "\0",
]


@st.composite
def tables(draw: st.DrawFn) -> tuple[bytes, dict[str, Any]]:
    """Delimited text that may be a table, of columns of a few words each; and options that mostly suit it."""
    marks = draw(st.sampled_from([",", ";", "tab"])), draw(st.sampled_from([".", ","]))
    header, (longer, wider) = draw(st.booleans()), draw(SHAPES)
    usual = [draw(st.lists(ODD, min_size=1, max_size=4)) for _ in range(draw(st.integers(2, 5)))] * wider
    columns = len(usual)
    lines = [[f"c{i}" for i in range(columns)]] * header
    for row in range(draw(st.integers(1, 30 if wider == 1 else 4)) * longer):
        lines.append([words[row % len(words)] for words in usual])
    for _ in range(draw(st.integers(0, 3))):  # cells, of the header too, that are otherwise
        cells = lines[draw(st.integers(0, len(lines) - 1))] = [*lines[-1]]
        cells[draw(st.integers(0, columns - 1))] = draw(ODD)
    if draw(st.integers(0, 4)) == 0:
        row, how = draw(st.integers(0, len(lines) - 1)), draw(st.sampled_from(QUOTED))
        lines[row] = [how(lines[row][0]), *lines[row][1:]]
    if draw(st.integers(0, 5)) == 0:  # ragged
        row = draw(st.integers(0, len(lines) - 1))
        lines[row] = lines[row][: draw(st.integers(0, columns))] or [*lines[row], "1"]
    separator = {"tab": "\t"}.get(marks[0], marks[0])
    text = draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n"])).join(separator.join(line) for line in lines)
    target = draw(st.sampled_from([*(["c0", "c1"] if header else ["0", 1]), "c9"]))
    options = {"target": target, "header": header, "separator": marks[0], "decimal": marks[1]}
    options |= {"task": draw(st.sampled_from(["auto", "classification", "regression"]))}
    options |= {"separator": draw(st.sampled_from([",", ";", ",,", ""]))} if draw(st.integers(0, 9)) == 0 else {}
    return text.encode(draw(ENCODINGS), "replace"), options


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


@pytest.mark.parametrize(
    ("rows", "options", "refusal"),
    [
        (["5%", "7.5%", "-3 %"] * 20, {}, "data.path must have plain numbers, but got '5%' in .*, line 2, column 'a'"),
        (["5%", "6%", ""] * 20, {"target": "a"}, "data.target must name a column with a value in every row"),
        (["5%", "6%", "7%"] * 20, {"target": "a"}, "data.path must have plain numbers, but got '5%'"),
        (["1+1j", "(2-3j)", "-1e3+.5J"] * 20, {}, "data.path must have real numbers, but got '1\\+1j' in .*, line 2"),
        (["5%", "6%", "7%"] * 20, {"keep": ["a"]}, None),
        (["5%", "6%", "7%"] * 20, {"target": "a", "task": "classification"}, None),
        (["5%", "low", "high"] * 20, {}, None),
    ],
)
def test_numbers_that_are_written_otherwise(
    tmp_path: Path, rows: list[str], options: dict[str, Any], refusal: str | None
) -> None:
    """A column of them would become an input for each: it is refused, unless it is said to be words."""
    path = tmp_path / "t.csv"
    path.write_text("a,b,y\n" + "".join(f"{cell},{i % 7},{i % 5}.5\n" for i, cell in enumerate(rows)))
    options = {"target": "y", **options}
    with pytest.raises(ValueError, match=refusal) if refusal else contextlib.nullcontext():
        sources.csv(str(path), **options)


def test_what_never_ends_is_refused(tmp_path: Path) -> None:
    """A device, a pipe, one line without an end, a hundred thousand columns."""
    os.mkfifo(tmp_path / "pipe.csv")
    with (tmp_path / "line.csv").open("wb") as sparse:
        sparse.truncate(10**12)
    columns = [f"c{i}" for i in range(100_000)]
    (tmp_path / "wide.csv").write_text(f"{','.join(columns)}\n{','.join(['1'] * 100_000)}\n")
    start = time.monotonic()
    for path, refusal in (
        ("/dev/zero", "data.path must name a file, but got '/dev/zero', which is a device or a pipe"),
        (str(tmp_path / "pipe.csv"), "data.path must name a file, .* which is a device or a pipe"),
        (str(tmp_path / "line.csv"), "data.path must name a readable file, .*a line is longer than"),
        (str(tmp_path / "wide.csv"), "data.path must have at most 10000 columns, but got 100000 in"),
    ):
        with pytest.raises(ValueError, match=refusal):
            sources.csv(path, "c0")
    with pytest.raises(ValueError, match="which is a device or a pipe"):
        sources.arrays("/dev/zero")
    words = "\n".join(["word"] * 1001)
    frame = pd.DataFrame([words.split("\n")] * 3, columns=columns[:1001])
    frame.to_csv(tmp_path / "words.csv", index=False)
    with pytest.raises(ValueError, match="data.path must have at most 1000 columns that hold more than numbers"):
        sources.csv(str(tmp_path / "words.csv"), "c0")
    assert time.monotonic() - start < 20  # which the slowest of these took for ever


SAID = """
| epochs=1,2,50 batch_size=1,7,32,full seed=0,3
| data.val_fraction=0.1,0.2,0.5 data.test_fraction=0.1,0.5 data.train_size=null,2,30
| data.label_noise=0,0.2 data.folds=null,5 data.fold=null,0,4
| data.standardise=true,false data.split_seed=0,7 eval_train_size=1,50
| model.hidden=[],[8],[4,4] model.activation=relu,prelu,identity model.dropout=0.0,0.9
| model.init=kaiming,normal model.sigma=0.5 model.weights=null,no.safetensors
| optimizer.lr=1e-3,1e30 optimizer.weight_decay=0.0,0.1 optimizer.betas=[0.9,0.99],[0.0,0.0]
| optimizer.eps=1e-8,0.0 optimizer.amsgrad=true,false name=x,null
| probes=[],[dead_units],[gradient_norm,update_angle] metrics=[],[auc],[auc,ece],[r2] metrics_at=best,epochs
| trainer.gradient_clip=null,1.0 trainer.patience=null,1 trainer.precision=64-true,bf16-mixed,32-true,16-mixed
| trainer.devices=1,2,auto trainer.accelerator=cpu,auto,gpu trainer.engine=auto,native,batched
| trainer.deterministic=true,false trainer.cuda_graph=auto,false,true checkpoint=true,false
| tracking.uri=x,sqlite:///x.db tracking.kind=off trusted=[],[mine]
~model.hidden ~model.activation ~model.dropout ~model.init ~model.sigma| model._target_=? batch_size=1,32
~optimizer.betas ~optimizer.eps ~optimizer.amsgrad| optimizer._target_=? optimizer.lr=0.1
loss=mse| schedule._target_=? loss._target_=? data._target_=?
| resume=null
| experiment=full,null autoresume=false,true
| trainer.patience=null,1,3
data=moons| data.n=2,50,3000 data.noise=0.0,0.3 data.train_size=null,1,20
data=diabetes loss=huber| loss.delta=1.0,0.1 data.target_scale=null,log,rank metrics=[r2],[mae]
data=wine loss=balanced| loss.label_smoothing=0.0,0.5 data.train_size=10,3 data.val_fraction=0.1,0.4
data=digits model=cnn| model.channels=[2],[2,3] model.kernels=[3],[9,1] model.activation=tanh
data=digits model=gru| model.hidden=3,1 model.bidirectional=false,true model.dropout=0.1
data=digits model=transformer| model.width=8,4 model.heads=2,4 model.patch=2,4,8
schedule=step| schedule.every=0.3,1.0 schedule.gamma=0.1,1.0 epochs=1,9
schedule=one_cycle| schedule.peak=0.3,0.99 schedule.start=0.1 schedule.final=0.0,1.0
schedule=warmup_cosine| schedule.warmup=0.0,0.5 schedule.start=0.1 epochs=1,9
schedule=plateau| schedule.factor=0.5 schedule.patience=0,2 schedule.threshold=0.0,0.1
optimizer=nesterov| optimizer.momentum=0.9,0.0 optimizer.nesterov=true,false optimizer.lr=1e-2
optimizer=rmsprop| optimizer.alpha=0.9,0.0 optimizer.momentum=0.0,0.5 optimizer.centered=true
optimizer=lbfgs batch_size=full| optimizer.max_iter=1,3 optimizer.history_size=2 optimizer.line_search_fn=null
"""  # options, keys that are said together, and values that each may have; few, as what is composed anew takes long
TOGETHER = [
    (options.split(), keys.split()) for options, _, keys in (s.partition("|") for s in SAID.strip().split("\n"))
]
NAMED = [
    *("torch.nn.LazyLinear", "torch.nn.Linear", "torch.nn.Identity", "torch.nn.Bilinear", "torch.nn.LSTM"),
    *("torch.nn.Softmax", "torch.nn.Sequential", "torch.nn.Flatten", "torch.nn.ParameterList", "torch.nn.BatchNorm1d"),
    *("torch.nn.MSELoss", "torch.nn.Module", "torch.nn.Embedding", "torch.nn.DataParallel", "torch.nn.functional.relu"),
    *("torch.optim.SGD", "torch.optim.SparseAdam", "torch.optim.Adafactor", "torch.optim.Muon", "torch.optim.Rprop"),
    *("torch.optim.Optimizer", "torch.optim.LBFGS", "torch.optim.swa_utils.AveragedModel", "torch.optim.ASGD"),
    *(f"torch.optim.lr_scheduler.{name}" for name in ("StepLR", "OneCycleLR", "LambdaLR", "ChainedScheduler")),
    *("torch.optim.lr_scheduler.ReduceLROnPlateau", "manyfit.losses.MSE", "manyfit.losses.Loss", "manyfit.models.MLP"),
    *("manyfit.schedules.step", "manyfit.data.sources.moons", "manyfit.data.sources.csv", "manyfit.data.table.Table"),
    *("os.system", "a.b.c", "optuna.samplers"),
]
USUAL = ["0", "1", "-1", "0.5", "1.5", "1e30", "inf", "nan", "true", "null", "[]", "[0]", "[8]", "[-1,2]", "[[true]]"]
ODD_VALUES = st.one_of(
    st.sampled_from(["{}", "{a:1}", "{_target_:os.system}", "'x'", '"', "???", "1_0", "os.system", "full", "adam"]),
    st.sampled_from(
        ["${epochs}", "${oc.env:NO}", "${no.key}", "${", "${a", "\\${x}", "range(3)", "choice(1,2)", "1,2"]
    ),
    st.text(max_size=8),
)
ODD_KEYS = ["optimizer.no_such_key", "", "a b", "é", "@", "a@b", "a/b", "a..b", "1", "hydra", "data", "optimizer"]


@st.composite
def commands(draw: st.DrawFn) -> list[str]:
    """One to three overrides beside options; now and then an odd one."""
    options, keys = draw(st.sampled_from(TOGETHER))
    said = []
    for key, _, usual in (one.partition("=") for one in keys):
        good = st.sampled_from(NAMED if usual == "?" else re.split(r",(?![^[]*\])", usual))
        value = draw(st.sampled_from([good] * 7 + [st.sampled_from(USUAL)] * 2 + [NUMBERS.map(str)]))
        said.append(f"{key}={draw(value)}")
    if draw(st.integers(0, 19)) == 0:
        key = draw(st.sampled_from([*ODD_KEYS, *(said[-1].partition("=")[0],) * 9]))
        said[-1] = f"{draw(st.sampled_from(['', '', '+', '++', '~']))}{key}={draw(ODD_VALUES)}"
    return [*([] if "data=" in " ".join(options) else ["data=iris"]), *options, *said]


@pytest.fixture(scope="module")
def preparation() -> Preparation:
    """Has read the data of those before."""
    return Preparation()


@FUZZED
@given(commands())
def test_any_overrides_are_accepted_or_refused(preparation: Preparation, given: list[str]) -> None:
    """What the command line may say: refused in a sentence, or network, loss, optimizer and schedule are built."""
    composer = _composer()
    try:
        with in_our_words(composer.loader, given):
            config = composer.load(given, 0).config()
    except ConfigError:
        return
    numbers = (config.epochs, config.batch_size, config.optimizer.lr, config.trainer.gradient_clip, config.seed)
    assert not [number for number in numbers if isinstance(number, bool)]
    try:
        preparation.job(config)
    except ValueError as error:
        refusal = str(error)
    else:
        return
    assert re.match(r"[\w.]+(( \+ | and )[\w.]+)? must |[\w.]+: ", refusal), refusal


@pytest.mark.parametrize(
    "override",
    [
        *("trainer.gradient_clip=true", "epochs=true", "batch_size=true", "seed=false", "optimizer.lr=true"),
        *("optimizer.weight_decay=false", "data.val_fraction=true", "data.train_size=true", "trainer.patience=true"),
        *("optimizer.betas=[true,0.9]", "optimizer.eps=true", "model.hidden=[true]", "model.dropout=true"),
        *("loss=cross_entropy loss.label_smoothing=true", "schedule=step schedule.size=true", "data=moons data.n=true"),
        *("model=cnn model.channels=[true]", "data=moons data.noise=false"),
    ],
)
def test_true_is_no_number(composed: Compose, override: str) -> None:
    """Wherever a number is asked, by a key of ours, of torch's, or in a list."""
    key = override.split()[-1].partition("=")[0]
    with pytest.raises(ConfigError, match=rf"{key}(\.0)? must be (a|an integer|of)"):
        prepare(composed("epochs=1", *override.split()))


def test_weights_that_are_not_there_yet(composed: Compose) -> None:
    """A population has them all before the first example."""
    left_out = [f"~model.{key}" for key in ("hidden", "activation", "dropout", "init", "sigma")]
    with pytest.raises(ConfigError, match="^model must have its weights from the start"):
        prepare(composed("data=iris", *left_out, "model._target_=torch.nn.LazyLinear"))


@pytest.fixture(scope="module")
def state(composed: Compose, tmp_path_factory: pytest.TempPathFactory) -> checkpoints.State:
    """Of a run on iris after two epochs."""
    folder = tmp_path_factory.mktemp("state")
    fit([composed("data=iris", "epochs=2", "model.hidden=[4]", "tracking=off")], save_to=folder)
    return checkpoints.load(folder)


def _places(node: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """Every place in a tree of dicts and lists."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, part in inner:
        yield (*path, name)
        yield from _places(part, *path, name)


STATE_KEYS = st.integers(0, 10**6)
STRANGE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-9, 9),
    st.just(10**12),
    st.floats(),
    st.text(max_size=4),
    st.just([]),
    st.just({}),
    st.sampled_from([(0,), (1,), (7,), (1, 9), (2, 3, 4)]).map(lambda shape: torch.full(shape, 7.0)),
    st.sampled_from([(0,), (1,), (1, 3), (1, 9)]).map(lambda shape: np.full(shape, -3)),
)


@FUZZED
@given(place=STATE_KEYS, strange=STRANGE, within=st.booleans())
def test_any_state_is_gone_on_with_or_refused(state: checkpoints.State, place: int, strange: Any, within: bool) -> None:
    """One whose hash is right and in which a part, or one of its config's, is another: before its run is touched."""
    cfg = OmegaConf.create({"epochs": 4, "trusted": [], "tracking": {"kind": "off"}})
    changed = copy.deepcopy(state)
    configs = json.loads(state["configs"])
    tree = configs if within else changed
    places = list(_places(tree))
    *path, last = places[place % len(places)]
    node = functools.reduce(lambda node, name: node[name], path, tree)
    if within and isinstance(strange, torch.Tensor | np.ndarray):
        del node[last]
    else:
        node[last] = strange
    if within:
        changed["configs"] = json.dumps(configs)
    try:
        resume._gone_on_with(changed, cfg, ["epochs"], Path("mlruns"))
    except ConfigError as error:
        refusal = str(error)
    else:
        return
    assert " must " in refusal, refusal


@FUZZED
@given(damage=damages(), hashed=st.booleans())
def test_any_file_is_a_state_or_refused(
    state: checkpoints.State, tmp_path_factory: pytest.TempPathFactory, damage: Callable[[bytes], bytes], hashed: bool
) -> None:
    """Bytes that were changed, with a hash that says so or not: a state, or a sentence that names the file."""
    folder = tmp_path_factory.getbasetemp() / "damaged"
    if not folder.exists():
        checkpoints.save(folder, 1, state)
    for file in checkpoints.files(folder)[:-1]:
        file.unlink()
    (whole,) = checkpoints.files(folder)
    content = damage(whole.read_bytes())
    name = checkpoints._hash(content) if hashed else "0123456789abcdef"
    (folder / f"epoch-000002-{name}.safetensors").write_bytes(content)
    try:
        found = checkpoints.load(folder)
    except ValueError as error:
        refusal = error
    else:
        assert hashed or found["epoch"] == 2  # then the one before it
        return
    assert type(refusal) is ValueError
    assert str(refusal).startswith(f"{folder}")
    assert "\n" not in str(refusal)
