"""What a cluster is to the rest of the room: something that takes attempts at jobs, and says how each of them is.

`jobs.nightly` knows only this; `jobs.local` is this machine, `jobs.slurm` a Slurm cluster. A cluster is always named by
the plan, never guessed from what happens to be installed. What it was given and what came of it stands in the night's
folder (`jobs.night_folder`), so that any process can go on with it. Next to read: `jobs.local`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from harness.diagnosis import RankFailure
from harness.errors import EpwatchError
from jobs.night_folder import Attempt, Cause, NightFolder


class SubmitError(EpwatchError):
    """A job that could not be submitted. passing: whether trying again later may do."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


@dataclass(frozen=True)
class JobState:
    """How an attempt is. words: why it waits, or how it ended, for people. cause: of its end. hosts: where it is or
    was, as far as known. bad_hosts: those at fault. log_tail: of the job's own process, not its ranks, where it died.
    failures: ranks of which the cluster says that they ended badly. in_line: whether it waits for others of its night.
    """

    phase: Literal["pending", "running", "ended"]
    words: str = ""
    cause: Cause = "done"
    hosts: tuple[str, ...] = ()
    bad_hosts: tuple[str, ...] = ()
    log_tail: str = ""
    failures: tuple[RankFailure, ...] = ()
    in_line: bool = False


@dataclass(frozen=True)
class Request:
    """An attempt to be submitted, and hosts that it is not to run on."""

    attempt: Attempt
    exclude: tuple[str, ...] = ()


class Cluster(Protocol):
    """Where jobs run.

    measures_here: whether its jobs run on this machine, so that other work disturbs them. at_once: how many attempts at
    most run at the same time. queues: whether it sees to that itself among attempts that it is given together.
    """

    measures_here: bool
    queues: bool
    at_once: int

    @property
    def poll_s(self) -> float:
        """How long to wait before the next look, s."""

    def submit(self, night: NightFolder, requests: Sequence[Request]) -> None:
        """Submit attempts; each that the cluster has is written down as `submitted`. Raises `SubmitError`."""

    def recover(self, night: NightFolder, attempts: Sequence[Attempt]) -> None:
        """Of attempts that were to be submitted by a process that died: write down which were, give up the others."""

    def look(self, attempts: Sequence[Attempt]) -> dict[Attempt, JobState]:
        """How each submitted attempt is; one of which nothing can be known just now is left out. Never blocks long."""

    def cancel(self, attempts: Sequence[Attempt]) -> None:
        """End attempts, waiting or running; on this machine, return when nothing of them is left."""
