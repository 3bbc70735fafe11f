"""Looking after a history: moving it between databases, dropping old samples, backing it up.

Called by `epwatch history`; each function here is one of its commands. Next to read: `regress_db.upkeep_verify`, which
checks one, and `regress_db.backup`, which copies files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, Table, delete, func, insert, select, text

from regress_db.backup import back_up_file, mode_of, new_file
from regress_db.engines import without_password
from regress_db.errors import HistoryError
from regress_db.history import History, file_of, no_history_at
from regress_db.migrate import file_version
from regress_db.schema import METADATA, RUNS, SAMPLES

_ROWS_AT_ONCE = 5_000
_RUNS_AT_ONCE = 500
"""Runs whose samples go in one transaction: few enough that others who write wait for a moment only."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy holds. rows: table to number of rows; digest: hex, the same for equal histories in any database."""

    rows: Mapping[str, int]
    digest: str


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was dropped, or would be: the samples of how many runs, in how many packed phases of how many bytes."""

    runs: int
    phases: int
    packed_bytes: int


def copy(source: History, target: str) -> Copied:
    """Copy the whole history into the place `target` (a path or URL), which must be new or an empty history.

    One moment of `source`, with every row's number; what was copied is read back and compared before it is committed.
    All or nothing: on any error a new file is not there, and a history that was empty is empty. Raises `HistoryError`
    where `target` holds anything, or what is read back differs.
    """
    path = file_of(target)
    if path is None or path.exists():
        with History.open(target) as opened:
            return _copy_into(source, opened)
    with new_file(path) as partial, History.open(partial) as opened:
        return _copy_into(source, opened)


def _copy_into(source: History, target: History) -> Copied:
    with source.read() as reading, target.write() as writing:
        for table in METADATA.sorted_tables:
            if writing.execute(select(table).limit(1)).first() is not None:
                raise HistoryError(
                    f"{target.where} is not empty: it has rows in {table.name}, and stays as it is. "
                    "Name a new file or an empty database"
                )
        rows: dict[str, int] = {}
        digests: dict[str, str] = {}
        for table in METADATA.sorted_tables:
            summed = _Sum()
            for piece in _pieces(reading, table):
                summed.add(piece)
                writing.execute(insert(table), [dict(zip(table.c.keys(), row, strict=True)) for row in piece])
            arrived = _Sum()
            for piece in _pieces(writing, table):
                arrived.add(piece)
            if (arrived.rows, arrived.digest) != (summed.rows, summed.digest):
                raise HistoryError(
                    f"{target.where}: the {arrived.rows} rows of {table.name} read back are not the {summed.rows} that "
                    f"were written; nothing was kept. `epwatch history verify` checks {source.where}"
                )
            rows[table.name], digests[table.name] = summed.rows, summed.digest
        _set_sequences(writing)
    return Copied(rows, hashlib.sha256(msgspec.json.encode(digests, order="deterministic")).hexdigest())


class _Sum:
    """Rows counted, and summed up to a digest that does not depend on their order: databases sort texts differently."""

    def __init__(self) -> None:
        self.rows = 0
        self._sum = 0

    def add(self, piece: Sequence[Sequence[Any]]) -> None:
        """Count and sum these rows."""
        self.rows += len(piece)
        for row in piece:
            canonical = msgspec.msgpack.encode(tuple(row), order="deterministic")
            self._sum += int.from_bytes(hashlib.blake2b(canonical, digest_size=32).digest())

    @property
    def digest(self) -> str:
        """Hex of the sum of the rows' digests."""
        return f"{self._sum % 2**256:064x}"


def _pieces(connection: Connection, table: Table) -> Iterator[Sequence[Sequence[Any]]]:
    """All rows in the order of their numbers, a few thousand at a time."""
    statement = select(table).order_by(next(iter(table.primary_key)))
    result = connection.execute(statement, execution_options={"yield_per": _ROWS_AT_ONCE})
    yield from result.partitions()


def _set_sequences(connection: Connection) -> None:
    """Let PostgreSQL number new rows after those that came with their numbers; SQLite does so by itself."""
    if connection.dialect.name != "postgresql":
        return
    for table in METADATA.sorted_tables:
        if "id" in table.c:
            connection.execute(
                text(f"SELECT setval(pg_get_serial_sequence('{table.name}', 'id'), max(id)) FROM {table.name}")
            )


def prune(history: History, before: datetime, *, dry_run: bool = False) -> Pruned:
    """Drop the samples of every run that started before the aware time `before`; values and verdicts all stay.

    dry_run: only say what would go. Others may read and write meanwhile; an interrupted one goes on when run again.
    Raises `HistoryError` for a history that cannot be written.
    """
    old = select(SAMPLES.c.run).join(RUNS, RUNS.c.id == SAMPLES.c.run).where(RUNS.c.started_at < before).distinct()
    if dry_run:
        with history.read() as connection:
            return _sizes(connection, old.scalar_subquery())
    runs = phases = packed_bytes = 0
    while True:
        with history.write() as connection:
            some = connection.execute(old.order_by(SAMPLES.c.run).limit(_RUNS_AT_ONCE)).scalars().all()
            dropped = _sizes(connection, some)
            connection.execute(delete(SAMPLES).where(SAMPLES.c.run.in_(some)))
        runs, phases, packed_bytes = runs + dropped.runs, phases + dropped.phases, packed_bytes + dropped.packed_bytes
        if len(some) < _RUNS_AT_ONCE:
            return Pruned(runs, phases, packed_bytes)


def _sizes(connection: Connection, runs: Any) -> Pruned:
    """How much the samples of these runs are."""
    found = connection.execute(
        select(
            func.count(SAMPLES.c.run.distinct()),
            func.count(),
            func.coalesce(func.sum(func.length(SAMPLES.c.packed)), 0),
        ).where(SAMPLES.c.run.in_(runs))
    ).one()
    return Pruned(*(int(number) for number in found))


def back_up(where: str, target: Path) -> int:
    """Copy the history at `where`, as it is at one moment, to the new SQLite file `target`; returns its size in bytes.

    Of any schema, and others may read and write meanwhile. Raises `HistoryError` for a history on a server, whose own
    tools do that, for what is not a history, and like `regress_db.backup.back_up_file`.
    """
    path = file_of(where)
    if path is None:
        raise HistoryError(
            f"the history {without_password(where)} is on a server: back it up with pg_dump, or make a file of it with "
            "`epwatch history copy`"
        )
    if not path.exists():
        raise no_history_at(path)
    if file_version(path, "immutable" if mode_of(path) == "immutable" else "ro") is None:
        raise HistoryError(f"{path} is empty: there is nothing to back up")
    back_up_file(path, target)
    return target.stat().st_size
