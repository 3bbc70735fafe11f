"""A night on disk: what was planned, what was submitted, how each attempt ended. The files are the truth.

Whoever dies, be it the command, a job, a node or Slurm's controller, what these files say is what was done, and
`jobs.nightly` goes on from there. Layout::

    <jobs>/<night>/night.json            Manifest: what is to be measured
                   plan.toml             the plan as it was
                   finished.json         Finished: nothing more is to be done, judging and telling are over too
                   submissions/<n>/      Submission, and submitit's own files
                   <job>/attempt-<k>/    one try at what a job still owes:
                       job.json              JobSpec: its runs
                       submitted.json        Submitted: the scheduler has it
                       claim.json            Claim: it was begun, or given up before it was (exactly one of both)
                       logs/                 what the ranks say (harness.launch, harness.diagnosis)
                       envelope*.json        Envelope of each process of the job
                       settled.json          Settled: how it ended, and what that means for its runs

A folder is made once and never used for anything else. Torch-free. Next to read: `jobs.nightly`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from harness import job as jobspec
from harness.environment import utc_now
from harness.job import JobSpec
from harness.record import Environment, PlannedRun, Platform
from jobs import private_files
from jobs.exclusive import FolderError, make_folder
from jobs.packing import PackedJob
from jobs.plan import Plan, load

MANIFEST_FILE = "night.json"
PLAN_FILE = "plan.toml"
FINISHED_FILE = "finished.json"
SPEC_FILE = "job.json"
SUBMITTED_FILE = "submitted.json"
CLAIM_FILE = "claim.json"
SETTLED_FILE = "settled.json"
LOGS = "logs"
SUBMISSIONS = "submissions"

_Word = TypeVar("_Word", bound=msgspec.Struct)

Cause = Literal[
    "done",
    "failed",
    "hung",
    "killed",
    "node",
    "preempted",
    "time limit",
    "cancelled",
    "memory",
    "queue",
    "refused",
    "lost",
    "gone",
]
"""How an attempt ended. done: by itself, whatever its runs gave. failed: with an error; killed: a process died by a
signal. node: its node's fault, or whoever's who ended all of the night there. queue: it waited too long. refused: the
cluster takes no such job. lost: it was never begun. gone: the scheduler has no trace of it, and it left no result."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a night set out to do. seed: of the order of cases within jobs. code: state of the code under test when it
    began. spool: where its records go, whatever spool those have who go on with it. rounds: how often it was decided
    what to measure again. jobs: planned first, then those of each round.
    """

    night: str
    plan: str
    plan_path: str
    seed: int
    started_at: str
    code: dict[str, str]
    spool: str
    rounds: int
    jobs: tuple[PackedJob, ...]

    @property
    def runs(self) -> Iterator[PlannedRun]:
        """Every run that is planned so far."""
        return (run for job in self.jobs for run in job.runs)


class Finished(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Nothing more is to be done. given_up: why, where what is missing stays missing, else ""."""

    at: str
    given_up: str = ""


class Submitted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The scheduler has the attempt. scheduler_id: its job's id there. name: the job's name there."""

    scheduler_id: str
    name: str
    at: str


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who got to the attempt first: its job, which began it, or the night's command, which gave it up.

    platform, environment: of the node that rank 0 runs on; hosts: the job's, in order of rank.
    """

    by: Literal["job", "command"]
    at: str
    host: str = ""
    scheduler_id: str = ""
    hosts: list[str] = []
    platform: Platform | None = None
    environment: Environment | None = None


