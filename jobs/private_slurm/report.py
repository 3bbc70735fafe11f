"""What is up of a private Slurm, as a person wants to know it: daemons, nodes, jobs, whether accounting answers.

Called by `epwatch slurm`. A controller or an accounting that does not answer is part of the answer.
"""

from __future__ import annotations

from collections import Counter

import msgspec

from jobs.private_slurm.client import PrivateSlurm
from jobs.private_slurm.daemons import DaemonStatus
from jobs.private_slurm.settings import SlurmError

UNKNOWN = "unknown"
_ASK_S = 10.0


class NodeReport(msgspec.Struct, frozen=True, kw_only=True):
    """One node. state: as sinfo has it, `unknown` where the controller does not answer."""

    name: str
    state: str
    cpus: int
    memory_mb: int
    gpus: int


class SlurmReport(msgspec.Struct, frozen=True, kw_only=True):
    """A Slurm that is up. accounting: None where there is none, else whether it answers. jobs: how many by state."""

    folder: str
    slurm_conf: str
    boot_s: float
    accounting: bool | None
    stand_in_gpus: bool
    daemons: tuple[DaemonStatus, ...]
    nodes: tuple[NodeReport, ...]
    jobs: dict[str, int] | None


def report(slurm: PrivateSlurm) -> SlurmReport:
    """Ask the supervisor, the controller and accounting. Raises `SlurmError` when no supervisor answers."""
    status = slurm.status()
    down = {daemon.name for daemon in status.daemons if not daemon.up}
    states = jobs = None
    if not down & {"slurmctld", "munged"}:
        states = _asked(slurm, "sinfo", "-h", "-N", "-o", "%N %T")
        jobs = _asked(slurm, "squeue", "-h", "-a", "-r", "-t", "all", "-o", "%T")
    state_of = dict(line.split() for line in (states or "").splitlines())
    accounting = None
    if status.settings.accounting:
        accounting = not down & {"slurmdbd", "mariadbd", "munged"} and (
            _asked(slurm, "sacctmgr", "-n", "-P", "show", "cluster", "format=cluster") is not None
        )
    return SlurmReport(
        folder=status.folder,
        slurm_conf=str(slurm.slurm_conf),
        boot_s=round(status.boot_s, 3),
        accounting=accounting,
        stand_in_gpus=status.shape.stand_in_gpus,
        daemons=status.daemons,
        nodes=tuple(
            NodeReport(
                name=node.name,
                state=state_of.get(node.name, UNKNOWN),
                cpus=node.cpus,
                memory_mb=node.memory_mb,
                gpus=node.gpus,
            )
            for node in status.shape.nodes
        ),
        jobs=None if jobs is None else dict(Counter(jobs.split())),
    )


def _asked(slurm: PrivateSlurm, *command: str) -> str | None:
    """What a command prints, None where it fails."""
    try:
        return slurm.run(*command, timeout_s=_ASK_S)
    except SlurmError:
        return None
