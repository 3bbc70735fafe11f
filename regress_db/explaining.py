"""What is taken out of a night's runs before a commit is blamed: what nodes explain, and what many have in common.

Called by `regress_db.verdicts`, within its transaction. Next to read: `regress_db.method.nodehistory` (nodes, by the
nights before), `regress_db.method.attribution` (nodes, allocations and the night itself, by this night).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import Connection, select

from harness.case import Case
from regress_db import lookup
from regress_db.facts import RunFacts, slowest_hosts
from regress_db.judged import Series
from regress_db.metrics import RUN_VALUE_METRIC
from regress_db.schema import NODES

if TYPE_CHECKING:
    from regress_db.method.attribution import Context, SeriesShift, Shared
    from regress_db.method.nodehistory import Explained

_LEAST_BASELINE = 2
"""A baseline of fewer runs has no spread to tell anything by."""


@dataclass(frozen=True, slots=True)
class TakenOut:
    """All that is taken out, by series (case, platform, phase).

    shared: everything together, with its findings. words: what a series' nodes explain. whose: the finding of a series
    of which something was taken out, by number.
    """

    shared: Shared
    words: Mapping[Hashable, str]
    whose: Mapping[Hashable, int]


def taken_out(
    connection: Connection,
    series: Sequence[Series],
    context: Context,
    controls: Collection[str],
    before: datetime | None,
) -> TakenOut:
    """What nodes, allocations and the night did to these series, each with a new run.

    controls: backends that do not run the code under test. before: start of the night; None: no other night is asked.
    """
    from regress_db.method.attribution import shared_shifts

    shifts = _shifts(connection, series, controls)
    explained = _explained(connection, series, shifts, context, before)
    rest = [_less(one, explained.likely.get(one.series)) for one in shifts]
    shared = shared_shifts(rest, context, first_number=len(explained.findings) + 1)
    per_run = dict(shared.removed_runs)
    for key, changes in explained.certain.items():
        per_run[key] = tuple(a + b for a, b in zip(changes, per_run[key], strict=True))
    whose = {key: finding.number for finding in shared.findings for key in finding.series} | dict(explained.whose)
    everything = replace(
        shared,
        removed={key: statistics.fmean(changes) for key, changes in per_run.items()},
        removed_runs=per_run,
        findings=(*explained.findings, *shared.findings),
        notes=(*explained.notes, *shared.notes),
    )
    return TakenOut(everything, explained.words, whose)


def _less(one: SeriesShift, changes: Sequence[float] | None) -> SeriesShift:
    if changes is None:
        return one
    runs = [replace(run, change=run.change - change) for run, change in zip(one.runs, changes, strict=True)]
    return replace(one, runs=tuple(runs))


def _explained(
    connection: Connection,
    series: Sequence[Series],
    shifts: Sequence[SeriesShift],
    context: Context,
    before: datetime | None,
) -> Explained:
    """What the nodes used explain, by the nights before; nothing where no node is known to differ."""
    from regress_db.method.nodehistory import Explained, PlacedSeries, explained_by_nodes
    from regress_db.nodes import known_before

    nothing = Explained()
    if before is None or len(connection.execute(select(NODES.c.id).limit(2)).all()) < 2:
        return nothing
    cluster_of: dict[Hashable, str] = {one.key: one.new[0].cluster for one in series}
    known = {
        (cluster, host): node
        for cluster in sorted(set(cluster_of.values()))
        for host, node in known_before(connection, cluster, before).items()
    }
    if not known:
        return nothing
    level_of: dict[Hashable, list[int]] = {
        one.key: [run.number for run in one.known.level if run.number] for one in series
    }
    hosts = lookup.hosts_of(connection, sorted({number for numbers in level_of.values() for number in numbers}))
    placed = [
        PlacedSeries(
            series=shift.series,
            under_test=shift.under_test,
            cluster=cluster_of[shift.series],
            changes=tuple(run.change for run in shift.runs),
            hosts=tuple(run.hosts for run in shift.runs),
            baseline_hosts=tuple(tuple(hosts[number]) for number in level_of[shift.series]),
        )
        for shift in shifts
    ]
    return explained_by_nodes(placed, known, context.code_may_differ)


def _shifts(connection: Connection, series: Sequence[Series], controls: Collection[str]) -> list[SeriesShift]:
    """How far each new run lies from its baseline, of the series that have one."""
    from regress_db.method.attribution import RunShift, SeriesShift

    spread_out = {
        run.number
        for one in series
        if Case.parse(one.case).nodes > 1
        for run in (*one.new, *one.known.level)
        if run.number
    }
    slowest = slowest_hosts(connection, sorted(spread_out))

    def slowest_of(one: Series, runs: Sequence[RunFacts]) -> tuple[str, ...]:
        return tuple(slowest[key] for run in runs if run.number and (key := (run.number, one.phase)) in slowest)

    shifts = []
    for one in series:
        base = [math.log(value) for value in one.values(one.known.level)]
        if len(base) < _LEAST_BASELINE:
            continue
        centre = statistics.median(base)
        shifts.append(
            SeriesShift(
                series=one.key,
                under_test=one.backend not in controls,
                label=one.family,
                runs=tuple(
                    RunShift(
                        math.log(run.values[one.phase, RUN_VALUE_METRIC]) - centre,
                        run.hosts,
                        run.allocation,
                        run.run_id,
                    )
                    for run in one.new
                ),
                sd=statistics.stdev(base),
                slowest_hosts=slowest_of(one, one.new),
                usual_slowest_hosts=slowest_of(one, one.known.level),
                stratum=f"{one.family} on {Case.parse(one.case).ranks} ranks",
                baseline_runs=len(base),
            )
        )
    return shifts
