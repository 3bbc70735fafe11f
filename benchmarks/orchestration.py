"""What a night on Slurm costs beyond its measuring, beside what one would write by hand: on a Slurm of this machine.

    python benchmarks/orchestration.py                        two to three minutes on two cores
    python benchmarks/orchestration.py --cases 10 100 1000    eight
    python benchmarks/orchestration.py --cpus 4 --ranks 4 --json FILE

Needs Debian's slurmctld, slurmd, slurm-client and munge; no GPU. The cases are as small as cases can be, so that what
is not measuring shows. Three questions:
- Overhead per case: the wall time of a job, from sbatch until its end is known, less what its runs took by their own
  records. Peers: `epwatch run` of the same cases (the whole command), and by hand: an sbatch script that calls
  `srun python -m harness.worker` for each case. `between runs`: from the end of one to the begin of the next.
- Latency: from sbatch until the first record lies in the spool, and until it is in the history. Beside the same
  Slurm's own: `sbatch --wrap 'srun true'`, the same with ranks that do nothing but import torch, and submitit's.
- Many cases: nights of more and more cases, each of which first waits in the queue for `--wait` seconds. CPU is of the
  submitting process in shares of one core, while all jobs wait and while they run (which includes ingesting); `most`
  is what the commands may be: one a second, two for each sbatch, and five. Every command of Slurm's is counted on its
  way through PATH. Last, what `epwatch plan check` and `epwatch nightly status` take with so many cases.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import secrets
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

from orchestration_tools import (
    EPWATCH,
    Counted,
    attempts_of,
    job_times,
    measuring_s,
    median,
    records_in,
    small_cases,
    wait_for,
    watch,
    write_plan,
)

from harness import job as jobspec
from harness.errors import EpwatchError
from harness.job import JobSpec
from harness.record import PlannedRun, new_run_id
from jobs.private_slurm import PrivateSlurm, SlurmSettings

FIXED_SEED = 20261124
JOB_S, CASE_S = 300.0, 1.0
FASTEST_POLL_S = 1.0

Figures = dict[str, Any]


class Bench:
    """One private Slurm, and the folder in which everything happens."""

    def __init__(self, slurm: PrivateSlurm, folder: Path, options: argparse.Namespace, seed: int) -> None:
        self._slurm, self._folder, self._options, self._seed = slurm, folder, options, seed
        os.environ.update(slurm.environment())

    def overhead(self) -> list[Figures]:
        """Each way of measuring cases: wall seconds, those of the runs, and what is left for each case."""
        count, loop = self._options.overhead_cases, self._options.loop_cases
        folder = self._night("overhead", count, JOB_S + count * CASE_S)
        spool = self._run_night(folder)
        (attempt,) = attempts_of(folder)
        times = job_times(attempt, spool)
        night = _row("epwatch nightly, one job", count, times.settled - times.submitted, times.measuring_s)
        night["between_s"] = (times.last - times.first - times.measuring_s) / (count - 1)
        return [night, self._by_run(count), self._by_hand(loop)]

    def _by_run(self, count: int) -> Figures:
        folder = self._folder / "run"
        folder.mkdir()
        keys = [case.key for case in small_cases(count, self._options.ranks)]
        iters = ["--warmup", "1", "--iters", str(self._options.iters)]
        command = [*EPWATCH, "run", *keys, *iters, "--db", str(folder / "h.db"), "--spool", str(folder / "spool")]
        start = time.perf_counter()
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wall_s = time.perf_counter() - start
        found = records_in(folder / "spool")
        row = _row("epwatch run", count, wall_s, measuring_s(found))
        row["between_s"] = None
        return row

    def _by_hand(self, count: int) -> Figures:
        """An sbatch script with an srun for each case, which is what there is without this project."""
        folder = self._folder / "hand"
        spool = folder / "spool"
        spool.mkdir(parents=True)
        specs = []
        for number, case in enumerate(small_cases(count, self._options.ranks)):
            log_folder = folder / f"job{number}"
            log_folder.mkdir()
            run = PlannedRun(run_id=new_run_id(), case=case)
            spec = JobSpec(
                runs=[run], spool=str(spool), log_folder=str(log_folder), warmup=1, iters=self._options.iters
            )
            jobspec.save(spec, log_folder / "job.json")
            specs.append(shlex.quote(str(log_folder / "job.json")))
        python = shlex.quote(sys.executable)
        lines = ["export OMP_NUM_THREADS=1", *(f"srun {python} -m harness.worker {spec}" for spec in specs)]
        wall_s = self._batch(folder, " && ".join(lines))
        row = _row("srun for each case, by hand", count, wall_s, measuring_s(records_in(spool)))
        row["between_s"] = None
        return row

    def latency(self) -> dict[str, list[float]]:
        """Seconds from sbatch on, round by round, of each thing that may be waited for."""
        found: dict[str, list[float]] = {}
        importing = f"srun {shlex.quote(sys.executable)} -c 'import torch'"
        for number in range(self._options.rounds):
            folder = self._folder / f"latency{number}"
            folder.mkdir()
            ways: dict[str, Callable[[], float]] = {
                "sbatch, srun true": lambda folder=folder: self._batch(folder, "srun true"),
                "submitit, its result file": lambda folder=folder: _by_submitit(folder),
                "sbatch, ranks that import torch": lambda folder=folder: self._batch(folder, importing),
            }
            for name, way in ways.items():
                found.setdefault(name, []).append(way())
                self._slurm.wait_idle()
            for name, seconds in self._first_record(number).items():
                found.setdefault(name, []).append(seconds)
        return found

    def _first_record(self, number: int) -> dict[str, float]:
        folder = self._night(f"latency-night{number}", 1, JOB_S)
        before = time.time()
        spool = self._run_night(folder)
        (submission,) = (folder / "jobs").glob("*/submissions/*/submission.json")
        submitted = submission.stat().st_mtime
        (record,) = (spool / "ingested").glob("*.json")
        # Moved there once the history has it, which changes the time of the inode and not the time of the content.
        written, kept = record.stat().st_mtime, record.stat().st_ctime
        return {
            "epwatch nightly, from the command to sbatch": submitted - before,
            "epwatch nightly, to the record in the spool": written - submitted,
            "epwatch nightly, to the record in the history": kept - submitted,
        }

    def scale(self, count: int) -> Figures:
        """A night of so many cases: what its command took, and what it asked of Slurm."""
        folder = self._night(f"night{count}", count, JOB_S)
        counted = Counted(folder / "bin", self._slurm)
        blocker = f"--wrap=sleep {self._options.wait}"
        self._slurm.run("sbatch", "--exclusive", "--output=/dev/null", blocker)
        plan, spool = str(folder / "plan.toml"), str(folder / "spool")
        command = [*EPWATCH, "nightly", plan, "--db", str(folder / "h.db"), "--spool", spool]
        watched = watch(command, counted.environment, folder / "log")
        issued = counted.issued
        asked = {
            "command_start_s": ["--version"],
            "plan_check_s": ["plan", "check", plan],
            "status_s": ["nightly", "status", plan, "--spool", spool],
        }
        took = {name: median([_seconds([*EPWATCH, *words]) for _ in range(3)]) for name, words in asked.items()}
        times = [job_times(attempt, Path(spool)) for attempt in attempts_of(folder)]
        submitted, first = max(one.submitted for one in times), min(one.first for one in times)
        end = max(one.settled for one in times)
        recorded = sum(one.runs for one in times)
        if recorded != count:
            raise SystemExit(f"{recorded} of {count} cases have a record: {(folder / 'log').read_text()[-2000:]}")
        return {
            "cases": count,
            "jobs": len(times),
            "wall_s": watched.wall_s,
            "measuring_s": sum(one.measuring_s for one in times),
            "left_per_case_s": (watched.wall_s - self._options.wait - sum(one.measuring_s for one in times)) / count,
            "cpu_s": watched.cpu_s,
            "commands_cpu_s": watched.commands_cpu_s,
            "cpu_while_waiting": watched.cpu_share(submitted + 1, first),
            "cpu_while_running": watched.cpu_share(first, end),
            "peak_mib": watched.peak_mib,
            "commands": issued,
            "commands_total": issued.total(),
            "most_commands": watched.wall_s / FASTEST_POLL_S + 2 * issued["sbatch"] + 5,
            **took,
        }

    def _night(self, name: str, cases: int, job_s: float) -> Path:
        """The folder of a new plan."""
        folder = self._folder / name
        write_plan(folder, cases, self._options.ranks, self._options.iters, self._seed, job_s, CASE_S)
        return folder

    def _run_night(self, folder: Path) -> Path:
        """Drive the plan's night to its end; its spool."""
        spool = folder / "spool"
        command = [*EPWATCH, "nightly", str(folder / "plan.toml"), "--db", str(folder / "h.db"), "--spool", str(spool)]
        watch(command, self._slurm.environment(), folder / "log")
        self._slurm.wait_idle()
        return spool

    def _batch(self, folder: Path, script: str) -> float:
        """Seconds from sbatch until the script has done what it does."""
        done = folder / f"done-{secrets.token_hex(4)}"
        tasks = ["--nodes=1", f"--ntasks-per-node={self._options.ranks}"]
        wrap = f"--wrap={script} && touch {shlex.quote(str(done))}"
        before = time.time()
        self._slurm.run("sbatch", "--exclusive", *tasks, f"--output={folder}/batch-%j.out", wrap)
        return wait_for(done) - before


