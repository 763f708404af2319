"""What a sweep found, and how it is said: in the terminal, in the note of its page, as tables and figures. Pure."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from manyfit.config.schema import Config
from manyfit.displays import line
from manyfit.statistics import Effect
from manyfit.sweeps import figures, findings
from manyfit.sweeps.findings import Row, Setting, markdown, text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from manyfit.experiments.verdict import Verdict


LISTED = 50  # settings in table.md; table.csv has all
LR = figures.LR


@dataclass(frozen=True)
class Report:
    """What a sweep found, before it is put into words.

    `best` is the setting that is recommended, if any run has a value: what won the confirmation, where there was one,
    which may be the default; its runs are then those on the fresh seeds. `fresh` has what was compared there, and its
    objective. `settings` are best first; in the order of their jobs where what varies is `incomparable`.
    """

    rows: Sequence[Row]
    settings: Sequence[Setting]
    objective: str
    direction: str
    searched: str
    command: str | None = None
    best: Setting | None = None
    default_won: bool = False
    confirmed: str | None = None
    fresh: Sequence[tuple[str, Effect]] = ()
    verdict: "Verdict | None" = None
    warnings: Sequence[str] = field(default_factory=list)
    incomparable: Sequence[str] = ()

    @property
    def config(self) -> Config | None:
        """Of the best run."""
        return self.row.config if self.row else None

    @property
    def row(self) -> Row | None:
        """The best run of the best setting."""
        return findings.best_of(self.best, self.direction) if self.best else None


def summary(report: Report) -> str:
    """The end of a sweep in the terminal, in the look of a run's."""
    lines = [("sweep", report.searched)]
    if report.verdict:
        lines += [("verdict", f"{report.verdict.answer}: {report.verdict.sentence}")]
        lines += [("effect", report.verdict.measured)]
        return "\n".join(line(name, words) for name, words in lines)
    if report.best and report.row:
        lines += [("best", f"{_named(report)} (its best run: {_id(report.row)}, seed {report.row.seed})")]
        lines += [("value", f"{report.objective} {spread(report.best)}")]
        lines += [("test", crossed)] if (crossed := cross_validated(report.best)) else []
        lines += [("lr", words)] if (words := sensitivity(report)) else []
    else:
        lines += [("best", f"none: {_why_none(report)}")]
    lines += [("verdict", report.confirmed)] if report.confirmed else []
    lines += [("warning", warning) for warning in report.warnings]
    lines += [("again", report.command)] if report.command else []
    return "\n".join(line(name, words) for name, words in lines)


def note(report: Report) -> str:
    """The note at the top of the parent run's page, in markdown."""
    parts = [report.searched]
    if found := report.verdict:
        parts = [f"**{found.answer.capitalize()}:** {found.sentence} Effect: {found.measured}.", *parts]
        parts += [markdown(found.table)] if found.table else []
    elif report.best and report.row:
        sure = f"{report.objective} {spread(report.best)}"
        parts[0] += f" **{_named(report)}** won: {sure}. {sensitivity(report)}".rstrip()
        parts += [f"Cross-validated: {crossed}."] if (crossed := cross_validated(report.best)) else []
    else:
        parts[0] += f" None is the best: {_why_none(report)}."
    if report.fresh:
        parts.append(confirmation_table(report))
    if report.confirmed:
        head, _, rest = report.confirmed.partition(":")
        parts.append(f"**{head[:1].upper()}{head[1:]}:**{rest}" if rest else report.confirmed)
    parts += ["\n".join(f"- Warning: {warning}" for warning in report.warnings)] if report.warnings else []
    parts += [f"Again:\n\n```\n{report.command}\n```"] if report.command and not report.verdict else []
    return "\n\n".join(parts)


def cross_validated(setting: Setting) -> str:
    """Test scores over all folds; nothing where there are none."""
    found = findings.tested(setting)
    scores = ", ".join(f"{name.removesuffix('/test')} {score:.4g}" for name, score in found.items())
    if math.isfinite(guessed := findings.guessed(setting)):
        scores += f" ({guessed:.4g} by the most frequent class alone)"
    folds = len({row.fold for row in setting.counted})
    config = setting.rows[0].config
    missing = (config.data.folds or folds) - folds if config else 0
    every = f"{missing} folds are missing" if missing else "every example scored once"
    return f"{scores} over {folds} folds, {every} (intervals for training sets that overlap)" if found else ""


def spread(setting: Setting) -> str:
    """`0.0431 [0.0402, 0.0460] over 8 seeds`."""
    if math.isnan(setting.low):
        return f"{setting.mean:.4g} with one {'fold' if setting.rows[0].fold is not None else 'seed'}"
    return f"{setting.mean:.4g} [{setting.low:.4g}, {setting.high:.4g}] over {findings.replicates(setting.counted)}"


