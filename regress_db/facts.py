"""What judging needs to know of runs: where, when and how they ended, and the few values that are compared.

Called by `regress_db.verdicts` and `regress_db.automatic`, within their transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, select

from regress_db import lookup
from regress_db.metrics import BANDWIDTH_METRIC, RUN_VALUE_METRIC
from regress_db.schema import (
    CASES,
    ENVIRONMENTS,
    FAILURES,
    METRICS,
    NIGHTS,
    NODES,
    PLANNED,
    PLATFORMS,
    RUN_PHASES,
    RUN_RANKS,
    RUN_VALUES,
    RUNS,
)

PLANNED_RUN = "planned"
CONFIRMATION = "confirmation"
AA = "aa"
"""What a planned run is for: the night itself, the re-run of a candidate, the other half of a standing A/A check."""

_METRICS = (RUN_VALUE_METRIC, BANDWIDTH_METRIC, "latency_us")
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What judging needs of one run, or of a planned run without one.

    number: of its row, None where the run is missing. values: metric by phase; empty unless ok. night: its name, "" for
    none. allocation: names the job it ran in, within its night. hosts: of its ranks. environment: row number, 0 for a
    run that is missing.
    """

    run_id: str
    number: int | None
    case: str
    platform: str
    cluster: str
    outcome: str
    why: str
    values: Mapping[tuple[str, str], float]
    started_at: datetime = _LONG_AGO
    night: str = ""
    purpose: str = PLANNED_RUN
    allocation: str = ""
    hosts: tuple[str, ...] = ()
    environment: int = 0
    commit: str = ""


def facts_of_night(connection: Connection, night: int) -> list[RunFacts]:
    """Every run of the night, and every planned one that is missing."""
    planned = connection.execute(
        select(PLANNED.c.run_id, PLANNED.c.purpose, CASES.c.key, RUNS.c.id)
        .join(CASES, CASES.c.id == PLANNED.c.case_id)
        .outerjoin(RUNS, RUNS.c.run_id == PLANNED.c.run_id)
        .where(PLANNED.c.night_id == night)
        .order_by(CASES.c.key, PLANNED.c.repeat, PLANNED.c.run_id)
    ).all()
    there = set(connection.execute(select(RUNS.c.id).where(RUNS.c.night_id == night)).scalars())
    there.update(row.id for row in planned if row.id is not None)
    missing = [
        RunFacts(row.run_id, None, row.key, "", "", "missing", "", {}, purpose=row.purpose)
        for row in planned
        if row.id is None
    ]
    return [*facts_of_runs(connection, sorted(there)), *missing]


def slowest_hosts(connection: Connection, numbers: Sequence[int]) -> dict[tuple[int, str], str]:
    """The host of the slowest rank, by row number of the run and phase."""
    found: dict[tuple[int, str], str] = {}
    for piece in lookup.chunks(numbers):
        for run, phase, hostname in connection.execute(
            select(RUN_PHASES.c.run, RUN_PHASES.c.phase, NODES.c.hostname)
            .join(RUN_RANKS, (RUN_RANKS.c.run == RUN_PHASES.c.run) & (RUN_RANKS.c.rank == RUN_PHASES.c.slowest_rank))
            .join(NODES, NODES.c.id == RUN_RANKS.c.node_id)
            .where(RUN_PHASES.c.run.in_(piece))
        ):
            found[run, phase] = hostname
    return found


def facts_of_runs(connection: Connection, numbers: Sequence[int], *, hosts_too: bool = True) -> list[RunFacts]:
    """The facts of the runs with these row numbers, oldest first within each piece of them.

    hosts_too: without, `hosts` is empty, and half of the time is saved.
    """
    cases = {row.id: row.key for row in connection.execute(select(CASES.c.id, CASES.c.key))}
    platforms = {
        row.id: (row.key, row.cluster)
        for row in connection.execute(select(PLATFORMS.c.id, PLATFORMS.c.key, PLATFORMS.c.cluster))
    }
    nights = {row.id: row.name for row in connection.execute(select(NIGHTS.c.id, NIGHTS.c.name))}
    commits = {row.id: row.commit for row in connection.execute(select(ENVIRONMENTS.c.id, ENVIRONMENTS.c.commit))}
    hostnames = {row.id: row.hostname for row in connection.execute(select(NODES.c.id, NODES.c.hostname))}
    metrics = {
        row.id: (row.phase, row.name)
        for row in connection.execute(
            select(METRICS.c.id, METRICS.c.phase, METRICS.c.name).where(METRICS.c.name.in_(_METRICS))
        )
    }
    facts: list[RunFacts] = []
    for piece in lookup.chunks(numbers):
        values: dict[int, dict[tuple[str, str], float]] = {number: {} for number in piece}
        for run, metric, value in connection.execute(
            select(RUN_VALUES.c.run, RUN_VALUES.c.metric, RUN_VALUES.c.value).where(
                RUN_VALUES.c.run.in_(piece), RUN_VALUES.c.metric.in_(metrics)
            )
        ).all():
            values[run][metrics[metric]] = value
        hosts: dict[int, set[str]] = {number: set() for number in piece}
        if hosts_too:
            for run, node in connection.execute(
                select(RUN_RANKS.c.run, RUN_RANKS.c.node_id).where(RUN_RANKS.c.run.in_(piece)).distinct()
            ):
                hosts[run].add(hostnames[node])
        why = {
            row.run: row.message
            for row in connection.execute(select(FAILURES.c.run, FAILURES.c.message).where(FAILURES.c.run.in_(piece)))
        }
        purposes = {
            row.run_id: row.purpose
            for row in connection.execute(
                select(PLANNED.c.run_id, PLANNED.c.purpose)
                .join(RUNS, (RUNS.c.run_id == PLANNED.c.run_id) & (RUNS.c.night_id == PLANNED.c.night_id))
                .where(RUNS.c.id.in_(piece), PLANNED.c.purpose != PLANNED_RUN)
            )
        }
        for row in connection.execute(
            select(
                RUNS.c.id,
                RUNS.c.run_id,
                RUNS.c.case_id,
                RUNS.c.platform_id,
                RUNS.c.environment_id,
                RUNS.c.night_id,
                RUNS.c.repeat,
                RUNS.c.outcome,
                RUNS.c.started_at,
            )
            .where(RUNS.c.id.in_(piece))
            .order_by(RUNS.c.started_at, RUNS.c.id)
        ):
            platform, cluster = platforms[row.platform_id]
            facts.append(
                RunFacts(
                    run_id=row.run_id,
                    number=row.id,
                    case=cases[row.case_id],
                    platform=platform,
                    cluster=cluster,
                    outcome=row.outcome,
                    why=why.get(row.id, ""),
                    values=values[row.id],
                    started_at=row.started_at,
                    night=nights.get(row.night_id, ""),
                    purpose=purposes.get(row.run_id, PLANNED_RUN),
                    allocation=f"repeat {row.repeat}",
                    hosts=tuple(sorted(hosts[row.id])),
                    environment=row.environment_id,
                    commit=commits[row.environment_id],
                )
            )
    return facts
