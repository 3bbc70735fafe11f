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
import io
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from harness.environment import utc_now
from jobs import private_files
from jobs.cluster import JobState, Request, SubmitError
from jobs.envelope import read_envelope
from jobs.exclusive import make_folder
from jobs.launchers import killed_says_srun
from jobs.night_folder import CLAIM_FILE, SUBMISSIONS, SUBMITTED_FILE, Attempt, Claim, NightFolder, Submitted
from jobs.plan_clusters import ClusterSection, is_host
from jobs.slurm_queue import Entry, SlurmQueue, SlurmSilent
from jobs.slurm_submit import Shape, interpreter, parameters, submitters_environment, turn_parameters, turns
from jobs.slurm_words import RUNNING, cause_of, could_not_be_launched, end_in_words, reason_in_words

if TYPE_CHECKING:
    import submitit

MOST_IN_ARRAY = 500
"""Slurm's own default limit is 1,001; many sites set less than that, few less than this."""

_SUBMISSION_FILE = "submission.json"
_SUBMITIT = "submitit"
_NEVER_TOLD = "could not find submitted jobs in path"
"""What submitit says in a job whose submitter died before it could hand over what is to be done."""
_FIRST_POLL_S, _LAST_POLL_S, _SLOWER_BY = 1.0, 20.0, 15.0
_PASSING = re.compile(
    r"unable to contact slurm controller|socket timed out|connection (?:refused|reset)|temporarily unable|"
    r"try again|communications? (?:connection )?(?:failure|error|timed out)|zero bytes were transmitted",
    re.IGNORECASE,
)


