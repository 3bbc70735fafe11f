"""The two kinds of database a history can be in, and their errors in words.

`file_engine` is an SQLite file, `server_engine` a PostgreSQL database. Both give the same promises: a transaction
begun with the execution option `WRITES` has the history to itself as far as writing goes, from its first statement
(it waits for others, up to `BUSY_TIMEOUT_S`); one without sees one state throughout; DDL is part of a transaction; and
what is committed outlives a power cut. Called by `regress_db.history`; next to read: `regress_db.migrate`.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.pool import QueuePool

from regress_db import migrate
from regress_db.backup import sqlite_uri
from regress_db.errors import HistoryError, UnreachableError

BUSY_TIMEOUT_S = 60.0
WRITES = "epwatch_writes"

_CONNECT_TIMEOUT_S = 15
_CACHE_KIB = 16_384
"""Pages of a file kept by a connection: a series of 1,000 runs lies on 2,000 of them, twice what SQLite keeps."""
_READERS_CACHE_KIB = 65_536
"""The same for who only reads, as a server does: series lie side by side, so that the next one finds its pages here."""

_WRITERS_LOCK = migrate.APPLICATION_ID
_BEGIN_WRITING = (
    f"SET LOCAL lock_timeout = '{BUSY_TIMEOUT_S:.0f}s'; SET LOCAL synchronous_commit = on; "
    f"SELECT pg_advisory_xact_lock({_WRITERS_LOCK})"
)
_BEGIN_READING = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"


def file_engine(path: Path, mode: str, read_only: bool = False) -> Engine:
    """An engine on one SQLite file; `mode` as for `backup.sqlite_uri`. read_only: no statement can change it.

    synchronous=FULL: a record's file leaves the spool once its transaction is committed, so that commit must outlive
    a power cut; NORMAL in WAL mode does not promise that. Transactions are begun here and not by the driver, so that a
    writer takes its lock at the start (waiting, not failing, when another has it) and DDL is transactional.
    """

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(sqlite_uri(path, mode), uri=True, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA cache_size=-{_READERS_CACHE_KIB if read_only else _CACHE_KIB}")
        connection.execute(f"PRAGMA query_only={'ON' if read_only else 'OFF'}")
        return connection

    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool)
    _begin_with(engine, "BEGIN IMMEDIATE", "BEGIN")
    return engine


def server_engine(text: str) -> tuple[Engine, str]:
    """An engine on the PostgreSQL database that the URL `text` names, and the URL as messages show it.

    Any `postgres...://` URL is served by psycopg. Writers take an advisory lock of the database: the lock is asked for
    at READ COMMITTED, where each statement sees what was committed before it, so that whoever waited sees what it
    waited for. Raises `HistoryError` for a URL that is none, another database, or where psycopg is not installed.
    """
    shown = without_password(text)
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        reason = without_password(str(error))
        raise HistoryError(f"{shown!r} is no place for a history: {reason}") from None
    if url.get_backend_name() not in {"postgresql", "postgres"}:
        raise HistoryError(
            f"{shown!r} is no place for a history: name an SQLite file by its path, or write postgresql://..."
        )
    if "@" in (url.host or ""):
        raise HistoryError(f"{shown!r} is no place for a history: write %40 for each @ in the password")
    defaults = {"connect_timeout": _CONNECT_TIMEOUT_S, "application_name": "epwatch"}
    try:
        engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args={name: value for name, value in defaults.items() if name not in url.query},
            pool_pre_ping=True,
        )
    except ModuleNotFoundError:
        raise HistoryError(
            f"the history {shown} is in PostgreSQL, which takes a driver: pip install 'epwatch[postgresql]'"
        ) from None
    _begin_with(engine, _BEGIN_WRITING, _BEGIN_READING)
    return engine, shown


def _begin_with(engine: Engine, to_write: str, to_read: str) -> None:
    """Every transaction of the engine starts with one of these statements."""

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes: Any = connection.get_execution_options().get(WRITES)
        connection.exec_driver_sql(to_write if writes else to_read)


def without_password(text: str) -> str:
    """The text with the password of every URL in it, and every `password=`, replaced by stars."""
    text = re.sub(r"(://[^/?#\s:@]*):[^\s]*@", r"\1:***@", text)
    return re.sub(r"(?i)(password=)[^&\s]+", r"\1***", text)


@contextmanager
def sentences(where: str) -> Iterator[None]:
    """Turn what the database reports into a `HistoryError` of one sentence about the history at `where`."""
    try:
        yield
    except DBAPIError as error:
        unreached = isinstance(error, OperationalError) and getattr(error.orig, "sqlstate", None) is None
        state = getattr(error.orig, "sqlstate", None) or ""
        kind = UnreachableError if unreached or state[:2] == "08" else HistoryError
        raise kind(f"the history {where}: {_explain(error.orig, unreached)}") from error
    except sqlite3.Error as error:
        raise HistoryError(f"the history {where}: {_explain(error)}") from error


def _explain(error: BaseException | None, unreached: bool = False) -> str:
    """What a driver's error means for the history, and what to do: one line, the driver's own words in brackets.

    unreached: no session with the server came about.
    """
    reason = without_password(" ".join(str(error).split()))
    if isinstance(error, sqlite3.Error):
        meaning = _of_file(reason.lower())
    else:
        meaning = _UNREACHED if unreached else _of_server(getattr(error, "sqlstate", None) or "")
    return meaning.format(reason=reason) if meaning else reason


_UNREACHED = "cannot be reached ({reason}): see that the server runs, and that host, database and user are right"
_FULL = "cannot be written ({reason}): no space is left, or the disk fails. Nothing of this step was kept"
_BUSY = f"another process has been writing for {BUSY_TIMEOUT_S:.0f} s ({{reason}}): try again"


def _of_file(reason: str) -> str:
    if "disk is full" in reason or "disk i/o error" in reason:
        return _FULL
    if "readonly" in reason or "unable to open" in reason:
        return "cannot be written ({reason}): the file or its folder is read-only"
    if "locked" in reason:
        return _BUSY
    if "malformed" in reason or "not a database" in reason:
        return "is damaged ({reason}): put a backup in its place, or name another with --db"
    return ""


def _of_server(state: str) -> str:
    """By PostgreSQL's error codes: its manual, appendix A."""
    if state[:2] == "08":
        return _UNREACHED
    if state == "53100":
        return _FULL
    if state == "55P03":
        return _BUSY
    if state in {"42501", "25006"}:
        return "cannot be written ({reason}): this user, or this server, may only read it"
    if state[:3] == "57P":
        return "the server ended the session ({reason}): nothing of this step was kept; try again when it runs"
    if state[:2] == "XX":
        return "is damaged ({reason}): put a backup in its place, or name another with --db"
    return ""
