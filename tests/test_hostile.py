"""What others may hand over, configs, tables and states: nothing in it runs, and what is wrong is said in a sentence."""

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

from conftest import CONF, Compose, command
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
    for place, name in PLACES.items():
        before = set(sys.modules)
        with pytest.raises(ConfigError, match="must") as caught:
            name(target, tree)
            pytest.fail(f"{target} was let through as {place}")
        assert "\n" not in str(caught.value), place
        if not target.startswith(tuple(f"{module}." for module in TRUSTED)):
            assert not [m for m in {*sys.modules} - before if f"{target}.".startswith(f"{m}.")]
        assert not trace.exists()