class Submission(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one call of sbatch is about. name: of the job, unique. attempts: their folders below the night's, in order
    of the array's index.
    """

    name: str
    cluster: str
    at: str
    attempts: list[str]


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
        groups: dict[tuple[Shape, Shape], list[Attempt]] = {}
        for request in requests:
            world, slow = request.attempt.job.world, [host for host in self.slow_hosts if is_host(host)]
            bad = [host for host in request.exclude if is_host(host)]
            shapes = Shape.of(self._section, world, [*slow, *bad]), Shape.of(self._section, world, slow)
            groups.setdefault(shapes, []).append(request.attempt)
        arrays = [
            (shapes, attempts[start : start + MOST_IN_ARRAY])
            for shapes, attempts in groups.items()
            for start in range(0, len(attempts), MOST_IN_ARRAY)
        ]
        ids: list[str] = []
        refusals = []
        for (shapes, attempts), turn in zip(
            arrays, turns([len(attempts) for _, attempts in arrays], self.at_once), strict=True
        ):
            after = "" if turn.after is None else ids[turn.after]
            asked = turn_parameters(turn.at_once, after)
            try:
                ids.append(self._submit_as(shapes, night, attempts, asked))
            except SubmitError as error:
                if error.passing:
                    raise
                # Who is to wait for this one waits for whom it would have waited for.
                ids.append(after)
                refusals.append(str(error))
        if refusals:
            raise SubmitError("; ".join(dict.fromkeys(refusals)))

    def _submit_as(
        self, shapes: tuple[Shape, Shape], night: NightFolder, attempts: Sequence[Attempt], asked: dict[str, Any]
    ) -> str:
        """Submit one array without the hosts that failed; where too few are left then, to wait until they are back."""
        wanted, at_least = shapes
        try:
            return self._submit(night, wanted, attempts, asked)
        except SubmitError as error:
            if error.passing or wanted == at_least:
                raise
            return self._submit(night, at_least, attempts, asked)

    def _submit(self, night: NightFolder, shape: Shape, attempts: Sequence[Attempt], asked: dict[str, Any]) -> str:
        """Submit one array, with what is asked of it besides; its id."""
        folder = _new_submission_folder(night)
        name = f"epwatch-{night.name}-{folder.name}"
        paths = [str(attempt.folder.relative_to(night.folder)) for attempt in attempts]
        submission = Submission(name=name, cluster=self._section.name, at=utc_now(), attempts=paths)
        private_files.save(submission, folder / _SUBMISSION_FILE)
        jobs = self._sbatch(folder, parameters(self._section, shape, name, self._limit_min) | asked, attempts)
        for attempt, job in zip(attempts, jobs, strict=True):
            submitted = Submitted(scheduler_id=job.job_id, name=name, at=utc_now())
            private_files.save(submitted, attempt.folder / SUBMITTED_FILE)
        self._changed_at = time.monotonic()
        return str(jobs[0].job_id).partition("_")[0]

    def _sbatch(self, folder: Path, asked: dict[str, Any], attempts: Sequence[Attempt]) -> Sequence[submitit.Job[None]]:
        import submitit

        from jobs.rank_task import run_task

        for program in ("sbatch", "srun"):
            if shutil.which(program) is None:
                raise SubmitError(f"there is no {program} here: run epwatch where Slurm's commands are")
        try:
            executor = submitit.SlurmExecutor(folder / _SUBMITIT, python=interpreter(self._section))
            executor.update_parameters(**asked)
            self.queue.commands += 1
            # submitit prints what sbatch says before it raises it.
            with submitters_environment(self._section), contextlib.redirect_stderr(io.StringIO()):
                return executor.map_array(
                    run_task, [str(attempt.folder) for attempt in attempts], [self._section.launcher] * len(attempts)
                )
        except (submitit.core.utils.FailedSubmissionError, submitit.core.utils.FailedJobError) as error:
            said = _words_of(str(error))
            raise SubmitError(f"Slurm refuses the job: {said}", passing=_PASSING.search(said) is not None) from None
        except (OSError, RuntimeError) as error:
            raise SubmitError(f"the job cannot be submitted to cluster {self._section.name}: {error}") from None

    def recover(self, night: NightFolder, attempts: Sequence[Attempt]) -> None:
        """Look for attempts in Slurm by their submissions' names; give up those that are nowhere."""
        if not attempts:
            return
        submissions = _submissions(night)
        names = {path: (one, index) for one in submissions for index, path in enumerate(one.attempts)}
        known: dict[str, list[str]] = {}
        if submissions:
            try:
                wanted = [names[path][0] for path in _paths(night, attempts) if path in names]
                if wanted:
                    listed = list(dict.fromkeys(one.name for one in wanted))
                    known = self.queue.find(listed, min(one.at for one in wanted))
            except SlurmSilent:
                # Then the claim decides: what Slurm may have of them ends as soon as it begins.
                known = {}
        for attempt, path in zip(attempts, _paths(night, attempts), strict=True):
            submission, index = names.get(path, (None, 0))
            ids = known.get(submission.name, []) if submission is not None else []
            array = submission is not None and len(submission.attempts) > 1
            found = next((one for one in ids if not array or one.endswith(f"_{index}")), None)
            if submission is not None and found is not None:
                self._hand_over(night, submission, attempt, found)
            claim = attempt.claim
            if claim is not None and claim.by == "command":
                # An earlier process gave it up; its job, if it ever begins, finds that and ends.
                continue
            name = submission.name if submission is not None else ""
            if found is None and not private_files.save_once(
                Claim(by="command", at=utc_now()), attempt.folder / CLAIM_FILE
            ):
                claim = attempt.claim
                found = claim.scheduler_id if claim is not None and claim.by == "job" else None
            if found is not None:
                private_files.save(
                    Submitted(scheduler_id=found, name=name, at=utc_now()), attempt.folder / SUBMITTED_FILE
                )

    def _hand_over(self, night: NightFolder, submission: Submission, attempt: Attempt, job: str) -> None:
        """Tell a job what it is to do, where submitit died before it could: it waits a minute for that."""
        from submitit.core.utils import DelayedSubmission, JobPaths

        from jobs.rank_task import run_task

        folder = night.folder / SUBMISSIONS / submission.name.rpartition("-")[2] / _SUBMITIT
        target = JobPaths(folder, job_id=job).submitted_pickle
        if not target.exists():
            told = DelayedSubmission(run_task, str(attempt.folder), self._section.launcher)
            told.set_timeout(self._limit_min, 0)
            partial = target.with_suffix(".partial")
            told.dump(partial)
            partial.replace(target)

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
                if job in entries:
                    self._note(attempt, self._state(attempt, job, entries[job]))
        return {attempt: self._states[attempt.folder] for attempt in attempts if attempt.folder in self._states}

    def cancel(self, attempts: Sequence[Attempt]) -> None:
        """Cancel the attempts, with as few commands as there may be; those not begun yet never will be."""
        ids = []
        for attempt in attempts:
            _give_up(attempt)
            submitted = attempt.submitted
            if submitted is not None and submitted.scheduler_id:
                ids.append(submitted.scheduler_id)
        for start in range(0, len(ids), MOST_IN_ARRAY):
            self.queue.cancel(ids[start : start + MOST_IN_ARRAY])

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
        claim = attempt.claim
        hosts = tuple(dict.fromkeys(claim.hosts)) if claim is not None else ()
        hosts = hosts or ((entry.nodes,) if entry.nodes else ())
        if cause is not None:
            bad = self._bad_hosts(hosts) if cause == "node" else ()
            words = end_in_words(cause, entry.state, entry.exit_code, ",".join(bad or hosts))
            said = _log_tail(attempt) if cause != "done" else ""
            if cause == "failed" and claim is None and _NEVER_TOLD in said:
                return JobState("ended", "its submission was cut short: it was never told what to do", "lost", hosts)
            killed = killed_says_srun(said) if self._section.launcher == "srun" else []
            return JobState("ended", words, cause, hosts, bad, said, tuple(killed))
        if entry.state in RUNNING:
            return JobState("running", hosts=hosts)
        if could_not_be_launched(entry.reason):
            with contextlib.suppress(SlurmSilent):
                self.queue.cancel([job])
            return JobState("ended", f"Slurm could not start it: {entry.reason}", "node", hosts, self._bad_hosts(hosts))
        return JobState("pending", reason_in_words(entry.reason))

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
        if claim is None and self._waited_in_array(attempt):
            return JobState("ended", "the job was cancelled while it waited; Slurm does not say by whom", "cancelled")
        said = _log_tail(attempt)
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

    def _bad_hosts(self, hosts: Sequence[str]) -> tuple[str, ...]:
        """Which of the hosts do not work; none where that cannot be told."""
        try:
            down = set(self.queue.down_nodes())
        except SlurmSilent:
            return ()
        return tuple(host for host in hosts if host in down)


def _give_up(attempt: Attempt) -> bool:
    """See to it that the attempt is never begun; False where it has been."""
    return private_files.save_once(Claim(by="command", at=utc_now()), attempt.folder / CLAIM_FILE)


def _new_submission_folder(night: NightFolder) -> Path:
    folder = night.folder / SUBMISSIONS
    number = 1 + max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0)
    new = folder / str(number)
    make_folder(new / _SUBMITIT)
    return new


