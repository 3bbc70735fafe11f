"""Fills `series`: one pass over the runs of each series asked for, by its index, whatever else the history holds.

Change points are looked for anew (a tenth of a second for ten years of nights), so that they are never older than the
points. Next to read: `seriesmarks`, what stands beside the points.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import get_args

from sqlalchemy import Connection, select

from harness.case import PHASES, Phase
from regress_db import definitions
from regress_db.errors import FilterError, NotFoundError
from regress_db.history import History
from regress_db.metrics import RUN_VALUE_METRIC
from regress_db.queries import DEFAULT_METRIC, metric_numbers
from regress_db.schema import ENVIRONMENTS, METRICS, NIGHTS, RUN_VALUES, RUNS, VERDICTS
from regress_db.web.views import asked as asking
from regress_db.web.views.asked import Pair
from regress_db.web.views.people import notes_of
from regress_db.web.views.series import Line, Mark, MetricChoice, Points, PointsBy, SeriesView
from regress_db.web.views.seriesmarks import PointRun, Said, band_of, changes_of, marks_of, with_levels
from regress_db.web.views.shared import SeriesName, apart, in_common

GROUPS: dict[str, tuple[str, ...]] = {
    "ranks": ("latency_min_us", "latency_us", "latency_max_us"),
    "percentiles": ("p50_us", "p95_us", "p99_us"),
}
"""Metrics that are asked for by one name and drawn together."""

BY: tuple[PointsBy, ...] = get_args(PointsBy)

MOST_SERIES = 12
"""So many can be told apart in one plot."""

_INTERVALS = {"latency_us": ("latency_min_us", "latency_max_us")}
_WORDS = {"ranks": "latency: fastest, average and slowest rank", "percentiles": "latency: median, p95 and p99"}
_BESIDE = ("backend", "dtype", "ranks", "nodes", "experts", "combine")
_ROWS_AT_ONCE = 10_000
_HEAD = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the address asks for. cases: patterns and filters on fields of the series, where `names` names none."""

    names: tuple[SeriesName, ...] = ()
    cases: tuple[str, ...] = ()
    phase: Phase | None = None
    metric: str = DEFAULT_METRIC
    by: PointsBy = "run"
    since: datetime | None = None
    until: datetime | None = None
    log: bool = False


def gather(history: History, asked: Asked) -> SeriesView:
    """The series asked for.

    Raises `NotFoundError` where none of them is there or the metric is not, `FilterError` for too many, or for what
    cannot be chosen by.
    """
    metrics = GROUPS.get(asked.metric, (asked.metric,))
    unknown: list[str] = []
    with history.read() as connection:
        wanted = _wanted(connection, asked, unknown)
        if asked.names and not wanted:
            raise NotFoundError(unknown[0])
        for metric in metrics:
            metric_numbers(connection, metric)
        read = [_Read.of(connection, pair, name.phase, metrics) for name, pair in wanted]
        choices = asking.beside(connection, wanted[0][0].case, _BESIDE) if wanted else asking.pairs(connection)
        known = connection.execute(select(METRICS.c.name).distinct().order_by(METRICS.c.name)).scalars().all()
        lines: list[Line] = []
        marks: list[Mark] = []
        common = in_common(name.case for name, _ in wanted)
        for place, ((name, _), one) in enumerate(zip(wanted, read, strict=True)):
            marks += marks_of(connection, one.runs, len(lines))
            changes = changes_of(history, name)
            for metric in metrics:
                values = one.values.get(metric, {})
                points = _points(one, metric, asked.by)
                lines.append(
                    Line(
                        case=name.case,
                        platform=name.platform,
                        phase=name.phase,
                        metric=metric,
                        label=_label(name, metric, [each for each, _ in wanted], common, len(metrics) > 1),
                        asked=place,
                        points=_cut(points, asked.since, asked.until),
                        band=band_of(connection, _before(one.runs, asked.until), one.said, values),
                        changes=[
                            change
                            for change in with_levels(changes, points)
                            if _is_within(change.at, asked.since, asked.until)
                        ],
                    )
                )
    first, last = asked.since, asked.until
    within = [mark for mark in marks if _is_within(mark.at, first, last)]
    notes = [note for name, _ in wanted for note in notes_of(history, case=name.case)]
    meaning = definitions.of(metrics[0])
    return SeriesView(
        metric=asked.metric,
        words=_WORDS.get(asked.metric, meaning.words),
        unit=meaning.unit,
        lower_is_better=meaning.lower_is_better,
        by=asked.by,
        log=asked.log,
        since=first,
        until=last,
        asked=[name for name, _ in wanted],
        common=common,
        lines=lines,
        marks=within,
        notes=list({note.number: note for note in notes}.values()),
        metrics=_choices(known),
        choices=asking.names_of(choices),
        unknown=unknown,
    )


