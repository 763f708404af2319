"""A finished sweep -> its parent run: figures, table, best config, confirmation, and a note like an abstract."""

import contextlib
import csv
import functools
import io
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from manyfit.config.schema import Config
from manyfit.plots.overfitting import png
from manyfit.progress import line
from manyfit.statistics import Effect, limits_of
from manyfit.sweeps import confirmation, figures, findings, rerun
from manyfit.sweeps.findings import Row as Row
from manyfit.sweeps.findings import Setting, Space, markdown, text
from manyfit.sweeps.grids import row_of
from manyfit.sweeps.grids import rows_of as rows_of
from manyfit.sweeps.parent import Child, Sweep
from manyfit.tracking.provenance import hardware
from manyfit.training import recording
from manyfit.training.prepared import Result

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


def conclude(
    sweep: Sweep,
    rows: Sequence[Row],
    *,
    objective: str = "best loss/val",
    direction: str = "minimize",
    default: Config | None = None,
    space: Space | None = None,
    confirm_seeds: int = 8,
    verdict: "Verdict | None" = None,
) -> Report:
    """Report on a sweep: files, tags, metrics and note of its parent run, and a summary in the terminal.

    Args:
        sweep: Whose runs these are; confirmation runs are trained by it.
        rows: Its runs.
        objective: What was compared, as `best loss/val` or `last accuracy/val`.
        direction: `minimize` or `maximize`.
        default: What the best config is confirmed against, in searches; None: no confirmation.
        space: By key the (low, high) or the list of choices that was searched; None: a grid.
        confirm_seeds: Fresh seeds to confirm on; 0: none.
        verdict: On the claim that the runs were made for; then nothing has to win.
    """
    given, rows = len(rows), findings.distinct(rows)
    copies = [f"{given - len(rows)} of {given} runs repeat the setting and seed of another, and do not count."]
    settings = findings.ranked(rows, direction, limits_of(objective))
    apart = [] if verdict else findings.incomparable(findings.varying(settings), objective, _is_classification(rows))
    if apart:
        settings = sorted(settings, key=lambda setting: setting.rows[0].number)
    best = settings[0] if settings and settings[0].counted and not apart else None
    searched = _searched(sweep, rows, settings)
    report = Report(rows, settings, objective, direction, searched, best=best, incomparable=apart)
    if default is not None and best is not None and confirm_seeds:
        report = _confirmed(sweep, report, default, confirm_seeds)
    report = replace(
        report,
        command=rerun.command(report.config, report.row.params) if report.row and report.config else None,
        warnings=[]
        if verdict
        else copies * (given > len(rows))
        + findings.warnings(rows, [] if apart else settings, space, confirmed=bool(report.fresh)),
        verdict=verdict,
    )
    if sweep.config.tracking.kind != "off":
        with sweep.screen.stage("drawing"):
            _store(sweep, report, one_by_one=space is not None or default is not None)
    sweep.screen.say(summary(report))
    return report


def value_of(result: Result, objective: str, direction: str = "minimize") -> float:
    """A result's objective by its name, `<best or last> <metric>`, of the measured epochs; NaN when none was."""
    reducer, _, name = objective.partition(" ")
    if (reducer, name, direction) == ("best", "loss/val", "minimize"):
        return result.summary.best_loss_val  # of the epoch whose weights are kept
    curve = result.metrics[name]
    finite = curve[np.isfinite(curve)]
    if not len(finite):
        return math.nan
    if reducer == "last":
        return float(finite[-1])
    return float(finite.min() if direction == "minimize" else finite.max())


def summary(report: Report) -> str:
    """The end of a sweep in the terminal, in the look of terminal.summary."""
    lines = [("sweep", report.searched)]
    if report.verdict:
        lines += [("verdict", f"{report.verdict.answer}: {report.verdict.sentence}")]
        lines += [("effect", report.verdict.measured)]
        return "\n".join(line(name, words) for name, words in lines)
    if report.best and report.row:
        lines += [("best", f"{_named(report)} (its best run: {_id(report.row)}, seed {report.row.seed})")]
        lines += [("value", f"{report.objective} {spread(report.best)}")]
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
    else:
        parts[0] += f" None is the best: {_why_none(report)}."
    if report.fresh:
        parts.append(_confirmation_table(report))
    if report.confirmed:
        head, _, rest = report.confirmed.partition(":")
        parts.append(f"**{head[:1].upper()}{head[1:]}:**{rest}" if rest else report.confirmed)
    parts += ["\n".join(f"- Warning: {warning}" for warning in report.warnings)] if report.warnings else []
    parts += [f"Again:\n\n```\n{report.command}\n```"] if report.command and not report.verdict else []
    return "\n\n".join(parts)


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