def _by_submitit(folder: Path) -> float:
    """submitit's own way, of a function that does nothing: until its result file is there."""
    import submitit

    executor = submitit.SlurmExecutor(folder / "submitit")
    executor.update_parameters(job_name="bare", time=5, nodes=1, ntasks_per_node=1, exclusive=True)
    before = time.time()
    return wait_for(executor.submit(os.getpid).paths.result_pickle) - before


def _row(way: str, cases: int, wall_s: float, measuring: float) -> Figures:
    per_case = (wall_s - measuring) / cases
    return {"way": way, "cases": cases, "wall_s": wall_s, "measuring_s": measuring, "overhead_per_case_s": per_case}


def _seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def show_overhead(rows: list[Figures]) -> None:
    print(f"\n{'overhead per case':<32}{'cases':>6}{'wall s':>9}{'measuring s':>13}{'left, s a case':>16}{'ratio':>8}")
    by_hand = rows[-1]["overhead_per_case_s"]
    for row in rows:
        left = row["overhead_per_case_s"]
        print(
            f"{row['way']:<32}{row['cases']:>6}{row['wall_s']:>9.1f}{row['measuring_s']:>13.1f}{left:>16.3f}"
            f"{left / by_hand:>8.3f}"
        )
        if row["between_s"] is not None:
            print(f"{'  of that between runs':<60}{row['between_s']:>16.3f}{row['between_s'] / by_hand:>8.3f}")


