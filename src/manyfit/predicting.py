"""`manyfit predict RUN FILE`: what a stored run says of new rows."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from omegaconf import DictConfig, OmegaConf

from manyfit.config.errors import ConfigError
from manyfit.config.schema import parse
from manyfit.resume import one_run

if TYPE_CHECKING:
    import pandas as pd

    from manyfit.data.served import Served
    from manyfit.tracking.reading import Kept

GROUPS = ("data", "model", "loss", "optimizer", "schedule")  # tags that say which option of a group was chosen


def predict(prefix: str, file: Path, trusted: str = "") -> "pd.DataFrame":
    """Of each row the target; of classes a probability each, too: by the weights of the run's best epoch.

    Of a sweep's runs only the best keep their network: another is trained once more, which gives the same bits.

    Args:
        prefix: Of the run's id, MLflow's or ours.
        file: With the columns of the run's own file, in any order, others beside them.
        trusted: A module of the run's config that the caller vouches for.

    Raises:
        ConfigError: There is no such run, or it is not of a file, or the rows cannot be used.
    """
    run_id, _ = one_run(None, prefix, "RUN")
    from manyfit.tracking import reading

    run = reading.kept(None, Path.cwd(), run_id)
    if "data.target" not in run.params:
        raise ConfigError(
            f"RUN must be of a file with named columns (data=csv), but got {run.name!r}. For others there is "
            "mlflow.pytorch.load_model."
        )
    rows = _rows(file, run.params)
    model = run.model or _trained_again(run, trusted)
    try:
        return cast("pd.DataFrame", model.predict(rows))
    except ValueError as error:
        raise ConfigError(str(error).replace("x must", "FILE must").replace("the frame", f"'{file}'")) from None


def _rows(file: Path, params: Mapping[str, str]) -> "pd.DataFrame":
    """As the run's own file was read."""
    import pandas as pd

    from manyfit.data.files import read_text

    header, separator = params.get("data.header") != "False", params.get("data.separator", ",")
    try:
        if file.suffix == ".parquet":
            return pd.read_parquet(file)
        return read_text(file, f"'{file}'", header, separator).data
    except (OSError, ValueError) as error:
        raise ConfigError(f"FILE must be a readable .csv, .csv.gz or .parquet, but got '{file}': {error}") from None


def _trained_again(run: "Kept", trusted: str) -> "Served":
    from manyfit.data.served import Served
    from manyfit.training import fitting

    tree = OmegaConf.create(run.config)
    assert isinstance(tree, DictConfig)
    OmegaConf.update(tree, "trusted", [trusted] if trusted else [])
    choices = {group: run.tags[group] for group in GROUPS if group in run.tags}
    print(f"{run.name} kept no network: it is trained once more", file=sys.stderr)
    (result,) = fitting.fit([parse(tree, choices)])
    return Served(result.encoding, result.classes, result.predictor)
