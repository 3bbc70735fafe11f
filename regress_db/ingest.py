"""From the spool into the history: idempotent by run id, safe from many processes at once, losing nothing.

A record's file leaves the spool only after the transaction that holds it is committed; whoever is killed in between
leaves a file that the next collection finds to be known already. What cannot be accepted goes to `quarantine/` with a
`.reason` file beside it. Called by the command line and by `jobs`; next to read: `regress_db.acceptance`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, Executable, Table, insert, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DataError, IntegrityError

from harness import record as records
from harness.case import Case
from harness.errors import RecordError
from harness.record import Record
from regress_db import samples
from regress_db.acceptance import parse_time, reason_to_refuse
from regress_db.errors import HistoryError
from regress_db.history import History
from regress_db.metrics import metrics_of
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

INGESTED = "ingested"
QUARANTINE = "quarantine"
_BATCH = 100


@dataclass(frozen=True, slots=True)
class Collected:
    """What one collection did. accepted: run ids now in the history; already: run ids that were there;
    quarantined: file as it lay in the spool, and why it was refused.
    """

    accepted: list[str]
    already: list[str]
    quarantined: list[tuple[Path, str]]


@dataclass(frozen=True, slots=True)
class _Read:
    file: Path
    record: Record
    digest: str


def collect(history: History, spool: Path) -> Collected:
    """Bring every record of the spool into the history.

    Files with a leading dot are someone's unfinished writing and are left alone. A spool that does not exist is empty.
    Raises `HistoryError` when the history or the spool cannot be written; what was not committed is still in the spool.
    """
    done = Collected([], [], [])
    try:
        files = sorted(file for file in spool.glob("*.json") if not file.name.startswith(".") and file.is_file())
    except OSError as error:
        raise HistoryError(f"cannot read the spool {spool}: {error.strerror or error}") from error
    for start in range(0, len(files), _BATCH):
        readable: list[_Read] = []
        for file in files[start : start + _BATCH]:
            try:
                found = _read(file)
            except RecordError as error:
                _refuse(spool, file, str(error), done)
            else:
                if found is not None:
                    readable.append(found)
        _ingest(history, spool, readable, done)
    return done


def digest_of(record: Record) -> str:
    """SHA-256 hex of the record's canonical JSON: equal content has equal digests, however it was laid out."""
    return hashlib.sha256(msgspec.json.encode(record, order="deterministic")).hexdigest()


def case_id(connection: Connection, case: Case) -> int:
    """The number of the case, which is added where new."""
    return shared_id(connection, CASES, {"key": case.key}, _fields(case))


def _fields(struct: msgspec.Struct) -> dict[str, Any]:
    """The struct's own fields, as they are."""
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def shared_id(
    connection: Connection, table: Table, unique: Mapping[str, Any], rest: Mapping[str, Any] | None = None
) -> int:
    """The `id` of the row of `table` whose columns are `unique`; added, with the columns of `rest`, where new."""
    columns = table.c
    wanted = select(columns.id).where(*(columns[name] == value for name, value in unique.items()))
    found = connection.execute(wanted).scalar_one_or_none()
    if found is None:
        insert_new(connection, table, [{**unique, **(rest or {})}])
        found = connection.execute(wanted).scalar_one()
    return int(found)


class _Known:
    """The numbers of shared rows that a transaction has met, so that each is asked for once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._numbers: dict[tuple[object, ...], int] = {}

    def number(self, table: Table, unique: Mapping[str, Any], rest: Mapping[str, Any] | None = None) -> int:
        """See `shared_id`."""
        key = (table, *unique.values())
        if key not in self._numbers:
            self._numbers[key] = shared_id(self._connection, table, unique, rest)
        return self._numbers[key]

    def forget(self) -> None:
        """After a savepoint was undone: rows that it had added are gone."""
        self._numbers.clear()


def insert_new(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert the rows that no unique column forbids; returns how many went in."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql

        statement: Executable = postgresql.insert(table).on_conflict_do_nothing()
    else:
        statement = sqlite.insert(table).on_conflict_do_nothing()
    return sum(connection.execute(statement, row).rowcount for row in rows)


def _read(file: Path) -> _Read | None:
    """The record in the file, None when another collector has taken it meanwhile."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecordError(f"cannot be read: {error.strerror or error}") from error
    record = records.decode(data)
    reason = reason_to_refuse(record)
    if reason is not None:
        raise RecordError(f"the record contradicts itself: {reason}")
    return _Read(file, record, digest_of(record))


