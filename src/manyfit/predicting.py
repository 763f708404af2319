"""`manyfit predict RUN FILE`: what a stored run says of new rows."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from manyfit.config.errors import ConfigError
from manyfit.data.sources import read
from manyfit.resume import job_of, one_run

if TYPE_CHECKING:
    import pandas as pd

    from manyfit.data.served import Served
    from manyfit.tracking.reading import Kept


def predict(prefix: str, file: Path, trusted: str = "") -> "pd.DataFrame":
    """Of each row the target; of classes a probability each, too: by the weights of the run's best epoch.

    Of a sweep's runs only the best keep their network: another is trained once more, by the native engine to the same
    bits.

    Args:
        prefix: Of the run's id, MLflow's or ours.
        file: With the columns of the run's own file, in any order, others beside them.
        trusted: A module of the run's config that the caller vouches for.

    Raises:
        ConfigError: There is no such run, or it is not of a file, or the rows cannot be used.
    """
    run_id, _ = one_run(None, prefix, "RUN")
    from manyfit.data.served import load
    from manyfit.tracking import reading

    run = reading.kept(None, Path.cwd(), run_id)
    params = run.params
    if not run.config:
        raise ConfigError(
            f"RUN must be one run, but {prefix} is a whole sweep. Its report says which of its runs is best."
        )
    if "data.target" not in params:
        raise ConfigError(
            f"RUN must be of a file with named columns (data=csv), but got {run.name!r}. For others there is "
            "mlflow.pytorch.load_model."
        )
    if run.tags.get("engine") == "lightning":
        raise ConfigError(
            f"RUN must be of a network whose outputs are known, but {run.name!r} is a LightningModule's, whose forward "
            "mlflow.pytorch.load_model loads."
        )
    try:
        model = load(run.model) if run.model else _trained_again(run, trusted)
        header, separator = params.get("data.header") != "False", params.get("data.separator", ",")
        decimal = params.get("data.decimal", ".")
        words = [column for column, kind in model.encoding.columns.items() if kind == "words"]
        return model.answers(read(str(file), header, separator, decimal, words, "FILE"))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _trained_again(run: "Kept", trusted: str) -> "Served":
    """One of a sweep that kept no network: trained once more, if it ended and the data are as they were."""
    from manyfit.data.served import Served
    from manyfit.training import fitting

    if run.status != "FINISHED":
        raise ConfigError(f"RUN must have a network, but {run.name!r} kept none and is {run.status}. Train it anew.")
    said = {"trusted": [trusted] if trusted else [], "tracking": {"kind": "off"}}
    job = job_of(run, said, "RUN")
    print(f"{run.name} kept no network: it is trained once more", file=sys.stderr)
    (result,) = fitting.fit([job])
    return Served(result.encoding, result.classes, result.predictor)
