"""The closing words on a run."""

from typing import Any

from manyfit import curves
from manyfit.progress import line
from manyfit.training.prepared import Result
from manyfit.training.recording import devices, score


def summary(result: Result) -> str:
    """The end of a run in five lines: its name, test score, best epoch, verdict in words, seconds."""
    s = result.summary
    epochs = len(result.metrics["loss/val"]) - 1
    early = (
        f", stopped by trainer.patience={result.config.trainer.patience}" if result.reason == "stopped early" else ""
    )
    lines: list[tuple[str, Any]] = [
        ("run", f"{result.config.experiment}: {result.config.title()}"),
        ("test", f"{score(result)}, with the weights of epoch {s.best_epoch}"),
        ("best epoch", f"{s.best_epoch} of {epochs} (loss/val {s.best_loss_val:.4g}, gap {s.best_gap:.4g}){early}"),
        ("verdict", curves.sentence(s)),
        ("training", f"{result.seconds:.1f} s, {result.metrics['progress/steps'][-1]:.0f} steps{_on(result)}"),
    ]
    return "\n".join(line(name, text) for name, text in lines)


def _on(result: Result) -> str:
    return f", on {devices(result)}" if len(result.devices) > 1 else ""
