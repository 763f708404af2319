"""manyfit from Python: the trainings, errors and bits of the command, as objects that show themselves in a notebook."""

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manyfit.config import place
from manyfit.config.errors import ConfigError
from manyfit.config.schema import parse, refuse_passwords
from manyfit.results import Run, Runs

if TYPE_CHECKING:
    import pandas as pd
    from hydra.core.config_loader import ConfigLoader
    from omegaconf import DictConfig
    from torch import nn

    from manyfit.sweeps.parent import Child, Sweep

SHORT = {"lr": "optimizer.lr", "weight_decay": "optimizer.weight_decay", "n_trials": "sweep.n_trials"}


def fit(
    *overrides: str, model: "type[nn.Module] | str | None" = None, data: Any = None, target: str = "y", **settings: Any
) -> Run:
    """Train one network, and track it as `python run.py` does.

    Args:
        overrides: As on the command line: `"optimizer=adam"`, `"data=digits"`.
        model: An option of conf/model, or a class of your own: `nn.Module` that takes `in_features`, or `in_shape`, and
            `out_features`, or a `LightningModule`.
        data: An option of conf/data; a `LightningDataModule` class of your own; a frame with a column named `target`,
            or `(frame, target)`; or `(x, y)`, x (rows, features), y (rows,), which is called `target`.
            What is in memory is kept as a file under mlruns/data, so that the run can be made again.
        target: The column to predict.
        settings: Any other key, such as `epochs=50`, `lr=1e-3`, `tracking="off"`.

    Raises:
        ConfigError: Something cannot be used; no run exists then. It is a ValueError.
        TrainingError: The store refuses the run, or the model exits. One that diverges is returned, and says so.
        KeyboardInterrupt: The run is KILLED and keeps its epochs.

    >>> run = fit("optimizer=adam", data="iris", epochs=3, tracking="off")
    >>> sorted(run.test)
    ['accuracy/test', 'loss/test']
    """
    given, trusted = _overrides(overrides, model, data, target, settings, sweep=False)
    with _hydra(given) as (loader, given):
        cfg = _composed(loader, given, trusted, multirun=False)
    config = parse(cfg, cfg.hydra.runtime.choices, cfg.hydra.overrides.task)
    from manyfit import app

    result, run = app.fit(config, says=False)
    return Run(run.run_id, config, result)


def grid(*overrides: str, model: Any = None, data: Any = None, target: str = "y", **settings: Any) -> Runs:
    """Train every combination of the values given, as populations, and report: `python run.py -m ...`.

    Args:
        overrides: As on the command line: `"optimizer.lr=1e-3,1e-2"`, `"seed=range(8)"`.
        model: See `fit`.
        data: See `fit`.
        target: See `fit`.
        settings: See `fit`; a list is values to try: `lr=[1e-3, 1e-2]`.

    Raises:
        ConfigError: Some cannot be run, and nothing was. What fails or diverges later stands in `failure`.

    >>> runs = grid("data=iris", "seed=range(2)", lr=[0.01, 0.1], epochs=3, tracking="off")
    >>> len(runs), runs.best().config.optimizer.lr in (0.01, 0.1)
    (4, True)
    """
    given, trusted = _overrides(overrides, model, data, target, settings, sweep=True)
    with _hydra(given) as (loader, given):
        from hydra_plugins.manyfit.grid import GridSweeper  # Hydra loads plugins anew when it first looks for them

        sweeper = _set_up(GridSweeper(None), loader, given, trusted)
        return _runs(sweeper.train(sweeper.config, [*given, *trusted], 0, says=False))


def search(*overrides: str, model: Any = None, data: Any = None, target: str = "y", **settings: Any) -> Runs:
    """Search a space by Optuna, confirm what is best on fresh seeds, and report: `python run.py sweep=...`.

    Args:
        overrides: As on the command line: `"sweep=lr_batch_size"`, or `"model.dropout=interval(0,0.6)"`.
        model: See `fit`.
        data: See `fit`.
        target: See `fit`.
        settings: See `fit`; `n_trials=64`.

    Raises:
        ConfigError: Something cannot be used; there is no study then. What fails later stands in `failure`.

    >>> found = search("data=iris", "optimizer.lr=choice(0.01,0.1)", n_trials=2, epochs=2, tracking="off")
    >>> found.best().config.optimizer.lr in (0.001, 0.01, 0.1)
    True
    """
    given, trusted = _overrides(overrides, model, data, target, settings, sweep=True)
    with _hydra(given) as (loader, given):
        from hydra_plugins.manyfit.optuna_study import OptunaStudy  # as above

        done = _set_up(OptunaStudy(), loader, given, trusted).search([*given, *trusted], says=False)
    return _runs(done) if done else Runs(None, (), None)


def runs(experiment: str | None = None, where: str = "", uri: str | None = None) -> "pd.DataFrame":
    """Stored runs, a row each: id, experiment, name, status, when it began, what it was, what was measured last.

    Args:
        experiment: Its name; None: of all.
        where: A filter, such as `"optimizer = 'adam' and optimizer.lr = '0.001' and accuracy/test > 0.9"`, or MLflow's.
        uri: The store; None: `mlruns/` here, or MLFLOW_TRACKING_URI.

    Raises:
        ValueError: There is no such experiment, no run has what the filter names, MLflow does not understand it, or the
            store does not answer.
    """
    from manyfit.tracking import reading

    return reading.table(uri, Path.cwd(), experiment, where)


