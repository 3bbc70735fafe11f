"""The cluster `local`: this machine, through submitit's local executor.

The executor has no queue and starts all it is given, so `jobs.nightly` gives it one job at a time. A job is the
executor's controller, its one task, and the ranks that the task starts. The first two carry a mark in their
environment, by which they are found whoever their parent is by then, also by another process than the one that
submitted them; the ranks die with the task (`harness.processes`).
Next to read: `jobs.work`, which is what runs in the job.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import submitit

from harness.environment import hostname, utc_now
from harness.processes import MARK, kill_marked, marked
from jobs import private_files, work
from jobs.cluster import JobState, Request, SubmitError
from jobs.envelope import read_envelope
from jobs.exclusive import MEASURING_LOCK
from jobs.night_folder import SUBMITTED_FILE, Attempt, NightFolder, Submitted

_GRACE_S = 120.0
_LOG_TAIL_LINES = 40
_VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"


class LocalCluster:
    """Runs jobs on this machine. jobs_folder: holds the lock that keeps measurements apart."""

    measures_here = True
    queues = False
    at_once = 1
    poll_s = 0.2

    def __init__(self, jobs_folder: Path) -> None:
        self._lock = jobs_folder / MEASURING_LOCK
        self._started: dict[Path, submitit.Job[None]] = {}

    def submit(self, night: NightFolder, requests: Sequence[Request]) -> None:
        """Start the jobs. Raises `SubmitError` when the machine refuses."""
        for request in requests:
            self._start(request.attempt)

    def _start(self, attempt: Attempt) -> None:
        spec = attempt.spec
        executor = submitit.LocalExecutor(attempt.folder / "submitit")
        # The harness ends the job at its own deadline and says so; the executor's is for a harness that cannot.
        limit_s = 2 * spec.deadline_s + _GRACE_S
        executor.update_parameters(timeout_min=limit_s / 60, tasks_per_node=1, gpus_per_node=0, signal_delay_s=0)
        # The executor hides all GPUs, or shows the first so many, whichever of them the user has set apart.
        cuda = any(run.case.device == "cuda" for run in spec.runs)
        variables = {_VISIBLE_GPUS: os.environ.get(_VISIBLE_GPUS)} if cuda else {}
        try:
            with _environment(MARK, str(attempt.folder)):
                job = executor.submit(work.measure, str(attempt.folder), str(self._lock), variables)
        except OSError as error:
            raise SubmitError(f"cannot start the job in {attempt.folder}: {error.strerror or error}") from None
        self._started[attempt.folder] = job
        submitted = Submitted(scheduler_id=job.job_id, name=attempt.job.name, at=utc_now())
        private_files.save(submitted, attempt.folder / SUBMITTED_FILE)

    def recover(self, night: NightFolder, attempts: Sequence[Attempt]) -> None:
        """What runs, or has run, was submitted; what has left no trace was not."""
        for attempt in attempts:
            if marked(str(attempt.folder)) or read_envelope(attempt.folder / work.ENVELOPE_FILE) is not None:
                submitted = Submitted(scheduler_id="", name=attempt.job.name, at=utc_now())
                private_files.save(submitted, attempt.folder / SUBMITTED_FILE)
            else:
                attempt.give_up()

    def look(self, attempts: Sequence[Attempt]) -> dict[Attempt, JobState]:
        """Running as long as a process of the job is left, else ended; then whatever it left running is ended too."""
        return {attempt: self._state(attempt) for attempt in attempts}

    def _state(self, attempt: Attempt) -> JobState:
        job = self._started.get(attempt.folder)
        if not job.done() if job is not None else marked(str(attempt.folder)):
            return JobState("running", hosts=(hostname(),))
        self.cancel([attempt])
        envelope = read_envelope(attempt.folder / work.ENVELOPE_FILE)
        if envelope is None and job is None:
            return JobState("ended", "the job died with the command that had started it", "node", (hostname(),))
        if envelope is None:
            words = "the job's process died without a word: it was killed, or the machine ran out of memory"
            return JobState("ended", words, "killed", (hostname(),), log_tail=_log_tail(attempt.folder))
        if envelope.outcome == "error":
            words = f"the job ended with {envelope.kind}: {envelope.message}"
            return JobState("ended", words, "failed", (envelope.host,), log_tail=envelope.trace)
        return JobState("ended", hosts=(envelope.host,))

    def cancel(self, attempts: Sequence[Attempt]) -> None:
        """SIGKILL what is left of the jobs. Raises `SubmitError` for a process that will not go."""
        for attempt in attempts:
            left = kill_marked(str(attempt.folder))
            job = self._started.get(attempt.folder)
            if job is not None:
                job.done()
            if left:
                pids = ", ".join(map(str, left))
                raise SubmitError(f"processes {pids} of the job in {attempt.folder} cannot be killed")


def _log_tail(folder: Path) -> str:
    """The end of what the job's own process, not its ranks, wrote to stderr."""
    for path in (folder / "submitit").glob("*_log.err"):
        with contextlib.suppress(OSError):
            return "\n".join(path.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
    return ""


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set a variable while a child is started."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
