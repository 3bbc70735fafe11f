"""A Slurm cluster: attempts are submitted through submitit, as arrays of what asks for the same, and watched by our own
eyes.

submitit alone hangs for ever on a job that dies where sacct does not answer, and takes a failed node's job for ended
while Slurm runs it again. So jobs are never requeued by Slurm (`jobs.nightly` submits what is owed anew), states come
from `jobs.slurm_queue`, and results are files. A submission is written down before sbatch is called and each of its
attempts after; a process that dies in between leaves attempts that `recover` looks for by the job's name, which is
unique, or gives up by a claim that the job, should it come to life after all, finds and respects.
Next to read: `jobs.rank_task`, which is what runs in a job.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.environment import utc_now
from harness.errors import EpwatchError
from jobs import private_files
from jobs.cluster import JobState, Request, SubmitError
from jobs.envelope import read_envelope
from jobs.launchers import killed_says_srun
from jobs.night_folder import SUBMITTED_FILE, Attempt, NightFolder, Submitted
from jobs.plan_clusters import ClusterSection, is_host
from jobs.slurm_queue import Entry, SlurmQueue, SlurmSilent
from jobs.slurm_submissions import (
    NEVER_TOLD,
    TooManyJobs,
    hand_over,
    log_of,
    log_tail,
    new_submission,
    paths,
    sbatch,
    submissions,
)
from jobs.slurm_submit import Shape, Turn, parameters, turn_parameters, turns
from jobs.slurm_words import RUNNING, cause_of, could_not_be_launched, end_in_words, in_line, reason_in_words

MOST_IN_ARRAY = 500
"""Slurm's own default limit is 1,001; many sites set less than that, few less than this."""

_FIRST_POLL_S, _LAST_POLL_S, _SLOWER_BY = 1.0, 20.0, 15.0


