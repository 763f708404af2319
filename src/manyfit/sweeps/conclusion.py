"""A finished sweep -> its report, which its parent run keeps: figures, table, best config, confirmation, a note."""

import contextlib
import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from manyfit.config.schema import Config
from manyfit.plots.style import png
from manyfit.statistics import limits_of
from manyfit.sweeps import cautions, confirmation, findings, rerun
from manyfit.sweeps.findings import Row, Setting, Space
from manyfit.sweeps.grids import row_of
from manyfit.sweeps.parent import Child, Sweep
from manyfit.sweeps.report import Report, confirmation_table, drawings, note, summary, table, table_csv
from manyfit.tracking.provenance import hardware
from manyfit.training import recording

if TYPE_CHECKING:
    from manyfit.experiments.verdict import Verdict


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
    varied, brought = findings.varying(settings), _of_data_brought(rows, settings)
    keys = [key for key in varied if key not in brought]
    apart = [] if verdict else findings.incomparable(keys, objective, _is_classification(rows))
    if apart:
        settings = sorted(settings, key=lambda setting: setting.rows[0].number)
    best = settings[0] if settings and settings[0].counted and not apart else None
    searched = _searched(sweep, rows, settings)
    report = Report(rows, settings, objective, direction, searched, best=best, incomparable=apart)
    if default is not None and best is not None and confirm_seeds:
        report = _confirmed(sweep, report, default, confirm_seeds)
    report = replace(
        report,
        command=rerun.command(report.config, report.row.params, _folded(rows))
        if report.row and report.config
        else None,
        warnings=[]
        if verdict
        else copies * (given > len(rows))
        + [f"{' and '.join(brought)} may change what is validated on: then the values cannot be compared."]
        * bool(brought)
        + cautions.sentences(rows, [] if apart else settings, space, confirmed=bool(report.fresh)),
        verdict=verdict,
    )
    if sweep.config.tracking.kind != "off":
        with sweep.screen.stage("drawing"):
            _store(sweep, report, one_by_one=space is not None or default is not None)
    sweep.screen.say(summary(report))
    return report


def _of_data_brought(rows: Sequence[Row], settings: Sequence[Setting]) -> list[str]:
    """What varies of a LightningDataModule, of which nobody knows what it does to the validation examples."""
    guests = any(row.config.guests.data for row in rows if row.config)
    varied = findings.varying(settings) if guests else []
    return [key for key in varied if key.startswith("data.") and key != "data._target_"]


def _folded(rows: Sequence[Row]) -> bool:
    """Whether all folds of the data were trained."""
    folds = {row.fold for row in rows}
    return bool(rows and rows[0].config and len(folds - {None}) == rows[0].config.data.folds)


def _store(sweep: Sweep, report: Report, one_by_one: bool) -> None:
    parent, settings, row = sweep.parent, report.settings, report.row
    for name, drawn in drawings(report, sweep.config.experiment).items():
        if name == "history" and not one_by_one:
            continue
        with parent.storing(f"{name}.png"):
            if (figure := drawn()) is not None:
                parent.file(f"{name}.png", png(figure))
    if report.fresh:
        parent.file("confirmation.md", confirmation_table(report).encode())
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
    value = functools.partial(findings.value_of, objective=report.objective, direction=report.direction)
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
        replace(row_of(child, params), value=findings.value_of(child.result, report.objective, report.direction))
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
    said = list(dict.fromkeys(findings.replicates(setting.rows) for setting in settings)) or ["0 seeds"]
    seeds = sorted({len({row.seed for row in setting.rows}) for setting in settings}) or [0]
    each = said[0] if len(said) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
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
