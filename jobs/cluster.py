"""What a cluster is to the rest of the room: something that takes a job's folder and brings a process to it.

`jobs.nightly` knows only this; `jobs.local` is the one cluster there is. A cluster is always named by the plan, never
guessed from what happens to be installed. Next to read: `jobs.local`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from harness.job import JobSpec


class SubmittedJob(Protocol):
    """A job that was submitted."""

    def finished(self) -> bool:
        """Whether nothing of the job runs any more, whatever came of it. Never blocks."""

    def stop(self) -> None:
        """End every process of the job and return when none is left."""

    def log_tail(self) -> str:
        """The last lines that the job's own process (not its ranks) wrote, for a job that died."""


class Cluster(Protocol):
    """Where jobs run."""

    def submit(self, folder: Path, spec: JobSpec) -> SubmittedJob:
        """Start a job that measures `spec`, in `folder`, which is new and the job's alone."""