def _ingest(history: History, spool: Path, readable: Sequence[_Read], done: Collected) -> None:
    """One transaction for all of `readable`; files are moved once it is committed."""
    if not readable:
        return
    accepted: list[_Read] = []
    already: list[_Read] = []
    refused: list[tuple[_Read, str]] = []
    with history.write() as connection:
        known_rows = _Known(connection)
        for one in readable:
            known = connection.execute(select(RUNS.c.digest).where(RUNS.c.run_id == one.record.run_id)).scalar()
            if known == one.digest:
                already.append(one)
            elif known is not None:
                refused.append((one, f"run {one.record.run_id} is in the history already, with other content"))
            else:
                try:
                    with connection.begin_nested():
                        _insert(connection, known_rows, one.record, one.digest)
                except (DataError, IntegrityError) as error:
                    known_rows.forget()
                    refused.append((one, f"the database does not take it: {error.orig}"))
                else:
                    accepted.append(one)
    for group, ids in ((accepted, done.accepted), (already, done.already)):
        for one in group:
            _move(one.file, spool / INGESTED)
            ids.append(one.record.run_id)
    for one, reason in refused:
        _refuse(spool, one.file, reason, done)


def _insert(connection: Connection, known: _Known, record: Record, digest: str) -> None:
    environment = msgspec.to_builtins(record.environment)
    commit = record.environment.code.get("commit", "")
    run: int = connection.execute(
        insert(RUNS).returning(RUNS.c.id),
        {
            "run_id": record.run_id,
            "case_id": known.number(CASES, {"key": record.case.key}, _fields(record.case)),
            "platform_id": known.number(PLATFORMS, {"key": record.platform.key}, _fields(record.platform)),
            "environment_id": known.number(
                ENVIRONMENTS,
                {"digest": record.environment.digest},
                {"commit": commit, "content": environment},
            ),
            "night_id": known.number(NIGHTS, {"name": record.night}, {"plan": ""}) if record.night else None,
            "repeat": record.repeat,
            "started_at": parse_time(record.started_at),
            "ended_at": parse_time(record.ended_at),
            "outcome": record.outcome,
            "warmup": record.warmup,
            "iters": record.iters,
            "conditions": record.conditions,
            "notes": record.notes,
            "digest": digest,
        },
    ).scalar_one()
    for table, rows in _rows_of(known, record, run):
        if rows:
            connection.execute(insert(table), rows)


def _rows_of(known: _Known, record: Record, run: int) -> Iterator[tuple[Table, list[dict[str, Any]]]]:
    """Everything that hangs on the run, table by table."""
    if record.failure is not None:
        yield FAILURES, [{"run": run, **msgspec.structs.asdict(record.failure)}]
    yield (
        CHECKS,
        [
            {"run": run, "position": position, "moment": check.when, "passed": check.passed}
            | {"rows": check.rows, "detail": check.detail}
            for position, check in enumerate(record.checks)
        ],
    )
    ranks: list[dict[str, Any]] = []
    for node in record.nodes:
        node_id = known.number(NODES, {"hostname": node.hostname})
        ranks += [{"run": run, "rank": rank, "node_id": node_id} for rank in node.ranks]
    yield RUN_RANKS, ranks
    for result in record.phases:
        of_phase = {"run": run, "phase": result.phase}
        yield (
            RUN_PHASES,
            [
                {
                    **of_phase,
                    "iterations": len(result.samples_us[0]),
                    "leading_dropped": result.leading_dropped,
                    "slowest_rank": result.stats.slowest_rank,
                    "headline": result.traffic.headline,
                }
            ],
        )
        yield (
            RUN_VALUES,
            [
                {
                    "run": run,
                    "metric": known.number(METRICS, {"phase": result.phase, "name": name}),
                    "value": value,
                }
                for name, value in metrics_of(result).items()
            ],
        )
        yield (
            RANK_VALUES,
            [{**of_phase, "rank": rank, "p50_us": value} for rank, value in enumerate(result.stats.rank_p50_us)],
        )
        yield SAMPLES, [{**of_phase, "packed": samples.pack(result.samples_us)}]


def _move(file: Path, folder: Path) -> bool:
    """Move a file of the spool into `folder`; False when another collector had done it."""
    try:
        folder.mkdir(exist_ok=True)
        file.replace(folder / file.name)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise HistoryError(
            f"cannot move {file} to {folder}: {error.strerror or error}. The history is in order; "
            "make room or the folder writable, and collect again"
        ) from error
    return True


def _refuse(spool: Path, file: Path, reason: str, done: Collected) -> None:
    """Put a file into quarantine, the reason beside it first, never over one that is there."""
    folder = spool / QUARANTINE
    try:
        folder.mkdir(exist_ok=True)
        target = folder / file.name
        count = 1
        while target.exists():
            count += 1
            target = folder / f"{file.stem}.{count}{file.suffix}"
        note = target.with_name(f"{target.name}.reason")
        note.write_text(f"{reason}\n", encoding="utf-8")
        try:
            file.replace(target)
        except FileNotFoundError:
            if not target.exists():
                note.unlink(missing_ok=True)
            return
    except OSError as error:
        raise HistoryError(
            f"{file} cannot be ingested ({reason}), nor put into quarantine ({error.strerror or error})"
        ) from error
    done.quarantined.append((file, reason))
