"""What others hand over, configs, tables and states: nothing in it runs, and what is wrong is said in a sentence."""

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from torch import nn

from conftest import Compose, command
from hydra_plugins.manyfit.harmless import require_harmless
from manyfit import measures, resume
from manyfit.config.build import target_of
from manyfit.config.errors import ConfigError
from manyfit.config.schema import Component, parse
from manyfit.config.trust import TRUSTED
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
