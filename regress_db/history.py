"""The history: one object that guards one database.

`History.open` is how every command, test and notebook gets at it; `read` and `write` are its two kinds of transaction
and where a database error becomes a sentence. Next to read: `regress_db.schema` (what is kept),
`regress_db.ingest` (how it gets there), `regress_db.queries` (what one can ask), `regress_db.engines` (the databases).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import Connection, Engine

from regress_db import engines, migrate
from regress_db.asking import Asking
from regress_db.backup import mode_of
from regress_db.errors import HistoryError, NotFoundError
from regress_db.migrate import PACKAGED, Revisions

_FILE_URL = "sqlite:///"


class History(Asking):
    """An open history. Use it as a context manager, or call `close`. Safe to use from several threads."""

    def __init__(self, engine: Engine, where: str, path: Path | None, read_only: bool = False) -> None:
        """For `open` alone. where: the path or URL, without password, for messages. path: None for a server."""
        self._engine = engine
        self._read_only = read_only
        self.where = where
        self.path = path

    @classmethod
    def open(
        cls,
        where: str | Path,
        *,
        create: bool = True,
        migrate_older: bool = True,
        read_only: bool = False,
        revisions: Revisions = PACKAGED,
    ) -> Self:
        """The history at a path, or in the PostgreSQL database that a URL names.

        create: make it (and its folder) where there is none; without, a missing one is a `NotFoundError`.
        migrate_older: bring one of an older schema up to date, a file after backing it up; without, it is refused.
        read_only: refuse to write, make and migrate, whatever the two above say; the database holds to it as well.
        Raises `HistoryError`, with nothing changed, for what is not a history, is damaged, or was made by a newer
        epwatch.
        """
        path = file_of(where)
        create, migrate_older = create and not read_only, migrate_older and not read_only
        if path is None:
            return cls._open_server(str(where), create, migrate_older, read_only, revisions)
        return cls._open_file(path, create, migrate_older, read_only, revisions)

    @classmethod
    def _open_file(cls, path: Path, create: bool, migrate_older: bool, read_only: bool, revisions: Revisions) -> Self:
        if path.is_dir():
            raise HistoryError(f"the history {path} is a folder: name a file in it, such as {path / 'history.db'}")
        exists = path.exists()
        if not exists and not create:
            raise no_history_at(path)
        mode = "rw"
        if exists:
            mode = mode_of(path)
            version = migrate.file_version(path, "immutable" if mode == "immutable" else "ro")
        else:
            version = None
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise HistoryError(f"cannot make the folder {path.parent}: {error.strerror or error}") from error
        history = cls(engines.file_engine(path, mode, read_only), str(path), path, read_only)
        if not migrate.is_current(version, str(path), revisions):
            migrate.refuse_older(version, str(path), revisions, migrate_older)
            if mode == "immutable":
                raise HistoryError(f"the history {path} has to be migrated, but its folder cannot be written to")
            if version is None:
                migrate.use_wal(path)
            migrate.upgrade(history.write, str(path), path, revisions)
        return history

    @classmethod
    def _open_server(cls, url: str, create: bool, migrate_older: bool, read_only: bool, revisions: Revisions) -> Self:
        history = cls(*engines.server_engine(url), None, read_only)
        try:
            with history.read() as connection:
                version = migrate.server_version(connection, history.where)
            if version is None and not create:
                raise NotFoundError(f"there is no history at {history.where}")
            if not migrate.is_current(version, history.where, revisions):
                migrate.refuse_older(version, history.where, revisions, migrate_older)
                migrate.upgrade(history.write, history.where, None, revisions)
        except BaseException:
            history.close()
            raise
        return history

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the history throughout. Database errors become `HistoryError`."""
        with engines.sentences(self.where), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that writes: waits for other writers, commits at the end, and on any error keeps nothing.

        Raises `HistoryError` where the history is open for reading alone.
        """
        if self._read_only:
            raise HistoryError(f"the history {self.where} is open for reading alone; nothing was changed")
        with (
            engines.sentences(self.where),
            self._engine.connect().execution_options(**{engines.WRITES: True}) as connection,
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


def file_of(where: str | Path) -> Path | None:
    """The SQLite file that a place names by path or `sqlite:///` URL; None for a server.

    Raises `HistoryError` for a database in memory.
    """
    text = str(where)
    if text.startswith("sqlite:"):
        text = text.partition("?")[0].removeprefix(_FILE_URL)
        if text.startswith("sqlite:") or text in {"", ":memory:"}:
            raise HistoryError(f"{where} is no place for a history: name a file")
    elif "://" in text:
        return None
    return Path(text).expanduser()


def no_history_at(path: Path) -> NotFoundError:
    """What to say where there is no file."""
    return NotFoundError(
        f"there is no history at {path}: run `epwatch run` or `epwatch nightly` first, or name it with --db"
    )
