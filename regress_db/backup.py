"""One SQLite file copied while others write to it, whole or not at all, never over anything.

Used by `regress_db.migrate` before a migration and by `regress_db.upkeep` when asked.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from regress_db.errors import HistoryError


def sqlite_uri(path: Path, mode: str) -> str:
    """The URI by which SQLite opens `path`: `mode` is `ro`, `rw`, `rwc`, or `immutable` (a file nobody can change)."""
    query = "mode=ro&immutable=1" if mode == "immutable" else f"mode={mode}"
    return f"file:{quote(str(path.resolve()))}?{query}"


def mode_of(path: Path) -> str:
    """`immutable` for a file in a folder that nobody here can write to and that has no log beside it, else `rw`."""
    log = path.with_name(path.name + "-wal")
    if os.access(path.parent, os.W_OK) or (log.exists() and log.stat().st_size):
        return "rw"
    return "immutable"


def back_up_file(source: Path, target: Path) -> None:
    """Copy the SQLite file `source`, with what is in its log, to the new file `target`, and see that it is sound.

    Writers go on meanwhile; the copy is the state of one moment. Raises `HistoryError`, with no `target` made, where
    there is one already, the disk is full, or the copy is not sound.
    """
    with new_file(target) as partial:
        try:
            mode = "immutable" if mode_of(source) == "immutable" else "ro"
            with (
                contextlib.closing(sqlite3.connect(sqlite_uri(source, mode), uri=True)) as original,
                contextlib.closing(sqlite3.connect(partial)) as copy,
            ):
                original.backup(copy)
                (sound,) = copy.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.Error as error:
            raise HistoryError(f"cannot copy {source} to {target}: {error}") from error
        if sound != "ok":
            raise HistoryError(
                f"cannot copy {source} to {target}: it is damaged ({sound}); `epwatch history verify` says more"
            )


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A file to fill, closed by the end of the block, which then appears as `target` in one step; none on an error.

    Raises `HistoryError` where there is a `target` already, also where another process made it meanwhile.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        if target.exists():
            raise FileExistsError
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.touch(exist_ok=False)
        yield partial
        _sync(partial, os.O_RDWR)
        os.link(partial, target)
        _sync(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    except FileExistsError:
        raise HistoryError(f"{target} is there already and stays as it is: name a file that is new") from None
    except OSError as error:
        raise HistoryError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        for leftover in (partial, *(partial.with_name(partial.name + end) for end in ("-wal", "-shm", "-journal"))):
            with contextlib.suppress(OSError):
                leftover.unlink()


def _sync(path: Path, flags: int) -> None:
    """Make what was written outlive a power cut."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
