"""What a plan says of a cluster: kind `local`, this machine, or `slurm`, and what to ask Slurm for.

Pure and torch-free. Called by `jobs.plan`, which turns what `complaint` says into a sentence with a line; read by
`jobs.slurm_submit`, which asks for it. docs/plan.md tells the same to users.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Literal

import msgspec

from harness.case import Case
from harness.environment import is_secret

Launcher = Literal["srun", "torchrun", "mpirun"]

DEFAULT_JOBS_AT_ONCE = 8
DEFAULT_QUEUE_DEADLINE_MIN = 24 * 60.0
START_ALLOWANCE_S = 180.0
"""What a job may need beyond its measuring: prolog, starting Python and the process group, ending."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
NAME_WORDS = "use letters, digits and _ . -, starting with a letter or digit"
LEAST_MEMORY_GB = 0.001

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\[\],-]*")


class ClusterSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[cluster]`, or several `[[cluster]]`: where the jobs run; always named, never guessed.

    kind: `local`, this machine, or `slurm`. name: the cluster's name in the platform, hence in every series; `local`
    where it is left out for kind local, required for slurm.

    All others are for slurm alone. What has no default here is not asked for, and Slurm's or the site's holds.
    partition, account, qos, reservation, constraint: as of sbatch.
    tasks_per_node: most ranks on one host; left out, the ranks of one of the case's nodes. gpus_per_node: left out, as
    many as ranks on a host for cases of device cuda, else none. cpus_per_task, memory_gb (a node): as of sbatch.
    exclusive: the allocated nodes are not shared with other jobs. nodelist: hosts that every job is to contain, all of
    them, as of sbatch. exclude: hosts never to use.
    exclude_slow: leave out hosts that make their runs slower than the others do by more than this (0.05 is 5 %).
    launcher: what starts the ranks, a task of srun each, torchrun on each host, or mpirun.
    time_limit_min: of a job; left out, job_deadline_s and what starting takes. queue_deadline_min: how long a job may
    wait. jobs_at_once: how many of the night's jobs run at the same time at most.
    python: the interpreter on the nodes; left out, this one. modules: loaded before it starts. setup: lines of shell
    before it starts. container, container_mounts: image and mounts, for srun with pyxis.
    environment: variables for the ranks. pass_environment: names of the submitter's variables that look like secrets
    and go along all the same. srun_args: more arguments of srun.
    """

    kind: Literal["local", "slurm"]
    name: str = ""
    partition: str = ""
    account: str = ""
    qos: str = ""
    reservation: str = ""
    constraint: str = ""
    tasks_per_node: int | None = None
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    memory_gb: float | None = None
    exclusive: bool = True
    nodelist: list[str] = []
    exclude: list[str] = []
    exclude_slow: float | None = None
    launcher: Launcher = "srun"
    time_limit_min: int | None = None
    queue_deadline_min: float = DEFAULT_QUEUE_DEADLINE_MIN
    jobs_at_once: int = DEFAULT_JOBS_AT_ONCE
    python: str = ""
    modules: list[str] = []
    setup: list[str] = []
    container: str = ""
    container_mounts: list[str] = []
    environment: dict[str, str] = {}
    pass_environment: list[str] = []
    srun_args: list[str] = []

    def tasks_on_a_host(self, case: Case) -> int:
        """Ranks of the case on one host."""
        per_node = case.ranks // case.nodes
        return min(per_node, self.tasks_per_node) if self.tasks_per_node else per_node

    def hosts(self, case: Case) -> int:
        """Hosts that a job with the world of `case` is given."""
        return case.ranks // self.tasks_on_a_host(case)

    def gpus_on_a_host(self, case: Case) -> int:
        """GPUs asked for on each host."""
        if self.gpus_per_node is not None:
            return self.gpus_per_node
        return self.tasks_on_a_host(case) if case.device == "cuda" else 0

    def limit_min(self, job_deadline_s: float) -> int:
        """Slurm's time limit of a job, whole minutes as Slurm counts."""
        return self.time_limit_min or math.ceil((job_deadline_s + START_ALLOWANCE_S) / 60)


Complaint = tuple[str, str]
"""A field of the section ("" the section itself), and what is wrong with it."""

_LINES = ("partition", "account", "qos", "reservation", "constraint", "python", "container")
_LISTS = ("modules", "container_mounts", "srun_args", "setup")


def named(section: ClusterSection) -> ClusterSection:
    """The section with the name it has where none is given."""
    return section if section.name or section.kind != "local" else msgspec.structs.replace(section, name="local")


def complaint(section: ClusterSection, job_deadline_s: float) -> Complaint | None:
    """What is wrong with the section, None where nothing is."""
    return next(_complaints(section, job_deadline_s), None)


def _complaints(section: ClusterSection, job_deadline_s: float) -> Iterator[Complaint]:
    if not section.name:
        yield "name", "is missing: it is part of every series' platform, so give the cluster one for good"
    elif not NAME.fullmatch(section.name):
        yield "name", f"{section.name!r} is not a name: {NAME_WORDS}"
    if section.kind == "local":
        plain = ClusterSection(kind="local", name=section.name)
        for field in section.__struct_fields__:
            if getattr(section, field) != getattr(plain, field):
                yield field, 'is for kind "slurm"; this cluster is of kind "local"'
        return
    for field in _LINES:
        if not _is_one_line(getattr(section, field)):
            yield field, f"{getattr(section, field)!r} is not one line of printable text"
    for field in _LISTS:
        for value in getattr(section, field):
            if not value or not _is_one_line(value):
                yield field, f"{value!r} is not one line of printable text"
    for field in ("nodelist", "exclude"):
        for value in getattr(section, field):
            if not is_host(value):
                yield field, f"{value!r} is not a host's name, nor hosts in Slurm's brackets"
    for field in ("tasks_per_node", "cpus_per_task", "jobs_at_once", "time_limit_min"):
        value = getattr(section, field)
        if value is not None and value < 1:
            yield field, f"is {value}, wanted at least 1"
    if section.gpus_per_node is not None and section.gpus_per_node < 0:
        yield "gpus_per_node", f"is {section.gpus_per_node}, wanted at least 0"
    if not 0 < section.queue_deadline_min < 1e6:
        yield "queue_deadline_min", f"is {section.queue_deadline_min}, wanted a number above 0 and below 1e6"
    if section.memory_gb is not None and not LEAST_MEMORY_GB <= section.memory_gb < 1e6:
        yield "memory_gb", f"is {section.memory_gb}, wanted at least {LEAST_MEMORY_GB} and below 1e6"
    if section.exclude_slow is not None and not 0 < section.exclude_slow <= 1:
        yield (
            "exclude_slow",
            f"is {section.exclude_slow}, wanted a relative slowing above 0 and at most 1 (0.05 is 5 %)",
        )
    if section.time_limit_min is not None and section.time_limit_min * 60 < job_deadline_s:
        yield (
            "time_limit_min",
            f"is {section.time_limit_min}, less than measure.job_deadline_s ({job_deadline_s:g} s): Slurm would end "
            "jobs that are in time",
        )
    if section.launcher == "mpirun":
        for field in ("container", "container_mounts", "srun_args"):
            if getattr(section, field):
                yield field, "is for srun, and mpirun is started without it: leave one of the two out"
    if section.container_mounts and not section.container:
        yield "container_mounts", "is given, but there is no container to mount them in"
    yield from _environment_complaints(section)


def _environment_complaints(section: ClusterSection) -> Iterator[Complaint]:
    for name, value in section.environment.items():
        if not _VARIABLE.fullmatch(name):
            yield "environment", f"{name!r} is not the name of a variable"
        elif is_secret(name, value):
            yield (
                f"environment.{name}",
                f"{name} looks like a secret, and a plan is no place for one: set it where `epwatch nightly` runs and "
                "name it in pass_environment",
            )
        elif not _is_one_line(value):
            yield f"environment.{name}", "is not one line of printable text"
    for name in section.pass_environment:
        if not _VARIABLE.fullmatch(name):
            yield "pass_environment", f"{name!r} is not the name of a variable"


def world_complaint(section: ClusterSection, case: Case) -> Complaint | None:
    """Why the cluster cannot hold the case's world, None where it can."""
    if section.kind == "local":
        if case.nodes != 1:
            return "nodes", f"gives {case.nodes} nodes, but cluster {section.name} is one machine"
        return None
    tasks = section.tasks_on_a_host(case)
    if (case.ranks // case.nodes) % tasks:
        return (
            "ranks",
            f"gives {case.ranks} ranks on {_counted(case.nodes, 'node')}, which cannot be spread evenly over "
            f"hosts of {tasks} ranks (tasks_per_node of cluster {section.name})",
        )
    return None


def nodelist_complaint(section: ClusterSection, case: Case) -> Complaint | None:
    """Why the case's job cannot contain all hosts of the cluster's nodelist, None where it can."""
    named, given = sum(map(hosts_in, section.nodelist)), section.hosts(case)
    if named <= given:
        return None
    return "nodelist", (
        f"names {_counted(named, 'host')}, and a job contains all of them, but a job of {case.key} has "
        f"{_counted(given, 'host')}: name no more, or name the hosts never to use in exclude"
    )


def hosts_in(text: str) -> int:
    """How many hosts a text names, with Slurm's brackets: `n[1-3,7],m1` names five."""
    total = 0
    for one in re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", text):
        total += math.prod(_numbers_in(inner) for inner in re.findall(r"\[([^\]]*)\]", one))
    return total


def _numbers_in(ranges: str) -> int:
    """How many numbers the inside of brackets names: `1-3,7` names four."""
    count = 0
    for one in ranges.split(","):
        span = re.fullmatch(r"(\d+)-(\d+)", one)
        count += max(1, int(span[2]) - int(span[1]) + 1) if span else 1
    return count


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def is_host(text: str) -> bool:
    """Whether the text may stand where Slurm wants hosts: what came from a record or a log goes through here first."""
    return _HOST.fullmatch(text) is not None


def _is_one_line(text: str) -> bool:
    return text.isprintable()
