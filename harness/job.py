"""What a job is told: the runs it has to measure, on one world, and where their records go.

Pure and torch-free; written as JSON beside the job by whoever plans it (`jobs`, or `harness.launch` for a run here
and now), read by every rank (`harness.worker`). Next to read: `harness.launch`.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from harness.record import PlannedRun

_NO_MORE_FILE = "no-more"

DEFAULT_WARMUP = 10
DEFAULT_ITERS = 50
DEFAULT_DEADLINE_S = 600.0
DEFAULT_HEARTBEAT_S = 180.0


class JobSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Runs that share one world (equal `ranks` and `nodes`), measured one after another in this order.

    spool: folder that receives the records. log_folder: of the ranks' logs. deadline_s: for the whole job.
    heartbeat_s: for one step of a run; when no rank has begun a new one for so long, the run is hung.
    op_deadline_s: for one wait inside an operation. cluster: name for the platform. warmup, iters: of the protocol.
    attempt: which attempt of the job this is, from 1; runs that an earlier one recorded are left alone. job_name: the
    job's name within its night, "" where it has none.
    accounts: whether whoever supervises the ranks writes records for the runs that get none; False where the job's
    submitter decides that, since it may try them again.
    """

    runs: list[PlannedRun]
    spool: str
    log_folder: str
    cluster: str = "local"
    warmup: int = DEFAULT_WARMUP
    iters: int = DEFAULT_ITERS
    deadline_s: float = DEFAULT_DEADLINE_S
    heartbeat_s: float = DEFAULT_HEARTBEAT_S
    op_deadline_s: float = 60.0
    attempt: int = 1
    job_name: str = ""
    accounts: bool = True

    @property
    def ranks(self) -> int:
        """Ranks of the world."""
        return self.runs[0].case.ranks


def ask_for_no_more(log_folder: Path) -> None:
    """Have the ranks begin no other run: the job's time is nearly up."""
    with contextlib.suppress(OSError):
        (log_folder / _NO_MORE_FILE).touch()


def no_more_asked_for(log_folder: Path) -> bool:
    """Whether the ranks are to begin no other run."""
    return (log_folder / _NO_MORE_FILE).exists()


def save(spec: JobSpec, path: Path) -> None:
    """Write the spec as JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(spec), indent=1))


def load(path: Path) -> JobSpec:
    """Read a spec that `save` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=JobSpec)
