"""Whether a history is what it should be: sound pages, no reference into the void, numbers that their samples bear out.

Nothing is changed. Each check is a function of a transaction that yields one sentence for each kind of fault; a check
that the database itself breaks off is a fault too. Called by `epwatch history verify`; next: `regress_db.acceptance`.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, and_, exists, func, or_, select, text

from regress_db import samples
from regress_db.acceptance import fits, told_by_samples
from regress_db.errors import HistoryError
from regress_db.history import History
from regress_db.metrics import RUN_VALUE_METRIC
from regress_db.schema import (
    BASELINE_RUNS,
    BASELINES,
    CASES,
    FAILURES,
    FINDINGS,
    METADATA,
    METRICS,
    NIGHTS,
    PLANNED,
    RANK_VALUES,
    RUN_PHASES,
    RUN_RANKS,
    RUN_VALUES,
    RUNS,
    SAMPLES,
    VERDICTS,
)

_NAMED = 3
_RUNS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Verified:
    """What was looked at, and what is wrong, one sentence each: none for a history in order."""

    runs: int
    values: int
    packed_phases: int
    faults: tuple[str, ...]


def verify(history: History) -> Verified:
    """Check everything. A fault is never an error, not even one that keeps a check from being made."""
    faults: list[str] = []
    counts = [0, 0, 0]

    def count(connection: Connection) -> Iterable[str]:
        for index, table in enumerate((RUNS, RUN_VALUES, SAMPLES)):
            counts[index] = connection.execute(select(func.count()).select_from(table)).scalar_one()
        return ()

    for check in (count, *_CHECKS):
        try:
            with history.read() as connection:
                faults.extend(check(connection))
        except HistoryError as error:
            if str(error) not in faults:
                faults.append(str(error))
    runs, values, packed_phases = counts
    return Verified(runs, values, packed_phases, tuple(faults))


def _pages(connection: Connection) -> Iterator[str]:
    """SQLite's own check of every page and index."""
    if connection.dialect.name == "sqlite":
        for (said,) in connection.exec_driver_sql("PRAGMA integrity_check(20)"):
            if said != "ok":
                yield f"the file is damaged: {said}"


def _references(connection: Connection) -> Iterator[str]:
    """Every foreign key, also where the database was told not to look."""
    for table in METADATA.sorted_tables:
        for key in table.foreign_keys:
            column, wanted = key.parent, key.column
            other = wanted.table.alias()
            lost = connection.execute(
                select(func.count())
                .select_from(table)
                .where(column.is_not(None), ~exists().where(other.c[wanted.name] == column))
            ).scalar_one()
            if lost:
                yield (
                    f"{_rows(lost)} of {table.name} refer by {column.name} to rows of {wanted.table.name} that are "
                    "not there"
                )