def _submissions(night: NightFolder) -> list[Submission]:
    """Every submission of the night, oldest first."""
    folders = sorted((night.folder / SUBMISSIONS).iterdir(), key=lambda folder: (len(folder.name), folder.name))
    found = (private_files.load(folder / _SUBMISSION_FILE, Submission) for folder in folders)
    return [one for one in found if one is not None]


def _paths(night: NightFolder, attempts: Sequence[Attempt]) -> list[str]:
    return [str(attempt.folder.relative_to(night.folder)) for attempt in attempts]


def _words_of(said: str) -> str:
    """sbatch's own words, in one line: the errors it gave, without its name."""
    lines = [line.strip() for line in said.splitlines() if line.strip() and "retrying in" not in line]
    errors = [line.partition("error: ")[2] for line in lines if line.startswith("sbatch: error: ")]
    return "; ".join(errors or lines[-1:]) or "without a word"


def _log_tail(attempt: Attempt, most_lines: int = 40) -> str:
    """The end of what the job's own processes, not the ranks, wrote to stderr: srun says there who died."""
    submitted = attempt.submitted
    if submitted is None:
        return ""
    night = attempt.folder.parent.parent
    for path in sorted((night / SUBMISSIONS).glob(f"*/{_SUBMITIT}/{submitted.scheduler_id}_0_log.err")):
        try:
            return "\n".join(path.read_text(errors="replace").splitlines()[-most_lines:])
        except OSError:
            continue
    return ""