def histories(ids: "Iterable[str] | pd.DataFrame", uri: str | None = None) -> "pd.DataFrame":
    """The curves of stored runs: a row for each run and epoch, a column for each metric.

    Args:
        ids: MLflow's, or what `runs` gave.
        uri: See `runs`.

    Raises:
        ValueError: The store does not answer.
    """
    import pandas as pd

    from manyfit.tracking import reading

    chosen = ids["id"] if isinstance(ids, pd.DataFrame) else [ids] if isinstance(ids, str) else ids
    return reading.histories(uri, Path.cwd(), list(chosen))


def _overrides(
    overrides: Sequence[str], model: Any, data: Any, target: str, settings: Mapping[str, Any], sweep: bool
) -> tuple[list[str], list[str]]:
    """As on the command line; and what a class of the caller's own needs to be trusted."""
    given, homes = list(overrides), []
    for group, cls in (("model", model), ("data", data)):
        if isinstance(cls, type):
            if "<locals>" in cls.__qualname__:
                raise ConfigError(f"{group} must be a class at the top of a module, but got {cls.__qualname__}.")
            given.append(f"{group}._target_={cls.__module__}.{cls.__qualname__}")
            homes.append(cls.__module__)
    trusted = [f"trusted=[{','.join(homes)}]"] if homes else []
    if model is not None and not isinstance(model, type):
        given.append(f"model={model}")
    if isinstance(data, str):
        given.append(f"data={data}")
    elif data is not None and not isinstance(data, type):
        named = data[1] if isinstance(data, tuple) and isinstance(data[1], str) else target
        given += ["data=csv", f"data.path='{_kept(data, target)}'", f"data.target={named}"]
    return [*given, *(f"{SHORT.get(key, key)}={_text(value, sweep)}" for key, value in settings.items())], trusted


def _text(value: Any, sweep: bool = False) -> str:
    """A value in Hydra's grammar; in a sweep a list is of values to try."""
    value = value.tolist() if hasattr(value, "tolist") else value  # of NumPy
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list | tuple):
        inner = ",".join(map(_text, value))
        return inner if sweep else f"[{inner}]"
    return f"'{value}'" if isinstance(value, str) and "," in value and not sweep else str(value)


def _kept(data: Any, target: str) -> Path:
    """A frame, or (x, y), as a file that is named after what is in it."""
    import numpy as np
    import pandas as pd

    if isinstance(data, pd.DataFrame):
        frame = data
        if target not in frame.columns:
            known = ", ".join(map(str, frame.columns))
            raise ConfigError(f"target must be a column of data, but got {target!r}. Say which: target=... of {known}.")
    else:
        x, y = data
        if isinstance(y, str):
            return _kept(x, y)
        if len(x) != len(y):
            raise ConfigError(f"data must be as many rows as targets, but got {len(x)} and {len(y)}.")
        frame = x if isinstance(x, pd.DataFrame) else pd.DataFrame(np.asarray(x)).rename(columns="x{}".format)
        if target in frame.columns:
            raise ConfigError(f"target must be a name that no column of x has, but got {target!r}. Give another.")
        frame = frame.assign(**{target: np.asarray(y)})
    content = io.BytesIO()
    frame.to_parquet(content, index=False)
    path = Path("mlruns/data") / f"frame-{sha256(content.getvalue()).hexdigest()[:12]}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.getvalue())
    return path


@contextlib.contextmanager
def _hydra(given: list[str]) -> Iterator[tuple["ConfigLoader", list[str]]]:
    """Hydra on our conf/, whatever else this process uses it for, and what it is given; it refuses in our words."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    from hydra_plugins.manyfit.starting import hydra_on, in_our_words, spelled_out

    refuse_passwords(dict(override.partition("=")[::2] for override in given))
    theirs, known = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().hydra = None
    try:
        with hydra_on(place.folders()) as hydra, in_our_words(hydra.config_loader, given):
            yield hydra.config_loader, spelled_out(hydra.config_loader, given)
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = theirs, known


def _composed(loader: "ConfigLoader", given: list[str], trusted: list[str], *, multirun: bool) -> "DictConfig":
    """What the command would compose, after it refused what it refuses."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from hydra_plugins.manyfit.starting import mode_of

    if mode_of(loader, given, multirun) == RunMode.MULTIRUN and not multirun:
        raise ConfigError("fit must be given one run, but got an experiment or a sweep. Use grid, or search.")
    if any(override.startswith(("resume=", "autoresume=", "experiment=all")) for override in given):
        raise ConfigError("resume=... and experiment=all must be given to the command. Use `manyfit run`.")
    cfg = loader.load_configuration("config", [*given, *trusted], RunMode.MULTIRUN if multirun else RunMode.RUN)
    HydraConfig.instance().set_config(cfg)
    return cfg


def _set_up(sweeper: Any, loader: "ConfigLoader", given: list[str], trusted: list[str]) -> Any:
    """A sweeper, as Hydra sets it up."""
    from hydra._internal.callbacks import Callbacks
    from hydra.types import HydraContext

    cfg = _composed(loader, given, trusted, multirun=True)
    if cfg.hydra.sweeper._target_.endswith("OptunaStudy") and type(sweeper).__name__ != "OptunaStudy":
        raise ConfigError("grid must be given values, but got a search. Use search.")
    context = HydraContext(config_loader=loader, callbacks=Callbacks())
    sweeper.setup(hydra_context=context, task_function=None, config=cfg)
    return sweeper


def _runs(sweep: "Sweep") -> Runs:
    children: list[Child] = [child for _, child in sorted(sweep.children.items()) if child.result]
    found = tuple(Run(child.run.run_id, child.config, child.result) for child in children if child.result)
    return Runs(sweep.parent.run_id, found, sweep.report, sweep.failure)
