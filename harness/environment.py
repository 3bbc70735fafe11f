"""What a run ran on: the platform that makes numbers comparable, and the environment that may change under them.

Torch-free and quick: versions come from package metadata, the rest from /proc, /sys and git. Whatever cannot be found
out is left out, never an error. Called by `harness.measure` on rank 0 and by `harness.launch` for runs that left no
record. What a GPU adds is found by `harness.nvml` and `harness.libraries`. Next to read: `harness.record`.
"""

from __future__ import annotations

import functools
import os
import platform as python_platform
import re
import socket
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

from harness import gpus, libraries, nvml
from harness.case import Device
from harness.gpus import Gpu
from harness.record import Environment, Node, Platform

PREFIXES = (
    "EPWATCH_",
    "EP_",
    "MSCCLPP_",
    "NCCL_",
    "TORCH_NCCL_",
    "GLOO_",
    "UCX_",
    "OMP_",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE",
    "PYTORCH_",
)
"""Variables recorded are those whose names begin with one of these."""

_SECRET = re.compile(
    r"PASSW(OR)?D|PASSPHRASE|PWD|SECRET|TOKEN(?!S|IZ)|CREDENTIAL|(API|ACCESS|PRIVATE|PASS)KEY"
    r"|(?<!BY)(?<!COM)PASS\d*(_|$)|(^|_)(KEYS?|PAT|AUTH|CREDS?|TELL)\d*(_|$)"
)
_NO_SECRET = frozenset({"PWD", "OLDPWD", "NCCL_PAT_ENABLE"})
# In a URL whatever stands between "://", a colon and "@"; elsewhere a word, a colon, anything, "@" and a host.
_USER_AND_PASSWORD = re.compile(r"""://[^\s:]*:[^\s@]*@|(^|[\s,;="'])[\w.+%\\-]+:[^\s/@]+@[\w\[/]""")
# Where things are kept, and which job this is, say nothing about how fast it went, and would differ in every run.
_NEVER = frozenset({"EPWATCH_DB", "EPWATCH_SPOOL", "EPWATCH_JOB", "EPWATCH_DEBUG"})
_GIT_DEADLINE_S = 5.0
_PACKAGES = ("torch", "numpy", "epwatch")


