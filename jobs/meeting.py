"""Where the ranks of a cluster's job meet: an address of the first rank's host that the others reach, and a port that
nobody else there has.

Called by `jobs.rank_task`. Torch-free.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import filelock
import msgspec

from harness.errors import EpwatchError
from harness.world import FIRST_PORT, PORTS
from jobs import private_files
from jobs.envelope import Stopped

_FILE = "meeting.json"
_DEADLINE_S = 120.0
_POLL_S = 0.1


class MeetingError(EpwatchError):
    """The ranks cannot meet."""


class Point(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where rank 0 listens. scheduler_id: of the job that says so."""

    scheduler_id: str
    address: str
    port: int


def announce(point: Point, log_folder: Path) -> None:
    """Tell the job's other processes."""
    private_files.save(point, log_folder / _FILE)


def wait_for(log_folder: Path, scheduler_id: str, told_to_end: Callable[[], bool]) -> Point:
    """What the job's first process has announced. Raises `MeetingError` when it does not within two minutes."""
    give_up = time.monotonic() + _DEADLINE_S
    while time.monotonic() < give_up:
        if told_to_end():
            raise Stopped("the job was told to end before its ranks had met")
        point = private_files.load(log_folder / _FILE, Point)
        if point is not None and point.scheduler_id == scheduler_id:
            return point
        # Listing the folder makes NFS forget that the file was not there.
        with contextlib.suppress(OSError):
            next(log_folder.iterdir(), None)
        time.sleep(_POLL_S)
    raise MeetingError(f"the job's first process has not said in {_DEADLINE_S:g} s, in {log_folder}, where to meet")


@contextlib.contextmanager
def reserved_port(identity: str) -> Iterator[int]:
    """A free port of this host, below those that the system gives out by itself, while the block runs.

    No other job of this user on this host has it meanwhile: each port is held by a lock. identity: of the job; jobs of
    different ones begin their search at different ports.
    """
    folder = Path(tempfile.gettempdir()) / f"epwatch-ports-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    private_files.require_trusted(folder)
    start = zlib.crc32(identity.encode())
    for step in range(PORTS):
        port = FIRST_PORT + (start + step) % PORTS
        lock = filelock.FileLock(folder / f"{port}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            continue
        try:
            if _is_free(port):
                yield port
                return
        finally:
            lock.release()
    raise MeetingError(f"no port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} is free on {socket.gethostname()}")


def own_address(hosts: Sequence[str], environ: Mapping[str, str]) -> str:
    """An address of this host that the job's other hosts reach: the one from which this host reaches them.

    hosts: of the job, by Slurm's names. Raises `MeetingError` where none of the others has a name that resolves.
    """
    mine = environ.get("SLURMD_NODENAME", socket.gethostname())
    others = [host for host in hosts if host != mine]
    if not others:
        return "127.0.0.1"
    for other in others:
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            # Of a datagram socket this only looks up the route: nothing is sent.
            probe.connect((other, FIRST_PORT))
            address = str(probe.getsockname()[0])
            if not ipaddress.ip_address(address).is_loopback or _is_loopback(other):
                return address
    raise MeetingError(
        f"{mine} cannot resolve the names of the job's other hosts ({', '.join(others)}) to addresses it can reach "
        "them from: give the nodes names that resolve"
    )


def _is_loopback(host: str) -> bool:
    """Whether the name itself is a loopback address: nodes of a Slurm on one machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_free(port: int) -> bool:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
            return True
    except OSError:
        return False
