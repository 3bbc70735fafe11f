"""A night: a plan's runs, measured job by job on the plan's clusters, and brought home into the history.

A `Night` is driven look by look (`advance`): what has arrived is ingested, what has ended is settled, what is still
owed is submitted, and when nothing is, what seems to have changed is measured again. All it knows stands in the night's
folder and the history, so it can be killed at any point and taken up again by any process: no run is measured twice
into the history, and none is forgotten. The night is written into the history before its first job, with every run it
plans, so that whatever happens afterwards a run without a result can be named.

Called by `jobs.night_session`, which begins nights and takes them up. Next to read: `jobs.settling`,
`jobs.night_folder`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from harness import diagnosis
from harness.diagnosis import Diagnosis
from harness.environment import utc_now
from harness.errors import EpwatchError
from harness.job import JobSpec
from harness.record import PlannedRun
from jobs import private_files
from jobs.cluster import Cluster, JobState, Request, SubmitError
from jobs.given_up import write_failure
from jobs.night_folder import SETTLED_FILE, Attempt, Manifest, NightFolder
from jobs.night_jobs import JobView, NightJob, load_jobs, view
from jobs.packing import PackedJob
from jobs.plan import Plan
from jobs.settling import Ending, settle
from jobs.spool import bring_home, waiting_records

if TYPE_CHECKING:
    from regress_db.history import History

_ARRIVAL_GRACE_S = 60.0
"""How long a record that its ranks say they wrote may take to be seen from here (shared file systems remember)."""
_SUBMIT_AGAIN_S = 20.0
_SUBMIT_PATIENCE_S = 900.0


@dataclass(frozen=True)
class _Refusal:
    """A cluster takes no job just now. since: the first time; again_at: when to ask next; by the monotonic clock."""

    words: str
    since: float
    again_at: float


Again = Callable[[Manifest], Sequence[PackedJob]]
"""Given what was measured so far, the jobs that measure again what seems to have changed; none where all is said."""


class Night:
    """A night on its way; see the module. Not more than one process may drive it (`jobs.exclusive.one_night`)."""

    def __init__(
        self,
        plan: Plan,
        history: History,
        folder: NightFolder,
        manifest: Manifest,
        clusters: Mapping[str, Cluster],
        again: Again,
    ) -> None:
        self.plan, self.folder, self.manifest = plan, folder, manifest
        self._history, self._spool, self._clusters, self._again = history, Path(manifest.spool), clusters, again
        self._recorded = self._in_history()
        self._refusals: dict[str, _Refusal] = {}
        self._jobs = load_jobs(folder, manifest)
        self._recover()

    def _recover(self) -> None:
        """Find out which attempts the process that made them got to submit before it died."""
        for name, cluster in self._clusters.items():
            unknown = [
                attempt
                for job in self._jobs
                if job.packed.cluster == name and (attempt := job.in_flight) and attempt.submitted is None
            ]
            cluster.recover(self.folder, unknown)

    @property
    def name(self) -> str:
        """The night's id."""
        return self.manifest.night

    def advance(self) -> bool:
        """One look at everything, and what follows from it. True when nothing more is to be done.

        Raises `SubmitError` when a cluster refuses all of the night's jobs for good, or any for longer than is patient.
        """
        self._collect()
        self._settle_ended()
        self._write_given_up()
        self._submit_owed()
        if any(job.in_flight or job.owed(self._recorded) for job in self._jobs):
            return False
        self._collect()
        jobs = self._again(self.manifest)
        if not jobs:
            return True
        self._append(jobs)
        return False

    @property
    def poll_s(self) -> float:
        """How long to wait before the next look is worth its trouble."""
        busy = {job.packed.cluster for job in self._jobs if job.in_flight} or self._clusters.keys()
        return min(self._clusters[name].poll_s for name in busy)

    @property
    def begun(self) -> bool:
        """Whether any cluster ever had a job of it."""
        return any(attempt.submitted is not None for job in self._jobs for attempt in job.attempts)

    @property
    def refusal(self) -> str:
        """Why jobs could not be submitted just now and will be tried again, in words; "" where none was refused."""
        return "; ".join(refusal.words for refusal in self._refusals.values())

    @property
    def in_doubt(self) -> bool:
        """Whether, after a look, it is not known of some job whether it is there: the next looks will tell."""
        return any(job.state is None and (one := job.in_flight) and one.submitted is not None for job in self._jobs)

    @property
    def measures_here(self) -> bool:
        """Whether any of its clusters is this machine."""
        return any(cluster.measures_here for cluster in self._clusters.values())

    @property
    def done(self) -> int:
        """How many runs have a record, ingested or waiting in the spool."""
        there = self._recorded | waiting_records(self._spool)
        return sum(run.run_id in there for run in self.manifest.runs)

    def views(self) -> list[JobView]:
        """Every job as it is, by the last look."""
        there = self._recorded | waiting_records(self._spool)
        return [view(job, there) for job in self._jobs]

    def cancel(self) -> None:
        """End every job of the night that the clusters have, and keep what was measured."""
        for name, cluster in self._clusters.items():
            cluster.cancel([one for job in self._jobs if job.packed.cluster == name and (one := job.in_flight)])
        self._ingest()

    def _collect(self) -> None:
        """Bring home what has arrived; on this machine only between jobs, since ingesting is work."""
        busy = any(job.in_flight and self._clusters[job.packed.cluster].measures_here for job in self._jobs)
        if not busy:
            self._ingest()

    def _in_history(self) -> set[str]:
        from regress_db.nights import recorded_runs

        return recorded_runs(self._history, self.name)

    def _ingest(self) -> None:
        self._recorded |= bring_home(self._history, self._spool)

    def _settle_ended(self) -> None:
        for name, cluster in self._clusters.items():
            jobs = {attempt: job for job in self._jobs if job.packed.cluster == name and (attempt := job.in_flight)}
            states = cluster.look([attempt for attempt in jobs if attempt.submitted is not None])
            for attempt, job in jobs.items():
                state = states.get(attempt) or self._never_submitted(attempt) or job.state
                job.state = self._too_long_in_queue(cluster, attempt, job, state)
                if job.state is not None and job.state.phase == "ended":
                    self._settle(attempt, job, job.state)

    def _never_submitted(self, attempt: Attempt) -> JobState | None:
        claim = attempt.claim
        if attempt.submitted is None and claim is not None and claim.by == "command":
            return JobState("ended", "it was never submitted", "lost")
        return None

    def _too_long_in_queue(
        self, cluster: Cluster, attempt: Attempt, job: NightJob, state: JobState | None
    ) -> JobState | None:
        """The state; or an end, where the attempt has waited for longer than the plan has patience."""
        if state is None or state.phase != "pending":
            return state
        if state.in_line:
            job.waits_since = None
            return state
        if job.waits_since is None:
            job.waits_since = time.monotonic() - max(0.0, _seconds_since(self._could_begin_at(attempt)))
        limit_min = self.plan.cluster(job.packed.cluster).queue_deadline_min
        if time.monotonic() - job.waits_since <= limit_min * 60:
            return state
        claim = attempt.claim
        if claim is not None and claim.by == "job":
            # It has begun since the cluster was last heard of.
            return state
        try:
            cluster.cancel([attempt])
        except EpwatchError:
            return state
        return JobState("ended", f"it waited in the queue for {limit_min:g} minutes: {state.words}", "queue")

    def _could_begin_at(self, attempt: Attempt) -> str:
        """Since when no job of the night itself has stood in the way of a waiting one, as an ISO time."""
        submitted = attempt.submitted
        ends = [
            settled.at
            for job in self._jobs
            if job.packed.cluster == attempt.job.cluster
            for settled in job.settled
            if settled.cause != "lost"
        ]
        return max([submitted.at if submitted is not None else utc_now(), *ends])

    def _settle(self, attempt: Attempt, job: NightJob, state: JobState) -> None:
        self._ingest()
        spec = attempt.spec
        owed = self._owed(spec)
        if owed:
            # Whoever else collects from this spool may have brought them home.
            self._recorded |= self._in_history()
            owed = self._owed(spec)
        if attempt.claim is None:
            # Should its job live after all, it will not begin.
            attempt.give_up()
        if self._is_on_its_way(job, spec, owed):
            return
        found = self._diagnose(attempt, spec, state)
        ending = Ending(
            state=state,
            owed=owed,
            measured=len(spec.runs) - len(owed),
            at_run=diagnosis.run_in_progress(spec),
            diagnosis=found,
        )
        settled = settle(ending, job.settled, self.plan.measure.tries, utc_now())
        private_files.save(settled, attempt.folder / SETTLED_FILE)
        job.settled.append(settled)
        job.state = job.ended_at = job.waits_since = None

    def _owed(self, spec: JobSpec) -> tuple[str, ...]:
        return tuple(run.run_id for run in spec.runs if run.run_id not in self._recorded)

    def _diagnose(self, attempt: Attempt, spec: JobSpec, state: JobState) -> Diagnosis | None:
        """Why its ranks did not end well, told from what they left, and left beside it; None where they did."""
        if not attempt.logs.is_dir():
            return None
        exit_code = 0 if state.cause == "done" else 1
        found = diagnosis.read(attempt.logs) or diagnosis.explain(spec, exit_code, state.failures)
        if found is None:
            return None
        claim = attempt.claim
        found = diagnosis.with_host(found, claim.hosts if claim is not None else [])
        message = state.words if found.kind == "LaunchFailed" and state.words else found.message
        found = msgspec.structs.replace(found, message=message, log_tail=found.log_tail or state.log_tail)
        diagnosis.write(found, attempt.logs)
        return found

    def _is_on_its_way(self, job: NightJob, spec: JobSpec, owed: Sequence[str]) -> bool:
        """Whether a record was written, say its ranks, that cannot be seen from here yet."""
        said = diagnosis.recorded_runs(spec)
        if not said.intersection(owed):
            return False
        job.ended_at = job.ended_at or time.monotonic()
        return time.monotonic() - job.ended_at < _ARRIVAL_GRACE_S

    def _write_given_up(self) -> None:
        """A failed record for each run that is not tried again and has none."""
        wrote = False
        for job in self._jobs:
            for attempt, settled in zip(job.attempts, job.settled, strict=False):
                for run_id in settled.given_up:
                    if run_id not in self._recorded:
                        launcher = self.plan.cluster(attempt.job.cluster).launcher
                        write_failure(attempt, settled, run_id, self._spool, launcher)
                        wrote = True
        if wrote:
            self._ingest()

    def _submit_owed(self) -> None:
        """Raises `SubmitError` where every cluster that was asked has refused for good, and none has had any job."""
        final: list[SubmitError] = []
        for name, cluster in self._clusters.items():
            refusal = self._refusals.get(name)
            if refusal is not None and time.monotonic() < refusal.again_at:
                continue
            waiting = [job for job in self._jobs if job.packed.cluster == name and not job.in_flight]
            wanted = [(job, owed) for job in waiting if (owed := job.owed(self._recorded))]
            flying = sum(job.in_flight is not None for job in self._jobs if job.packed.cluster == name)
            if flying or not cluster.queues:
                wanted = wanted[: max(0, cluster.at_once - flying)]
            if refusal is not None:
                # One finds out whether it is over; of many, each try would leave a folder.
                wanted = wanted[:1]
            if wanted:
                try:
                    self._submit(name, cluster, wanted, flying=flying > 0)
                except SubmitError as error:
                    final.append(error)
        if final and not self.begun:
            raise final[0]

    def _submit(
        self, name: str, cluster: Cluster, wanted: Sequence[tuple[NightJob, list[PlannedRun]]], *, flying: bool
    ) -> None:
        """Raises `SubmitError` for a refusal for good, unless jobs of the night have been taken before."""
        requests = []
        for job, owed in wanted:
            attempt = self.folder.new_attempt(job.packed, self._spec(job.packed, owed))
            job.attempts.append(attempt)
            bad = {host for settled in job.settled for host in settled.bad_hosts}
            requests.append(Request(attempt, tuple(sorted(bad))))
        try:
            cluster.submit(self.folder, requests)
        except SubmitError as error:
            lacking = [one.attempt for one in requests if one.attempt.submitted is None]
            if self._passes(name, error, flying=flying):
                cluster.recover(self.folder, lacking)
                return
            # Slurm lists a job that it refuses, as one that failed: looked for, it would be taken for submitted.
            cluster.cancel(lacking)
            self._refusals.pop(name, None)
            if not self.begun:
                raise
            for (job, _), request in zip(wanted, requests, strict=True):
                if request.attempt in lacking:
                    self._settle(request.attempt, job, JobState("ended", str(error), "refused"))
        else:
            self._refusals.pop(name, None)

    def _passes(self, name: str, error: SubmitError, *, flying: bool) -> bool:
        """Whether it is tried again later: not for ever, unless there are jobs to wait for."""
        now = time.monotonic()
        since = self._refusals[name].since if name in self._refusals and not flying else now
        if not error.passing or now - since > _SUBMIT_PATIENCE_S:
            return False
        self._refusals[name] = _Refusal(str(error), since, now + _SUBMIT_AGAIN_S)
        return True

    def _spec(self, job: PackedJob, owed: Sequence[PlannedRun]) -> JobSpec:
        """What the job is told."""
        measure = self.plan.measure
        return JobSpec(
            runs=list(owed),
            spool=str(self._spool),
            log_folder="",
            cluster=job.cluster,
            warmup=measure.warmup,
            iters=measure.iters,
            deadline_s=measure.job_deadline_s,
            heartbeat_s=measure.heartbeat_s,
            op_deadline_s=measure.deadline_s,
            accounts=False,
        )

    def _append(self, jobs: Sequence[PackedJob]) -> None:
        """Plan more: what seems to have changed is measured again."""
        self.manifest = msgspec.structs.replace(
            self.manifest, jobs=(*self.manifest.jobs, *jobs), rounds=self.manifest.rounds + 1
        )
        self.folder.write(self.manifest)
        enter(self._history, self.plan, self.manifest)
        self._jobs += [NightJob(packed, [], []) for packed in jobs]


def enter(history: History, plan: Plan, manifest: Manifest) -> None:
    """Write the night and every run it plans so far into the history; what is there already stays."""
    from regress_db.facts import AA, CONFIRMATION, PLANNED_RUN
    from regress_db.nights import open_night

    def purpose(run: PlannedRun) -> str:
        """The halves of an A/A check take turns, so that what drifts touches both alike."""
        if run.repeat >= plan.runs_of_a_case:
            return CONFIRMATION
        return AA if plan.measure.aa and run.repeat % 2 else PLANNED_RUN

    started_at = datetime.fromisoformat(manifest.started_at)
    open_night(history, manifest.night, manifest.plan, started_at, list(manifest.runs), purpose)


def _seconds_since(moment: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