def spread(setting: Setting) -> str:
    """`0.0431 [0.0402, 0.0460] over 8 seeds`."""
    if math.isnan(setting.low):
        return f"{setting.mean:.4g} with one seed"
    return f"{setting.mean:.4g} [{setting.low:.4g}, {setting.high:.4g}] over {len(setting.counted)} seeds"


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
    head = [*keys, "n", objective, "95% CI", "best epoch", "runs"]
    body = []
    for s in settings[:LISTED]:
        limits = "" if math.isnan(s.low) else f"{s.low:.4g} to {s.high:.4g}"
        value = "" if math.isnan(s.mean) else f"{s.mean:.4g}"
        epoch = "" if math.isnan(s.best_epoch) else f"{s.best_epoch:g}"
        states = ", ".join(f"{count} {state}" for state, count in s.states.items())
        body.append([*(text(s.params.get(key)) for key in keys), str(len(s.counted)), value, limits, epoch, states])
    more = f"\n\n{len(settings) - LISTED} more in table.csv" if len(settings) > LISTED else ""
    return markdown([head, *body]) + more + "\n"


def _confirmation_table(report: Report) -> str:
    """What was compared on fresh seeds, as a markdown table."""
    body = [[name, str(found.n), f"{found:.4g}"] for name, found in report.fresh]
    return markdown([["on fresh seeds", "n", f"{report.objective} [95% CI]"], *body])


def table_csv(settings: Sequence[Setting]) -> str:
    """The settings for a program, with full precision."""
    states = ("finished", "pruned", "diverged", "failed")
    out, keys = io.StringIO(), _keys(settings)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*keys, "n", "mean", "low", "high", "best_epoch", *states, "seeds"])
    for s in settings:
        seeds = " ".join(str(row.seed) for row in s.rows)
        numbers = [len(s.counted), s.mean, s.low, s.high, s.best_epoch]
        writer.writerow([*(s.params.get(k) for k in keys), *numbers, *(s.states[k] for k in states), seeds])
    return out.getvalue()


def drawings(report: Report, experiment: str) -> dict[str, Callable[[], "Figure | None"]]:
    """How each figure of a sweep is drawn, by its name, the most telling first; None where it would show nothing."""
    if report.incomparable:
        return {}
    rows, settings = report.rows, report.settings
    title = f"{experiment}: {len(rows)} runs, {len(settings)} settings"
    return {
        "lr_sensitivity": lambda: figures.lr_sensitivity(settings, report.objective, title),
        "curves": lambda: figures.curves(rows, settings, title),
        "importance": lambda: figures.importance(_importances(settings, rows), title),
        "history": lambda: figures.history(rows, report.objective, report.direction, title),
    }


def _store(sweep: Sweep, report: Report, one_by_one: bool) -> None:
    parent, settings, row = sweep.parent, report.settings, report.row
    for name, drawn in drawings(report, sweep.config.experiment).items():
        if name == "history" and not one_by_one:
            continue
        with parent.storing(f"{name}.png"):
            if (figure := drawn()) is not None:
                parent.file(f"{name}.png", png(figure))
    if report.fresh:
        parent.file("confirmation.md", _confirmation_table(report).encode())
    parent.file("table.md", table(settings, report.objective).encode())
    parent.file("table.csv", table_csv(settings).encode())
    if report.config:
        parent.file("best.yaml", report.config.yaml().encode())
    if report.command:
        parent.file("best_command.txt", f"{report.command}\n".encode())
    states = Counter(row.state for row in report.rows)
    tags = {"sweep.runs": str(len(report.rows)), "mlflow.note.content": note(report)}
    if row and row.stored:
        tags["best.run_id"] = row.stored
    if row and row.run:
        tags["best.manyfit.id"] = row.run.id  # that tag of the run; MLflow's own id may not have come back yet
    parent.tags(tags)
    failed = float(states["failed"] + states["diverged"])
    once = [("sweep/finished", float(states["finished"]), 0), ("sweep/failed", failed, 0)]
    parent.metrics([("best/value", report.best.mean, 0), *once] if report.best else once)
    if row and sweep.config.tracking.artifacts == "best":
        _store_best(sweep, report, row)