def _runs(connection: Connection) -> Iterator[str]:
    """What hangs on a run fits its outcome and its case."""
    ok = RUNS.c.outcome == "ok"
    of_run = RUN_PHASES.c.run == RUNS.c.id
    ranks = select(func.count()).where(RUN_RANKS.c.run == RUNS.c.id).scalar_subquery()
    ranks_told = (
        select(func.count())
        .where(RANK_VALUES.c.run == RUN_PHASES.c.run, RANK_VALUES.c.phase == RUN_PHASES.c.phase)
        .scalar_subquery()
    )
    judged = (
        exists()
        .where(RUN_VALUES.c.run == RUN_PHASES.c.run, METRICS.c.id == RUN_VALUES.c.metric)
        .where(METRICS.c.phase == RUN_PHASES.c.phase, METRICS.c.name == RUN_VALUE_METRIC)
    )
    runs = select(RUNS.c.run_id).join(CASES, CASES.c.id == RUNS.c.case_id)
    phases = runs.join(RUN_PHASES, of_run)
    largest = math.nextafter(math.inf, 0)
    questions: list[tuple[str, Select[Any]]] = [
        ("is ok but has no phase", runs.where(ok, ~exists().where(of_run))),
        ("is ok but does not have the ranks of its case", runs.where(ok, ranks != CASES.c.ranks)),
        (f"has a phase without {RUN_VALUE_METRIC}", phases.where(~judged)),
        ("has a phase without a value for each rank", phases.where(ranks_told != CASES.c.ranks)),
        ("has values but is not ok", runs.where(~ok, exists().where(RUN_VALUES.c.run == RUNS.c.id))),
        (
            "has no number and no failure that says why",
            runs.where(RUNS.c.outcome.not_in(("ok", "wrong")), ~exists().where(FAILURES.c.run == RUNS.c.id)),
        ),
        (
            "has a value that is no number",
            runs.join(RUN_VALUES, RUN_VALUES.c.run == RUNS.c.id).where(
                or_(RUN_VALUES.c.value > largest, RUN_VALUES.c.value < -largest)
            ),
        ),
        (
            "has samples of a phase that it does not have",
            runs.join(SAMPLES, SAMPLES.c.run == RUNS.c.id).where(
                ~exists().where(RUN_PHASES.c.run == SAMPLES.c.run, RUN_PHASES.c.phase == SAMPLES.c.phase)
            ),
        ),
    ]
    for what, question in questions:
        yield from _told("run", what, connection.execute(question.distinct().order_by(RUNS.c.run_id)).scalars())


def _nights(connection: Connection) -> Iterator[str]:
    """What was planned, what came of it and what was said of it fit each other."""
    strayed = (
        select(RUNS.c.run_id)
        .join(PLANNED, PLANNED.c.run_id == RUNS.c.run_id)
        .where(
            or_(
                RUNS.c.case_id != PLANNED.c.case_id,
                RUNS.c.repeat != PLANNED.c.repeat,
                RUNS.c.night_id != PLANNED.c.night_id,
                RUNS.c.night_id.is_(None),
            )
        )
    )
    said = exists().where(VERDICTS.c.night_id == NIGHTS.c.id)
    unfound = and_(
        VERDICTS.c.night_id == NIGHTS.c.id,
        VERDICTS.c.finding.is_not(None),
        ~exists().where(FINDINGS.c.night_id == VERDICTS.c.night_id, FINDINGS.c.number == VERDICTS.c.finding),
    )
    members = BASELINE_RUNS.c.baseline_id == BASELINES.c.id
    bad = exists().where(members, RUNS.c.id == BASELINE_RUNS.c.run, RUNS.c.outcome != "ok")
    questions: list[tuple[str, str, Select[Any]]] = [
        ("run", "is not the night, case and repeat that were planned under its id", strayed),
        ("night", "has verdicts but was never judged", select(NIGHTS.c.name).where(said, NIGHTS.c.judged_at.is_(None))),
        (
            "night",
            "has a verdict that belongs to a finding it does not have",
            select(NIGHTS.c.name).where(exists().where(unfound)),
        ),
        ("baseline", "holds no run", select(BASELINES.c.name).where(~exists().where(members))),
        ("baseline", "holds a run that is not ok", select(BASELINES.c.name).where(bad)),
    ]
    for kind, what, question in questions:
        yield from _told(kind, what, sorted(set(connection.execute(question).scalars())))


def _numbers(connection: Connection) -> Iterator[str]:
    """PostgreSQL will not give a new row a number that is taken."""
    if connection.dialect.name != "postgresql":
        return
    for table in METADATA.sorted_tables:
        if "id" not in table.c:
            continue
        newest = connection.execute(select(func.max(table.c.id))).scalar()
        sequence = connection.execute(text(f"SELECT pg_get_serial_sequence('{table.name}', 'id')")).scalar()
        if sequence is None:
            yield f"new rows of {table.name} get no number: the column id has no sequence"
        elif newest is not None:
            last, called = connection.execute(text(f"SELECT last_value, is_called FROM {sequence}")).one()
            if last < newest or (last == newest and not called):
                yield f"the next row of {table.name} would get a number that is taken: {sequence} stands at {last}"


