"""What `History` can be asked in a notebook: each method is one question of a neighbour, answered as rows or a frame.

    from regress_db import History

    with History.open(".epwatch/history.db", create=False) as history:
        history.trend("mode=ll", "ranks>=16", phase="combine", since="30d").to_polars()

Filters, patterns and times are those of the command line (`docs/queries.md`). Nothing is imported before it is asked
for. Next to read: `regress_db.queries`, `regress_db.frames`.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from harness.case import Phase
    from regress_db.aggregation import Aggregate, By, TrendGroup
    from regress_db.details import Sample
    from regress_db.frames import Answer
    from regress_db.history import History
    from regress_db.queries import NightLine, RunLine, TrendPoint
    from regress_db.sides import ComparedSeries, ComparedValue

Time = str | datetime | None
"""As `filters.parse_moment` reads it, or an aware time."""


class Asking:
    """The questions; `History` is one of these."""

    def trend(
        self,
        *texts: str,
        metric: str = "latency_us",
        phase: Phase | None = None,
        by: By | None = None,
        aggregate: Aggregate = "median",
        since: Time = None,
        until: Time = None,
        at: str | None = None,
        limit: int | None = None,
    ) -> Answer[TrendPoint] | Answer[TrendGroup]:
        """Values of a metric through time, run by run or `by` groups; see `queries.trend`, `aggregation.trend_by`."""
        from regress_db.aggregation import TrendGroup, trend_by
        from regress_db.frames import Answer
        from regress_db.queries import TrendPoint, trend
        from regress_db.selection import Selection

        chosen = Selection.of(*texts, since=since, until=until, at=at, limit=limit)
        if by is None:
            return Answer(trend(_itself(self), chosen, metric=metric, phase=phase), TrendPoint)
        groups = trend_by(_itself(self), by, chosen, aggregate=aggregate, metric=metric, phase=phase)
        return Answer(groups, TrendGroup)

    def runs(
        self, *texts: str, since: Time = None, until: Time = None, at: str | None = None, limit: int | None = None
    ) -> Answer[RunLine]:
        """The runs, newest first; see `queries.runs`."""
        from regress_db.frames import Answer
        from regress_db.queries import RunLine, runs
        from regress_db.selection import Selection

        return Answer(runs(_itself(self), Selection.of(*texts, since=since, until=until, at=at, limit=limit)), RunLine)

    def nights(self, limit: int | None = None) -> Answer[NightLine]:
        """The nights, newest first; see `queries.nights`."""
        from regress_db.frames import Answer
        from regress_db.queries import NightLine, nights

        return Answer(nights(_itself(self), limit), NightLine)

    def compare(
        self, first: str, second: str, *texts: str, metric: str = "slowest_p50_us", phase: Phase | None = None
    ) -> Answer[ComparedValue] | Answer[ComparedSeries]:
        """Two runs value by value, or two nights, commits or baselines series by series; see `sides.side`."""
        from regress_db.frames import Answer
        from regress_db.selection import Selection
        from regress_db.sides import ComparedSeries, ComparedValue, compare_runs, compare_sides, side

        one, other = (side(_itself(self), name) for name in (first, second))
        if one.kind == other.kind == "run":
            return Answer(compare_runs(_itself(self), one.name, other.name).values, ComparedValue)
        found = compare_sides(_itself(self), one, other, Selection.of(*texts), metric=metric, phase=phase)
        return Answer(found.series, ComparedSeries)

    def changes(self, *texts: str, since: Time = None, until: Time = None, **how: Any) -> Answer[Any]:
        """Where series changed their level; `how` as for `regress_db.changes.changes`."""
        from regress_db.changes import ChangeLine, changes
        from regress_db.frames import Answer
        from regress_db.selection import Selection

        return Answer(changes(_itself(self), Selection.of(*texts, since=since, until=until), **how), ChangeLine)

    def nodes(
        self, *texts: str, since: Time = None, until: Time = None, cluster: str | None = None, level: float = 0.01
    ) -> Answer[Any]:
        """What each node does to its runs, the slowest first; see `nodes.node_effects`."""
        from regress_db.frames import Answer
        from regress_db.nodes import NodeEffect, node_effects
        from regress_db.selection import Selection

        chosen = Selection.of(*texts, since=since, until=until)
        return Answer(node_effects(_itself(self), chosen, cluster=cluster, level=level), NodeEffect)

    def verdicts(self, night: str = "latest") -> Answer[Any]:
        """What was said of a night, series by series, worst first; see `verdicts.stored_verdict`."""
        from regress_db.frames import Answer
        from regress_db.nightverdict import SeriesVerdict, stored_verdict

        return Answer(stored_verdict(_itself(self), night).series, SeriesVerdict)

    def samples(self, run: str = "latest") -> Answer[Sample]:
        """Every timed iteration of the run whose id starts so."""
        from regress_db.details import Sample, sample_lines
        from regress_db.frames import Answer

        return Answer(sample_lines(_itself(self), run), Sample)

    def sql(self, query: str) -> Answer[tuple[Any, ...]]:
        """The rows of one SELECT, as tuples; `docs/history.md` tells the views. See `reading.select_only`."""
        from regress_db.frames import Answer
        from regress_db.reading import select_only

        columns, rows = select_only(_itself(self), query)
        return Answer(rows, columns=columns)


def _itself(asking: Asking) -> History:
    return cast("History", asking)