def _wanted(connection: Connection, asked: Asked, unknown: list[str]) -> list[tuple[SeriesName, Pair]]:
    found: list[tuple[SeriesName, Pair]] = []
    for name in dict.fromkeys(asked.names):
        pair = asking.named_pair(connection, name.case, name.platform)
        if pair is None:
            unknown.append(f"the history has no run of {name.case} on {name.platform or 'no platform'}")
        else:
            found.append((name, pair))
    if not asked.names and asked.cases:
        filters = asking.filters_of(asked.cases)
        phases = PHASES if asked.phase is None else (asked.phase,)
        for pair in asking.pairs(connection):
            if asking.accepted(filters, pair.case, pair.platform):
                found += [(name, pair) for name in asking.names_of([pair], phases)]
        if not found:
            unknown.append(f"no series matches {' '.join(asked.cases)}")
    if len(found) > MOST_SERIES:
        raise FilterError(f"{len(found)} series are too many to tell apart: choose at most {MOST_SERIES}")
    return found


@dataclass(frozen=True, slots=True)
class _Read:
    """The ok runs of a series, oldest first, its values by metric and row number, and what was said of its nights."""

    runs: list[PointRun]
    values: dict[str, dict[int, float]]
    said: dict[int, Said]

    @classmethod
    def of(cls, connection: Connection, pair: Pair, phase: Phase, metrics: Sequence[str]) -> _Read:
        names = {*metrics, *(bound for metric in metrics for bound in _INTERVALS.get(metric, ()))}
        numbers = {
            row.id: row.name
            for row in connection.execute(
                select(METRICS.c.id, METRICS.c.name).where(METRICS.c.phase == phase, METRICS.c.name.in_(names))
            )
        }
        of_series = (RUNS.c.case_id == pair.case_id, RUNS.c.platform_id == pair.platform_id, RUNS.c.outcome == "ok")
        runs = [
            PointRun(*row)
            for row in connection.execute(
                select(
                    RUNS.c.id,
                    RUNS.c.run_id,
                    RUNS.c.started_at,
                    RUNS.c.night_id,
                    NIGHTS.c.name,
                    RUNS.c.environment_id,
                    ENVIRONMENTS.c.commit,
                    ENVIRONMENTS.c.digest,
                )
                .join(ENVIRONMENTS, ENVIRONMENTS.c.id == RUNS.c.environment_id)
                .outerjoin(NIGHTS, NIGHTS.c.id == RUNS.c.night_id)
                .where(*of_series)
                .order_by(RUNS.c.started_at, RUNS.c.id)
            )
        ]
        values: dict[str, dict[int, float]] = defaultdict(dict)
        rows = connection.execute(
            select(RUN_VALUES.c.run, RUN_VALUES.c.metric, RUN_VALUES.c.value)
            .join(RUNS, RUNS.c.id == RUN_VALUES.c.run)
            .where(RUN_VALUES.c.metric.in_(numbers), *of_series)
        )
        for part in rows.partitions(_ROWS_AT_ONCE):
            for run, metric, value in part:
                values[numbers[metric]][run] = value
        said = connection.execute(
            select(
                VERDICTS.c.night_id,
                VERDICTS.c.verdict,
                VERDICTS.c.effect,
                VERDICTS.c.baseline_first,
                VERDICTS.c.baseline_last,
                VERDICTS.c.floor,
                VERDICTS.c.noise_floor,
            ).where(
                VERDICTS.c.case_id == pair.case_id,
                VERDICTS.c.platform_id == pair.platform_id,
                VERDICTS.c.phase == phase,
            )
        )
        return cls(runs, values, {row.night_id: Said(*row) for row in said})


