"""What a job does: measure its spec, and leave an envelope that says how it ended.

`measure` is the function that submitit pickles by name and calls in the job's process, on whatever cluster. The
envelope is ours and plain JSON, so that "died without a word" can be told from every other end, and nobody unpickles
what a job left behind. Torch-free: the ranks that `harness.launch` starts load it. Next to read: `harness.launch`.
"""

from __future__ import annotations

import datetime
import os
import signal
import socket
import traceback
from pathlib import Path
from typing import Literal

import msgspec

from harness import job as jobspec
from jobs.exclusive import measuring

SPEC_FILE = "job.json"
ENVELOPE_FILE = "envelope.json"


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a job's process ended: `done`, or `error` with the exception's type, message and trace."""

    outcome: Literal["done", "error"]
    host: str
    pid: int
    started_at: str
    ended_at: str
    kind: str = ""
    message: str = ""
    trace: str = ""


def measure(folder: str, measuring_lock: str) -> None:
    """Measure the spec in `folder`/job.json and write `folder`/envelope.json. Called in the job's own process.

    measuring_lock: file that is locked while this machine measures, so that two measurements never overlap; it
    outlives a submitter that was killed.
    """
    # A job may have been started from a shell's background, where Ctrl-C is ignored by inheritance.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    place = Path(folder)
    started_at = _now()
    kind = message = trace = ""
    try:
        from harness.launch import run_job

        spec = jobspec.load(place / SPEC_FILE)
        with measuring(Path(measuring_lock), wait_s=spec.deadline_s):
            run_job(spec)
    except (Exception, SystemExit) as error:
        kind, message, trace = type(error).__name__, str(error), traceback.format_exc()
    _write(
        Envelope(
            outcome="error" if kind else "done",
            host=socket.gethostname(),
            pid=os.getpid(),
            started_at=started_at,
            ended_at=_now(),
            kind=kind,
            message=message,
            trace=trace,
        ),
        place / ENVELOPE_FILE,
    )


def read_envelope(folder: Path) -> Envelope | None:
    """The envelope a job left, or None where its process died before it could."""
    try:
        return msgspec.json.decode((folder / ENVELOPE_FILE).read_bytes(), type=Envelope)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def _write(envelope: Envelope, path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(envelope), indent=1))
    partial.replace(path)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
