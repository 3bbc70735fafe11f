"""The schema's version: told with one cheap select, created or brought up to date with Alembic, never downgraded.

What a file is gets decided before anything is written to it: a foreign, damaged or newer database is refused in a
sentence and left as it was; an older history is copied to `<db>.before-<revision>.bak`, then migrated, in one
transaction that other processes wait for. Alembic is imported only when there is something to do.
Called by `regress_db.history`; next to read: `regress_db/migrations/env.py`.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, inspect, text

from regress_db.backup import back_up_file, sqlite_uri
from regress_db.errors import HistoryError
from regress_db.schema import METADATA

APPLICATION_ID = 0x45505754
"""`EPWT` in the header of every SQLite history: how one is told from any other database."""

_SIGN = frozenset({"cases", "runs", "run_values", "samples"})
"""Tables that the history has had in every schema."""

_MAGIC = b"SQLite format 3\0"
_LOCK_DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Revisions:
    """A folder of Alembic revisions, and the newest in it. Revisions are four digits, counted up."""

    folder: Path
    head: str


PACKAGED = Revisions(Path(__file__).parent / "migrations", "0004")


def file_version(path: Path, mode: str = "ro") -> str | None:
    """The revision of the SQLite history `path`, None for an empty database. The file is not changed.

    Raises `HistoryError` for a file that is not a history, is damaged or cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(len(_MAGIC))
    except OSError as error:
        raise HistoryError(f"cannot open the history {path}: {error.strerror or error}") from error
    if not head:
        return None
    if head != _MAGIC:
        raise HistoryError(f"{path} is not a database; nothing was changed. Name the history's place with --db")
    try:
        with contextlib.closing(sqlite3.connect(sqlite_uri(path, mode), uri=True, timeout=_LOCK_DEADLINE_S)) as probe:
            (application,) = probe.execute("PRAGMA application_id").fetchone()
            if application == APPLICATION_ID:
                (version,) = probe.execute("SELECT version_num FROM alembic_version").fetchone()
                return str(version)
            if probe.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None and application == 0:
                return None
    except (sqlite3.DatabaseError, TypeError) as error:
        raise HistoryError(
            f"the history {path} cannot be read ({error}): it is damaged or cut short. Nothing was changed; "
            "put a backup in its place, or name another with --db"
        ) from error
    raise HistoryError(
        f"{path} is a database of something else, not an epwatch history; nothing was changed. "
        "Name the history's place with --db"
    )


def server_version(connection: Connection, where: str) -> str | None:
    """The revision of the history behind `connection`, None where there is none yet.

    Raises `HistoryError` where tables of something else have the names that the history's would have.
    """
    present = set(inspect(connection).get_table_names())
    ours = present & set(METADATA.tables)
    if "alembic_version" in present and (ours >= _SIGN or present == {"alembic_version"}):
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    if ours or "alembic_version" in present:
        raise HistoryError(
            f"{where} is a database of something else, not an epwatch history; nothing was changed. "
            "Name the history's place with --db"
        )
    return None


def is_current(version: str | None, where: str, revisions: Revisions) -> bool:
    """Whether nothing is to be done. Raises `HistoryError` for a history of a newer or unknown schema."""
    if version is None or version == revisions.head:
        return version is not None
    if not (len(version) == len(revisions.head) and version.isdecimal()):
        raise HistoryError(f"the history {where} has schema {version!r}, which no epwatch made; nothing was changed")
    if version > revisions.head:
        raise HistoryError(
            f"the history {where} has schema {version}, this epwatch knows up to {revisions.head}; "
            "nothing was changed: use a newer epwatch, or name another history with --db"
        )
    return False


def refuse_older(version: str | None, where: str, revisions: Revisions, allowed: bool) -> None:
    """Raise `HistoryError` for a history of an older schema, unless it is `allowed` to be migrated."""
    if version is not None and not allowed:
        raise HistoryError(
            f"the history {where} has schema {version}, this epwatch works with {revisions.head}; nothing was changed: "
            "`epwatch nights` migrates it, after a backup"
        )


def use_wal(path: Path) -> None:
    """Make the SQLite file (created where missing) a write-ahead-log one: readers then never wait for a writer.

    Several processes may do this at once; a lock is waited for, up to a minute.
    """
    deadline = time.monotonic() + _LOCK_DEADLINE_S
    while True:
        try:
            with contextlib.closing(sqlite3.connect(sqlite_uri(path, "rwc"), uri=True, timeout=1.0)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise HistoryError(f"cannot make the history {path}: {error}") from error
            time.sleep(0.02)


def upgrade(
    write: Callable[[], AbstractContextManager[Connection]], where: str, path: Path | None, revisions: Revisions
) -> None:
    """Create the schema or bring it up to `revisions.head`, in the one transaction that `write` opens.

    Safe from several processes at once: who comes second finds it done. `path`: the SQLite file, None for a server.
    Raises `HistoryError` like `is_current`, and when the backup cannot be made (then nothing is migrated).
    """
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(revisions.folder).replace("%", "%%"))
    with write() as connection:
        version = server_version(connection, where)
        if is_current(version, where, revisions):
            return
        if version is not None and path is not None:
            _back_up(path, revisions.head)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        if path is not None:
            connection.execute(text(f"PRAGMA application_id = {APPLICATION_ID}"))


def _back_up(path: Path, revision: str) -> None:
    target = path.with_name(f"{path.name}.before-{revision}.bak")
    count = 1
    while target.exists():
        count += 1
        target = path.with_name(f"{path.name}.before-{revision}.{count}.bak")
    try:
        back_up_file(path, target)
    except HistoryError as error:
        raise HistoryError(f"{error}. It has to be backed up before it is migrated; nothing was changed") from error