def _points(read: _Read, metric: str, by: PointsBy) -> Points:
    """The columns: a group of runs is a point."""
    values = read.values.get(metric, {})
    bounds = [read.values.get(name, {}) for name in _INTERVALS.get(metric, ())]
    groups: dict[object, list[PointRun]] = defaultdict(list)
    for run in read.runs:
        if run.number in values:
            groups[_group(run, by)].append(run)
    points = Points(
        **{name: [] for name in ("at", "value", "low", "high", "runs", "run_id", "night", "commit", "environment")},
        verdict=[],
        effect=[],
    )
    for runs in groups.values():
        held = [values[run.number] for run in runs]
        low, high = min(held), max(held)
        if len(runs) == 1 and bounds:
            low, high = (bound.get(runs[0].number, held[0]) for bound in bounds)
        newest = runs[-1]
        said = read.said.get(newest.night_id or 0)
        points.at.append(runs[0].started_at.timestamp())
        points.value.append(held[0] if len(held) == 1 else statistics.median(held))
        points.low.append(low)
        points.high.append(high)
        points.runs.append(len(runs))
        points.run_id.append(newest.run_id)
        points.night.append(newest.night or "")
        points.commit.append(newest.commit)
        points.environment.append(newest.digest[:_HEAD])
        points.verdict.append(said.verdict if said else "")
        points.effect.append(said.effect if said else None)
    return points


def _group(run: PointRun, by: PointsBy) -> object:
    if by == "run":
        return run.number
    if by == "commit":
        return run.commit or run.number
    return run.started_at.date() if run.night_id is None else run.night_id


def _cut(points: Points, first: datetime | None, last: datetime | None) -> Points:
    """The points from `first` on and before `last`."""
    if first is None and last is None:
        return points
    kept = [place for place, at in enumerate(points.at) if _is_within(at, first, last)]
    return Points(**{name: [getattr(points, name)[place] for place in kept] for name in Points.__struct_fields__})


def _before(runs: Sequence[PointRun], last: datetime | None) -> Sequence[PointRun]:
    """The runs before `last`."""
    return runs if last is None else [run for run in runs if run.started_at < last]


def _is_within(at: float, first: datetime | None, last: datetime | None) -> bool:
    return (first is None or at >= first.timestamp()) and (last is None or at < last.timestamp())


def _label(
    name: SeriesName, metric: str, others: Sequence[SeriesName], common: dict[str, str], with_metric: bool
) -> str:
    """What tells the line from the others."""
    parts = list(apart(name.case, common).values())
    if len({one.phase for one in others}) > 1 or not parts:
        parts.append(name.phase)
    if len({one.platform for one in others}) > 1:
        parts.append(name.platform)
    if with_metric:
        parts.append(definitions.of(metric).words)
    return " ".join(parts)


def _choices(known: Sequence[str]) -> list[MetricChoice]:
    """What may be asked for: groups first, then what is judged and averaged, then the others."""
    groups = [
        MetricChoice(name=name, words=_WORDS[name], unit=definitions.of(GROUPS[name][0]).unit)
        for name in GROUPS
        if set(GROUPS[name]) <= set(known)
    ]
    first = [name for name in (DEFAULT_METRIC, RUN_VALUE_METRIC, "bandwidth_gbs", "aggregate_gbs") if name in known]
    names = dict.fromkeys([*first, *known])
    meanings = {name: definitions.of(name) for name in names}
    return [*groups, *(MetricChoice(name=name, words=one.words, unit=one.unit) for name, one in meanings.items())]
