"""Where series changed their level: since which run, by how much, and what else changed there.

`changes` reads the runs in one pass, makes one point of each night, looks for changes and says what may have caused
them. It looks anew each time, so that an answer is never older than the history; `keep=True` also writes what it
found, for those who ask the database itself. Called by the command line, `History.changes` and whoever collects.
`changes_of_series` does the same for one series whose runs its caller has read: the web page.
Next to read: `regress_db.method.changepoints` (the method).
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select

from harness.case import PHASES, Phase
from regress_db import lookup
from regress_db.environments import Difference, differences
from regress_db.errors import FilterError
from regress_db.filters import CASE_FIELDS
from regress_db.history import History
from regress_db.metrics import RUN_VALUE_METRIC
from regress_db.queries import metric_numbers
from regress_db.schema import (
    CASES,
    CHANGE_POINTS,
    ENVIRONMENTS,
    NIGHTS,
    NODES,
    PLATFORMS,
    RUN_RANKS,
    RUN_VALUES,
    RUNS,
    SERIES,
)
from regress_db.selection import EVERYTHING, Selection

if TYPE_CHECKING:
    from regress_db.method.changepoints import ChangePoint, Kind

Cause = Literal["code", "environment", "node", "code or environment", "unknown"]

DEFAULT_KINDS: tuple[Kind, ...] = ("step", "drift")
"""A transient has gone away by itself: it is told on request."""

DEFAULT_FLOOR = 0.01
"""The smallest relative change that is told unless asked otherwise."""

_OF_SERIES = {*CASE_FIELDS, "case", "platform", "device_model", "devices_per_node", "interconnect", "cluster"}
_ROWS_AT_ONCE = 20_000
_Name = TypeVar("_Name")


@dataclass(frozen=True, slots=True)
class ChangeLine:
    """One change of one series. Effects are relative: 0.1 is ten per cent higher after than before.

    kind: `step`, `drift` or `transient`. at: the start of the first run after; of a drift, of the run by which half of
    it was done; of a transient, of the first run away. night: of that run. run_before, run_after: ids of the last run
    before and the first after (of a drift: its first and last run; of a transient: around it). earliest, latest: starts
    of the runs between which the first run after lies with 95 %. commit_before, commit_after: of the code under test
    before and after that interval, "" where not known; commits: those that were measured in it, in order.
    differences: where the environments and machines before and after it differ. cause: what they leave to blame;
    `node`: every machine is another one. p_value: of no change in the series at all. points: nights of the series.
    """

    case: str
    platform: str
    phase: Phase
    metric: str
    kind: Kind
    at: datetime
    night: str
    effect: float
    low: float
    high: float
    p_value: float
    cause: Cause
    run_before: str
    run_after: str
    earliest: datetime
    latest: datetime
    commit_before: str
    commit_after: str
    commits: tuple[str, ...]
    differences: tuple[Difference, ...]
    points: int


class SeriesRun(NamedTuple):
    """An ok run with a value. number, night, environment: row numbers."""

    number: int
    started_at: datetime
    night: int | None
    environment: int
    value: float


SeriesKey = tuple[int, int, int]
"""Row numbers of case, platform and metric."""

Machines = Mapping[int, tuple[int, int]]
"""Row numbers of the first and last node of each run: a good hint where there are several."""


@dataclass(frozen=True, slots=True)
class _Series:
    """One series night by night."""

    case: int
    platform: int
    metric: int
    points: list[list[SeriesRun]]

    def medians(self) -> list[float]:
        return [
            point[0].value if len(point) == 1 else statistics.median(run.value for run in point)
            for point in self.points
        ]


@dataclass(frozen=True, slots=True)
class _Found:
    """A change of a series, and the points that it lies between, as places in `series.points`."""

    series: _Series
    change: ChangePoint
    before: int
    after: int


def changes(
    history: History,
    selection: Selection = EVERYTHING,
    *,
    metric: str = RUN_VALUE_METRIC,
    phase: Phase | None = None,
    kinds: Collection[Kind] = DEFAULT_KINDS,
    floor: float = DEFAULT_FLOOR,
    keep: bool = False,
) -> list[ChangeLine]:
    """The changes of every series that the selection's filters leave runs of, newest first, at most `selection.limit`.

    A night is one point, the median of its runs; runs without a night count by the day (UTC) they started on. `since`
    and `until` choose among the changes by `ChangeLine.at`, not among the runs. keep: also replace what is stored of
    these series. Raises `NotFoundError` for a metric that the history does not have, `FilterError` where runs of a
    series are left out and the result is to be kept.
    """
    if keep and (selection.night or any(one.field not in _OF_SERIES for one in selection.filters)):
        raise FilterError("changes can be kept of whole series only: filter by fields of the case or the platform")
    whole = dataclasses.replace(selection, since=None, until=None, limit=None)
    with history.read() as connection:
        metrics = metric_numbers(connection, metric, phase)
        nodes = _nodes(connection, whole)
        looked_at: list[SeriesKey] = []
        found: list[_Found] = []
        for number in metrics:  # One phase at a time, of which only series with a change are kept: half of the memory.
            for series in _series(connection, whole, number):
                looked_at.append((series.case, series.platform, series.metric))
                found += _changed(series, nodes, floor)
        lines = _lines(connection, found, metrics, metric, nodes)
    if keep:
        with history.write() as connection:
            _keep(connection, looked_at, list(zip(found, lines, strict=True)))
    chosen = [
        line
        for line in lines
        if line.kind in kinds
        and (selection.since is None or line.at >= selection.since)
        and (selection.until is None or line.at < selection.until)
    ]
    chosen.sort(key=lambda line: (line.at, line.case, line.platform, -PHASES.index(line.phase)), reverse=True)
    return chosen[: selection.limit]


def changes_of_series(
    connection: Connection,
    key: SeriesKey,
    phase: Phase,
    runs: Iterable[SeriesRun],
    nodes: Machines,
    *,
    metric: str = RUN_VALUE_METRIC,
    floor: float = DEFAULT_FLOOR,
) -> list[ChangeLine]:
    """Every change of one series, oldest first, as `changes` finds them. runs: all of its ok ones, oldest first."""
    found = _changed(_Series(*key, _points(runs)), nodes, floor)
    return sorted(_lines(connection, found, {key[2]: phase}, metric, nodes), key=lambda line: line.at)


def _changed(series: _Series, nodes: Machines, floor: float) -> list[_Found]:
    labels = _labels(series, nodes)
    found = _detected(tuple(series.medians()), None if labels is None else tuple(labels), floor)
    return [_located(series, change) for change in found]


@functools.lru_cache(maxsize=64)
def _detected(
    values: tuple[float, ...], labels: tuple[frozenset[tuple[int, int]], ...] | None, floor: float
) -> tuple[ChangePoint, ...]:
    """Changes by what they depend on: a page that is looked at again does not look for them again."""
    from regress_db.method.changepoints import detect

    return tuple(detect(values, groups=labels, floor=floor))


def _points(runs: Iterable[SeriesRun]) -> list[list[SeriesRun]]:
    """Runs by night, or by day (UTC) where they have none."""
    points: dict[object, list[SeriesRun]] = {}
    for run in runs:
        points.setdefault(run.started_at.date() if run.night is None else run.night, []).append(run)
    return list(points.values())


def _series(connection: Connection, selection: Selection, metric: int) -> list[_Series]:
    """Every series of the metric with a value, oldest point first, from one pass over the runs."""
    rows = connection.execute(
        select(
            RUNS.c.case_id,
            RUNS.c.platform_id,
            RUNS.c.id,
            RUNS.c.started_at,
            RUNS.c.night_id,
            RUNS.c.environment_id,
            RUN_VALUES.c.value,
        )
        .join(RUN_VALUES, RUN_VALUES.c.run == RUNS.c.id)
        .where(
            RUN_VALUES.c.metric == metric,
            RUN_VALUES.c.value > 0,
            RUNS.c.outcome == "ok",
            *selection.conditions(connection),
        )
        .order_by(RUNS.c.started_at, RUNS.c.id)
    )
    runs: dict[tuple[int, int], list[SeriesRun]] = defaultdict(list)
    for part in rows.partitions(_ROWS_AT_ONCE):
        for case, platform, *run in part:
            runs[case, platform].append(SeriesRun(*run))
    return [_Series(*key, metric, _points(of_series)) for key, of_series in sorted(runs.items())]


def _nodes(connection: Connection, selection: Selection) -> dict[int, tuple[int, int]]:
    """See `Machines`."""
    first, last = func.min(RUN_RANKS.c.node_id), func.max(RUN_RANKS.c.node_id)
    chosen = select(RUN_RANKS.c.run, first, last).join(RUNS, RUNS.c.id == RUN_RANKS.c.run)
    rows = connection.execute(chosen.where(*selection.conditions(connection)).group_by(RUN_RANKS.c.run))
    pairs: dict[tuple[int, int], tuple[int, int]] = {}
    return {run: pairs.setdefault((first, last), (first, last)) for run, first, last in rows}


def _labels(series: _Series, nodes: Machines) -> list[frozenset[tuple[int, int]]] | None:
    """The machines of each point, None where they are all the same."""
    labels = [frozenset(nodes[run.number] for run in point if run.number in nodes) for point in series.points]
    return labels if len(set(labels)) > 1 else None


def _located(series: _Series, change: ChangePoint) -> _Found:
    last = len(series.points) - 1
    if change.kind == "drift":
        return _Found(series, change, change.earliest, change.latest)
    if change.kind == "transient":
        return _Found(series, change, change.index - 1, min(change.latest + 1, last))
    return _Found(series, change, change.index - 1, change.index)


def _lines(
    connection: Connection,
    found: Sequence[_Found],
    metrics: Mapping[int, Phase],
    metric: str,
    nodes: Machines,
) -> list[ChangeLine]:
    """What is said of each change; names and environments are read for these alone."""
    if not found:
        return []
    around = [_around(one) for one in found]
    outside = [run for pair in around for point in pair for run in point]
    first = [one.series.points[one.change.index][0] for one in found]
    inside = [run for one in found for point in _within(one) for run in point]
    cases = _named(connection, CASES.c.id, CASES.c.key, (one.series.case for one in found))
    platforms = _named(connection, PLATFORMS.c.id, PLATFORMS.c.key, (one.series.platform for one in found))
    nights = _named(connection, NIGHTS.c.id, NIGHTS.c.name, (run.night for run in first if run.night is not None))
    on = (node for run in outside for node in nodes.get(run.number, ()))
    hosts = _named(connection, NODES.c.id, NODES.c.hostname, on)
    environments = {run.environment for run in (*outside, *inside)}
    commits = _named(connection, ENVIRONMENTS.c.id, ENVIRONMENTS.c.commit, environments)
    contents = _named(connection, ENVIRONMENTS.c.id, ENVIRONMENTS.c.content, (run.environment for run in outside))
    ids = _named(connection, RUNS.c.id, RUNS.c.run_id, (run for one in found for run in _ends(one)))
    lines = []
    for one, (before, after), started in zip(found, around, first, strict=True):
        series, change = one.series, one.change
        differing = differences(
            *({"hosts": _hosts(point, nodes, hosts), **contents[point[-1].environment]} for point in (before, after))
        )
        run_before, run_after = _ends(one)
        lines.append(
            ChangeLine(
                case=cases[series.case],
                platform=platforms[series.platform],
                phase=metrics[series.metric],
                metric=metric,
                kind=change.kind,
                at=started.started_at,
                night=nights.get(started.night, "") if started.night is not None else "",
                effect=change.effect,
                low=change.low,
                high=change.high,
                p_value=change.p_value,
                cause=_cause(differing, change.with_label),
                run_before=ids[run_before],
                run_after=ids[run_after],
                earliest=series.points[change.earliest][0].started_at,
                latest=series.points[change.latest][0].started_at,
                commit_before=commits[before[-1].environment],
                commit_after=commits[after[0].environment],
                commits=tuple(dict.fromkeys(commits[run.environment] for point in _within(one) for run in point)),
                differences=tuple(differing),
                points=len(series.points),
            )
        )
    return lines


def _around(found: _Found) -> tuple[list[SeriesRun], list[SeriesRun]]:
    """The points that surely lie before and after the change."""
    points, change = found.series.points, found.change
    if change.kind != "step":
        return points[found.before], points[change.index if change.kind == "transient" else found.after]
    return points[max(change.earliest - 1, 0)], points[change.latest]


def _within(found: _Found) -> list[list[SeriesRun]]:
    """The points in which the first run after it may lie."""
    return found.series.points[found.change.earliest : found.change.latest + 1]


def _ends(found: _Found) -> tuple[int, int]:
    """Row numbers of the last run before and the first after."""
    return found.series.points[found.before][-1].number, found.series.points[found.after][0].number


def _named(
    connection: Connection, number: ColumnElement[int], name: ColumnElement[_Name], wanted: Iterable[int]
) -> dict[int, _Name]:
    """A column of the rows with these numbers, by row number."""
    found: dict[int, _Name] = {}
    for piece in lookup.chunks(sorted(set(wanted))):
        found |= {row[0]: row[1] for row in connection.execute(select(number, name).where(number.in_(piece)))}
    return found


def _hosts(point: Sequence[SeriesRun], nodes: Machines, hosts: Mapping[int, str]) -> str:
    """First and last machine of the point's runs, in words."""
    return ", ".join(sorted({hosts[node] for run in point for node in nodes.get(run.number, ())}))


