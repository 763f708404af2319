"""What an activation adds to layers that would otherwise be one."""

from collections.abc import Mapping, Sequence

from manyfit.experiments import (
    SHARE,
    Chart,
    Region,
    Run,
    Verdict,
    about,
    all_of,
    by,
    effect,
    holm,
    is_plane,
    line,
    region,
    with_networks,
)

LINEAR = 0.01  # accuracy, either way
BEYOND = 0.2  # accuracy above a line


@with_networks
@about("classification")
def nonlinearity(runs: Sequence[Run]) -> Verdict:
    """Test accuracy against scikit-learn's logistic regression on the same split.

    Holds if identity networks of every depth and width are less than 1 point away from it, in the mean over seeds of
    the distance, and every other activation is more than 20 points above it (Holm over all).
    """
    names = by(runs, "model.activation")
    sizes = by(names["identity"], "model.hidden")
    others = {name: group for name, group in names.items() if name != "identity"}
    straight = _line_accuracy(runs)
    bars = {str(size): [LINEAR - abs(run.test() - straight) for run in group] for size, group in sizes.items()}
    bars |= {name: [run.test() - straight - BEYOND for run in group] for name, group in others.items()}
    answers = holm(bars)
    away = max((effect([abs(run.test() - straight) for run in group]).mean for group in sizes.values()), default=0)
    above = {name: effect([run.test() - straight for run in group]) for name, group in others.items()}
    least = min(above.values(), key=lambda e: e.mean)
    said = ", ".join(f"{name} {found.mean:.0%}" for name, found in above.items())
    return Verdict(
        all_of([answer for answer, _ in answers.values()]),
        least,
        "of accuracy that the least of the non-linear activations is above a line",
        f"Identity networks stay within {away:.1%} of logistic regression's {straight:.1%} at every depth and width; "
        f"above it are {said}.",
        f"Without an activation any depth is a line ({straight:.0%}); with one, {straight + least.mean:.0%} and more",
        (
            *_maps({"identity": sizes[max(sizes, key=len)], "relu": others.get("relu", [])}),
            Chart(
                "network",
                "test accuracy",
                [
                    line("identity", sizes, Run.test, lambda size: "x".join(map(str, size)), limits=SHARE),
                    line("non-linear", others, Run.test, limits=SHARE),
                ],
                level=(straight, "logistic regression"),
            ),
        ),
    )


def _line_accuracy(runs: Sequence[Run]) -> float:
    """Of scikit-learn's logistic regression on the split of these runs; NaN without one."""
    from sklearn.linear_model import LogisticRegression

    data = next((run.job.data for run in runs if run.job is not None), None)
    if data is None:
        return float("nan")
    found = LogisticRegression(max_iter=1000).fit(data.x_train.numpy(), data.y_train.numpy())
    return float(found.score(data.x_test.numpy(), data.y_test.numpy()))


def _maps(groups: Mapping[str, Sequence[Run]]) -> list[Region]:
    """What the first run of each group decides."""
    regions = []
    for name, group in groups.items():
        for run in group[:1] if is_plane(group) else ():
            if run.job is not None and run.result is not None:
                size = "x".join(map(str, run["model.hidden"]))
                regions.append(region(f"{name}, {size}", run.job.data, run.predictor))
    return regions
