"""Files that a night is made of: written whole or not at all, created once, and read only where nobody else can write.

Job folders hold pickles, and whoever can write a pickle runs code as whoever reads it. Called by `jobs.night_folder`,
`jobs.rank_task` and `jobs.work`; torch-free.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import TypeVar

import msgspec

from harness.errors import EpwatchError

T = TypeVar("T")


class UntrustedFolder(EpwatchError):
    """A folder in which others could put what would be run as this user."""


def save(value: msgspec.Struct, path: Path) -> None:
    """Write the struct as JSON: temp file, fsync, rename. Readers see the old file or the new one, whole."""
    _replace(msgspec.json.format(msgspec.json.encode(value), indent=1), path)


def save_once(value: msgspec.Struct, path: Path) -> bool:
    """Write the struct as JSON where no such file is yet; False, and nothing written, where there is one.

    Of several who try at once exactly one succeeds, on NFS too: link(2) is atomic there, and where a call that was sent
    again finds its own work and says that the file exists, the number of links tells.
    """
    partial = _partial(msgspec.json.encode(value), path)
    try:
        os.link(partial, path)
    except FileExistsError:
        # NFS may remember what stat says until a file is opened.
        with partial.open("rb") as file:
            return os.fstat(file.fileno()).st_nlink == 2
    finally:
        partial.unlink(missing_ok=True)
    return True


def load(path: Path, kind: type[T]) -> T | None:
    """The struct that the file holds; None where there is no such file, or what it holds is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def require_trusted(folder: Path) -> None:
    """Raise `UntrustedFolder` unless the folder is this user's and nobody else can write to it."""
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise UntrustedFolder(
            f"{folder} belongs to another user (uid {found.st_uid}): name another folder for the jobs"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UntrustedFolder(
            f"{folder} can be written by others, who could run what they like as you: chmod go-w {folder}, or name "
            "another folder for the jobs"
        )


def _replace(data: bytes, path: Path) -> None:
    _partial(data, path).replace(path)


def _partial(data: bytes, path: Path) -> Path:
    """A new file beside `path` that holds the data, on disk; its name begins with a dot."""
    number, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    with os.fdopen(number, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return Path(name)
