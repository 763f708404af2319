"""config.parse: what is accepted, and the words of what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, Compose
from manyfit.config.build import target_of
from manyfit.config.errors import ConfigError
from manyfit.config.trust import require_trusted


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.lr=abc", "optimizer.lr must be a valid number, but got 'abc'"),
        ("optimizer.lr=-1", "optimizer.lr must be > 0, but got -1"),
        ("optimizer.lr=0", "optimizer.lr must be > 0, but got 0"),
        ("optimizer.lr=inf", "optimizer.lr must be a finite number, but got inf"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay must be >= 0, but got -1"),
        ("batch_size=0", "batch_size must be an integer >= 1 or full, but got 0"),
        ("batch_size=half", "batch_size must be an integer >= 1 or full, but got 'half'"),
        ("epochs=0", "epochs must be >= 1, but got 0"),
        ("epochs=2.5", "epochs must be a valid integer"),
        ("seed=-1", "seed must be >= 0, but got -1"),
        ("data.val_fraction=1.5", "data.val_fraction must be < 1, but got 1.5"),
        ("data.label_noise=1", "data.label_noise must be < 1, but got 1"),
        (
            "trainer.precision=8",
            "trainer.precision must be '32-true', '64-true', 'bf16-mixed', '16-mixed' or 'tf32', but got 8",
        ),
        ("trainer.patience=0", "trainer.patience must be >= 1, but got 0"),
        ("optimizer=lbfgs", "batch_size must be full with optimizer lbfgs, but got 32"),
    ],
)
def test_bad_value(composed: Compose, override: str, words: str) -> None:
    """A bad value is refused with its full key, what must hold and what was got."""
    with pytest.raises(ConfigError) as caught:
        composed(override)
    assert words in str(caught.value)


def test_two_errors_at_once(composed: Compose) -> None:
    """All bad values are named together, each once."""
    with pytest.raises(ConfigError) as caught:
        composed("optimizer.lr=-1", "batch_size=0")
    assert len(str(caught.value).splitlines()) == 2


def test_missing_value(composed: Compose) -> None:
    """Values that only the user can know are asked for by their keys, all at once."""
    with pytest.raises(ConfigError, match="^data.path must be given, such as data.path=...$"):
        composed("data=csv", "data.target=y")
    with pytest.raises(ConfigError, match="^data.path and data.target must be given, such as"):
        composed("data=csv")


def test_target_is_checked_by_type(composed: Compose) -> None:
    """A target that does not yield what the group is for is never called."""
    config = composed()
    for target in ("os.system", "builtins.open", "urllib.request.urlopen", "torch.nn.Linear", "no.such.thing"):
        component = config.optimizer.model_copy(update={"target": target})
        with pytest.raises(ConfigError, match="optimizer._target_ must name"):
            target_of(component, "optimizer", __import__("torch").optim.Optimizer)


def test_secrets_stay_unresolved(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value taken from the environment, or a password in an address, is not in what is logged."""
    monkeypatch.setenv("STORE", "http://me:hunter2@127.0.0.1:5000")
    config = composed("tracking=server", "tracking.uri=${oc.env:STORE}")
    assert config.tracking.uri == "http://me:hunter2@127.0.0.1:5000"
    assert config.flat()["tracking.uri"] == "${oc.env:STORE}"


@pytest.mark.parametrize("uri", ["http://me:hunter2@127.0.0.1:5000", "postgresql://host/db?password=hunter2"])
def test_no_password_in_a_config(composed: Compose, uri: str) -> None:
    """A password that would be written down with the config is refused, and not repeated."""
    with pytest.raises(ConfigError, match="tracking.uri must hold no password") as caught:
        composed("tracking=server", f"tracking.uri='{uri}'")
    assert "hunter2" not in str(caught.value)


def test_title_says_what_differs(composed: Compose) -> None:
    """A run's name is short and readable."""
    assert composed("optimizer.lr=3e-3", "batch_size=64").title() == "adam lr=0.003 b=64 s=0"
    assert composed("data=csv", "data.path=a.csv", "data.target=price").title().endswith("b=32 target=price s=0")
    assert composed("model.hidden=[]").title() == "adam lr=0.001 b=32 linear s=0"
    assert composed("model.hidden=[8,4]").title() == "adam lr=0.001 b=32 8x4 s=0"
    assert composed("model=perceptron").title() == "adam lr=0.001 b=32 perceptron s=0"
    assert composed("model.dropout=0.5", "schedule=cosine", "seed=3").title() == "adam lr=0.001 b=32 p=0.5 cosine s=3"


def test_config_imports_no_torch() -> None:
    """A bad override answers without waiting for torch or mlflow."""
    code = "import sys; from manyfit import config; assert not {'torch', 'mlflow', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


LEAVES_A_TRACE = "import pathlib\npathlib.Path(__file__).with_suffix('.trace').touch()\n"


@pytest.mark.parametrize("override", ["model._target_=evil.Net", "claim=evil.judge", "data._target_=evil.inner.load"])
def test_an_untrusted_module_is_not_run(tmp_path: Path, override: str) -> None:
    """What can be imported, but is neither beside run.py nor trusted, is refused before its first line runs."""
    (tmp_path / "work").mkdir()
    (tmp_path / "evil.py").write_text(LEAVES_A_TRACE)
    mode = ["-m", "seed=1,2"] if override.startswith("claim") else []
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *mode, override, "data=iris", "epochs=1"],
        cwd=tmp_path / "work",
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    name = override.partition("=")[2]
    assert (
        f"but got '{name}', whose module would be run. If you trust it: trusted=[{name.rpartition('.')[0]}]."
        in done.stderr
    )
    assert not (tmp_path / "evil.trace").exists()


@pytest.mark.parametrize(
    ("path", "trusted", "may"),
    [
        ("torch.nn.Linear", [], True),
        ("torch.nnx.Linear", [], False),
        ("torch.hub.load", [], False),
        ("evil.Net", [], False),
        ("evil.Net", ["evil"], True),
        ("evil.inner.Net", ["evil"], True),
        ("evils.Net", ["evil"], False),
        ("evil.Net", ["evil.inner"], False),
        ("beside.Net", [], True),
        ("beside_too.inner.Net", [], True),
        ("os.system", [], False),
        ("__main__.Net", [], False),
        ("", [], False),
    ],
)
def test_what_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, trusted: list[str], may: bool
) -> None:
    """Whole parts of a name count; a file or folder of the working directory may run, and is not run to find out."""
    (tmp_path / "beside_too").mkdir()
    for name in ("beside.py", "beside_too/__init__.py"):
        (tmp_path / name).write_text("raise AssertionError('imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    if may:
        require_trusted(path, "model._target_", trusted)
    else:
        with pytest.raises(
            ConfigError, match=r"model._target_ must be of a module in this folder, or of manyfit, torch.nn"
        ):
            require_trusted(path, "model._target_", trusted)