class SlurmCluster:
    """A Slurm cluster as a plan describes it. slow_hosts: left out of every job."""

    measures_here = False
    queues = True

    def __init__(self, section: ClusterSection, job_deadline_s: float, slow_hosts: Sequence[str] = ()) -> None:
        self._section = section
        self.at_once = section.jobs_at_once
        self._limit_min = section.limit_min(job_deadline_s)
        self.slow_hosts = tuple(slow_hosts)
        self.queue = SlurmQueue()
        self._most_in_array = MOST_IN_ARRAY
        self._states: dict[Path, JobState] = {}
        self._changed_at = time.monotonic()
        self._looked_at = -_LAST_POLL_S

    @property
    def poll_s(self) -> float:
        """Longer the longer nothing has changed, so that a night of hours asks Slurm a few times a minute."""
        quiet_s = time.monotonic() - self._changed_at
        return min(_LAST_POLL_S, max(_FIRST_POLL_S, quiet_s / _SLOWER_BY))

    def submit(self, night: NightFolder, requests: Sequence[Request]) -> None:
        """Submit attempts, in as few calls of sbatch as their shapes allow, those that are not refused.

        Raises `SubmitError` in Slurm's words.
        """
        groups: dict[tuple[Shape, ...], list[Attempt]] = {}
        for request in requests:
            groups.setdefault(self._shapes(request), []).append(request.attempt)
        arrays = [
            (shapes, attempts[start : start + self._most_in_array])
            for shapes, attempts in groups.items()
            for start in range(0, len(attempts), self._most_in_array)
        ]
        ids: list[str] = []
        refusals = []
        for (shapes, attempts), turn in zip(
            arrays, turns([len(attempts) for _, attempts in arrays], self.at_once), strict=True
        ):
            after = "" if turn.after is None else ids[turn.after]
            try:
                ids.append(self._submit_as(shapes, night, attempts, turn, after))
            except TooManyJobs:
                self._most_in_array = max(1, len(attempts) // 2)
                raise
            except SubmitError as error:
                if error.passing:
                    raise
                # Who is to wait for this one waits for whom it would have waited for.
                ids.append(after)
                refusals.append(str(error))
        if refusals:
            raise SubmitError("; ".join(dict.fromkeys(refusals)))

    def _shapes(self, request: Request) -> tuple[Shape, ...]:
        """What to ask for, and what instead where too few hosts are left: a job waits for hosts that failed it until
        they are back, and makes do with slow ones.
        """
        bad, slow = ([host for host in hosts if is_host(host)] for hosts in (request.exclude, self.slow_hosts))
        excluded = dict.fromkeys(tuple(hosts) for hosts in ([*slow, *bad], slow, []))
        return tuple(Shape.of(self._section, request.attempt.job.world, hosts) for hosts in excluded)

    def _submit_as(
        self, shapes: Sequence[Shape], night: NightFolder, attempts: Sequence[Attempt], turn: Turn, after: str
    ) -> str:
        """Submit one array in the first of the shapes that is not refused, after another's end; its id."""
        shape, *others = shapes
        try:
            return self._submit(night, shape, attempts, turn, after)
        except SubmitError as error:
            if error.passing or not others:
                raise
            return self._submit_as(others, night, attempts, turn, after)

    def _submit(self, night: NightFolder, shape: Shape, attempts: Sequence[Attempt], turn: Turn, after: str) -> str:
        submission = new_submission(night, self._section.name, utc_now(), attempts)
        asked = parameters(self._section, shape, submission.name, self._limit_min)
        self.queue.commands += 1
        jobs = sbatch(night, submission, self._section, asked | turn_parameters(turn.at_once, after), attempts)
        for attempt, job in zip(attempts, jobs, strict=True):
            submitted = Submitted(scheduler_id=job.job_id, name=submission.name, at=utc_now())
            private_files.save(submitted, attempt.folder / SUBMITTED_FILE)
        self._changed_at = time.monotonic()
        return str(jobs[0].job_id).partition("_")[0]

    def recover(self, night: NightFolder, attempts: Sequence[Attempt]) -> None:
        """Look for attempts in Slurm by their submissions' names; give up those that are nowhere."""
        if not attempts:
            return
        listed = submissions(night)
        names = {path: (one, index) for one in listed for index, path in enumerate(one.attempts)}
        wanted = [names[path][0] for path in paths(night, attempts) if path in names]
        known: Mapping[str, Sequence[str]] = {}
        # Where Slurm is silent the claim decides: what it may have of them ends as soon as it begins.
        with contextlib.suppress(SlurmSilent):
            if wanted:
                known = self.queue.find(list(dict.fromkeys(one.name for one in wanted)), min(one.at for one in wanted))
        for attempt, path in zip(attempts, paths(night, attempts), strict=True):
            submission, index = names.get(path, (None, 0))
            ids = known.get(submission.name, []) if submission is not None else []
            array = submission is not None and len(submission.attempts) > 1
            found = next((one for one in ids if not array or one.endswith(f"_{index}")), None)
            if submission is not None and found is not None:
                hand_over(night, submission, attempt, found, self._section, self._limit_min)
            claim = attempt.claim
            if claim is not None and claim.by == "command":
                # An earlier process gave it up; its job, if it ever begins, finds that and ends.
                continue
            name = submission.name if submission is not None else ""
            if found is None and not attempt.give_up():
                claim = attempt.claim
                found = claim.scheduler_id if claim is not None and claim.by == "job" else None
            if found is not None:
                private_files.save(
                    Submitted(scheduler_id=found, name=name, at=utc_now()), attempt.folder / SUBMITTED_FILE
                )

    def look(self, attempts: Sequence[Attempt]) -> dict[Attempt, JobState]:
        """How each attempt is; Slurm is asked at most once in a poll's time, and once for all."""
        ids = {attempt: submitted.scheduler_id for attempt in attempts if (submitted := attempt.submitted) is not None}
        new = any(attempt.folder not in self._states for attempt in ids)
        if ids and (new or time.monotonic() - self._looked_at >= self.poll_s):
            try:
                entries = self.queue.look(ids.values())
            except SlurmSilent as silent:
                entries = {}
                self._not_known(ids, str(silent))
            self._looked_at = time.monotonic()
            for attempt, job in ids.items():
                if job in entries and not self._has_ended(attempt, entries[job]):
                    self._note(attempt, self._state(attempt, job, entries[job]))
        return {attempt: self._states[attempt.folder] for attempt in attempts if attempt.folder in self._states}

    def cancel(self, attempts: Sequence[Attempt]) -> None:
        """Cancel the attempts, with as few commands as there may be; those not begun yet never will be."""
        ids = []
        for attempt in attempts:
            attempt.give_up()
            submitted = attempt.submitted
            if submitted is not None and submitted.scheduler_id:
                ids.append(submitted.scheduler_id)
        for start in range(0, len(ids), MOST_IN_ARRAY):
            self.queue.cancel(ids[start : start + MOST_IN_ARRAY])

    def _has_ended(self, attempt: Attempt, entry: Entry) -> bool:
        """Whether all is known of it; of a job that is gone without a word, files may still come."""
        known = self._states.get(attempt.folder)
        return known is not None and known.phase == "ended" and entry.state != "GONE"

    def _note(self, attempt: Attempt, state: JobState) -> None:
        if self._states.get(attempt.folder) != state:
            self._changed_at = time.monotonic()
        self._states[attempt.folder] = state

    def _not_known(self, ids: dict[Attempt, str], words: str) -> None:
        """Slurm is silent: what was known of waiting jobs stands, with that in words."""
        for attempt in ids:
            before = self._states.get(attempt.folder, JobState("pending"))
            if before.phase == "pending":
                self._states[attempt.folder] = JobState("pending", words)

    def _state(self, attempt: Attempt, job: str, entry: Entry) -> JobState:
        if entry.state == "GONE":
            return self._state_of_gone(attempt)
        cause = cause_of(entry.state)
        hosts = self._hosts(attempt, entry.nodes)
        if cause is not None:
            begun = attempt.claim is not None or log_of(attempt) is not None
            if cause == "cancelled" and entry.nodes and not begun:
                # What slurmd does with a job that it cannot launch, and may not requeue.
                return JobState("ended", "Slurm could not start it and cancelled it", "node", hosts, self._bad(hosts))
            bad = self._bad(hosts) if cause == "node" else ()
            words = end_in_words(cause, entry.state, entry.exit_code, ",".join(bad or hosts))
            said = log_tail(attempt) if cause != "done" else ""
            if cause == "failed" and attempt.claim is None and NEVER_TOLD in said:
                return JobState("ended", "its submission was cut short: it was never told what to do", "lost", hosts)
            killed = killed_says_srun(said) if self._section.launcher == "srun" else []
            return JobState("ended", words, cause, hosts, bad, said, tuple(killed))
        if entry.state in RUNNING:
            return JobState("running", hosts=hosts)
        if could_not_be_launched(entry.reason):
            with contextlib.suppress(SlurmSilent):
                self.queue.cancel([job])
            return JobState("ended", f"Slurm could not start it: {entry.reason}", "node", hosts, self._bad(hosts))
        return JobState("pending", reason_in_words(entry.reason), in_line=in_line(entry.reason))

    def _hosts(self, attempt: Attempt, nodes: str) -> tuple[str, ...]:
        """Where it is or was: as it said itself, else as Slurm has it."""
        claim = attempt.claim
        if claim is not None and claim.hosts:
            return tuple(dict.fromkeys(claim.hosts))
        if not set("[,").intersection(nodes):
            return (nodes,) if nodes else ()
        with contextlib.suppress(SlurmSilent):
            return tuple(self.queue.hosts(nodes))
        return ()

    def _state_of_gone(self, attempt: Attempt) -> JobState:
        """Without Slurm's word: what the job's first process left says whether it ended well."""
        claim = attempt.claim
        hosts = tuple(dict.fromkeys(claim.hosts)) if claim is not None else ()
        envelope = read_envelope(attempt.folder / "envelope-0.json")
        if envelope is not None and envelope.outcome == "done":
            return JobState("ended", hosts=hosts)
        if envelope is not None:
            words = f"it ended with {envelope.kind}: {envelope.message}" if envelope.kind else envelope.message
            return JobState("ended", words, "failed", hosts, log_tail=envelope.trace)
        if claim is None and log_of(attempt) is None and self._waited_in_array(attempt):
            return JobState("ended", "the job was cancelled while it waited; Slurm does not say by whom", "cancelled")
        said = log_tail(attempt)
        killed = killed_says_srun(said) if self._section.launcher == "srun" else []
        return JobState("ended", end_in_words("gone", "", "", ""), "gone", hosts, log_tail=said, failures=tuple(killed))

    def _waited_in_array(self, attempt: Attempt) -> bool:
        """Whether Slurm still knows the array of an element it does not know: a cancelled one that had not begun."""
        submitted = attempt.submitted
        array, _, index = submitted.scheduler_id.partition("_") if submitted is not None else ("", "", "")
        if not index:
            return False
        with contextlib.suppress(SlurmSilent):
            return self.queue.knows(array)
        return False

    def _bad(self, hosts: Sequence[str]) -> tuple[str, ...]:
        """Which of the hosts of a job that failed by its node's fault: a single one, else those that do not work."""
        if len(hosts) == 1:
            return tuple(hosts)
        try:
            down = set(self.queue.down_nodes())
        except EpwatchError:
            return ()
        return tuple(host for host in hosts if host in down)
