"""A trend by night, week, commit, node or environment: one number for all runs of a series that share it.

Called by the command line and by `History.trend`; next to read: `regress_db.queries.trend`, which this is made of.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from sqlalchemy import select

from harness.case import Phase
from regress_db.errors import FilterError
from regress_db.history import History
from regress_db.queries import DEFAULT_METRIC, TrendPoint, trend
from regress_db.schema import NODES, RUN_RANKS, RUNS
from regress_db.selection import EVERYTHING, Selection

By = Literal["night", "week", "commit", "node", "environment"]
Aggregate = Literal["median", "min", "max", "mean", "count"]

BY: tuple[By, ...] = get_args(By)
AGGREGATES: tuple[Aggregate, ...] = get_args(Aggregate)

_AGGREGATES: Mapping[Aggregate, Callable[[Sequence[float]], float]] = {
    "median": statistics.median,
    "min": min,
    "max": max,
    "mean": statistics.fmean,
    "count": len,
}


@dataclass(frozen=True, slots=True)
class TrendGroup:
    """Runs of one series that share a night, week, ..., as one number.

    group: what they share; a week is `2026-W47` (ISO 8601, in UTC); "" for runs that have none, such as those of no
    night. started_at: when the first of them started. runs: how many. value: their aggregate, in the metric's unit
    unless it is a count.
    """

    case: str
    platform: str
    phase: Phase
    metric: str
    by: By
    group: str
    started_at: datetime
    runs: int
    aggregate: Aggregate
    value: float


def trend_by(
    history: History,
    by: By,
    selection: Selection = EVERYTHING,
    *,
    aggregate: Aggregate = "median",
    metric: str = DEFAULT_METRIC,
    phase: Phase | None = None,
) -> list[TrendGroup]:
    """The trend in groups, series by series, by when each group began; `selection.limit` keeps each series' newest.

    A run on several nodes counts at each. Raises `FilterError` for no such way to group or aggregate, `NotFoundError`
    as `trend` does.
    """
    if by not in BY or aggregate not in AGGREGATES:
        raise FilterError(f"a trend is by {', '.join(BY)}, as {', '.join(AGGREGATES)}; not by {by!r} as {aggregate!r}")
    points = trend(history, dataclasses.replace(selection, limit=None), metric=metric, phase=phase)
    hosts = _hosts(history, selection) if by == "node" else {}
    series: dict[tuple[str, str, Phase], dict[str, list[TrendPoint]]] = defaultdict(lambda: defaultdict(list))
    for point in points:
        groups = series[point.case, point.platform, point.phase]
        for group in _groups_of(point, by, hosts):
            groups[group].append(point)
    first = 0 if selection.limit is None else -selection.limit
    return [
        TrendGroup(
            *key,
            metric=metric,
            by=by,
            group=group,
            started_at=members[0].started_at,
            runs=len(members),
            aggregate=aggregate,
            value=float(_AGGREGATES[aggregate]([member.value for member in members])),
        )
        for key, groups in series.items()
        for group, members in list(groups.items())[first:]
    ]


def _groups_of(point: TrendPoint, by: By, hosts: Mapping[str, Iterable[str]]) -> Iterable[str]:
    if by == "node":
        return hosts.get(point.run_id, ())
    if by == "week":
        year, week, _ = point.started_at.isocalendar()
        return (f"{year}-W{week:02}",)
    return ({"night": point.night, "commit": point.commit, "environment": point.environment}[by],)


def _hosts(history: History, selection: Selection) -> dict[str, list[str]]:
    """Host names by run id. Asked after the trend, so that whatever that has is here too."""
    found: dict[str, list[str]] = defaultdict(list)
    with history.read() as connection:
        for run_id, hostname in connection.execute(
            select(RUNS.c.run_id, NODES.c.hostname)
            .distinct()
            .join(RUN_RANKS, RUN_RANKS.c.run == RUNS.c.id)
            .join(NODES, NODES.c.id == RUN_RANKS.c.node_id)
            .where(*selection.conditions(connection))
            .order_by(NODES.c.hostname)
        ):
            found[run_id].append(hostname)
    return found
