"""The record of a run whose ranks wrote none: who planned it says what became of it.

Torch-free. Called by `harness.launch` for ranks that died or hung, and by `jobs` for a job whose own process did.
Next to read: `harness.record`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from harness import environment, record
from harness.job import JobSpec
from harness.record import Environment, Failure, Outcome, PlannedRun, Platform, RankPlacement, Record

_PLATFORM_FILE = "platform.json"


def note_platform(log_folder: Path, platform: Platform) -> None:
    """Leave in the job's log folder what its ranks run on, which only they can know together."""
    partial = log_folder / f".{_PLATFORM_FILE}.partial"
    partial.write_bytes(msgspec.json.encode(platform))
    partial.replace(log_folder / _PLATFORM_FILE)


def noted_platform(log_folder: Path) -> Platform | None:
    """What the job's ranks ran on; None where they never met."""
    try:
        return msgspec.json.decode((log_folder / _PLATFORM_FILE).read_bytes(), type=Platform)
    except (OSError, msgspec.MsgspecError):
        return None


def write_unmeasured(
    spec: JobSpec,
    run: PlannedRun,
    outcome: Outcome,
    failure: Failure,
    *,
    elapsed_s: float = 0.0,
    hosts: Sequence[str] | None = None,
    platform: Platform | None = None,
    environment_there: Environment | None = None,
    scheduler_job: str = "",
    notes: Sequence[str] = (),
    launcher: str = "",
) -> Path:
    """Write the record of `run` into the spool of `spec`, as seen from this machine; returns its path.

    A record that is there already stands. elapsed_s: how long ago the job started. hosts: the node of each rank, where
    it is known; else the ranks are put down to this machine, without a placement. platform, environment_there: of the
    node that rank 0 had, where they are known; else as seen from here. scheduler_job: the one that the run was in, ""
    for none: who writes this may be a job of its own. launcher: of the ranks, "" where it is not known. Raises
    `RecordError` when the spool refuses.
    """
    spool = Path(spec.spool)
    there = record.recorded(spool, run.run_id)
    if there is not None:
        return there
    return record.write(
        Record(
            run_id=run.run_id,
            case=run.case,
            platform=platform or environment.platform(spec.cluster, run.case.device, run.case.nodes),
            environment=environment_there or environment.capture(os.environ),
            nodes=environment.nodes(hosts or [environment.hostname()] * run.case.ranks),
            started_at=environment.utc_now(-elapsed_s),
            ended_at=environment.utc_now(),
            warmup=spec.warmup,
            iters=spec.iters,
            outcome=outcome,
            checks=[],
            phases=[],
            night=run.night,
            repeat=run.repeat,
            failure=failure,
            conditions=environment.conditions("after"),
            notes=list(notes),
            placement=[RankPlacement(rank=rank, hostname=host) for rank, host in enumerate(hosts or [])],
            launcher=launcher,
            attempt=spec.attempt,
            scheduler_job=scheduler_job,
        ),
        spool,
    )
