"""Processes that must not outlive their parent, and finding those that carry a job's mark. Linux, torch-free.

Called by `harness.launch`, `harness.agent` and `harness.worker`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

MARK = "EPWATCH_JOB"
"""Environment variable whose value marks every process of one job."""

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.02


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent ends, however that comes about.

    parent: pid the parent had when this process was planned; when it is gone already, exit now.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        raise SystemExit("the process that started this one has ended")


def marked(mark: str) -> list[int]:
    """Pids of this user's processes whose environment holds `EPWATCH_JOB=<mark>`, this process excepted."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                variables = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if wanted in variables:
                found.append(int(folder.name))
    return found


def send(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to each process that is still there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def kill_marked(mark: str, deadline_s: float = 5.0) -> list[int]:
    """Kill every process with the mark, and what they start meanwhile. Returns those that would not go."""
    give_up = time.monotonic() + deadline_s
    while left := marked(mark):
        if time.monotonic() > give_up:
            break
        send(left, signal.SIGKILL)
        time.sleep(_POLL_S)
    return left
