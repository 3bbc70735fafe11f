"""Two locks: one night at a time in a jobs folder, one measurement at a time on what shares that folder.

Measurements that overlap measure each other. Both are file locks, released by the kernel when their holder dies.
Called by `jobs.nightly`, `jobs.work` and `jobs.commands.run`.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import filelock

from harness.errors import EpwatchError
from jobs.private_files import require_trusted

MEASURING_LOCK = ".measuring.lock"
_NIGHT_LOCK = ".night.lock"


class BusyError(EpwatchError):
    """Someone else is measuring here."""


class FolderError(EpwatchError):
    """A folder that cannot be made."""


@contextlib.contextmanager
def one_night(jobs_folder: Path) -> Iterator[None]:
    """Hold the jobs folder for one night.

    Raises `BusyError` at once when another night has it, `UntrustedFolder` where others could put a night into it.
    """
    make_folder(jobs_folder)
    require_trusted(jobs_folder)
    lock = filelock.FileLock(jobs_folder / _NIGHT_LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise BusyError(
            f"another night is running on the jobs folder {jobs_folder}: wait for its end, or name another folder "
            "as [plan] jobs"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def measuring(lock_file: Path, wait_s: float) -> Iterator[None]:
    """Hold the machine for one measurement, waiting at most `wait_s` for another to end. Raises `BusyError`."""
    lock = filelock.FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"epwatch: waiting for another measurement, which holds {lock_file}", file=sys.stderr)
    try:
        lock.acquire(timeout=wait_s)
    except filelock.Timeout:
        raise BusyError(f"another measurement has held {lock_file} for {wait_s:g} s: wait for its end") from None
    try:
        yield
    finally:
        lock.release(force=True)


def make_folder(folder: Path) -> None:
    """Make a folder, its parents too, for this user alone. Raises `FolderError` naming it when that fails."""
    try:
        missing = [folder, *itertools.takewhile(lambda parent: not parent.exists(), folder.parents)]
        # mkdir(parents=True) gives its mode to the last one only.
        for one in reversed(missing):
            one.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise FolderError(f"cannot make the folder {folder}: {error.strerror or error}") from None