def _cause(differing: Sequence[Difference], with_node: bool) -> Cause:
    """What the differences leave to blame. Other machines count only where none of those before is there after."""
    code = any(one.name.startswith("code.") for one in differing)
    environment = any(not one.name.startswith("code.") and one.name != "hosts" for one in differing)
    if code:
        return "code or environment" if environment or with_node else "code"
    if with_node:
        return "node"
    return "environment" if environment else "unknown"


def _keep(connection: Connection, looked_at: Sequence[SeriesKey], found: Sequence[tuple[_Found, ChangeLine]]) -> None:
    """Replace what is stored of every series that was looked at."""
    from regress_db.ingest import shared_id
    from regress_db.method.changepoints import METHOD

    keys = {(row.case_id, row.platform_id, row.metric_id): row.id for row in connection.execute(select(*SERIES.c))}
    known = [keys[key] for key in looked_at if key in keys]
    for piece in lookup.chunks(known):
        connection.execute(delete(CHANGE_POINTS).where(CHANGE_POINTS.c.series_id.in_(piece)))
    now = datetime.now(UTC)
    rows = []
    for one, line in found:
        series, change = one.series, one.change
        key = (series.case, series.platform, series.metric)
        if key not in keys:
            unique = dict(zip(("case_id", "platform_id", "metric_id"), key, strict=True))
            keys[key] = shared_id(connection, SERIES, unique)
        before, after = _ends(one)
        rows.append(
            {
                "series_id": keys[key],
                "kind": change.kind,
                "before_run": before,
                "after_run": after,
                "earliest_run": series.points[change.earliest][0].number,
                "latest_run": series.points[change.latest][0].number,
                "effect": change.effect,
                "low": change.low,
                "high": change.high,
                "p_value": change.p_value,
                "cause": line.cause,
                "method": METHOD,
                "found_at": now,
            }
        )
    if rows:
        connection.execute(insert(CHANGE_POINTS), rows)
