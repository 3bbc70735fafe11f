"""The history: one object that guards one database.

`History.open` is how every command, test and notebook gets at it; `read` and `write` are its two kinds of transaction
and the only place where a database error becomes a sentence. Next to read: `regress_db.schema` (what is kept),
`regress_db.ingest` (how it gets there), `regress_db.queries` (what one can ask).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import QueuePool

from regress_db import migrate
from regress_db.errors import HistoryError, NotFoundError
from regress_db.migrate import PACKAGED, Revisions

BUSY_TIMEOUT_S = 60.0
_WRITE = "epwatch_write"


class History:
    """An open history. Use it as a context manager, or call `close`. Safe to use from several threads."""

    def __init__(self, engine: Engine, where: str) -> None:
        """For `open` alone; `where` is the path or URL, without password, for messages."""
        self._engine = engine
        self.where = where

    @classmethod
    def open(cls, where: str | Path, *, create: bool = True, revisions: Revisions = PACKAGED) -> Self:
        """The history at a path, or behind an SQLAlchemy URL.

        create: make it (and its folder) where there is none, and migrate an older one after backing it up; without, a
        missing one is a `NotFoundError`. Raises `HistoryError`, with nothing changed, for a file that is not a
        history, is damaged, or was made by a newer epwatch.
        """
        text = str(where)
        if "://" not in text:
            return cls._open_file(Path(text), create, revisions)
        try:
            url = make_url(text)
            if url.get_backend_name() == "sqlite":
                if not url.database or url.database == ":memory:":
                    raise HistoryError("a history in memory would be lost at once: name a file")
                return cls._open_file(Path(url.database), create, revisions)
            history = cls(create_engine(url), url.render_as_string(hide_password=True))
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
            raise HistoryError(f"{text!r} is no place for a history: {error}") from None
        history._bring_up_to_date(create, None, revisions)
        return history

    @classmethod
    def _open_file(cls, path: Path, create: bool, revisions: Revisions) -> Self:
        path = path.expanduser()
        if path.is_dir():
            raise HistoryError(f"the history {path} is a folder: name a file in it, such as {path / 'history.db'}")
        exists = path.exists()
        if not exists and not create:
            raise NotFoundError(
                f"there is no history at {path}: run `epwatch run` or `epwatch nightly` first, or name it with --db"
            )
        mode = "rw"
        if exists:
            mode = _mode(path)
            version = migrate.file_version(path, "immutable" if mode == "immutable" else "ro")
        else:
            version = None
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise HistoryError(f"cannot make the folder {path.parent}: {error.strerror or error}") from error
        history = cls(_sqlite_engine(path, mode), str(path))
        if not migrate.is_current(version, str(path), revisions):
            if mode == "immutable":
                raise HistoryError(f"the history {path} has to be migrated, but its folder cannot be written to")
            if version is None:
                migrate.use_wal(path)
            migrate.upgrade(history.write, str(path), path, revisions)
        return history

    def _bring_up_to_date(self, create: bool, path: Path | None, revisions: Revisions) -> None:
        with self.read() as connection:
            version = migrate.server_version(connection)
        if version is None and not create:
            raise NotFoundError(f"there is no history at {self.where}")
        if not migrate.is_current(version, self.where, revisions):
            migrate.upgrade(self.write, self.where, path, revisions)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the history throughout. Database errors become `HistoryError`."""
        with _sentences(self.where), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that writes: waits for other writers, commits at the end, and on any error keeps nothing."""
        with (
            _sentences(self.where),
            self._engine.connect().execution_options(**{_WRITE: True}) as connection,
            connection.begin(),
        ):
            yield connection

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _mode(path: Path) -> str:
    """`immutable` for a file in a folder that nobody here can write to and that has no log beside it, else `rw`."""
    log = path.with_name(path.name + "-wal")
    if os.access(path.parent, os.W_OK) or (log.exists() and log.stat().st_size):
        return "rw"
    return "immutable"


def _sqlite_engine(path: Path, mode: str) -> Engine:
    """An engine on one file.

    synchronous=FULL: a record's file leaves the spool once its transaction is committed, so that commit must outlive
    a power cut; NORMAL in WAL mode does not promise that. Transactions are begun here and not by the driver, so that a
    writer takes its lock at the start (waiting, not failing, when another has it) and DDL is transactional.
    """

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            migrate.sqlite_uri(path, mode), uri=True, timeout=BUSY_TIMEOUT_S, check_same_thread=False
        )
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes: Any = connection.get_execution_options().get(_WRITE)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


@contextmanager
def _sentences(where: str) -> Iterator[None]:
    """Turn what the database reports into one sentence."""
    try:
        yield
    except DBAPIError as error:
        raise HistoryError(f"the history {where}: {_explain(str(error.orig))}") from error
    except sqlite3.Error as error:
        raise HistoryError(f"the history {where}: {_explain(str(error))}") from error


def _explain(reason: str) -> str:
    lowered = reason.lower()
    if "disk is full" in lowered or "disk i/o error" in lowered:
        return f"cannot be written ({reason}): no space is left, or the disk fails. Nothing of this step was kept"
    if "readonly" in lowered or "unable to open" in lowered:
        return f"cannot be written ({reason}): the file or its folder is read-only"
    if "locked" in lowered:
        return f"another process has been writing for {BUSY_TIMEOUT_S:.0f} s ({reason}): try again"
    if "malformed" in lowered or "not a database" in lowered:
        return f"is damaged ({reason}): put a backup in its place, or name another with --db"
    return reason
