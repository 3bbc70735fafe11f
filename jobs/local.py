"""The cluster `local`: this machine, through submitit's local executor.

The executor has no queue and starts all it is given, so `jobs.nightly` gives it one job at a time. A job is the
executor's controller, its one task, and the ranks that the task starts. The first two carry a mark in their
environment, by which `stop` finds them whoever their parent is by then; the ranks die with the task
(`harness.processes`).
Next to read: `jobs.work`, which is what runs in the job.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import submitit

from harness import job as jobspec
from harness.errors import EpwatchError
from harness.job import JobSpec
from harness.processes import MARK, kill_marked
from jobs import work
from jobs.exclusive import MEASURING_LOCK

_GRACE_S = 120.0
_LOG_TAIL_LINES = 40


class SubmitError(EpwatchError):
    """A job that could not be submitted."""


class LocalCluster:
    """Runs jobs on this machine. jobs_folder: holds the lock that keeps measurements apart."""

    def __init__(self, jobs_folder: Path) -> None:
        self._lock = jobs_folder / MEASURING_LOCK

    def submit(self, folder: Path, spec: JobSpec) -> LocalJob:
        """Start the job. Raises `SubmitError` when the machine refuses."""
        jobspec.save(spec, folder / work.SPEC_FILE)
        executor = submitit.LocalExecutor(folder / "submitit")
        # The harness ends the job at its own deadline and says so; the executor's is for a harness that cannot.
        limit_s = 2 * spec.deadline_s + _GRACE_S
        cuda = any(run.case.device == "cuda" for run in spec.runs)
        executor.update_parameters(
            timeout_min=limit_s / 60, tasks_per_node=1, gpus_per_node=spec.ranks if cuda else 0, signal_delay_s=0
        )
        try:
            with _environment(MARK, str(folder)):
                job = executor.submit(work.measure, str(folder), str(self._lock))
        except OSError as error:
            raise SubmitError(f"cannot start the job in {folder}: {error.strerror or error}") from None
        return LocalJob(folder, job)


class LocalJob:
    """A job on this machine."""

    def __init__(self, folder: Path, job: submitit.Job[None]) -> None:
        self._folder = folder
        self._job = job

    def finished(self) -> bool:
        """Whether the job's controller has ended; then whatever it left running is ended too."""
        if not self._job.done():
            return False
        self.stop()
        return True

    def stop(self) -> None:
        """SIGKILL what is left of the job. Raises `SubmitError` for a process that will not go."""
        left = kill_marked(str(self._folder))
        self._job.done()
        if left:
            raise SubmitError(f"processes {', '.join(map(str, left))} of the job in {self._folder} cannot be killed")

    def log_tail(self) -> str:
        """The end of what the job's process wrote to stderr."""
        try:
            text = self._job.paths.stderr.read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-_LOG_TAIL_LINES:])


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