def utc_now(offset_s: float = 0.0) -> str:
    """The time, `offset_s` from now, as RFC 3339 in UTC to the millisecond."""
    when = datetime.now(UTC) + timedelta(seconds=offset_s)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def hostname() -> str:
    """This node's name, as the record's nodes have it: Slurm's where a step runs (one machine may be several nodes)."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def is_secret(variable: str, value: str) -> bool:
    """Whether the variable may hold a secret, by its name or as user:password@, and so goes into no record and no job.

    Tokens are secrets unless they are counted: MSCCLPP_EP_LL_TOKENS is a number.
    """
    name = variable.upper()
    named = name not in _NO_SECRET and _SECRET.search(name) is not None
    return named or ("TOKENS" in name and not value.strip().isdecimal()) or _USER_AND_PASSWORD.search(value) is not None


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that matter, sorted by name: by allow-list, no secret, and no URL, which may hold one."""
    return {
        name: environ[name]
        for name in sorted(environ)
        if name.startswith(PREFIXES)
        and name not in _NEVER
        and "://" not in environ[name]
        and not is_secret(name, environ[name])
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


@functools.cache
def cpu_model() -> str:
    """The CPU model as the kernel names it, without "/" (a platform's key is divided by it)."""
    found = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    name = found[1] if found else python_platform.machine() or "unknown"
    return " ".join(name.replace("/", "-").split())


def platform(
    cluster: str, device: Device, nodes: int, cpus: int | None = None, used: Sequence[Gpu] | None = None
) -> Platform:
    """The platform of a run by ranks on `nodes` nodes like this one.

    cpus: usable on a node, else those usable here. used: the GPUs that the ranks of a node have, each once, else all
    that are here.
    """
    if device == "cpu":
        return Platform(
            device_model=cpu_model(),
            devices_per_node=len(os.sched_getaffinity(0)) if cpus is None else cpus,
            interconnect="shared-memory" if nodes == 1 else "network",
            cluster=cluster,
        )
    found = nvml.installed() if used is None else used
    return Platform(
        device_model=found[0].name if found else "unknown GPU",
        devices_per_node=len(found),
        interconnect=nvml.interconnect(found) if nodes == 1 else "network",
        cluster=cluster,
    )


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            timeout=_GIT_DEADLINE_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def code_state(folder: Path) -> dict[str, str]:
    """Git state of the working tree that holds `folder`: commit, branch, dirty, describe. Empty outside of git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {
        "commit": commit,
        "branch": _git(folder, "rev-parse", "--abbrev-ref", "HEAD") or "",
        "dirty": "unknown" if changed is None else "yes" if changed else "no",
        "describe": _git(folder, "describe", "--always", "--tags", "--dirty") or "",
    }


def _tested_folder() -> Path:
    """The folder of epwatch's own code where git tracks it (a checkout), else the working folder."""
    here = Path(__file__)
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is not None:
        return here.parent
    return Path.cwd()


def tested_code() -> dict[str, str]:
    """Git state of the code under test, as every record has it."""
    return code_state(_tested_folder())


def versions() -> dict[str, str]:
    """Package, interpreter and kernel versions, without importing any package."""
    found = {"python": python_platform.python_version(), "kernel": python_platform.release()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def topology() -> dict[str, str]:
    """Facts about this machine that may explain a number: cores, NUMA nodes, governor, memory, huge pages."""
    facts = {
        "cpu_model": cpu_model(),
        "cores_usable": str(len(os.sched_getaffinity(0))),
        "cores_online": _read("/sys/devices/system/cpu/online"),
        "numa_nodes": _read("/sys/devices/system/node/online"),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "transparent_hugepage": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "architecture": python_platform.machine(),
    }
    return {name: value for name, value in facts.items() if value}


@functools.cache
def _loaded() -> tuple[dict[str, str], dict[str, str]]:
    """The code under test and the versions, as they were when this process first asked: what is committed or installed
    later is not what it runs. Asking git five times for every run would take longer than a small run, too.
    """
    return tested_code(), versions()


def capture(environ: Mapping[str, str], looks: Sequence[gpus.Look] = ()) -> Environment:
    """Everything that may change under a series: what this process has loaded, and this machine as it is now.

    looks: at the GPUs that the ranks have, each once; none where they have none.
    """
    code, loaded = _loaded()
    found, facts = dict(loaded), topology()
    if looks:
        paths = libraries.loaded()
        found |= libraries.versions(paths) | nvml.versions()
        facts |= gpus.facts(looks) | {"gpu_libraries": libraries.file_names(paths.values())}
    return Environment(code=dict(code), versions=found, variables=variables(environ), topology=facts)


def conditions(when: str) -> dict[str, float]:
    """What the machine is doing now: load averages and free memory, names ending in `_<when>`."""
    found: dict[str, float] = {}
    try:
        found["load_1m"], found["load_5m"], _ = os.getloadavg()
    except OSError:
        found = {}
    memory = re.search(r"^MemAvailable:\s+(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE)
    if memory:
        found["memory_available_gb"] = int(memory[1]) * 1024 / 1e9
    return {f"{name}_{when}": value for name, value in found.items()}


def nodes(host_of_rank: Sequence[str]) -> list[Node]:
    """The machines of a world, in order of their first rank, with the ranks on each."""
    ranks: dict[str, list[int]] = {}
    for rank, host in enumerate(host_of_rank):
        ranks.setdefault(host, []).append(rank)
    return [Node(hostname=host, ranks=held) for host, held in ranks.items()]


def scheduler_job(environ: Mapping[str, str]) -> str:
    """Which job of which scheduler this is: "Slurm job 77", "Slurm job 123_4" in an array; "" where there is none."""
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else environ.get("SLURM_JOB_ID")
    return f"Slurm job {job}" if job else ""


def job_notes(environ: Mapping[str, str]) -> list[str]:
    """Which job of which scheduler this is, for the record's notes."""
    job = environ.get("SLURM_JOB_ID")
    return [f"Slurm job {job}"] if job else []
