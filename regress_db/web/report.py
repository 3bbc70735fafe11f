"""The report of a night: the page's own views as one file that opens with no network.

Called by the command line after a night and by `epwatch report`. Its scripts and style stand in the file, and a
Content-Security-Policy in it lets nothing else run. Next to read: `regress_db.web.pages`, which lays it out.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import msgspec
from sqlalchemy import Connection, select

from regress_db import definitions, lookup
from regress_db.errors import HistoryError, NotFoundError
from regress_db.history import History
from regress_db.nightverdict import NO_NUMBER
from regress_db.schema import CASES, METRICS, NIGHTS, PLATFORMS, RUN_VALUES, RUNS
from regress_db.sides import relative_change
from regress_db.web.links import ReportLinks, series_text
from regress_db.web.pages import report_page
from regress_db.web.views import night, nodes, runfacts, serieslines, triage
from regress_db.web.views.night import Cell, NightView, Row
from regress_db.web.views.report import MetricLine, Report, ReportSeries
from regress_db.web.views.run import RunPhase, RunView
from regress_db.web.views.series import SeriesView
from regress_db.web.views.shared import SeriesName

MOST_SERIES = 40
"""How many series have their past in the file; the worst ones."""

MOST_RUNS = 12
PAST_NIGHTS = 60
"""How many nights of a series are drawn, this one included."""

_FOLD_ABOVE = 8
_QUIET = frozenset({"unchanged", "insufficient", "improved"})
_TABLE = (
    *("latency_us", "latency_min_us", "latency_max_us", "slowest_p50_us", "p50_us", "p95_us", "p99_us"),
    *("skew", "bandwidth_gbs", "aggregate_gbs"),
)

_Pair = tuple[str, str]
"""Case and platform."""


def write_report(history: History, night_id: str, path: Path, *, command: str | None = None) -> Path:
    """Write the night's report to `path`, whole or not at all, and return the path.

    command: the command line that repeats the night, as the caller knows it; without, the cases' own are shown.
    Raises `NotFoundError` for a night that is unknown or was not judged, `HistoryError` when `path` cannot be written.
    """
    page = render(gather(history, night_id, command=command))
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(page, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise HistoryError(f"cannot write the report {path}: {error.strerror or error}") from error
    return path


def render(report: Report) -> str:
    """The page."""
    anchors = [("night", report.night.night)]
    anchors += [("series", series_text(_name(one))) for one in report.series]
    anchors += [("run", one.run_id) for one in report.runs]
    anchors += [("nodes", "")] if report.nodes else []
    anchors += [("triage", "")]
    return report_page(report, ReportLinks(anchors), title=f"{report.night.night}: {report.night.headline}")


def gather(history: History, night_id: str, *, command: str | None = None) -> Report:
    """Everything a report shows. Raises `NotFoundError` for a night that is unknown or was not judged."""
    view = night.gather(history, night_id, command=command or "")
    cells = [(row, cell) for row in view.rows for cell in row.cells]
    worst_first = sorted(cells, key=lambda pair: night.badness(pair[1]))
    chosen = worst_first[:MOST_SERIES]
    with history.read() as connection:
        first, last = _window(connection, view.night)
        newest, medians = _of_night(connection, view.night, {(row.case, row.platform) for row, _ in chosen})
    runs = {pair: runfacts.gather(history, run_id) for pair, run_id in newest.items()}
    found = nodes.gather(history)
    return Report(
        night=view,
        series=[
            _series(history, row, cell, len(cells) > _FOLD_ABOVE, (first, last), medians, runs) for row, cell in chosen
        ],
        left_out=len(cells) - len(chosen),
        runs=_runs_to_show(history, view, chosen, runs),
        nodes=found if found.nodes else None,
        triage=triage.gather(history),
    )


def _name(one: ReportSeries) -> SeriesName:
    return SeriesName(case=one.case, phase=one.phase, platform=one.platform)


def _series(
    history: History,
    row: Row,
    cell: Cell,
    many: bool,
    window: tuple[datetime | None, datetime | None],
    medians: Mapping[_Pair, Mapping[tuple[str, str], float]],
    runs: Mapping[_Pair, RunView],
) -> ReportSeries:
    pair = (row.case, row.platform)
    run = runs.get(pair)
    phase = next((one for one in run.phases if one.phase == cell.phase), None) if run else None
    return ReportSeries(
        case=row.case,
        platform=row.platform,
        phase=cell.phase,
        verdict=cell.verdict,
        sentence=cell.sentence,
        warnings=cell.warnings,
        folded=many and cell.verdict in _QUIET,
        past=_past(history, SeriesName(case=row.case, phase=cell.phase, platform=row.platform), *window),
        metrics=_lines(phase, {name: value for (of, name), value in medians.get(pair, {}).items() if of == cell.phase}),
        headline=phase.headline if phase else "",
        command=f"epwatch run {shlex.quote(row.case)}",
    )


def _past(history: History, name: SeriesName, first: datetime | None, last: datetime | None) -> SeriesView | None:
    """The series up to this night; None for one that ran nowhere."""
    try:
        view = serieslines.gather(history, serieslines.Asked(names=(name,), since=first, until=last))
    except NotFoundError:
        return None
    return msgspec.structs.replace(view, choices=[], metrics=[])


def _lines(phase: RunPhase | None, new: Mapping[str, float]) -> list[MetricLine]:
    """The metrics of a phase on the night beside the baseline's."""
    base = {one.name: one.baseline for one in phase.numbers} if phase else {}
    return [
        MetricLine(
            name=name,
            words=definitions.of(name).words,
            unit=definitions.of(name).unit,
            new=new.get(name),
            base=base.get(name),
            change=relative_change(base.get(name), new.get(name)),
        )
        for name in _TABLE
        if name in new or base.get(name) is not None
    ]


