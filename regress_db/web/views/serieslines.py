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

from sqlalchemy import Connection, Text, cast, select

from harness.case import PHASES, Phase
from regress_db import definitions
from regress_db.errors import FilterError, NotFoundError
from regress_db.history import History
from regress_db.lookup import as_utc, plain
from regress_db.metrics import RUN_VALUE_METRIC
from regress_db.queries import DEFAULT_METRIC, metric_numbers
from regress_db.schema import ENVIRONMENTS, METRICS, NIGHTS, RUN_RANKS, RUN_VALUES, RUNS, VERDICTS
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
        for place, ((name, pair), one) in enumerate(zip(wanted, read, strict=True)):
            marks += marks_of(connection, one.runs, one.contents, one.nodes, len(lines))
            changes = changes_of(
                connection, pair, name.phase, one.runs, one.values.get(RUN_VALUE_METRIC, {}), one.nodes
            )
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
                        band=band_of(connection, pair, name.phase, _before(one.runs, asked.until), one.said, values),
                        changes=[
                            change
                            for change in with_levels(changes, points)
                            if _is_within(change.at, asked.since, asked.until)
                        ],
                    )
                )
    first, last = asked.since, asked.until
    within = [mark for mark in marks if _is_within(mark.at, first, last)]
    notes = [
        note
        for name, _ in wanted
        for note in notes_of(history, case=name.case, platform=name.platform, phase=name.phase)
    ]
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
    """The ok runs of a series, oldest first, its values by metric and row number, and what was said of its nights.

    contents: environments in JSON, by row number. nodes: row numbers of the machines of each run. Each in one pass over
    an index: of ten years, a pass takes a tenth of what an answer may.
    """

    runs: list[PointRun]
    values: dict[str, dict[int, float]]
    said: dict[int, Said]
    contents: dict[int, str]
    nodes: dict[int, list[int]]

    @classmethod
    def of(cls, connection: Connection, pair: Pair, phase: Phase, metrics: Sequence[str]) -> _Read:
        bounds = (bound for metric in metrics for bound in _INTERVALS.get(metric, ()))
        names = {*metrics, *bounds, RUN_VALUE_METRIC}
        numbers = {
            row.id: row.name
            for row in connection.execute(
                select(METRICS.c.id, METRICS.c.name).where(METRICS.c.phase == phase, METRICS.c.name.in_(names))
            )
        }
        of_series = (RUNS.c.case_id == pair.case_id, RUNS.c.platform_id == pair.platform_id)
        of_runs = select(RUNS.c.environment_id).where(*of_series, RUNS.c.outcome == "ok")
        environments = plain(
            connection,
            select(
                ENVIRONMENTS.c.id, ENVIRONMENTS.c.commit, ENVIRONMENTS.c.digest, cast(ENVIRONMENTS.c.content, Text)
            ).where(ENVIRONMENTS.c.id.in_(of_runs)),
        )
        code = {number: (commit, digest) for number, commit, digest, _ in environments}
        runs = [
            PointRun(number, run_id, as_utc(at), night_id, night, environment, *code[environment])
            for number, run_id, at, night_id, night, environment in plain(
                connection,
                select(
                    RUNS.c.id,
                    RUNS.c.run_id,
                    RUNS.c.started_at,
                    RUNS.c.night_id,
                    NIGHTS.c.name,
                    RUNS.c.environment_id,
                )
                .outerjoin(NIGHTS, NIGHTS.c.id == RUNS.c.night_id)
                .where(*of_series, RUNS.c.outcome == "ok"),
            )
        ]
        runs.sort(key=lambda run: (run.started_at, run.number))
        values: dict[str, dict[int, float]] = {name: {} for name in numbers.values()}
        for number, metric, value in plain(
            connection,
            select(RUN_VALUES.c.run, RUN_VALUES.c.metric, RUN_VALUES.c.value)
            .join(RUNS, RUNS.c.id == RUN_VALUES.c.run)
            .where(RUN_VALUES.c.metric.in_(numbers), *of_series),
        ):
            values[numbers[metric]][number] = value
        nodes: dict[int, list[int]] = defaultdict(list)
        for number, node in plain(
            connection,
            select(RUN_RANKS.c.run, RUN_RANKS.c.node_id)
            .distinct()
            .join(RUNS, RUNS.c.id == RUN_RANKS.c.run)
            .where(*of_series),
        ):
            nodes[number].append(node)
        said = plain(
            connection,
            select(
                VERDICTS.c.night_id,
                VERDICTS.c.verdict,
                VERDICTS.c.effect,
            ).where(
                VERDICTS.c.case_id == pair.case_id,
                VERDICTS.c.platform_id == pair.platform_id,
                VERDICTS.c.phase == phase,
            ),
        )
        return cls(
            runs=runs,
            values=values,
            said={one[0]: Said(*one) for one in said},
            contents={number: content for number, _, _, content in environments},
            nodes=nodes,
        )


def _points(read: _Read, metric: str, by: PointsBy) -> Points:
    """The columns: a group of runs is a point."""
    values = read.values.get(metric, {})
    bounds = [read.values.get(name, {}) for name in _INTERVALS.get(metric, ())]
    groups: dict[object, list[PointRun]] = {}
    for run in read.runs:
        if run.number in values:
            groups.setdefault(run.number if by == "run" else _group(run, by), []).append(run)
    held = [[values[run.number] for run in runs] for runs in groups.values()]
    lows, highs = [min(of_point) for of_point in held], [max(of_point) for of_point in held]
    if bounds:
        for place, (runs, (value, *more)) in enumerate(zip(groups.values(), held, strict=True)):
            if not more:
                lows[place], highs[place] = (bound.get(runs[0].number, value) for bound in bounds)
    newest = [runs[-1] for runs in groups.values()]
    said = [read.said.get(run.night_id or 0) for run in newest]
    return Points(
        at=[runs[0].started_at.timestamp() for runs in groups.values()],
        value=[of_point[0] if len(of_point) == 1 else statistics.median(of_point) for of_point in held],
        low=lows,
        high=highs,
        runs=[len(of_point) for of_point in held],
        run_id=[run.run_id for run in newest],
        night=[run.night or "" for run in newest],
        commit=[run.commit for run in newest],
        environment=[run.digest[:_HEAD] for run in newest],
        verdict=[one.verdict if one else "" for one in said],
        effect=[one.effect if one else None for one in said],
    )


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
