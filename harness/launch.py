"""A job here and now: start the ranks on this machine, keep the deadline, and account for every planned run.

Torch-free: the ranks are processes of their own, under torch's elastic launch (`harness.agent`). `run_job` returns when
all of them are gone, and by then every planned run has a record in the spool: the one its ranks wrote, or a `failed`
or `hung` one with the failing rank's words and the tail of its log. Where the job's spec says that its submitter
accounts for them, runs without a record are left to it, with the diagnosis. Called by `jobs`. Next to read:
`harness.supervise`, then `harness.worker`.

In the job's log folder: job.json (what the ranks were told), launch.log, progress-rank<r>.jsonl, end-rank<r>.json (how
each rank ended, in its own words), failures-agent.json, diagnosis.json, and the ranks' own output under ranks/.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from harness import diagnosis, environment, job, record
from harness.diagnosis import Diagnosis
from harness.errors import CaseError, JobError
from harness.job import JobSpec
from harness.record import Failure, Outcome, PlannedRun
from harness.supervise import JobEvent, supervise
from harness.unmeasured import write_unmeasured

_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class JobOutcome:
    """How a job ended. exit_code: of the ranks together, 0 when all ended well. recorded: run ids whose records the
    ranks wrote; those of the others were written here, where the spec's job accounts.
    """

    exit_code: int
    recorded: list[str]


def run_job(spec: JobSpec, *, on_event: Callable[[JobEvent], None] | None = None) -> JobOutcome:
    """Measure the runs of `spec` on local ranks and wait for them; see the module.

    Raises `JobError` for a job that cannot be started as described, `RecordError` when the spool refuses records. On
    KeyboardInterrupt, or whatever else comes in between, the ranks are killed and the exception goes on; runs without a
    record then stay without one.
    """
    started = time.monotonic()
    _validate(spec)
    log_folder = Path(spec.log_folder)
    try:
        log_folder.mkdir(parents=True, exist_ok=True)
        job.save(spec, log_folder / "job.json")
    except OSError as error:
        raise JobError(f"cannot use the log folder {log_folder}: {error.strerror or error}") from error
    tell = on_event or (lambda event: None)

    def fill_in(run: PlannedRun, outcome: Outcome, failure: Failure) -> None:
        write_unmeasured(
            spec,
            run,
            outcome,
            failure,
            elapsed_s=time.monotonic() - started,
            scheduler_job=environment.scheduler_job(os.environ),
            notes=environment.job_notes(os.environ),
        )
        tell(JobEvent("record", run.run_id, outcome=outcome))

    refused = {run.run_id: reason for run in spec.runs if (reason := _refusal(run)) is not None}
    runnable = [run for run in spec.runs if run.run_id not in refused]
    for run in spec.runs:
        if run.run_id in refused:
            fill_in(run, "failed", Failure(step="validate", kind=CaseError.__name__, message=refused[run.run_id]))
    if not runnable:
        return JobOutcome(exit_code=0, recorded=[])
    part = msgspec.structs.replace(spec, runs=runnable)
    job.save(part, log_folder / "job.json")
    ended = supervise(part, _command(part), ranks_environment(os.environ), log_folder / "launch.log", tell=tell)
    if ended.halted:
        found: Diagnosis | None = diagnosis.halted(part, ended.halted, alive=ended.alive)
    else:
        found = diagnosis.explain(part, ended.exit_code)
    if found is not None:
        diagnosis.write(found, log_folder)
    # Rank 0 may have been killed between writing a record and saying so.
    recorded = ended.recorded | {run.run_id for run in runnable if record.recorded(Path(spec.spool), run.run_id)}
    for run in runnable:
        if run.run_id not in recorded and spec.accounts:
            fill_in(run, *diagnosis.account(part, run, found))
    return JobOutcome(exit_code=ended.exit_code, recorded=[run.run_id for run in runnable if run.run_id in recorded])


def _validate(spec: JobSpec) -> None:
    if not spec.runs:
        raise JobError("the job has no runs")
    worlds = sorted({(run.case.ranks, run.case.nodes) for run in spec.runs})
    if len(worlds) > 1:
        raise JobError(
            "the runs of a job share one world, these want "
            + ", ".join(f"{ranks} ranks on {nodes} nodes" for ranks, nodes in worlds)
        )
    if len({run.run_id for run in spec.runs}) != len(spec.runs):
        raise JobError("two runs of the job have the same run id")
    if min(spec.deadline_s, spec.op_deadline_s, spec.heartbeat_s) <= 0:
        raise JobError(
            f"deadlines must be positive, got {spec.deadline_s} s, {spec.op_deadline_s} s and {spec.heartbeat_s} s"
        )
    if (Path(spec.log_folder) / "job.json").exists():
        raise JobError(f"the log folder {spec.log_folder} already holds a job: give each job a folder of its own")


def _refusal(run: PlannedRun) -> str | None:
    """Why no ranks need be started for a run, else None."""
    try:
        run.case.validate()
    except CaseError as error:
        return str(error)
    return None


def _command(spec: JobSpec) -> list[str]:
    log_folder = Path(spec.log_folder)
    return [
        *(sys.executable, "-m", "harness.agent", str(os.getpid()), str(log_folder), "agent"),
        *("--nnodes=1", f"--nproc-per-node={spec.ranks}", "--max-restarts=0", "--monitor-interval=0.1"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint={_LOOPBACK}:0", f"--local-addr={_LOOPBACK}"),
        *(f"--log-dir={log_folder / 'ranks'}", "--redirects=3"),
        *("-m", "harness.worker", str(log_folder / "job.json")),
    ]


def ranks_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The ranks' environment. One thread each unless the user says otherwise: ranks share the cores."""
    return {"OMP_NUM_THREADS": "1", **environ}
