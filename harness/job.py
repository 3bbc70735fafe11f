"""What a job is told: the runs it has to measure, on one world, and where their records go.

Pure and torch-free; written as JSON beside the job by whoever plans it (`jobs`, or `harness.launch` for a run here
and now), read by every rank (`harness.worker`). Next to read: `harness.launch`.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from harness.case import Device
from harness.record import PlannedRun

DEVICES: tuple[Device, ...] = ("cpu",)
"""Devices that this version can time."""

DEFAULT_WARMUP = 10
DEFAULT_ITERS = 50
DEFAULT_DEADLINE_S = 600.0


class JobSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Runs that share one world (equal `ranks` and `nodes`), measured one after another in this order.

    spool: folder that receives the records. log_folder: of the ranks' logs. deadline_s: for the whole job.
    op_deadline_s: for one wait inside an operation. cluster: name for the platform. warmup, iters: of the protocol.
    attempt: which attempt of the job this is, from 1; runs that an earlier one recorded are left alone. job_name: the
    job's name within its night, "" where it has none.
    """

    runs: list[PlannedRun]
    spool: str
    log_folder: str
    cluster: str = "local"
    warmup: int = DEFAULT_WARMUP
    iters: int = DEFAULT_ITERS
    deadline_s: float = DEFAULT_DEADLINE_S
    op_deadline_s: float = 60.0
    attempt: int = 1
    job_name: str = ""

    @property
    def ranks(self) -> int:
        """Ranks of the world."""
        return self.runs[0].case.ranks


def save(spec: JobSpec, path: Path) -> None:
    """Write the spec as JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(spec), indent=1))


def load(path: Path) -> JobSpec:
    """Read a spec that `save` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=JobSpec)
