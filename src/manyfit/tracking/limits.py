"""What MLflow takes: how long names and values may be, and which characters names may have (without importing it)."""

import re
from collections.abc import Iterable

from manyfit.config.errors import ConfigError

# mlflow/utils/validation.py, and where they are shorter the columns of its tables, which PostgreSQL holds to
MAX_ENTITIES, MAX_PARAMS, MAX_TAGS = 1000, 100, 100  # of one log_batch; entities: metrics, params and tags together
MAX_KEY, MAX_PARAM, MAX_TAG, MAX_NAME, MAX_DIGEST = 250, 6000, 8000, 500, 36  # characters; a name is a data set's
MAX_EXPERIMENT, MAX_RUN = 256, 250
CUT = " ... [cut]"
STRANGE = re.compile(r"[^/\w.\- :]")  # characters that no key may have


def cut(text: str, limit: int) -> str:
    """The text, with a mark where it is too long."""
    return text if len(text) <= limit else text[: limit - len(CUT)] + CUT


def check(experiment: str, keys: Iterable[str]) -> None:
    """Raise ConfigError, before a run exists, for names that no store takes; `keys` are of params and tags."""
    if len(experiment) > MAX_EXPERIMENT:
        raise ConfigError(
            f"name must have at most {MAX_EXPERIMENT} characters, as the name of an MLflow experiment, but got "
            f"{len(experiment)}: {experiment[:60]}... Shorten it."
        )
    for key in keys:
        if len(key) > MAX_KEY or STRANGE.search(key):
            raise ConfigError(
                f"a key must have at most {MAX_KEY} characters, all of them letters, digits or one of / _ . - : and "
                f"space, to be a param of an MLflow run, but got {key[:60]!r} ({len(key)}). Rename it."
            )