def _window(connection: Connection, name: str) -> tuple[datetime | None, datetime | None]:
    """When the first of the nights that are drawn started, and the first after this one."""
    of_night = lookup.night(connection, name)
    if of_night.started_at is None:
        return None, None
    start = NIGHTS.c.started_at
    before = select(start).where(start <= of_night.started_at).order_by(start.desc()).limit(PAST_NIGHTS)
    after = select(start).where(start > of_night.started_at).order_by(start).limit(1)
    return min(connection.execute(before).scalars()), connection.execute(after).scalar()


def _of_night(
    connection: Connection, name: str, pairs: Iterable[_Pair]
) -> tuple[dict[_Pair, str], dict[_Pair, dict[tuple[str, str], float]]]:
    """The newest ok run of each pair on the night, and the medians of its metrics by phase and name."""
    of_night = lookup.night(connection, name)
    wanted = set(pairs)
    rows = connection.execute(
        select(RUNS.c.id, RUNS.c.run_id, CASES.c.key, PLATFORMS.c.key.label("platform"))
        .join(CASES, CASES.c.id == RUNS.c.case_id)
        .join(PLATFORMS, PLATFORMS.c.id == RUNS.c.platform_id)
        .where(RUNS.c.night_id == of_night.id, RUNS.c.outcome == "ok")
        .order_by(RUNS.c.started_at, RUNS.c.id)
    ).all()
    pair_of = {row.id: (row.key, row.platform) for row in rows if (row.key, row.platform) in wanted}
    newest = {pair_of[row.id]: row.run_id for row in rows if row.id in pair_of}
    held: dict[_Pair, dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for piece in lookup.chunks(pair_of):
        for run, phase, metric, value in connection.execute(
            select(RUN_VALUES.c.run, METRICS.c.phase, METRICS.c.name, RUN_VALUES.c.value)
            .join(METRICS, METRICS.c.id == RUN_VALUES.c.metric)
            .where(RUN_VALUES.c.run.in_(piece), METRICS.c.name.in_(_TABLE))
        ):
            held[pair_of[run]][phase, metric].append(value)
    medians = {
        pair: {key: statistics.median(values) for key, values in of_pair.items()} for pair, of_pair in held.items()
    }
    return newest, medians


def _runs_to_show(
    history: History, view: NightView, chosen: Sequence[tuple[Row, Cell]], runs: Mapping[_Pair, RunView]
) -> list[RunView]:
    """The newest run of what got slower, then what failed; each once."""
    slower = [(row.case, row.platform) for row, cell in chosen if cell.verdict == "regressed"]
    found = {runs[pair].run_id: runs[pair] for pair in slower if pair in runs}
    for trouble in view.troubles:
        if len(found) < MOST_RUNS and trouble.outcome in NO_NUMBER and trouble.outcome != "missing":
            found.setdefault(trouble.run_id, runfacts.gather(history, trouble.run_id))
    return list(found.values())[:MOST_RUNS]
