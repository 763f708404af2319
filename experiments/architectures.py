"""Which network suits signals, and what is left of that when their samples are in another order."""

from collections.abc import Sequence

from manyfit.experiments import Chart, Effect, Run, Series, Verdict, all_of, decide, differences, effect
from manyfit.experiments.verdict import Answer
from manyfit.statistics import SHARE

PAPER = {"logistic": (0.32, 0.01), "MLP": (0.68, 0.02), "GRU": (0.91, 0.02), "CNN": (0.94, 0.02)}
"""Test accuracy and its band. Source: Greydanus and Kobak 2020, table 1."""


def architectures(runs: Sequence[Run]) -> Verdict:
    """Logistic regression, dense layers, recurrence and convolution, on signals in order and in another order.

    Holds if the test accuracy of the last epoch lies within the paper's band for each of the four, and in another order
    the convolution's is below that of the dense layers.
    """
    named = {order: _named([r for r in runs if r["data.shuffled"] is order]) for order in (False, True)}
    found = {order: {name: _accuracy(groups.get(name, [])) for name in PAPER} for order, groups in named.items()}
    lead = {order: _lead(groups) for order, groups in named.items()}
    answers = [_within(found[False][name], *band) for name, band in PAPER.items()]
    said = ", ".join(f"{name} {found[False][name].mean:.1%} (paper {PAPER[name][0]:.0%})" for name in PAPER)
    return Verdict(
        all_of([*answers, decide(-lead[True])]),
        lead[True],
        "of test accuracy that the convolution is ahead of dense layers, samples in another order",
        f"In order: {said}; the convolution is ahead of dense layers by {lead[False].mean:.1%}, in another order by "
        f"{lead[True].mean:.1%}.",
        "Neighbours make convolution best",
        (
            Chart(
                "", "test accuracy", [_bars("in order", found[False]), _bars("in another order", found[True]), _paper()]
            ),
        ),
        [
            ["network", "in order", "paper", "in another order"],
            *[
                [name, f"{found[False][name]:.1%}", f"{value:.0%} +- {band:.0%}", f"{found[True][name]:.1%}"]
                for name, (value, band) in PAPER.items()
            ],
        ],
    )


def _name(run: Run) -> str:
    """Of the network: an MLP without a hidden layer is logistic regression."""
    return "logistic" if run["model"] == "MLP" and not run.settings.get("model.hidden") else str(run["model"])


def _named(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by the name of their network."""
    return {name: [run for run in runs if _name(run) == name] for name in PAPER}


def _last(run: Run) -> float:
    return run.final("test_set/accuracy")


def _accuracy(group: Sequence[Run]) -> Effect:
    return effect([_last(run) for run in group], limits=SHARE)


def _lead(groups: dict[str, list[Run]]) -> Effect:
    """Of the convolution over dense layers, by seed."""
    return effect(differences(groups.get("CNN", []), groups.get("MLP", []), _last))


def _within(found: Effect, value: float, band: float) -> Answer:
    """Whether the whole interval lies in the band, or all of it on one side."""
    return all_of([decide(found, value - band), decide(-found, -value - band)])


def _bars(name: str, found: dict[str, Effect]) -> Series:
    every = list(found.values())
    return Series(name, list(found), [e.mean for e in every], [e.low for e in every], [e.high for e in every])


def _paper() -> Series:
    return Series("paper", list(PAPER), [value for value, _ in PAPER.values()], *_ends())


def _ends() -> tuple[list[float], list[float]]:
    return [value - band for value, band in PAPER.values()], [value + band for value, band in PAPER.values()]
