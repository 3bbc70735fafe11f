"""Everything the history has about one run, as one value. Used by `regress_db.queries` and `regress_db.report`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select

from harness.case import Phase
from regress_db import lookup
from regress_db.schema import (
    CaseRow,
    CheckRow,
    EnvironmentRow,
    FailureRow,
    MetricRow,
    NightRow,
    NodeRow,
    PlatformRow,
    RankValue,
    RunPhaseRow,
    RunRankRow,
    RunRow,
    RunValue,
)


@dataclass(frozen=True, slots=True)
class PhaseDetail:
    """One phase of one run: every value by metric name, and each rank's median. headline: what bandwidth is of."""

    phase: Phase
    headline: str
    iterations: int
    leading_dropped: int
    slowest_rank: int
    values: dict[str, float]
    rank_p50_us: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class CheckDetail:
    """One pass of the oracle."""

    when: str
    passed: bool
    rows: int
    detail: str


@dataclass(frozen=True, slots=True)
class FailureDetail:
    """Why a run gave no number."""

    step: str
    kind: str
    message: str
    rank: int
    log_tail: str


@dataclass(frozen=True, slots=True)
class RunDetail:
    """Everything about one run but its samples. ranks_on: host name to ranks. environment: as in the record."""

    run_id: str
    case: str
    platform: str
    night: str
    repeat: int
    started_at: datetime
    ended_at: datetime
    outcome: str
    warmup: int
    iters: int
    failure: FailureDetail | None
    checks: tuple[CheckDetail, ...]
    ranks_on: dict[str, tuple[int, ...]]
    conditions: dict[str, float]
    notes: tuple[str, ...]
    environment_digest: str
    environment: dict[str, dict[str, str]]
    phases: tuple[PhaseDetail, ...]


def load_detail(connection: Connection, number: int) -> RunDetail:
    """Everything about the run with this row number, which must exist."""
    row = connection.execute(
        select(
            *RunRow.__table__.c,
            CaseRow.key,
            PlatformRow.key.label("platform"),
            NightRow.name.label("night"),
            EnvironmentRow.digest.label("environment"),
            EnvironmentRow.content,
        )
        .join(CaseRow, CaseRow.id == RunRow.case_id)
        .join(PlatformRow, PlatformRow.id == RunRow.platform_id)
        .join(EnvironmentRow, EnvironmentRow.id == RunRow.environment_id)
        .outerjoin(NightRow, NightRow.id == RunRow.night_id)
        .where(RunRow.id == number)
    ).one()
    failure = connection.execute(
        select(FailureRow.step, FailureRow.kind, FailureRow.message, FailureRow.rank, FailureRow.log_tail).where(
            FailureRow.run == number
        )
    ).first()
    checks = connection.execute(
        select(*CheckRow.__table__.c).where(CheckRow.run == number).order_by(CheckRow.position)
    ).all()
    return RunDetail(
        run_id=row.run_id,
        case=row.key,
        platform=row.platform,
        night=row.night or "",
        repeat=row.repeat,
        started_at=row.started_at,
        ended_at=row.ended_at,
        outcome=row.outcome,
        warmup=row.warmup,
        iters=row.iters,
        failure=None if failure is None else FailureDetail(*failure),
        checks=tuple(CheckDetail(check.moment, check.passed, check.rows, check.detail) for check in checks),
        ranks_on={host: tuple(ranks) for host, ranks in hosts_of(connection, [number])[number].items()},
        conditions=row.conditions,
        notes=tuple(row.notes),
        environment_digest=row.environment,
        environment=row.content,
        phases=_phases(connection, number),
    )


def _phases(connection: Connection, number: int) -> tuple[PhaseDetail, ...]:
    values: dict[str, dict[str, float]] = defaultdict(dict)
    for phase, name, value in connection.execute(
        select(MetricRow.phase, MetricRow.name, RunValue.value)
        .join(MetricRow, MetricRow.id == RunValue.metric)
        .where(RunValue.run == number)
        .order_by(MetricRow.id)
    ):
        values[phase][name] = value
    ranks: dict[str, list[float]] = defaultdict(list)
    for phase, value in connection.execute(
        select(RankValue.phase, RankValue.p50_us)
        .where(RankValue.run == number)
        .order_by(RankValue.phase, RankValue.rank)
    ):
        ranks[phase].append(value)
    rows = connection.execute(
        select(*RunPhaseRow.__table__.c).where(RunPhaseRow.run == number).order_by(RunPhaseRow.phase.desc())
    )
    return tuple(
        PhaseDetail(
            phase=row.phase,
            headline=row.headline,
            iterations=row.iterations,
            leading_dropped=row.leading_dropped,
            slowest_rank=row.slowest_rank,
            values=values[row.phase],
            rank_p50_us=tuple(ranks[row.phase]),
        )
        for row in rows
    )


def hosts_of(connection: Connection, numbers: Sequence[int]) -> dict[int, dict[str, list[int]]]:
    """Host name to ranks, by run."""
    found: dict[int, dict[str, list[int]]] = {number: defaultdict(list) for number in numbers}
    for piece in lookup.chunks(numbers):
        for run, hostname, rank in connection.execute(
            select(RunRankRow.run, NodeRow.hostname, RunRankRow.rank)
            .join(NodeRow, NodeRow.id == RunRankRow.node_id)
            .where(RunRankRow.run.in_(piece))
            .order_by(RunRankRow.rank)
        ):
            found[run][hostname].append(rank)
    return found
