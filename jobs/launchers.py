"""What starts a job's ranks on a cluster: srun (a task each), torchrun (one on each host) or mpirun (one for all).

Pure but for reading mpirun's log. Called by `jobs.rank_task`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from harness.diagnosis import RankFailure
from harness.job import JobSpec
from harness.processes import MARK
from jobs.meeting import Point
from jobs.night_folder import SPEC_FILE
from jobs.plan_clusters import Launcher

_SRUN_SAID = re.compile(r"^srun: error: \S+: tasks? ([\d,-]+): (.+?)(?: \(core dumped\))?$", re.MULTILINE)
_SIGNALS = {signal.strsignal(number): int(number) for number in signal.valid_signals()}
_MPI_SAID = re.compile(r"process rank (\d+) with PID \d+ on node \S+ exited on signal (\d+)")


def command_of(launcher: Launcher, spec: JobSpec, task: int, hosts: int, point: Point) -> list[str]:
    """The command that this process runs: a rank, or what starts the ranks of this host, or of all.

    task: this process's number among the job's; hosts: how many the job has.
    """
    log_folder = Path(spec.log_folder)
    worker = ["-m", "harness.worker", str(log_folder / SPEC_FILE)]
    on_a_host = spec.ranks // hosts
    if launcher == "srun":
        return [sys.executable, *worker]
    if launcher == "torchrun":
        return [
            *(sys.executable, "-m", "harness.agent", str(os.getpid()), str(log_folder), f"task{task}"),
            *(f"--nnodes={hosts}", f"--node-rank={task}", f"--nproc-per-node={on_a_host}"),
            *("--max-restarts=0", "--monitor-interval=0.1", "--rdzv-backend=static"),
            *(f"--master-addr={point.address}", f"--master-port={point.port}"),
            *(f"--log-dir={log_folder / 'ranks'}", "--redirects=3"),
            *worker,
        ]
    spread = ["--map-by", f"ppr:{on_a_host}:node"] if _is_open_mpi() else ["-ppn", str(on_a_host)]
    passed = [word for name in (MARK, "MASTER_ADDR", "MASTER_PORT") for word in ("-x", name)] if _is_open_mpi() else []
    return ["mpirun", "-n", str(spec.ranks), *spread, *passed, sys.executable, *worker]


def environment_of(launcher: Launcher, environ: Mapping[str, str], point: Point) -> dict[str, str]:
    """The environment of that command: the ranks meet where the job's first process says."""
    met = {**environ, "MASTER_ADDR": point.address, "MASTER_PORT": str(point.port)}
    if launcher == "mpirun" and os.geteuid() == 0:
        # It refuses root, who may have no other user on a throwaway machine.
        met |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return met


def failures_said(launcher: Launcher, log: Path) -> list[RankFailure]:
    """Ranks that mpirun says a signal ended; torchrun's agent writes its own file."""
    if launcher != "mpirun":
        return []
    found = _MPI_SAID.findall(log.read_text(errors="replace"))
    return [RankFailure(rank=int(rank), exit_code=-int(number), at_s=time.time()) for rank, number in found]


def killed_says_srun(said: str) -> list[RankFailure]:
    """Tasks, each a rank or its only parent, that srun says a signal ended; in the order in which it says so."""
    found = []
    for order, (tasks, how) in enumerate(_SRUN_SAID.findall(said)):
        if how in _SIGNALS:
            ranks = [rank for part in tasks.split(",") for rank in _numbers(part)]
            found += [RankFailure(rank=rank, exit_code=-_SIGNALS[how], at_s=float(order)) for rank in ranks]
    return found


def _numbers(part: str) -> range:
    """The numbers that `7` or `7-9` stands for."""
    first, _, last = part.partition("-")
    return range(int(first), int(last or first) + 1)


def _is_open_mpi() -> bool:
    try:
        said = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "Open MPI" in said or "OpenRTE" in said
