"""What a private Slurm finds on this machine: its programs, CPUs, memory and GPUs, a user's name, free ports.

Called by `jobs.private_slurm.engine` and, before anything is started, by `PrivateSlurm`. Next to read:
`jobs.private_slurm.settings`.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import re
import shutil
import socket
import subprocess
from pathlib import Path

from jobs.private_slurm.settings import Machine, SlurmError

SLURM_PACKAGES = "slurmctld slurmd slurm-client munge"
ACCOUNTING_PACKAGES = "slurmdbd mariadb-server-core"
_SLURM_PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmstepd", "sbatch", "srun", "scontrol", "sinfo", "squeue")
_ACCOUNTING_PROGRAMS = ("slurmdbd", "mariadbd", "sacct", "sacctmgr")
_SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/sbin")
"""Where daemons are, though a user's PATH may not say so."""

_PORTS = range(10_000, 32_000)
"""Below those that the kernel gives to outgoing connections."""

_VERSION_S = 10
_FIRST_WITHOUT_CGROUPS = (24, 5)


def search_path() -> str:
    """PATH, and the folders of daemons that it lacks."""
    folders = os.environ.get("PATH", "/usr/bin:/bin").split(":")
    return ":".join([*folders, *(folder for folder in _SYSTEM_FOLDERS if folder not in folders)])


def missing_programs(accounting: bool) -> list[str]:
    """Names of the programs that are needed and not installed."""
    wanted = _SLURM_PROGRAMS + (_ACCOUNTING_PROGRAMS if accounting else ())
    return [name for name in wanted if shutil.which(name, path=search_path()) is None]


def check_programs(accounting: bool) -> None:
    """Raise `SlurmError` that names what is missing and the Debian packages that bring it."""
    missing = missing_programs(accounting)
    if missing:
        packages = [SLURM_PACKAGES] if set(missing) & set(_SLURM_PROGRAMS) else []
        packages += [ACCOUNTING_PACKAGES] if set(missing) & set(_ACCOUNTING_PROGRAMS) else []
        raise SlurmError(
            f"not installed here: {', '.join(missing)}; on Debian or Ubuntu, as root: apt-get install "
            f"--no-install-recommends {' '.join(packages)}"
        )


def cgroup_plugin() -> str:
    """The cgroup plugin that asks nothing of the machine: none, for a Slurm that can do without."""
    said = subprocess.run(
        ["slurmctld", "-V"],
        env={"PATH": search_path()},
        capture_output=True,
        text=True,
        timeout=_VERSION_S,
        check=False,
    ).stdout
    found = re.search(r"(\d+)\.(\d+)", said)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    return "disabled" if version >= _FIRST_WITHOUT_CGROUPS else "cgroup/v1"


def this_machine() -> Machine:
    """What this machine has to share out among nodes."""
    devices = [path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    return Machine(
        cpus=len(os.sched_getaffinity(0)),
        memory_mb=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20,
        gpu_devices=tuple(map(str, sorted(devices, key=lambda path: int(path.name.removeprefix("nvidia"))))),
    )


def host_name() -> str:
    """This machine's name as Slurm's daemons take it, without its domain."""
    return socket.gethostname().split(".")[0]


def user_name() -> str:
    """The name of who runs this. Raises `SlurmError` for a user id without one."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise SlurmError(
            f"user id {os.geteuid()} has no name on this machine, and Slurm needs one: add it to /etc/passwd"
        ) from None


def free_ports(number: int) -> list[int]:
    """That many TCP ports that nobody listens on now."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
            if len(found) == number:
                break
            attempt = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                attempt.bind(("", port))
                found.append(port)
    return found
