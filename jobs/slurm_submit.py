"""What Slurm is asked for: the options of sbatch and srun that a plan's cluster and a job's world come to.

`parameters` is pure; `submitters_environment` is what the submitter's environment may hand to a job: nothing that says
that this process is itself a job or a rank, and no secret that the plan does not name. Called by `jobs.slurm`.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.case import Case
from harness.environment import is_secret
from jobs.plan_clusters import ClusterSection

NOTICE_S = 90
"""How long before its time limit a job is told that its time is nearly up; half of the limit where that is less."""

_FOREIGN = ("SLURM_", "SBATCH_", "SRUN_", "PMI_", "PMIX_", "OMPI_", "TORCHELASTIC_", "SUBMITIT_")
_KEPT = frozenset({"SLURM_CONF"})
_RANK_VARIABLES = frozenset(
    {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT", "EPWATCH_JOB"}
)


@dataclass(frozen=True)
class Shape:
    """What jobs must have in common to be submitted together. tasks: processes that Slurm starts on each host."""

    hosts: int
    tasks: int
    ranks_on_a_host: int
    gpus: int
    exclude: tuple[str, ...]

    @classmethod
    def of(cls, section: ClusterSection, case: Case, exclude: Sequence[str]) -> Shape:
        """The shape of a job with the world of `case`."""
        ranks = section.tasks_on_a_host(case)
        return cls(
            hosts=section.hosts(case),
            tasks=1 if section.launcher == "torchrun" else ranks,
            ranks_on_a_host=ranks,
            gpus=section.gpus_on_a_host(case),
            exclude=tuple(sorted({*section.exclude, *exclude})),
        )


@dataclass(frozen=True)
class Turn:
    """When the jobs of an array may run. at_once: how many of them together. after: the array, by its place, all of
    whose jobs have to end first; None for none.
    """

    at_once: int
    after: int | None = None


def turns(sizes: Sequence[int], most: int) -> list[Turn]:
    """Turns for arrays of so many jobs each, with which never more than `most` jobs of all of them run together.

    Slurm keeps an array to its own limit and knows none of several: they share the limit out, and where there are more
    arrays than may run jobs, each waits for another's end.
    """
    if len(sizes) > most:
        return [Turn(1, place - most if place >= most else None) for place in range(len(sizes))]
    shares = [1] * len(sizes)
    for _ in range(min(most, sum(sizes)) - len(sizes)):
        neediest = max(range(len(sizes)), key=lambda place: sizes[place] / shares[place])
        shares[neediest] += 1
    return [Turn(share) for share in shares]


def interpreter(section: ClusterSection) -> str:
    """The command of Python on the nodes, as the shell takes it."""
    return shlex.quote(section.python or sys.executable)


def turn_parameters(at_once: int, after: str) -> dict[str, Any]:
    """Those of `parameters` that say when. after: id of the array to wait for, "" for none."""
    return {"array_parallelism": at_once} | ({"dependency": f"afterany:{after}"} if after else {})


def parameters(section: ClusterSection, shape: Shape, name: str, limit_min: int) -> dict[str, Any]:
    """The arguments of submitit's `SlurmExecutor.update_parameters`."""
    torchrun = section.launcher == "torchrun"
    cpus = section.cpus_per_task
    asked: dict[str, Any] = {
        "job_name": name,
        "time": limit_min,
        "nodes": shape.hosts,
        "ntasks_per_node": shape.tasks,
        "cpus_per_task": (cpus or 1) * shape.ranks_on_a_host if torchrun else cpus,
        "gpus_per_node": shape.gpus or None,
        "mem": None if section.memory_gb is None else f"{round(section.memory_gb * 1024)}M",
        "partition": section.partition or None,
        "account": section.account or None,
        "qos": section.qos or None,
        "constraint": section.constraint or None,
        "nodelist": ",".join(section.nodelist) or None,
        "exclude": ",".join(shape.exclude) or None,
        "exclusive": section.exclusive or None,
        "signal_delay_s": min(NOTICE_S, limit_min * 60 // 2),
        "wckey": None,
        "use_srun": section.launcher != "mpirun",
        "srun_args": srun_arguments(section),
        "setup": setup_lines(section),
        # Whoever resubmits a job is epwatch, with the node at fault left out; Slurm restarting it would measure twice.
        "additional_parameters": {"no-requeue": True}
        | ({"reservation": section.reservation} if section.reservation else {}),
    }
    return {name: value for name, value in asked.items() if value is not None}


def srun_arguments(section: ClusterSection) -> list[str]:
    """A dead rank ends the job in seconds; then the container, and what the plan adds."""
    arguments = ["--kill-on-bad-exit=1"]
    if section.container:
        arguments.append(f"--container-image={section.container}")
    if section.container_mounts:
        arguments.append(f"--container-mounts={','.join(section.container_mounts)}")
    return arguments + list(section.srun_args)


def setup_lines(section: ClusterSection) -> list[str]:
    """Lines of shell before the ranks start. Only the plan's `setup` is shell; all else is quoted."""
    lines = ["umask 077"]
    if section.modules:
        lines += [f"module load {shlex.join(section.modules)} || exit 9"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in sorted(section.environment.items())]
    if section.cpus_per_task:
        # srun does not inherit it from sbatch since Slurm 22.05.
        lines.append("export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK")
    return lines + list(section.setup)


def jobs_environment(environ: Mapping[str, str], section: ClusterSection) -> dict[str, str]:
    """What of the submitter's environment goes with a job."""
    return {
        name: value
        for name, value in environ.items()
        if name in section.pass_environment
        or name in _KEPT
        or not (
            name.startswith(_FOREIGN) or name in _RANK_VARIABLES or is_secret(name, value) or _is_address(name, value)
        )
    }


def _is_address(name: str, value: str) -> bool:
    """Whether it may be an address that holds a secret: of a database, or of whom to tell. A proxy's is none."""
    return "://" in value and not name.lower().endswith("_proxy")


@contextlib.contextmanager
def submitters_environment(section: ClusterSection) -> Iterator[None]:
    """Have this process's environment be what goes with a job, while sbatch is called."""
    before = dict(os.environ)
    kept = jobs_environment(before, section)
    os.environ.clear()
    os.environ.update(kept)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
