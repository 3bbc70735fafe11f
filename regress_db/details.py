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
    CASES,
    CHECKS,
    ENVIRONMENTS,
    FAILURES,
    METRICS,
    NIGHTS,
    NODES,
    PLATFORMS,
    RANK_VALUES,
    RUN_PHASES,
    RUN_RANKS,
    RUN_VALUES,
    RUNS,
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
            *RUNS.c,
            CASES.c.key,
            PLATFORMS.c.key.label("platform"),
            NIGHTS.c.name.label("night"),
            ENVIRONMENTS.c.digest.label("environment"),
            ENVIRONMENTS.c.content,
        )
        .join(CASES, CASES.c.id == RUNS.c.case_id)
        .join(PLATFORMS, PLATFORMS.c.id == RUNS.c.platform_id)
        .join(ENVIRONMENTS, ENVIRONMENTS.c.id == RUNS.c.environment_id)
        .outerjoin(NIGHTS, NIGHTS.c.id == RUNS.c.night_id)
        .where(RUNS.c.id == number)
    ).one()
    failure = connection.execute(
        select(FAILURES.c.step, FAILURES.c.kind, FAILURES.c.message, FAILURES.c.rank, FAILURES.c.log_tail).where(
            FAILURES.c.run == number
        )
    ).first()
    checks = connection.execute(select(*CHECKS.c).where(CHECKS.c.run == number).order_by(CHECKS.c.position)).all()
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
        select(METRICS.c.phase, METRICS.c.name, RUN_VALUES.c.value)
        .join(METRICS, METRICS.c.id == RUN_VALUES.c.metric)
        .where(RUN_VALUES.c.run == number)
        .order_by(METRICS.c.id)
    ):
        values[phase][name] = value
    ranks: dict[str, list[float]] = defaultdict(list)
    for phase, value in connection.execute(
        select(RANK_VALUES.c.phase, RANK_VALUES.c.p50_us)
        .where(RANK_VALUES.c.run == number)
        .order_by(RANK_VALUES.c.phase, RANK_VALUES.c.rank)
    ):
        ranks[phase].append(value)
    rows = connection.execute(
        select(*RUN_PHASES.c).where(RUN_PHASES.c.run == number).order_by(RUN_PHASES.c.phase.desc())
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
            select(RUN_RANKS.c.run, NODES.c.hostname, RUN_RANKS.c.rank)
            .join(NODES, NODES.c.id == RUN_RANKS.c.node_id)
            .where(RUN_RANKS.c.run.in_(piece))
            .order_by(RUN_RANKS.c.rank)
        ):
            found[run][hostname].append(rank)
    return found
