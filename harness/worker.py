"""One rank of a job: joins the world and measures the planned runs one after another.

`python -m harness.worker JOB.json`, started by `harness.launch`, or on a cluster by torchrun, mpirun or srun. Rank 0
writes each run's record into the spool as soon as the run is over, so that what was measured survives what comes
after; a run that has its record, from an earlier attempt of the job, is left alone. However a rank ends, short of a
signal, it says so (`harness.rank_end`). Next to read: `harness.measure`.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
from pathlib import Path

from harness import job, progress, rank_end, record
from harness.case import Device
from harness.environment import platform
from harness.errors import EpwatchError
from harness.job import JobSpec
from harness.processes import MARK, die_with_parent
from harness.unmeasured import note_platform
from harness.world import join, place


def main(arguments: list[str]) -> int:
    """Measure every run of the job whose file is the only argument. 0 also when runs failed: their records say so."""
    if len(arguments) != 1:
        print("usage: python -m harness.worker JOB.json", file=sys.stderr)
        return 2
    if MARK in os.environ:
        die_with_parent()
    # The launcher asks with this signal where a rank hangs, before it ends it.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    spec = job.load(Path(arguments[0]))
    rank = place(os.environ).rank
    with rank_end.told(Path(spec.log_folder), rank):
        _measure(spec, rank)
    return 0


def _measure(spec: JobSpec, rank: int) -> None:
    """Join the world, measure what has no record yet, leave."""
    log_folder, spool = Path(spec.log_folder), Path(spec.spool)
    progress.append(log_folder, rank, "", "join the world")
    device: Device = "cuda" if any(run.case.device == "cuda" for run in spec.runs) else "cpu"
    with join(spec.op_deadline_s, device=device) as world:
        from harness.measure import run_one

        if rank == 0:
            # For the records of runs that no rank lives to write.
            here = platform(spec.cluster, device, world.nodes, world.cpus_per_node, world.gpus_of_first_node)
            note_platform(log_folder, here)

        # Each run collects garbage, outside of its clock; with torch's objects to go through that takes 80 ms a time.
        gc.collect()
        gc.freeze()
        measured = 0
        for planned in spec.runs:
            run_id = planned.run_id
            # Rank 0 looks for all: each rank's own look may come before or after a file's arrival.
            there, no_more = world.gather(
                (record.recorded(spool, run_id) is not None, job.no_more_asked_for(log_folder)) if rank == 0 else None
            )[0] or (False, False)
            # One is measured in any case: a short job is told so from its first second on, and would never get on.
            if no_more and measured:
                break
            if there:
                progress.append(log_folder, rank, run_id, progress.RECORDED)
                continue

            def on_step(step: str, run_id: str = run_id) -> None:
                progress.append(log_folder, rank, run_id, step)

            measured += 1
            done = run_one(world, planned, spec, on_step)
            if done is not None and record.recorded(spool, run_id) is None:
                record.write(done, spool)
                progress.append(log_folder, rank, run_id, progress.RECORDED, outcome=done.outcome)
        progress.append(log_folder, rank, "", "leave the world")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EpwatchError as error:
        sys.exit(f"{type(error).__name__}: {error}")
