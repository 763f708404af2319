"""The command line: what is mistyped is answered with what was meant, at once and before anything is written."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.types import RunMode

from conftest import ROOT
from hydra_plugins.manyfit.starting import hydra_on, whole_groups
from manyfit.config import place

QUIET = (
    "import sys, runpy\n"
    f"sys.argv = [{str(ROOT / 'run.py')!r}, *sys.argv[1:]]\n"
    f"try: runpy.run_path({str(ROOT / 'run.py')!r}, run_name='__main__')\n"
    "finally: assert not {'torch', 'mlflow', 'optuna', 'pandas'} & set(sys.modules), 'heavy'"
)


NO_CURVES = {"train": None, "val": None}


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("lr=0.1", "lr must be a key of the config, but there is no such key. Did you mean optimizer.lr?"),
        ("+lr=0.1", "lr must be a key .* Did you mean optimizer.lr?"),
        ("-m lr=0.1,0.2", "lr must be a key .* Did you mean optimizer.lr?"),
        ("epoch=10", "epoch must be a key .* Did you mean epochs?"),
        ("sweep=lr epoch=10", "epoch must be a key .* Did you mean epochs?"),
        ("experiment=overfitting batchsize=8", "batchsize must be a key .* Did you mean batch_size?"),
        (
            "optimizer.learning_rate=1",
            "optimizer.learning_rate must be a key .* Did you mean optimizer.lr? optimizer=adam has lr, .*eps.*",
        ),
        ("optimizer.momentum=0.9", "optimizer.momentum must be .*momentum, .* have it. optimizer=adam has lr, .*eps.*"),
        ("optimizer=sgd modle.dropout=0.1", "modle.dropout must be a key .* Did you mean model.dropout?"),
        (
            "data.path=my.csv",
            "data.path must be a key .*, but there is no such key. data=arrays, data=csv, data=images have it. .*",
        ),
        ("schedule=step schedule.step_size=1", "schedule.step_size must be a key .* no such key. schedule=step has .*"),
        ("model.hidden={a:1}", "model.hidden must be of the kind of its default, \\[64, 64\\], but got {a:1}."),
        ("-m data=iris --cfg job", "--multirun and --cfg must be asked one at a time, but got both. Leave out one."),
        ("--resolve", "--package and --resolve must stand beside --cfg, but got them alone. Add --cfg job."),
        ("sweep=lr -m lr=1,2", "lr must be a key .* Did you mean optimizer.lr?"),
        ("optmizer=adam", "optmizer must be a key .* Did you mean optimizer?"),
        (
            "-m optimizer=momentum,nesterov optimizer.momentum=0.8",
            ".* In a sweep over optimizer, \\+\\+optimizer.momentum sets it for each.",
        ),
        ("optimizer=adm", "optimizer must be one of adadelta, .*, sgd, but got adm. Did you mean adam?"),
        ("-m optimizer=adam,adm", "optimizer must be one of adadelta, .*, sgd, but got adm. Did you mean adam?"),
        ("sweep=lr optimizer=adm", "optimizer must be one of .*, but got adm. Did you mean adam?"),
        ("-m hydra/sweeper=optuna_study lr=interval(0,1)", "lr must be a key .* Did you mean optimizer.lr?"),
        ("-m hydra/sweeper=optuna_study optimizer=adam,adm", "optimizer must be one of .*, but got adm. Did .* adam?"),
        ("seed=1,2", "seed must be one value in a single run, but got 1,2. For a sweep, add -m."),
        ("quick=true", "quick must be false but in an experiment or a grid, .* got true."),
        ("sweep=lr quick=true", "quick must be false but in an experiment or a grid, .* got true."),
        ("model.hidden=[1", "model.hidden=\\[1 must be key=value in Hydra's grammar, .* within quotes, .*"),
        ("data=null", "Config group override must be a string or a list. Got NoneType"),
        ("-m hydra.launcher.workers=0 seed=1,2", "hydra.launcher.workers must be >= 1 or auto, but got 0."),
    ],
)
def test_mistyped(tmp_path: Path, command: str, answer: str) -> None:
    """One line says which key or option was meant; nothing is imported for it that takes seconds."""
    arguments = [sys.executable, "-c", QUIET, *command.split()]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    first = "" if "--cfg" in command or "--resolve" in command else " +manyfit  starting\n"
    assert re.fullmatch(f"{first}error: {answer}\n".replace("?", "\\?"), done.stderr), done.stderr
    assert done.returncode == 1
    assert done.stdout == ""


@pytest.mark.parametrize("option", ["--config-name=mine", "--config-path=conf", "--experimental-rerun=job.pickle"])
def test_options_of_hydra_that_lead_past_the_checks_are_refused(tmp_path: Path, option: str) -> None:
    """What would be composed from elsewhere, or run from a pickle, would be written before it is looked at."""
    arguments = [sys.executable, "-c", QUIET, option, "data=iris"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert re.fullmatch(f"error: {option.partition('=')[0]} must be left out: .*\n", done.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "meant"),
    [("--quick", "quick=true"), ("--epochs 5", "epochs=5"), ("--optimizer=adam", "optimizer=adam")],
)
def test_a_setting_with_dashes(tmp_path: Path, option: str, meant: str) -> None:
    """As other tools have it: how it is written here, and nothing else."""
    arguments = [sys.executable, "-c", QUIET, *option.split(), "data=iris"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: options must be those that --hydra-help lists, but got {option.split()[0]}. A setting has no dashes: "
        f"{meant}\n"
    )


def test_a_file_that_is_no_yaml(tmp_path: Path) -> None:
    """Its name and place, in one line."""
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "bad.yaml").write_text("_target_: torch.nn.Linear\n  width: 1\n")
    arguments = [sys.executable, "-c", QUIET, "--config-dir", "mine", "model=bad"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert re.fullmatch(r"error: a file of conf/ must be YAML, but .*bad.yaml.*line 2.*\n", done.stderr), done.stderr


def test_plus_adds_an_argument(tmp_path: Path) -> None:
    """What the schema leaves to the optimizer may be added, and what Hydra shows is still Hydra's."""
    arguments = [sys.executable, "-c", QUIET, "--cfg", "job", "+optimizer.maximize=false"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "  maximize: false" in done.stdout


@pytest.mark.parametrize("command", ["--cfg job", "data=iris optimizer=adam --help", "--info config"])
def test_a_folder_of_ones_own_comes_first(tmp_path: Path, command: str) -> None:
    """A file of --config-dir is taken before that of the same name in conf/, by whatever is asked."""
    (tmp_path / "mine" / "optimizer").mkdir(parents=True)
    (tmp_path / "mine" / "optimizer" / "adam.yaml").write_text("_target_: torch.optim.Adam\nlr: 0.5\n")
    arguments = [sys.executable, "-c", QUIET, "--config-dir", "mine", *command.split()]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "  lr: 0.5" in done.stdout


@pytest.mark.parametrize("also", [[], ["~model.hidden"], ["model=cnn"]])
def test_a_model_of_ones_own_in_one_override(also: list[str]) -> None:
    """Its keys are its own, whatever the option has in whose place it is; what a person leaves out too is no error."""
    with hydra_on(place.folders()) as app:
        overrides = whole_groups(app.config_loader, ["model._target_=nets.Net", "model.width=16", *also])
        cfg = app.config_loader.load_configuration("config", overrides, RunMode.RUN)
    assert dict(cfg.model) == {"_target_": "nets.Net", "width": 16, "weights": None, "curves": NO_CURVES}
