"""A run in words: the last of a command, and those of its page."""

from typing import Any

from manyfit import curves
from manyfit.displays import line
from manyfit.measures import called
from manyfit.tracking import provenance
from manyfit.training.trained import Result

UNLIKE = 1.2  # times as large as the others' mean is a class whose share is told


def summary(result: Result) -> str:
    """The end of a run in five lines: its name, test score, best epoch, verdict in words, seconds."""
    s = result.summary
    epochs = len(result.metrics["loss/val"]) - 1
    patience = result.config.trainer.patience
    by = f"trainer.patience={patience}" if patience is not None else "a callback of its own"
    early = f", stopped by {by}" if result.reason == "stopped early" else ""
    lines: list[tuple[str, Any]] = [
        ("run", f"{result.config.experiment}: {result.config.title()}"),
        ("test", f"{score(result)}, with the weights of epoch {s.best_epoch}" if result.test else "no test examples"),
        *([("metrics", _measured(result))] if result.config.metrics else []),
        ("best epoch", f"{s.best_epoch} of {epochs} (loss/val {s.best_loss_val:.4g}, gap {s.best_gap:.4g}){early}"),
        ("verdict", curves.sentence(s)),
        ("training", f"{result.seconds:.1f} s, {result.metrics['progress/steps'][-1]:.0f} steps{_on(result)}"),
    ]
    return "\n".join(line(name, text) for name, text in lines)


def _measured(result: Result) -> str:
    """Test scores by the metrics that were asked for."""
    names = map(called, result.config.metrics)
    return ", ".join(f"{name} {result.test[f'{name}/test']:.4g}" for name in names) + ", on the test set"


def note(result: Result) -> str:
    """Two sentences for the top of the run's page."""
    config, s = result.config, result.summary
    tested = f"{score(result)} on the test set with the weights of epoch {s.best_epoch}, " if result.test else ""
    return (
        f"{curves.sentence(s)} {config.title()} on {config.experiment}: {tested}after "
        f"{len(result.metrics['loss/val']) - 1} epochs ({_where(result)})."
    )


def devices(result: Result) -> str:
    """What a run was trained on: `1 x CPU`, `4 x NVIDIA H200`."""
    return ", ".join(f"{result.devices.count(name)} x {name}" for name in dict.fromkeys(result.devices))


def score(result: Result) -> str:
    """The test score in words: `accuracy 97.4%` or `RMSE 53.2 (R2 0.48)`; of unlike classes what guessing gets."""
    if result.most_frequent is not None:
        unlike = result.most_frequent * len(result.classes) >= UNLIKE
        guessed = f" ({result.most_frequent:.1%} by the most frequent class alone)" if unlike else ""
        return f"accuracy {result.test['accuracy/test']:.1%}{guessed}"
    if result.config.guests.model:
        return ", ".join(f"{name.removesuffix('/test')} {value:.4g}" for name, value in result.test.items())
    scale = result.config.data.target_scale
    of = {"log": " of the logarithm", "rank": " of the rank"}[scale] if scale else ""
    return f"RMSE {result.test['rmse/test']:.4g}{of} (R2 {result.test['r2/test']:.2f})"


def _on(result: Result) -> str:
    return f", on {devices(result)}" if len(result.devices) > 1 else ""


def _where(result: Result) -> str:
    """The machine, and on how many devices if there were several."""
    several = f"on {len(result.devices)} devices, " if len(result.devices) > 1 else ""
    return several + provenance.hardware()
