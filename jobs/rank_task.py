"""What runs in a Slurm job: each process that srun starts looks after one rank, or after the launcher of some.

`run_task` is the function that submitit pickles by name and calls in each process. The first one claims the attempt
(`jobs.night_folder`), so that an attempt is begun once or never; finds an address and a free port where the ranks meet,
and tells the others by a file; and leads: it alone judges whether the world hangs (`harness.supervise`). Every process
leaves its own envelope. Torch-free. Next to read: `harness.worker`, which is a rank.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import msgspec

from harness import diagnosis, environment
from harness import job as jobspec
from harness.diagnosis import RankFailure
from harness.errors import EpwatchError
from harness.job import JobSpec
from harness.launch import ranks_environment
from harness.supervise import supervise
from jobs import meeting, private_files
from jobs.envelope import Stopped, sealed
from jobs.launchers import command_of, environment_of, failures_said
from jobs.night_folder import CLAIM_FILE, LOGS, SPEC_FILE, Claim
from jobs.plan_clusters import Launcher


class TaskFailed(EpwatchError):
    """The ranks that this process looks after did not end well."""


class NotOurs(EpwatchError):
    """The attempt was begun by another job, or given up before this one began."""


@dataclass(frozen=True)
class Task:
    """This process among those that srun started for the job. hosts: the job's, in order; scheduler_id: as `squeue`
    has it, with the array's index.
    """

    number: int
    of: int
    hosts: tuple[str, ...]
    scheduler_id: str

    @property
    def leads(self) -> bool:
        """Whether it speaks for the job."""
        return self.number == 0

    @classmethod
    def here(cls, environ: Mapping[str, str], launcher: Launcher) -> Task:
        """From Slurm's variables."""
        from submitit import JobEnvironment

        array, index = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
        alone = launcher == "mpirun"
        return cls(
            number=0 if alone else int(environ.get("SLURM_PROCID", "0")),
            of=1 if alone else int(environ.get("SLURM_STEP_NUM_TASKS", environ.get("SLURM_NTASKS", "1"))),
            hosts=tuple(JobEnvironment().hostnames),
            scheduler_id=f"{array}_{index}" if array and index else environ.get("SLURM_JOB_ID", ""),
        )


def run_task(folder: str, launcher: Launcher) -> None:
    """Measure the spec in `folder`/job.json together with the job's other processes. Exits 1 when that went wrong."""
    place = Path(folder)
    private_files.require_trusted(place)
    task = Task.here(os.environ, launcher)
    spec = jobspec.load(place / SPEC_FILE)
    spec = msgspec.structs.replace(spec, log_folder=str(place / LOGS))
    if task.leads:
        _claim(place, spec, task)
    (place / LOGS / "ranks").mkdir(mode=0o700, parents=True, exist_ok=True)
    notice = _Notice(place / LOGS)
    with notice:
        envelope = sealed(
            lambda: _look_after_ranks(place, spec, task, launcher, notice),
            place / f"envelope-{task.number}.json",
            attempt=spec.attempt,
            task=task.number,
        )
    if envelope.outcome != "done":
        print(f"epwatch: {envelope.kind}: {envelope.message}", file=sys.stderr, flush=True)
        raise SystemExit(1)


def _claim(place: Path, spec: JobSpec, task: Task) -> None:
    """Begin the attempt, unless somebody has begun it or given it up."""
    case = spec.runs[0].case
    on_a_host = case.ranks // len(task.hosts)
    claim = Claim(
        by="job",
        at=environment.utc_now(),
        host=environment.hostname(),
        scheduler_id=task.scheduler_id,
        hosts=[host for host in task.hosts for _ in range(on_a_host)],
        platform=environment.platform(spec.cluster, case.device, case.nodes),
        environment=environment.capture(os.environ),
    )
    if not private_files.save_once(claim, place / CLAIM_FILE):
        raise NotOurs(f"the attempt in {place} was begun by another job, or given up: this one ends")


def _look_after_ranks(place: Path, spec: JobSpec, task: Task, launcher: Launcher, notice: _Notice) -> None:
    log_folder = Path(spec.log_folder)
    with _met(log_folder, spec, task, notice) as point:
        environ = ranks_environment(environment_of(launcher, os.environ, point))
        log = log_folder / f"launch-{task.number}.log"
        if launcher == "srun":
            log = diagnosis.rank_log(log_folder, task.number)
        ended = supervise(
            spec,
            command_of(launcher, spec, task.number, len(task.hosts), point),
            environ,
            log,
            leads=task.leads,
            alone=task.of == 1,
            told_to_end=lambda: notice.told_to_end,
        )
    if ended.halted:
        found = diagnosis.halted(spec, ended.halted, alive=ended.alive)
        diagnosis.write(found, log_folder)
        raise TaskFailed(found.message)
    if ended.asked:
        raise Stopped(notice.words or "the job was ended by its first process, which found it hung")
    if ended.exit_code == 0:
        return
    if launcher == "srun":
        failures = [RankFailure(rank=task.number, exit_code=ended.exit_code, at_s=time.time())]
        diagnosis.write_failures(log_folder, f"task{task.number}", failures)
    elif failures := failures_said(launcher, log):
        diagnosis.write_failures(log_folder, f"task{task.number}", failures)
    who = f"rank {task.number}" if launcher == "srun" else launcher
    how = diagnosis.signal_name(-ended.exit_code) if ended.exit_code < 0 else f"exit code {ended.exit_code}"
    raise TaskFailed(f"{who} ended with {how}")


@contextlib.contextmanager
def _met(log_folder: Path, spec: JobSpec, task: Task, notice: _Notice) -> Iterator[meeting.Point]:
    """Where the ranks meet: found by the first process, which keeps it until the end; told to the others."""
    if not task.leads:
        yield meeting.wait_for(log_folder, task.scheduler_id, lambda: notice.told_to_end)
        return
    with meeting.reserved_port(task.scheduler_id) as port:
        point = meeting.Point(
            scheduler_id=task.scheduler_id, address=meeting.own_address(task.hosts, os.environ), port=port
        )
        private_files.save(msgspec.structs.replace(spec, log_folder=str(log_folder)), log_folder / SPEC_FILE)
        meeting.announce(point, log_folder)
        yield point


class _Notice:
    """What Slurm's signals say: that the time is nearly up (SIGUSR2, see `jobs.slurm_submit.NOTICE_S`), and that it is
    over (SIGTERM: preempted, cancelled, or a peer died). While in force, submitit's own handlers are not.
    """

    def __init__(self, log_folder: Path) -> None:
        self.told_to_end = False
        self.words = ""
        self._log_folder = log_folder

    def __enter__(self) -> None:
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGUSR2, self._hurry)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.told_to_end = True
        self.words = "Slurm told the job to end (SIGTERM)"

    def _hurry(self, number: int, frame: FrameType | None) -> None:
        jobspec.ask_for_no_more(self._log_folder)
