"""After a job: whatever it still owes becomes a failed record, so that no run is forgotten when a job dies.

`harness.launch` accounts for every run while its own process lives; this is for when that process was killed, could not
start, or raised. Called by `jobs.nightly` for each job that has ended by itself.
"""

from __future__ import annotations

from pathlib import Path

from harness.job import JobSpec
from harness.record import Failure, PlannedRun
from harness.unmeasured import write_unmeasured
from jobs.spool import find_records
from jobs.work import Envelope


def record_what_is_missing(spec: JobSpec, spool: Path, envelope: Envelope | None, log_tail: str) -> list[PlannedRun]:
    """Write a failed record for each run of the job that has none; returns those runs.

    envelope: what the job's process said at its end, None where it died before. log_tail: of that process.
    """
    found = find_records(spec.runs, spool)
    missing = [run for run in spec.runs if run.run_id not in found]
    for run in missing:
        write_unmeasured(spec, run, "failed", _failure(envelope, log_tail))
    return missing


def _failure(envelope: Envelope | None, log_tail: str) -> Failure:
    """Why the job owes a result."""
    if envelope is None:
        message = "the job's process died without a word: it was killed, or the machine ran out of memory"
        return Failure(step="job", kind="JobDied", message=message, log_tail=log_tail)
    if envelope.outcome == "error":
        message = f"the job ended with {envelope.kind}: {envelope.message}"
        return Failure(step="job", kind=envelope.kind, message=message, log_tail=envelope.trace)
    message = "the job ended well but left no record of this run"
    return Failure(step="job", kind="NoRecord", message=message, log_tail=log_tail)
