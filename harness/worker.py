"""One rank of a job: joins the world and measures the planned runs one after another.

`python -m harness.worker JOB.json`, started by `harness.launch`, or on a cluster by torchrun, mpirun or srun. Rank 0
writes each run's record into the spool as soon as the run is over, so that what was measured survives what comes
after. Next to read: `harness.measure`.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from pathlib import Path

from harness import job, progress, record
from harness.case import Device
from harness.errors import EpwatchError
from harness.processes import MARK, die_with_parent
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
    log_folder, spool = Path(spec.log_folder), Path(spec.spool)
    rank = place(os.environ).rank
    progress.append(log_folder, rank, "", "join the world")
    device: Device = "cuda" if any(run.case.device == "cuda" for run in spec.runs) else "cpu"
    with join(spec.op_deadline_s, device=device) as world:
        from harness.measure import run_one

        for planned in spec.runs:

            def on_step(step: str, run_id: str = planned.run_id) -> None:
                progress.append(log_folder, rank, run_id, step)

            done = run_one(world, planned, spec, on_step)
            if done is not None:
                record.write(done, spool)
                progress.append(log_folder, rank, planned.run_id, progress.RECORDED, outcome=done.outcome)
        progress.append(log_folder, rank, "", "leave the world")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EpwatchError as error:
        sys.exit(f"{type(error).__name__}: {error}")