class Settled(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How an attempt ended and what follows. words: for people. at_fault: the run it was at, "" for none of them.

    strike: whether that counts against the run. progress: whether the attempt brought any record. hosts: where it ran;
    bad_hosts: those at fault. log_tail: of the job's own process, where it died. given_up: run ids that are not tried
    again, and are recorded as failed.
    """

    at: str
    cause: Cause
    words: str
    at_fault: str = ""
    strike: bool = False
    progress: bool = False
    hosts: list[str] = []
    bad_hosts: list[str] = []
    log_tail: str = ""
    given_up: list[str] = []


@dataclass(frozen=True)
class Attempt:
    """One try at what a job owes. number: from 1."""

    job: PackedJob
    number: int
    folder: Path
    _known: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def spec(self) -> JobSpec:
        """What it is told to measure."""
        return jobspec.load(self.folder / SPEC_FILE)

    @property
    def logs(self) -> Path:
        """Where its ranks write."""
        return self.folder / LOGS

    @property
    def submitted(self) -> Submitted | None:
        """The scheduler's id of it; None where it has none, as far as was written down."""
        return self._written_once(SUBMITTED_FILE, Submitted)

    @property
    def claim(self) -> Claim | None:
        """Who got to it first; None as long as nobody did."""
        return self._written_once(CLAIM_FILE, Claim)

    @property
    def settled(self) -> Settled | None:
        """How it ended; None as long as that was not decided."""
        return self._written_once(SETTLED_FILE, Settled)

    def give_up(self) -> bool:
        """See to it that the attempt is never begun; False where it has been, or was given up before."""
        return private_files.save_once(Claim(by="command", at=utc_now()), self.folder / CLAIM_FILE)

    def _written_once(self, name: str, kind: type[_Word]) -> _Word | None:
        """A file that stays as it is once it is there, read once then."""
        known: _Word | None = self._known.get(name)
        if known is None and (known := private_files.load(self.folder / name, kind)) is not None:
            self._known[name] = known
        return known


class NightFolder:
    """One night's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, jobs_folder: Path, plan: Plan, manifest: Manifest) -> NightFolder:
        """Lay out a new night, for this user alone; it exists once night.json does."""
        night = cls(jobs_folder / manifest.night)
        make_folder(night.folder)
        private_files.require_trusted(night.folder)
        make_folder(night.folder / SUBMISSIONS)
        (night.folder / PLAN_FILE).write_text(plan.source, encoding="utf-8")
        night.write(manifest)
        return night

    @classmethod
    def all(cls, jobs_folder: Path) -> list[NightFolder]:
        """Every night of the folder, newest first."""
        found = [cls(path.parent) for path in jobs_folder.glob(f"*/{MANIFEST_FILE}")]
        return sorted(found, key=lambda night: night.folder.name, reverse=True)

    @property
    def name(self) -> str:
        """The night's id."""
        return self.folder.name

    @property
    def manifest(self) -> Manifest | None:
        """What it set out to do; None where an older version wrote that, which no newer one goes on with."""
        return private_files.load(self.folder / MANIFEST_FILE, Manifest)

    @property
    def required_manifest(self) -> Manifest:
        """The same; raises `FolderError` where it cannot be read."""
        manifest = self.manifest
        if manifest is None:
            raise FolderError(f"{self.folder / MANIFEST_FILE} is missing, or of another version of epwatch")
        return manifest

    def write(self, manifest: Manifest) -> None:
        """Write down what is to be done."""
        private_files.save(manifest, self.folder / MANIFEST_FILE)

    @property
    def finished(self) -> Finished | None:
        """Whether, and how, it is over."""
        return private_files.load(self.folder / FINISHED_FILE, Finished)

    def finish(self, finished: Finished) -> None:
        """Say that it is over; the first word counts."""
        private_files.save_once(finished, self.folder / FINISHED_FILE)

    @property
    def plan_source(self) -> str:
        """The text of the plan as it was when the night began; "", which no plan is, where it cannot be read."""
        try:
            return (self.folder / PLAN_FILE).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return ""

    def plan(self, path: str) -> Plan:
        """The plan as it was when the night began; `path` is where it stood then.

        Raises `PlanError`, which names the night's own file, for one that this version of epwatch does not understand.
        """
        return msgspec.structs.replace(load(self.folder / PLAN_FILE), path=path)

    def attempts(self, job: PackedJob) -> list[Attempt]:
        """The attempts at a job so far, in order."""
        numbers = [
            int(found[1])
            for path in (self.folder / job.name).glob("attempt-*")
            if (found := re.fullmatch(r"attempt-(\d+)", path.name)) and (path / SPEC_FILE).exists()
        ]
        return [Attempt(job, number, self._attempt_folder(job, number)) for number in sorted(numbers)]

    def new_attempt(self, job: PackedJob, spec: JobSpec) -> Attempt:
        """Make the next attempt's folder; it exists once its job.json does. The spec's log folder is set here."""
        taken = [int(path.name.rpartition("-")[2]) for path in (self.folder / job.name).glob("attempt-*")]
        number = max(taken, default=0) + 1
        attempt = Attempt(job, number, self._attempt_folder(job, number))
        make_folder(attempt.folder)
        whole = msgspec.structs.replace(spec, log_folder=str(attempt.logs), attempt=number, job_name=job.name)
        private_files.save(whole, attempt.folder / SPEC_FILE)
        return attempt

    def _attempt_folder(self, job: PackedJob, number: int) -> Path:
        return self.folder / job.name / f"attempt-{number}"
