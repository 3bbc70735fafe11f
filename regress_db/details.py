"""Everything the history has about one run: `show` as one value, its samples apart. Used by the command line,
`regress_db.sides` and `regress_db.asking`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select

from harness.case import Phase
from regress_db import lookup, samples
from regress_db.history import History
from regress_db.notes import Note, notes_of_run
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
    SAMPLES,
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
class RankDetail:
    """Where one rank ran: its node, the CPUs it could use and their NUMA nodes; None where not known."""

    rank: int
    node: str
    cpus: str | None
    numa: str | None


@dataclass(frozen=True, slots=True)
class RunDetail:
    """Everything about one run but its samples. ranks_on: host name to ranks. environment: as in the record.

    launcher, attempt, scheduler_job: as in the record; None where it does not say. ranks: where each rank ran. said:
    the notes that stand of this run and of its night as a whole, oldest first; `notes` are the record's own.
    """

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
    launcher: str | None
    attempt: int | None
    scheduler_job: str | None
    ranks: tuple[RankDetail, ...]
    said: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed iteration on one rank, in µs. counted: whether the statistics are of it; the first one is left out."""

    phase: Phase
    rank: int
    iteration: int
    latency_us: float
    counted: bool


def show(history: History, run: str) -> RunDetail:
    """Everything about the run whose id starts with `run` (or the `latest`). `NotFoundError` for none or several."""
    with history.read() as connection:
        return load_detail(connection, lookup.run(connection, run)[0])


def samples_of(history: History, run: str) -> dict[Phase, list[list[float]]]:
    """The samples of a run, in µs, [ranks][iterations] by phase; exact to float32."""
    with history.read() as connection:
        number, _ = lookup.run(connection, run)
        rows = connection.execute(select(SAMPLES.c.phase, SAMPLES.c.packed).where(SAMPLES.c.run == number)).all()
    return {row.phase: samples.unpack(row.packed) for row in rows}


def sample_lines(history: History, run: str) -> list[Sample]:
    """The samples of a run, one a row: phase by phase, rank by rank, in order."""
    detail = show(history, run)
    dropped = {phase.phase: phase.leading_dropped for phase in detail.phases}
    return [
        Sample(phase, rank, iteration, latency_us, iteration >= dropped[phase])
        for phase, of_phase in samples_of(history, detail.run_id).items()
        for rank, of_rank in enumerate(of_phase)
        for iteration, latency_us in enumerate(of_rank)
    ]


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
        ranks_on={host: tuple(ranks) for host, ranks in lookup.hosts_of(connection, [number])[number].items()},
        conditions=row.conditions,
        notes=tuple(row.notes),
        environment_digest=row.environment,
        environment=row.content,
        phases=_phases(connection, number),
        launcher=row.launcher,
        attempt=row.attempt,
        scheduler_job=row.scheduler_job,
        said=notes_of_run(connection, number, row.night_id),
        ranks=_ranks(connection, number),
    )


def _ranks(connection: Connection, number: int) -> tuple[RankDetail, ...]:
    rows = connection.execute(
        select(RUN_RANKS.c.rank, NODES.c.hostname, RUN_RANKS.c.cpus, RUN_RANKS.c.numa)
        .join(NODES, NODES.c.id == RUN_RANKS.c.node_id)
        .where(RUN_RANKS.c.run == number)
        .order_by(RUN_RANKS.c.rank)
    )
    return tuple(RankDetail(*row) for row in rows)


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