def sensitivity(report: Report) -> str:
    """How wide the good rates are, in decades; nothing where lr did not vary."""
    near = findings.tolerance(report.settings, LR)
    if LR not in findings.varying(report.settings) or near is None:
        return ""
    low, high = near
    where = "In the search" if report.confirmed else "Of the rates tried"
    if low == high:
        return f"{where} only {low:.3g} comes within {findings.NEAR:.0%} of the best."
    count, decades = len(findings.close(report.settings)), math.log10(high / low)
    return (
        f"{where} {count} settings with rates from {low:.2g} to {high:.2g} ({decades:.1f} decades) come within "
        f"{findings.NEAR:.0%} of the best."
    )


def table(settings: Sequence[Setting], objective: str) -> str:
    """The settings as a markdown table, best first."""
    keys = _keys(settings)
    scores = [name for s in settings[:1] for name in findings.tested(s)]
    head = [*keys, "n", objective, "95% CI", *(f"{name} [95% CI]" for name in scores), "best epoch", "runs"]
    body = []
    for s in settings[:LISTED]:
        limits = "" if math.isnan(s.low) else f"{s.low:.4g} to {s.high:.4g}"
        value = "" if math.isnan(s.mean) else f"{s.mean:.4g}"
        epoch = "" if math.isnan(s.best_epoch) else f"{s.best_epoch:g}"
        states = ", ".join(f"{count} {state}" for state, count in s.states.items())
        own = findings.tested(s)
        crossed = [f"{own[name]:.4g}" if name in own else "" for name in scores]
        given = [text(s.params.get(key)) for key in keys]
        body.append([*given, str(len(s.counted)), value, limits, *crossed, epoch, states])
    more = f"\n\n{len(settings) - LISTED} more in table.csv" if len(settings) > LISTED else ""
    return markdown([head, *body]) + more + "\n"


def confirmation_table(report: Report) -> str:
    """What was compared on fresh seeds, as a markdown table."""
    body = [[name, str(found.n), f"{found:.4g}"] for name, found in report.fresh]
    return markdown([["on fresh seeds", "n", f"{report.objective} [95% CI]"], *body])


def table_csv(settings: Sequence[Setting]) -> str:
    """The settings for a program, with full precision."""
    states = ("finished", "pruned", "diverged", "failed")
    out, keys = io.StringIO(), _keys(settings)
    writer = csv.writer(out, lineterminator="\n")
    scores = [name for s in settings[:1] for name in findings.tested(s)]
    columns = [f"{name}{end}" for name in scores for end in ("", " low", " high")]
    writer.writerow([*keys, "n", "mean", "low", "high", *columns, "best_epoch", *states, "seeds"])
    for s in settings:
        seeds = " ".join(str(row.seed) for row in s.rows)
        own = findings.tested(s)
        crossed = [end for name in scores for end in _ends(own.get(name))]
        numbers = [len(s.counted), s.mean, s.low, s.high, *crossed, s.best_epoch]
        writer.writerow([*(s.params.get(k) for k in keys), *numbers, *(s.states[k] for k in states), seeds])
    return out.getvalue()


def _ends(effect: Effect | None) -> tuple[float, float, float] | tuple[str, str, str]:
    return (effect.mean, effect.low, effect.high) if effect else ("", "", "")


def drawings(report: Report, experiment: str) -> dict[str, Callable[[], "Figure | None"]]:
    """How each figure of a sweep is drawn, by its name, the most telling first; None where it would show nothing."""
    if report.incomparable:
        return {}
    rows, settings = report.rows, report.settings
    title = f"{experiment}: {len(rows)} runs, {len(settings)} setting{'s' * (len(settings) != 1)}"
    if settings and settings[0].rows[0].fold is not None:
        title += f", {findings.replicates(settings[0].rows)}"
    return {
        "lr_sensitivity": lambda: figures.lr_sensitivity(settings, report.objective, title),
        "curves": lambda: figures.curves(rows, settings, title),
        "importance": lambda: figures.importance(_importances(settings, rows), title),
        "history": lambda: figures.history(rows, report.objective, report.direction, title),
    }


def _why_none(report: Report) -> str:
    compared = any(setting.counted for setting in report.settings)
    if compared and report.incomparable:
        return f"runs that differ in {' and '.join(report.incomparable)} cannot be compared by {report.objective}"
    return "no run came to a value"


def _id(row: Row) -> str:
    """How a run is found in the store, if it is there; else the number of its job."""
    return row.stored[:8] if row.stored else f"number {row.number}"


def _named(report: Report) -> str:
    assert report.best
    return f"{'the default, ' if report.default_won else ''}{report.best.name}"


def _importances(settings: Sequence[Setting], rows: Sequence[Row]) -> dict[str, float]:
    enough = sum(row.counts for row in rows) >= findings.ENOUGH
    return findings.importances(settings) if enough and len(findings.varying(settings)) > 1 else {}


def _keys(settings: Sequence[Setting]) -> list[str]:
    return list(dict.fromkeys(key for setting in settings for key in setting.params))
