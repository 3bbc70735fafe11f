"""The record of a run that is not tried again: who failed, in whose words, and where.

Called by `jobs.nightly`. Next to read: `jobs.settling`, which decides that; `harness.unmeasured`, which writes it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from harness import diagnosis
from harness.record import Failure, Outcome
from harness.unmeasured import noted_platform, write_unmeasured
from jobs.night_folder import Attempt, Settled

_BY_THEMSELVES = frozenset({"done", "failed", "hung", "killed", "memory"})
"""Ends of which the ranks' own words say more than the cluster's."""

_KINDS = {
    "cancelled": "Cancelled",
    "queue": "QueueDeadline",
    "refused": "Refused",
    "node": "NodeFailed",
    "preempted": "Preempted",
}
"""What a failure is called that its ranks could not name."""


def write_failure(attempt: Attempt, settled: Settled, run_id: str, spool: Path, launcher: str) -> None:
    """Write a failed or hung record of the run into the spool; `settled` gave it up at the end of `attempt`.

    launcher: of the ranks on the attempt's cluster.
    """
    spec = attempt.spec
    run = next(run for run in spec.runs if run.run_id == run_id)
    found, claim, submitted = diagnosis.read(attempt.logs), attempt.claim, attempt.submitted
    outcome: Outcome = "failed"
    if found is not None and (settled.cause in _BY_THEMSELVES or found.kind == diagnosis.OUT_OF_TIME):
        outcome, failure = diagnosis.account(spec, run, found)
    else:
        kind = _KINDS.get(settled.cause, "JobDied")
        failure = Failure(step="job", kind=kind, message=settled.words, log_tail=settled.log_tail)
    write_unmeasured(
        msgspec.structs.replace(spec, spool=str(spool)),
        run,
        outcome,
        failure,
        hosts=claim.hosts if claim is not None and claim.hosts else None,
        platform=noted_platform(attempt.logs) or (claim.platform if claim is not None else None),
        environment_there=claim.environment if claim is not None else None,
        scheduler_job=f"Slurm job {submitted.scheduler_id}" if submitted and claim and claim.scheduler_id else "",
        launcher=launcher if claim and claim.scheduler_id else "",
    )
