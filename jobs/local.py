"""The cluster `local`: this machine, through submitit's local executor.

The executor has no queue and starts all it is given, so `jobs.nightly` gives it one job at a time. Every process of a
job inherits a mark in its environment, by which `stop` finds them all, also those whose parents have died.
Next to read: `jobs.work`, which is what runs in the job.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import submitit

from harness import job as jobspec
from harness.errors import EpwatchError
from harness.job import JobSpec
from jobs import work
from jobs.exclusive import MEASURING_LOCK

MARK = "_EPWATCH_JOB"
_GRACE_S = 120.0
_STOP_S = 10.0
_LOG_TAIL_LINES = 40


class SubmitError(EpwatchError):
    """A job that could not be submitted."""


class LocalCluster:
    """Runs jobs on this machine. jobs_folder: holds the lock that keeps measurements apart."""

    concurrent = 1

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
        """SIGKILL every process that carries the job's mark, until none is left."""
        deadline = time.monotonic() + _STOP_S
        while (marked := list(_marked(self._folder))) and time.monotonic() < deadline:
            for pid in marked:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._job.done()
            time.sleep(0.02)

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


def _marked(folder: Path) -> Iterator[int]:
    """The processes that carry the mark of the job in `folder`, zombies excepted."""
    mark = f"{MARK}={folder}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)