def _samples(connection: Connection) -> Iterator[str]:
    """Every packed phase unpacks, has the shape of its run, and tells the statistics that are stored beside it."""
    faults: dict[str, list[str]] = defaultdict(list)
    last = 0
    while True:
        some = (
            connection.execute(
                select(SAMPLES.c.run)
                .where(SAMPLES.c.run > last)
                .distinct()
                .order_by(SAMPLES.c.run)
                .limit(_RUNS_AT_ONCE)
            )
            .scalars()
            .all()
        )
        if not some:
            break
        for run_id, phase, what in _faults_of_samples(connection, some):
            faults[what].append(f"{run_id} ({phase})")
        last = some[-1]
    for what, runs in faults.items():
        yield from _told("run", what, runs)


def _faults_of_samples(connection: Connection, runs: Sequence[int]) -> Iterator[tuple[str, str, str]]:
    """Run id, phase and fault of each packed phase of these runs that has one."""
    stored: dict[tuple[int, str], dict[str, float]] = defaultdict(dict)
    for run, phase, name, value in connection.execute(
        select(RUN_VALUES.c.run, METRICS.c.phase, METRICS.c.name, RUN_VALUES.c.value)
        .join(METRICS, METRICS.c.id == RUN_VALUES.c.metric)
        .where(RUN_VALUES.c.run.in_(runs))
    ):
        stored[run, phase][name] = value
    medians: dict[tuple[int, str], dict[int, float]] = defaultdict(dict)
    for run, phase, rank, value in connection.execute(select(RANK_VALUES).where(RANK_VALUES.c.run.in_(runs))):
        medians[run, phase][rank] = value
    for row in connection.execute(
        select(SAMPLES, RUNS.c.run_id, RUN_PHASES.c.iterations, RUN_PHASES.c.leading_dropped, CASES.c.ranks)
        .join(RUNS, RUNS.c.id == SAMPLES.c.run)
        .join(CASES, CASES.c.id == RUNS.c.case_id)
        .join(RUN_PHASES, and_(RUN_PHASES.c.run == SAMPLES.c.run, RUN_PHASES.c.phase == SAMPLES.c.phase))
        .where(SAMPLES.c.run.in_(runs))
        .order_by(SAMPLES.c.run, SAMPLES.c.phase)
    ):
        key = (row.run, row.phase)
        for what in _faults_of_phase(row, stored[key], medians[key]):
            yield row.run_id, row.phase, what


def _faults_of_phase(row: Any, stored: dict[str, float], medians: dict[int, float]) -> Iterator[str]:
    """row: packed, iterations, leading_dropped, ranks. stored: metric to value. medians: rank to its median in µs."""
    try:
        unpacked = samples.unpack(row.packed)
    except ValueError:
        yield "has samples that cannot be unpacked"
        return
    if len(unpacked) != row.ranks or any(len(of_rank) != row.iterations for of_rank in unpacked):
        yield "has samples of another shape than its ranks and iterations"
        return
    if not 0 <= row.leading_dropped < row.iterations:
        yield "leaves none of its samples for the statistics"
        return
    for name, told in told_by_samples(unpacked, row.leading_dropped).items():
        if name in stored and not fits(stored[name], told):
            yield f"has another {name} than its samples tell"
    for rank, of_rank in enumerate(unpacked):
        if rank in medians and not fits(medians[rank], statistics.median(of_rank[row.leading_dropped :])):
            yield "has another median of a rank than its samples tell"
            break


_CHECKS: tuple[Callable[[Connection], Iterable[str]], ...] = (_pages, _references, _runs, _samples, _nights, _numbers)


def _told(kind: str, what: str, names: Iterable[str]) -> Iterator[str]:
    """One sentence for all that have one fault: how many, and the first few by name."""
    found = list(names)
    if found:
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        yield f"{kind} {', '.join(found[:_NAMED])}{more} {what}"


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"
