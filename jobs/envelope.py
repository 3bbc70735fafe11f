"""How a job's process ended, said by itself: one plain JSON file.

So "died without a word" is told from every other end, and nobody unpickles what a job left behind.
Written by `jobs.work` (this machine) and `jobs.rank_task` (each process of a cluster's job); read by the clusters.
Torch-free.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from harness.environment import hostname, utc_now
from jobs import private_files


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`done`, `stopped` (it was asked to end) or `error`, with the exception's type, message and trace.

    task: which process of the job. attempt: which of the job's, from 1; 0 where what it was told cannot be read.
    """

    outcome: Literal["done", "stopped", "error"]
    host: str
    pid: int
    started_at: str
    ended_at: str
    task: int = 0
    attempt: int = 0
    kind: str = ""
    message: str = ""
    trace: str = ""


class Stopped(Exception):
    """The process was asked to end, and did; the message says by whom or what."""


def sealed(action: Callable[[], None], path: Path, *, attempt: int, task: int = 0) -> Envelope:
    """Do the action and write how it ended to `path`, also for what leaves by `sys.exit`; the envelope."""
    started_at = utc_now()
    outcome: Literal["done", "stopped", "error"] = "done"
    kind = message = trace = ""
    try:
        action()
    except Stopped as stopped:
        outcome, message = "stopped", str(stopped)
    except (Exception, SystemExit) as error:
        outcome, kind, message, trace = "error", type(error).__name__, str(error), traceback.format_exc()
    envelope = Envelope(
        outcome=outcome,
        host=hostname(),
        pid=os.getpid(),
        started_at=started_at,
        ended_at=utc_now(),
        task=task,
        attempt=attempt,
        kind=kind,
        message=message,
        trace=trace,
    )
    private_files.save(envelope, path)
    return envelope


def read_envelope(path: Path) -> Envelope | None:
    """The envelope, or None where the process died before it could write one."""
    return private_files.load(path, Envelope)
