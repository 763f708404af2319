"""How far apart the losses come with the size of the network, the number of examples, and noise in the labels."""

from collections.abc import Sequence

import numpy as np

from manyfit.experiments import (
    POSITIVE,
    Chart,
    Effect,
    Run,
    Verdict,
    all_of,
    by,
    curve,
    decide,
    differences,
    effect,
    line,
    told,
)

RISE = 0.1  # of the lowest validation loss
ORDER = ("fails", "undecided", "holds")  # what decides, where all parts must hold


def overfitting(runs: Sequence[Run]) -> Verdict:
    """All three, in the mean over seeds.

    The widest network overfits: its validation loss ends 10% and more above its own lowest. The narrowest underfits: at
    its best it has more validation loss than the best width. The ideal lies between: at the end, both have more than
    the best width between them, which the even seeds choose and the odd ones are asked about.
    """
    sizes = by(runs, "data.train_size")
    most = max(sizes, key=lambda size: len(by(sizes[size], "model.hidden")))
    least = min(run["data.label_noise"] for run in sizes[most])
    clean = [run for run in sizes[most] if run["data.label_noise"] == least]
    noisy = [run for run in sizes[most] if run["data.label_noise"] > least] or (clean if least else [])
    widths = by(clean, "model.hidden")
    wide, narrow = max(widths), min(widths)
    best = min(widths, key=lambda w: np.mean([run.best("loss/val") for run in widths[w]]))
    turn = effect([run.final("loss/val") / run.best("loss/val") - 1 for run in widths[wide]])
    under = effect(differences(widths[narrow], widths[best], lambda run: run.best("loss/val")))
    ideal, ends = _ideal(widths)
    parts = [
        (turn, RISE, "times its lowest point that validation loss rises by, widest network"),
        (under, 0.0, f"of validation loss more with {narrow[0]} units at their best than with {best[0]}"),
        (ends[0], 0.0, f"of validation loss at the end more with {narrow[0]} units than with {ideal[0]}"),
        (ends[1], 0.0, f"of validation loss at the end more with {wide[0]} units than with {ideal[0]}"),
    ]
    answers = [decide(found, above) for found, above, _ in parts]
    decisive = min(zip(parts, answers, strict=True), key=lambda part: ORDER.index(part[1]))[0]
    again, noise = _second_descents(by(noisy, "model.hidden"))
    by_size = {size: of_size for size, of_size in sizes.items() if size != most}
    gaps = line("gap", by_size, lambda run: run.final("loss/gap"))
    return Verdict(
        all_of(answers),
        decisive[0],
        decisive[2],
        f"With {wide[0]} hidden units validation loss ends {turn.mean:.0%} above its lowest point, which is at epoch "
        f"{_onset(widths[wide]):.0f}; with {narrow[0]} "
        f"its best is {under.mean:.2f} above that of {best[0]} units. At the last epoch the ideal is {ideal[0]} units: "
        f"{narrow[0]} have {told(ends[0], 'more', 'less')} validation loss, {wide[0]} have "
        f"{told(ends[1], 'more', 'less')}.{again}",
        f"{wide[0]} units: validation loss ends {turn.mean:.0%} above its lowest",
        (
            Chart(
                "hidden units",
                "loss at the last epoch",
                [
                    line("train", widths, lambda run: run.final("loss/train"), lambda w: w[0], limits=POSITIVE),
                    line("validation", widths, lambda run: run.final("loss/val"), lambda w: w[0], limits=POSITIVE),
                    line(
                        "validation, best epoch",
                        widths,
                        lambda run: run.best("loss/val"),
                        lambda w: w[0],
                        limits=POSITIVE,
                    ),
                ],
                x_log=True,
            ),
            *([Chart("training examples", "gap at the last epoch", [gaps], x_log=True)] if gaps.y else []),
            Chart(
                "epoch",
                f"loss, {wide[0]} units",
                [curve("train", widths[wide], "loss/train"), curve("validation", widths[wide], "loss/val")],
            ),
            *noise,
        ),
    )


def _ideal(widths: dict[tuple[int, ...], list[Run]]) -> tuple[tuple[int, ...], tuple[Effect, Effect]]:
    """The best width between at the last epoch, and what the narrowest and the widest lose to it there."""
    between = sorted(widths)[1:-1] or sorted(widths)
    chosen = {w: np.mean([run.final("loss/val") for run in widths[w] if run.seed % 2 == 0]) for w in between}
    ideal = min(chosen, key=lambda width: chosen[width])
    asked = {w: [run for run in of if run.seed % 2] for w, of in widths.items()}
    narrow, wide = (
        effect(differences(asked[end], asked[ideal], lambda run: run.final("loss/val")))
        for end in (min(widths), max(widths))
    )
    return ideal, (narrow, wide)


def _onset(runs: Sequence[Run]) -> float:
    return float(np.mean([np.nanargmin(run.metrics["loss/val"]) for run in runs]))


def _second_descents(widths: dict[tuple[int, ...], list[Run]]) -> tuple[str, list[Chart]]:
    """With label noise: does validation loss rise and fall again, by width and by epoch? A sentence, and charts."""
    if not widths:
        return "", []
    wide = max(widths)
    disturbed = _disturbed(widths[wide][0])
    seeds = sorted(set.intersection(*({run.seed for run in of} for of in widths.values())))
    by_seed = {width: {run.seed: run for run in of} for width, of in widths.items()}
    by_width = np.array([[by_seed[width][seed].final("loss/val") for width in widths] for seed in seeds])
    by_epoch = np.array([by_seed[wide][seed].metrics["loss/val"] for seed in seeds])
    width, epoch = ("seen" if descends_again(losses) else "not seen" for losses in (by_width, by_epoch))
    return (
        f" With {disturbed} a second descent by width is {width}, by epoch ({wide[0]} units) {epoch}.",
        [
            Chart(
                "hidden units",
                f"loss at the last epoch, {disturbed}",
                [
                    line("train", widths, lambda run: run.final("loss/train"), lambda w: w[0], limits=POSITIVE),
                    line("validation", widths, lambda run: run.final("loss/val"), lambda w: w[0], limits=POSITIVE),
                ],
                x_log=True,
            ),
            Chart(
                "epoch",
                f"loss, {wide[0]} units, {disturbed}",
                [curve("train", widths[wide], "loss/train"), curve("validation", widths[wide], "loss/val")],
            ),
        ],
    )


def _disturbed(run: Run) -> str:
    """What `data.label_noise` did to the targets of a run."""
    noise = run["data.label_noise"]
    return (
        f"noise of {noise:g} deviations in the target" if "rmse/val" in run.metrics else f"{noise:.0%} of labels wrong"
    )


def descends_again(losses: np.ndarray) -> bool:
    """Whether a loss rises and then falls again (double descent: Belkin et al. 2019, Nakkiran et al. 2020).

    Every other seed chooses where it turns, where the smaller of rise and fall is largest; the rest are asked whether
    it does, so that chance ups and downs are no descent.

    Args:
        losses: (seeds, places), by width or by epoch.
    """
    chosen, asked = losses[::2].mean(0), losses[1::2]
    rise = chosen - np.minimum.accumulate(chosen)
    fall = chosen - np.minimum.accumulate(chosen[::-1])[::-1]
    peak = int(np.argmax(np.minimum(rise, fall)))
    before, after = int(np.argmin(chosen[: peak + 1])), peak + int(np.argmin(chosen[peak:]))
    return all(decide(effect(asked[:, peak] - asked[:, low])) == "holds" for low in (before, after))
