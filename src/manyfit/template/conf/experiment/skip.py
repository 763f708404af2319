"""What judges the experiment beside this file: a function of its runs, named by `claim:`."""

from collections.abc import Sequence

from manyfit.experiments import Chart, Run, Verdict, by, decide, differences, effect, line


def skip(runs: Sequence[Run]) -> Verdict:
    """Holds if the best training loss without a way around is higher, paired by seed; fixed before the run."""
    kinds = by(runs, "model.skip")

    def loss(run: Run) -> float:
        return run.best("loss/train")

    gain = effect(differences(kinds[False], kinds[True], loss))
    chart = Chart("a way around each layer", "best training loss", [line("wine", kinds, loss, x=float)])
    sentence = f"Ten layers end {gain.mean:.3f} lower in training loss with a way around each."
    return Verdict(decide(gain), gain, "of training loss", sentence, "Deep networks train with skips", [chart])
