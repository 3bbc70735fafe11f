"""What judging needs to know of runs: their outcome, why they failed, and the few values that are compared.

Called by `regress_db.verdicts` and `regress_db.report`, within their transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from regress_db import lookup
from regress_db.metrics import BANDWIDTH_METRIC, RUN_VALUE_METRIC
from regress_db.schema import CASES, FAILURES, METRICS, PLANNED, PLATFORMS, RUN_VALUES, RUNS


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What judging needs of one run, or of a planned run without one. `values`: metric by phase; empty unless ok."""

    run_id: str
    number: int | None
    case: str
    platform: str
    cluster: str
    outcome: str
    why: str
    values: Mapping[tuple[str, str], float]


def facts_of_night(connection: Connection, night: int) -> list[RunFacts]:
    """Every run of the night, and every planned one that is missing."""
    planned = connection.execute(
        select(PLANNED.c.run_id, CASES.c.key, RUNS.c.id)
        .join(CASES, CASES.c.id == PLANNED.c.case_id)
        .outerjoin(RUNS, RUNS.c.run_id == PLANNED.c.run_id)
        .where(PLANNED.c.night_id == night)
        .order_by(CASES.c.key, PLANNED.c.repeat, PLANNED.c.run_id)
    ).all()
    there = set(connection.execute(select(RUNS.c.id).where(RUNS.c.night_id == night)).scalars())
    there.update(row.id for row in planned if row.id is not None)
    missing = [RunFacts(row.run_id, None, row.key, "", "", "missing", "", {}) for row in planned if row.id is None]
    return [*facts_of_runs(connection, sorted(there)), *missing]


def facts_of_runs(connection: Connection, numbers: Sequence[int]) -> list[RunFacts]:
    """The facts of the runs with these row numbers, in their order."""
    facts: list[RunFacts] = []
    for piece in lookup.chunks(numbers):
        values: dict[int, dict[tuple[str, str], float]] = {number: {} for number in piece}
        for run, phase, name, value in connection.execute(
            select(RUN_VALUES.c.run, METRICS.c.phase, METRICS.c.name, RUN_VALUES.c.value)
            .join(METRICS, METRICS.c.id == RUN_VALUES.c.metric)
            .where(RUN_VALUES.c.run.in_(piece), METRICS.c.name.in_((RUN_VALUE_METRIC, BANDWIDTH_METRIC, "latency_us")))
        ):
            values[run][phase, name] = value
        facts += [
            RunFacts(
                row.run_id,
                row.id,
                row.key,
                row.platform,
                row.cluster,
                row.outcome,
                row.message or "",
                values[row.id],
            )
            for row in connection.execute(
                select(
                    RUNS.c.id,
                    RUNS.c.run_id,
                    RUNS.c.outcome,
                    CASES.c.key,
                    PLATFORMS.c.key.label("platform"),
                    PLATFORMS.c.cluster,
                    FAILURES.c.message,
                )
                .join(CASES, CASES.c.id == RUNS.c.case_id)
                .join(PLATFORMS, PLATFORMS.c.id == RUNS.c.platform_id)
                .outerjoin(FAILURES, FAILURES.c.run == RUNS.c.id)
                .where(RUNS.c.id.in_(piece))
                .order_by(RUNS.c.started_at, RUNS.c.id)
            )
        ]
    return facts