def show_latency(found: dict[str, list[float]]) -> None:
    print(f"\n{'seconds from sbatch, median':<50}{'s':>8}{'least':>8}{'most':>8}{'ratio':>8}")
    limit = median(found["sbatch, ranks that import torch"])
    for name, rounds in found.items():
        middle = median(rounds)
        print(f"{name:<50}{middle:>8.2f}{min(rounds):>8.2f}{max(rounds):>8.2f}{middle / limit:>8.2f}")


def show_scale(nights: list[Figures]) -> None:
    print(f"\n{'nights of':<34}" + "".join(f"{night['cases']:>8,} cases" for night in nights))
    lines: list[tuple[str, Callable[[Figures], str]]] = [
        ("jobs", lambda night: f"{night['jobs']}"),
        ("wall, s", lambda night: f"{night['wall_s']:.1f}"),
        ("  measuring, s", lambda night: f"{night['measuring_s']:.1f}"),
        ("  left without the wait, s a case", lambda night: f"{night['left_per_case_s']:.3f}"),
        ("CPU of the command, s", lambda night: f"{night['cpu_s']:.2f}"),
        ("  of Slurm's commands, s", lambda night: f"{night['commands_cpu_s']:.2f}"),
        ("CPU while all jobs wait", lambda night: f"{100 * night['cpu_while_waiting']:.2f} %"),
        ("CPU while jobs run", lambda night: f"{100 * night['cpu_while_running']:.2f} %"),
        ("memory at its peak, MiB", lambda night: f"{night['peak_mib']:.0f}"),
        ("Slurm's commands", lambda night: f"{night['commands_total']}"),
        ("  at most", lambda night: f"{math.floor(night['most_commands'])}"),
        ("  squeue (polls)", lambda night: f"{night['commands']['squeue']}"),
        ("  sbatch", lambda night: f"{night['commands']['sbatch']}"),
        ("  a minute", lambda night: f"{60 * night['commands_total'] / night['wall_s']:.1f}"),
        ("epwatch plan check, s", lambda night: f"{night['plan_check_s']:.2f}"),
        ("epwatch nightly status, s", lambda night: f"{night['status_s']:.2f}"),
        ("epwatch --version, s", lambda night: f"{night['command_start_s']:.2f}"),
    ]
    for name, cell in lines:
        print(f"{name:<34}" + "".join(f"{cell(night):>14}" for night in nights))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, nargs="+", default=[10, 100], help="of the nights, one after another")
    parser.add_argument("--overhead-cases", type=int, default=50, help="in the one job whose overhead is measured")
    parser.add_argument("--loop-cases", type=int, default=4, help="by hand, each in an srun of its own")
    parser.add_argument("--rounds", type=int, default=3, help="of latency")
    parser.add_argument("--wait", type=int, default=10, help="seconds that each night waits in the queue at first")
    parser.add_argument("--cpus", type=int, default=2, help="of the one node")
    parser.add_argument("--ranks", type=int, default=2, help="of each case")
    parser.add_argument("--iters", type=int, default=2, help="timed iterations of a phase")
    parser.add_argument("--seed", type=int, default=FIXED_SEED, help="of the order of cases; 0 draws one")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    seed = options.seed or secrets.randbits(32)
    start = time.perf_counter()
    document: Figures = {"settings": vars(options) | {"json": None, "seed": seed}}
    with (
        tempfile.TemporaryDirectory(prefix="orchestration-") as scratch,
        chdir(scratch),
        PrivateSlurm(SlurmSettings(nodes=1, cpus=options.cpus)) as slurm,
    ):
        version = slurm.run("sinfo", "--version").strip()
        print(
            f"cases of {options.ranks} ranks, T=4 H=64 K=2 E=4, warm-up 1, {options.iters} iterations; one node of "
            f"{options.cpus} CPUs, no accounting; seed {seed}\n{platform.node()}: {len(os.sched_getaffinity(0))} "
            f"cores, load {os.getloadavg()[0]:.1f}, {version}, Python {platform.python_version()}"
        )
        bench = Bench(slurm, Path(scratch), options, seed)
        document["overhead"] = bench.overhead()
        show_overhead(document["overhead"])
        document["latency_s"] = bench.latency()
        show_latency(document["latency_s"])
        document["nights"] = [bench.scale(count) for count in options.cases]
        show_scale(document["nights"])
    print(f"\ntook {time.perf_counter() - start:.0f} s, load {os.getloadavg()[0]:.1f}")
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except EpwatchError as error:
        sys.exit(str(error))
