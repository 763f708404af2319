"""An assertion, the runs that put it to the test, and the verdict: what a claim is written with."""

from manyfit.experiments.regions import is_plane, region
from manyfit.experiments.runs import (
    Run,
    banded,
    batch_of,
    by,
    by_batch_size,
    curve,
    differences,
    in_unit,
    line,
    nearest,
)
from manyfit.experiments.verdict import (
    Chart,
    Region,
    Series,
    Verdict,
    about,
    all_of,
    decide,
    holm,
    told,
    with_networks,
)
from manyfit.statistics import ANY, POSITIVE, SHARE, Effect, effect

__all__ = [
    "ANY",
    "POSITIVE",
    "SHARE",
    "Chart",
    "Effect",
    "Region",
    "Run",
    "Series",
    "Verdict",
    "about",
    "all_of",
    "banded",
    "batch_of",
    "by",
    "by_batch_size",
    "curve",
    "decide",
    "differences",
    "effect",
    "holm",
    "in_unit",
    "is_plane",
    "line",
    "nearest",
    "region",
    "told",
    "with_networks",
]
