"""What judging needs to know of runs: their outcome, why they failed, and the few values that are compared.

Called by `regress_db.verdicts` and `regress_db.report`, within their transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from regress_db import lookup
from regress_db.metrics import BANDWIDTH_METRIC, RUN_VALUE_METRIC
from regress_db.schema import CaseRow, FailureRow, MetricRow, PlannedRow, PlatformRow, RunRow, RunValue


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
        select(PlannedRow.run_id, CaseRow.key, RunRow.id)
        .join(CaseRow, CaseRow.id == PlannedRow.case_id)
        .outerjoin(RunRow, RunRow.run_id == PlannedRow.run_id)
        .where(PlannedRow.night_id == night)
        .order_by(CaseRow.key, PlannedRow.repeat, PlannedRow.run_id)
    ).all()
    there = set(connection.execute(select(RunRow.id).where(RunRow.night_id == night)).scalars())
    there.update(row.id for row in planned if row.id is not None)
    missing = [RunFacts(row.run_id, None, row.key, "", "", "missing", "", {}) for row in planned if row.id is None]
    return [*facts_of_runs(connection, sorted(there)), *missing]


def facts_of_runs(connection: Connection, numbers: Sequence[int]) -> list[RunFacts]:
    """The facts of the runs with these row numbers, in their order."""
    facts: list[RunFacts] = []
    for piece in lookup.chunks(numbers):
        values: dict[int, dict[tuple[str, str], float]] = {number: {} for number in piece}
        for run, phase, name, value in connection.execute(
            select(RunValue.run, MetricRow.phase, MetricRow.name, RunValue.value)
            .join(MetricRow, MetricRow.id == RunValue.metric)
            .where(RunValue.run.in_(piece), MetricRow.name.in_((RUN_VALUE_METRIC, BANDWIDTH_METRIC, "latency_us")))
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
                    RunRow.id,
                    RunRow.run_id,
                    RunRow.outcome,
                    CaseRow.key,
                    PlatformRow.key.label("platform"),
                    PlatformRow.cluster,
                    FailureRow.message,
                )
                .join(CaseRow, CaseRow.id == RunRow.case_id)
                .join(PlatformRow, PlatformRow.id == RunRow.platform_id)
                .outerjoin(FailureRow, FailureRow.run == RunRow.id)
                .where(RunRow.id.in_(piece))
                .order_by(RunRow.started_at, RunRow.id)
            )
        ]
    return facts