def _store_best(sweep: Sweep, report: Report, row: Row) -> None:
    """Picture and model of the best run; one without a network any more is trained again, to the same bits."""
    run, result = row.run, row.result
    if (result is None or result.predictor is None) and row.config is not None:
        number = max([r.number for r in report.rows] + list(sweep.tags), default=-1) + 1
        sweep.tags[number] = {"manyfit.role": f"run {row.number} again, for its picture and model"}
        again = sweep.screen.stage("training the best run again, for its picture and model")
        with again, _to_the_end(sweep):
            (child,) = sweep.train({number: row.config})
        run, result = run or child.run, child.result
    if run is not None and result is not None:
        recording.store_artifacts(run, result)


def _confirmed(sweep: Sweep, report: Report, default: Config, seeds: int) -> Report:
    """The report, with what its best settings came to against the default on fresh seeds; the winner is its best."""
    if report.config is None:
        return report
    if confirmation.same(report.config, default):
        return replace(report, confirmed="nothing to confirm: the best config is the default.")
    rivals = [
        (rank, setting, row.config)
        for rank, setting in enumerate(report.settings)
        if setting.counted
        and (row := findings.best_of(setting, report.direction)).config
        and not confirmation.same(row.config, default)
    ][: confirmation.RIVALS]
    fresh = confirmation.fresh_seeds([default.seed, *(row.seed for row in report.rows)], seeds)
    first = 1 + max([*sweep.children, *(row.number for row in report.rows)])
    sweep.tags.update({first + i: dict(confirmation.TAGS) for i in range((len(rivals) + 1) * seeds)})
    name = report.objective.partition(" ")[2]
    value = functools.partial(value_of, objective=report.objective, direction=report.direction)
    configs = {rank: config for rank, _, config in rivals}
    with sweep.screen.stage(f"confirming on {seeds} fresh seeds"), _to_the_end(sweep):
        found = confirmation.confirm(sweep.train, configs, default, first, fresh, value, name, report.direction)
    winner = rivals[found.place][1].params if found.wins else _params_of(default, report)
    return replace(
        report,
        best=_setting_of(found.runs, winner, report) or report.best,
        default_won=not found.wins,
        confirmed=found.words(),
        fresh=list(zip([*(setting.name for _, setting, _ in rivals), "the default"], found.means, strict=True)),
    )


def _params_of(config: Config, report: Report) -> dict[str, Any]:
    """What varied in a sweep, as a config has it."""
    flat = config.flat()
    return {key: flat.get(key) for key in report.settings[0].params}


def _setting_of(children: Sequence[Child], params: Mapping[str, Any], report: Report) -> Setting | None:
    """A setting of its runs on fresh seeds alone, which it was not chosen by; None where none came to a value."""
    rows = [
        replace(row_of(child, params), value=value_of(child.result, report.objective, report.direction))
        for child in children
        if child.result
    ]
    settings = findings.ranked(rows, report.direction, limits_of(report.objective))
    return settings[0] if settings and settings[0].counted else None


@contextlib.contextmanager
def _to_the_end(sweep: Sweep) -> Iterator[None]:
    """What is trained within is not pruned."""
    prune, sweep.prune = sweep.prune, None
    try:
        yield
    finally:
        sweep.prune = prune


def _searched(sweep: Sweep, rows: Sequence[Row], settings: Sequence[Setting]) -> str:
    """What was searched, on what, with how many runs that ended how."""
    keys = ", ".join(findings.varying(settings)) or "seeds only"
    states = Counter(row.state for row in rows)
    ends = ", ".join(f"{count} {state}" for state, count in states.most_common())
    seeds = sorted({len({row.seed for row in setting.rows}) for setting in settings}) or [0]
    each = _count(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    data = ", ".join(dict.fromkeys(row.config.dataset for row in rows if row.config)) or sweep.config.dataset
    return (
        f"{keys} on {data}: {_count(len(rows), 'run')} of {_count(len(settings), 'setting')} with {each}"
        f"{' each' * (len(settings) > 1)} ({ends or 'none'}; {hardware()})."
    )


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _is_classification(rows: Sequence[Row]) -> bool:
    """As far as is known."""
    return all(row.result.classes for row in rows if row.result)


def _importances(settings: Sequence[Setting], rows: Sequence[Row]) -> dict[str, float]:
    enough = sum(row.counts for row in rows) >= findings.ENOUGH
    return findings.importances(settings) if enough and len(findings.varying(settings)) > 1 else {}


def _keys(settings: Sequence[Setting]) -> list[str]:
    return list(dict.fromkeys(key for setting in settings for key in setting.params))
