"""Finding and ending every process of a private Slurm: by descent, and by the mark that its daemons hand down.

What a dead daemon leaves behind becomes a child of its nearest ancestor that is a *subreaper*: so all processes of a
Slurm are descendants of its supervisor, whatever dies and whatever they do to their environment. The mark is for those
whose supervisor itself was killed. Linux. Called by `jobs.private_slurm.engine` and `jobs.private_slurm.supervisor`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import time
from collections.abc import Callable, Collection
from pathlib import Path

FOLDER_MARK = "EPWATCH_PRIVATE_SLURM"
"""Environment variable of each daemon and its job steps: the folder of the Slurm they belong to."""

NODE_MARK = "EPWATCH_PRIVATE_SLURM_NODE"
"""Environment variable of a slurmd and its job steps: the node they are."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.02


def adopt_orphans() -> None:
    """Make this process the parent of what its dead descendants leave behind."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def be_told_of_parents_end() -> None:
    """Have the kernel send SIGTERM to this process when its parent ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def child_ends() -> int:
    """A descriptor that becomes readable when a child of this process has ended; drain it, then `reap`."""
    told, tell = socket.socketpair()
    told.setblocking(False)
    tell.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(tell.detach(), warn_on_full_buffer=False)
    return told.detach()


def reap(mine: Collection[int] = ()) -> None:
    """Take the exit status of every child that has ended and was adopted; `mine` are left to who started them."""
    for pid, parent, state in _table():
        if state == "Z" and parent == os.getpid() and pid not in mine:
            os.waitpid(pid, os.WNOHANG)


def descendants(ancestors: Collection[int]) -> list[int]:
    """Pids of the living processes that descend from `ancestors`."""
    children: dict[int, list[int]] = {}
    gone = set()
    for pid, parent, state in _table():
        children.setdefault(parent, []).append(pid)
        if state in "ZX":
            gone.add(pid)
    found: list[int] = []
    at = list(ancestors)
    while at:
        below = children.get(at.pop(), [])
        found += below
        at += below
    return [pid for pid in found if pid not in gone]


def of_folder(folder: Path, slurm_conf: Path) -> list[int]:
    """Pids of what belongs to the Slurm in `folder`: daemons and job steps by their mark, tasks, all their children.

    A shell that merely has SLURM_CONF set is none of them.
    """

    def belongs(variables: dict[str, str]) -> bool:
        is_task = "SLURMD_NODENAME" in variables and variables.get("SLURM_CONF") == str(slurm_conf)
        return variables.get(FOLDER_MARK) == str(folder) or is_task

    found = having(belongs)
    return list({*found, *descendants(found)} - {os.getpid()})


def having(wanted: Callable[[dict[str, str]], bool]) -> list[int]:
    """Pids of this user's other processes with such an environment."""
    found = []
    for pid, _, state in _table():
        if pid != os.getpid() and state not in "ZX" and wanted(_environment(pid)):
            found.append(pid)
    return found


def kill_all(find: Callable[[], list[int]], deadline_s: float) -> list[int]:
    """SIGKILL what `find` finds until it finds nothing more. Returns what is left at the deadline."""
    give_up = time.monotonic() + deadline_s
    while left := find():
        if time.monotonic() > give_up:
            break
        for pid in left:
            send(pid, signal.SIGKILL)
        time.sleep(_POLL_S)
    return left


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process, if it is still there."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _table() -> list[tuple[int, int, str]]:
    """Pid, parent's pid and state of every process."""
    rows = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text(errors="replace")
            except OSError:
                continue
            state, parent = stat.rpartition(")")[2].split()[:2]
            rows.append((int(folder.name), int(parent), state))
    return rows


def _environment(pid: int) -> dict[str, str]:
    """The environment a process was started with; empty for another user's."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    pairs = (variable.decode(errors="replace").partition("=") for variable in variables)
    return {name: value for name, _, value in pairs}
