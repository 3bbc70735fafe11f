"""From the spool into the history: idempotent by run id, safe from many processes at once, losing nothing.

A record's file leaves the spool only after the transaction that holds it is committed; whoever is killed in between
leaves a file that the next collection finds to be known already. What cannot be accepted goes to `quarantine/` with a
`.reason` file beside it. Called by the command line and by `jobs`; next to read: `regress_db.acceptance`.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Executable, Table, insert, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DataError, IntegrityError

from harness import record as records
from harness.case import Case
from harness.errors import RecordError
from harness.record import Record
from regress_db import rows
from regress_db.acceptance import reason_to_refuse
from regress_db.errors import HistoryError
from regress_db.history import History
from regress_db.schema import CASES, METRICS, RUNS

QUARANTINE = "quarantine"
_BATCH = 200
"""Records in one transaction: few enough that others who write wait for a moment only."""
_KEYS_AT_ONCE = 1000
"""Values in one statement, of which databases allow a limited number."""


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
    return hashlib.sha256(records.canonical(record)).hexdigest()


def case_ids(connection: Connection, cases: Iterable[Case]) -> dict[str, int]:
    """Case key to the number of each of the cases, which are added where new; a few statements for all of them."""
    wanted: dict[tuple[str, ...], rows.Row] = {(case.key,): {"key": case.key, **rows.fields(case)} for case in cases}
    return {key: number for (key,), number in _numbers(connection, CASES, wanted).items()}


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


def insert_new(connection: Connection, table: Table, new: Sequence[Mapping[str, Any]]) -> None:
    """Insert the rows that no unique column forbids."""
    if not new:
        return
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql

        statement: Executable = postgresql.insert(table).on_conflict_do_nothing()
    else:
        statement = sqlite.insert(table).on_conflict_do_nothing()
    connection.execute(statement, new)


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


@dataclass(frozen=True, slots=True)
class _Taken:
    """What became of records within one transaction."""

    accepted: list[_Read] = field(default_factory=list)
    already: list[_Read] = field(default_factory=list)
    refused: list[tuple[_Read, str]] = field(default_factory=list)


def _ingest(history: History, spool: Path, readable: Sequence[_Read], done: Collected) -> None:
    """One transaction for all of `readable`; files are moved once it is committed."""
    if not readable:
        return
    taken = _Taken()
    with history.write() as connection:
        _take(connection, readable, taken)
    for group, ids in ((taken.accepted, done.accepted), (taken.already, done.already)):
        for one in group:
            _move(one.file, spool / records.INGESTED)
            ids.append(one.record.run_id)
    for one, reason in taken.refused:
        _refuse(spool, one.file, reason, done)


def _take(connection: Connection, readable: Sequence[_Read], taken: _Taken) -> None:
    """Sort out which records are new, and insert those; a second file of a run waits until the first is done."""
    ids = [one.record.run_id for one in readable]
    there = connection.execute(select(RUNS.c.run_id, RUNS.c.digest).where(RUNS.c.run_id.in_(ids)))
    known: dict[str, str] = dict(there.all())
    new: dict[str, _Read] = {}
    later: list[_Read] = []
    for one in readable:
        run_id = one.record.run_id
        if known.get(run_id) == one.digest:
            taken.already.append(one)
        elif run_id in known:
            taken.refused.append((one, f"run {run_id} is in the history already, with other content"))
        elif run_id in new:
            later.append(one)
        else:
            new[run_id] = one
    _insert_or_split(connection, list(new.values()), taken)
    if later:
        _take(connection, later, taken)


def _insert_or_split(connection: Connection, new: Sequence[_Read], taken: _Taken) -> None:
    """Insert all; where the database refuses, half by half, until the one that it refuses stands alone."""
    if not new:
        return
    try:
        with connection.begin_nested():
            _insert(connection, new)
    except (DataError, IntegrityError) as error:
        if len(new) == 1:
            reason = " ".join(str(error.orig).split())
            taken.refused.append((new[0], f"the database does not take it: {reason}"))
            return
        half = len(new) // 2
        _insert_or_split(connection, new[:half], taken)
        _insert_or_split(connection, new[half:], taken)
    else:
        taken.accepted.extend(new)


def _insert(connection: Connection, new: Sequence[_Read]) -> None:
    """Every row of the records, table by table: a statement for each table, however many records there are."""
    numbers = _shared_numbers(connection, [one.record for one in new])
    connection.execute(insert(RUNS), [rows.run_row(one.record, one.digest, numbers) for one in new])
    ids = [one.record.run_id for one in new]
    numbered = connection.execute(select(RUNS.c.run_id, RUNS.c.id).where(RUNS.c.run_id.in_(ids)))
    number_of: dict[str, int] = dict(numbered.all())
    hanging: dict[Table, list[rows.Row]] = defaultdict(list)
    for one in new:
        for table, of_record in rows.hanging_rows(one.record, number_of[one.record.run_id], numbers):
            hanging[table] += of_record
    for table, of_all in hanging.items():
        if of_all:
            connection.execute(insert(table), of_all)


def _shared_numbers(connection: Connection, ingested: Iterable[Record]) -> rows.Numbers:
    """The numbers of all rows that the records share, which are added where new."""
    wanted: dict[Table, dict[tuple[str, ...], rows.Row]] = defaultdict(dict)
    for record in ingested:
        for table, row in rows.shared_rows(record):
            wanted[table][tuple(row[name] for name in rows.SHARED[table])] = row
    return {table: _numbers(connection, table, of_table) for table, of_table in wanted.items()}


def _numbers(
    connection: Connection, table: Table, wanted: Mapping[tuple[str, ...], rows.Row]
) -> dict[tuple[str, ...], int]:
    """The numbers of rows of a shared table, which are added where new; by the values of their unique columns."""
    found = _find(connection, table, wanted)
    new = [row for key, row in wanted.items() if key not in found]
    if new:
        insert_new(connection, table, new)
        found = _find(connection, table, wanted)
    return found


def _find(connection: Connection, table: Table, keys: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], int]:
    """The numbers of those rows of a shared table that are there. The table of metrics is small: all of it is read."""
    unique = [table.c[name] for name in rows.SHARED[table]]
    wanted = select(*unique, table.c.id)
    if table is METRICS:
        return {tuple(row[:-1]): row[-1] for row in connection.execute(wanted)}
    found = {}
    heads = [key[0] for key in keys]
    for start in range(0, len(heads), _KEYS_AT_ONCE):
        some = wanted.where(unique[0].in_(heads[start : start + _KEYS_AT_ONCE]))
        found.update({tuple(row[:-1]): row[-1] for row in connection.execute(some)})
    return found


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
