"""What `orchestration.py` measures with: plans of many small cases, commands that are counted, a process that is
watched, and the times that a night leaves in its files.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from harness import record as records
from harness.case import Case
from harness.record import INGESTED, Record
from jobs.night_folder import Attempt, NightFolder
from jobs.private_slurm import PrivateSlurm

COUNTED = ("sbatch", "squeue", "sacct", "scancel", "sinfo", "scontrol")
EPWATCH = (sys.executable, "-P", "-m", "jobs")
PLAN = """\
[plan]
name = "orchestration"
jobs = "{folder}/jobs"
report = ""
[cluster]
kind = "slurm"
name = "private"
[measure]
repeats = 1
warmup = 1
iters = {iters}
seed = {seed}
job_deadline_s = 3000.0
job_s = {job_s}
case_s = {case_s}
[verdict]
confirmations = 0
[[cases]]
backend = "ep_core"
mode = "ll"
ranks = {ranks}
tokens = 4
hidden = 64
topk = 2
experts = 4
seed = {routings}
"""
_TICKS = os.sysconf("SC_CLK_TCK")
_LOOK_S = 0.1


def small_cases(count: int, ranks: int) -> list[Case]:
    """As many cases as alike as can be: they differ in the seed of their routing alone."""
    sizes = {"tokens": 4, "hidden": 64, "topk": 2, "experts": 4}
    return [Case(backend="ep_core", mode="ll", ranks=ranks, seed=seed, **sizes) for seed in range(count)]


def write_plan(folder: Path, cases: int, ranks: int, iters: int, seed: int, job_s: float, case_s: float) -> Path:
    """A plan of the same cases, in a folder of its own, which is made."""
    folder.mkdir(parents=True)
    routings = list(range(cases))
    text = PLAN.format(
        folder=folder, ranks=ranks, iters=iters, seed=seed, routings=routings, job_s=job_s, case_s=case_s
    )
    (folder / "plan.toml").write_text(text)
    return folder / "plan.toml"


class Counted:
    """Slurm's commands in the PATH of `environment`, each counted before it runs."""

    def __init__(self, folder: Path, slurm: PrivateSlurm) -> None:
        folder.mkdir(parents=True)
        self._log = folder / "issued"
        self._log.touch()
        own = slurm.environment()
        for name in COUNTED:
            if (real := shutil.which(name, path=own["PATH"])) is not None:
                wrapper = folder / name
                wrapper.write_text(f'#!/bin/sh\necho {name} >> {self._log}\nexec {real} "$@"\n')
                wrapper.chmod(0o755)
        self.environment = own | {"PATH": f"{folder}:{own['PATH']}"}

    @property
    def issued(self) -> Counter[str]:
        """How often each command was issued so far."""
        return Counter(self._log.read_text().split())


@dataclass
class Watched:
    """What a command took. cpu_s: its own; commands_cpu_s: of what it started and waited for. peak_mib: of its resident
    memory. cpu_at: its own CPU seconds at moments while it ran, since the epoch.
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0
    commands_cpu_s: float = 0.0
    peak_mib: float = 0.0
    cpu_at: list[tuple[float, float]] = field(default_factory=list)

    def cpu_share(self, start: float, end: float) -> float:
        """Its own CPU time from one moment to another, of one core."""
        inside = [one for one in self.cpu_at if start <= one[0] <= end]
        return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0]) if len(inside) > 1 else float("nan")


def watch(command: Sequence[str], environ: Mapping[str, str], log: Path) -> Watched:
    """Run the command, its output into `log`, and look at it ten times a second. Raises when it fails."""
    found = Watched()
    start = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=os.environ | environ, stdout=output, stderr=subprocess.STDOUT)
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        _look(process.pid, found)
        time.sleep(_LOOK_S)
    found.wall_s = time.perf_counter() - start
    _look(process.pid, found)
    if process.wait() != 0:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}: {log.read_text()[-2000:]}")
    return found


def _look(pid: int, found: Watched) -> None:
    times = [int(ticks) / _TICKS for ticks in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]]
    found.cpu_s, found.commands_cpu_s = times[0] + times[1], times[2] + times[3]
    found.cpu_at.append((time.time(), found.cpu_s))
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):  # a zombie has none
            found.peak_mib = int(line.split()[1]) / 1024


@dataclass(frozen=True)
class JobTimes:
    """Moments of a job, since the epoch. submitted: sbatch was called before it; settled: the submitter knew its end.
    measuring_s: what its runs took by their records; first, last: of the runs' starts and ends.
    """

    submitted: float
    first: float
    last: float
    settled: float
    measuring_s: float
    runs: int


def job_times(attempt: Attempt, spool: Path) -> JobTimes:
    """From the files of an attempt that has ended."""
    settled, submitted = attempt.settled, attempt.submitted
    assert settled is not None
    assert submitted is not None
    found = [record for run in attempt.spec.runs if (record := record_of(spool, run.run_id)) is not None]
    return JobTimes(
        submitted=moment(submitted.at),
        first=min(moment(record.started_at) for record in found),
        last=max(moment(record.ended_at) for record in found),
        settled=moment(settled.at),
        measuring_s=measuring_s(found),
        runs=len(found),
    )


def attempts_of(folder: Path) -> list[Attempt]:
    """Every attempt of the newest night under a plan's folder."""
    night = NightFolder.all(folder / "jobs")[0]
    return [attempt for job in night.required_manifest.jobs for attempt in night.attempts(job)]


def record_of(spool: Path, run_id: str) -> Record | None:
    """The run's record, None where it has none."""
    path = records.recorded(spool, run_id)
    return None if path is None else records.read(path)


def records_in(folder: Path) -> list[Record]:
    """Every record of a spool, ingested or not."""
    return [records.read(path) for path in [*folder.glob("*.json"), *(folder / INGESTED).glob("*.json")]]


def measuring_s(of: Sequence[Record]) -> float:
    """What the runs took, by themselves. Raises where one has no valid result."""
    for one in of:
        if one.outcome != "ok":
            raise SystemExit(f"{one.case.key} gave no result: {one.failure}")
    return sum(moment(one.ended_at) - moment(one.started_at) for one in of)


def moment(text: str) -> float:
    """Seconds since the epoch of an ISO time."""
    return datetime.fromisoformat(text).timestamp()


def wait_for(path: Path, deadline_s: float = 120.0) -> float:
    """Wait until a file is there; its modification time."""
    give_up = time.monotonic() + deadline_s
    while not path.exists():
        if time.monotonic() > give_up:
            raise SystemExit(f"{path} is not there after {deadline_s:g} s")
        time.sleep(0.01)
    return path.stat().st_mtime


def median(values: Sequence[float]) -> float:
    """The median, as a float."""
    return float(statistics.median(values))
