"""The jobs of a night as they stand: every attempt at each, how it ended, what is still owed.

`load_jobs` reads them from the night's folder; `jobs.nightly` drives them on; `view` is what a person is shown.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from harness.record import PlannedRun
from jobs.cluster import JobState
from jobs.night_folder import Attempt, Manifest, NightFolder, Settled
from jobs.packing import PackedJob


@dataclass
class NightJob:
    """A job of the night and every attempt at it, oldest first; the last one may be in flight.

    state: of that one, by the last look. ended_at, waits_since: on the monotonic clock.
    """

    packed: PackedJob
    attempts: list[Attempt]
    settled: list[Settled]
    state: JobState | None = None
    ended_at: float | None = None
    waits_since: float | None = None

    @property
    def in_flight(self) -> Attempt | None:
        """The attempt that is not settled yet."""
        return self.attempts[-1] if len(self.attempts) > len(self.settled) else None

    @property
    def given_up(self) -> set[str]:
        """Runs that are not tried again."""
        return {run_id for one in self.settled for run_id in one.given_up}

    def owed(self, recorded: Set[str]) -> list[PlannedRun]:
        """Runs to be measured yet: those that stood in the way of others last, the others in the job's order."""
        struck = {one.at_fault for one in self.settled if one.strike}
        given_up = self.given_up
        owed = [run for run in self.packed.runs if run.run_id not in recorded and run.run_id not in given_up]
        return sorted(owed, key=lambda run: run.run_id in struck)


@dataclass(frozen=True)
class JobView:
    """A job of the night as a person sees it. state: `to be submitted`, `pending`, `running`, `done`, `failed`; or
    `missing`, where the night is over and it is not.
    """

    job: str
    cluster: str
    state: str
    attempt: int
    done: int
    total: int
    scheduler_id: str
    hosts: tuple[str, ...]
    words: str


def load_jobs(folder: NightFolder, manifest: Manifest) -> list[NightJob]:
    """Every job of the night, from its files."""
    jobs = []
    for packed in manifest.jobs:
        attempts = folder.attempts(packed)
        jobs.append(NightJob(packed, attempts, [one for attempt in attempts if (one := attempt.settled) is not None]))
    return jobs


def view(job: NightJob, there: set[str]) -> JobView:
    """The job as a person sees it. there: runs that have a record."""
    attempt = job.in_flight
    done = sum(run.run_id in there for run in job.packed.runs)
    submitted = None if not job.attempts else job.attempts[-1].submitted
    last = job.settled[-1] if job.settled else None
    words = ""
    hosts: tuple[str, ...] = tuple(last.hosts) if last else ()
    if attempt is not None:
        state: str = job.state.phase if job.state else "pending"
        words, hosts = (job.state.words, job.state.hosts) if job.state else ("", ())
    elif job.owed(there):
        state = "to be submitted"
    else:
        state = "failed" if job.given_up else "done"
    if not words and last is not None and (last.cause != "done" or job.given_up):
        words = f"attempt {len(job.settled)}: {last.words}"
    return JobView(
        job=job.packed.name,
        cluster=job.packed.cluster,
        state=state,
        attempt=len(job.attempts),
        done=done,
        total=len(job.packed.runs),
        scheduler_id=submitted.scheduler_id if submitted else "",
        hosts=hosts,
        words=words,
    )
