"""What a private Slurm is to be like, and what that comes to on a given machine. Pure: nothing here looks at one.

Made by `epwatch slurm up` and by tests. Next to read: `jobs.private_slurm.configuration`, which writes it down for the
daemons.
"""

from __future__ import annotations

import msgspec

from harness.errors import EpwatchError

MOST_NODES = 250
"""Nodes are named by the addresses 127.0.1.1 and following."""


class SlurmError(EpwatchError):
    """A private Slurm that cannot be started, or that does not do what was asked of it."""


class Host(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A place with a name and an address of its own, such as a network namespace.

    enter: the command that runs a program there, which it precedes and which it becomes.
    """

    name: str
    address: str
    enter: tuple[str, ...] = ()


class SlurmSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is asked for; what is None follows from the machine.

    cpus, memory_mb, gpus: of each node; None shares the machine's out over the nodes. accounting: with slurmdbd and its
    database, so that `sacct` answers. bind_cpus: tasks are bound to their CPUs; None does it where no two nodes would
    crowd on the same CPUs while others are free. slurmd_timeout_s: after which silence a node is down.
    partitions: lines of slurm.conf that begin with PartitionName=, instead of the one partition `debug`; all nodes are
    in a partition that says Nodes=ALL. extra_conf: more lines of slurm.conf, which win over ours. hosts, controller:
    where the nodes and slurmctld are, instead of under loopback addresses of this machine; as many hosts as nodes.
    """

    nodes: int = 1
    cpus: int | None = None
    memory_mb: int | None = None
    gpus: int | None = None
    accounting: bool = False
    bind_cpus: bool | None = None
    slurmd_timeout_s: int = 10
    partitions: tuple[str, ...] = ()
    extra_conf: tuple[str, ...] = ()
    hosts: tuple[Host, ...] = ()
    controller: Host | None = None


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine has. gpu_devices: paths of the device files of its GPUs, in order."""

    cpus: int
    memory_mb: int
    gpu_devices: tuple[str, ...]


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One node. gpu_devices: the machine's; empty where the node has none or stand-ins. gpus: how many it has.

    host: where it is, if not on this machine like everything else; its name and address are the node's.
    """

    name: str
    cpus: int
    memory_mb: int
    gpus: int
    gpu_devices: tuple[str, ...] = ()
    host: Host | None = None

    @property
    def address(self) -> str:
        """Where its slurmd listens."""
        return self.host.address if self.host else self.name

    @property
    def enter(self) -> tuple[str, ...]:
        """What precedes a command that runs on it."""
        return self.host.enter if self.host else ()


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """The nodes that there will be."""

    nodes: tuple[Node, ...]
    bind_cpus: bool

    @property
    def gpus(self) -> int:
        """How many GPUs all nodes have together."""
        return sum(node.gpus for node in self.nodes)

    @property
    def stand_in_gpus(self) -> bool:
        """Whether the GPUs are stand-ins: counted and handed out, but no devices."""
        return any(node.gpus > len(node.gpu_devices) for node in self.nodes)


def shape_of(settings: SlurmSettings, machine: Machine) -> Shape:
    """The nodes that `settings` stand for on `machine`. Raises `SlurmError` for what cannot be."""
    if not 1 <= settings.nodes <= MOST_NODES:
        raise SlurmError(f"{settings.nodes} nodes cannot be: ask for 1 to {MOST_NODES}")
    for name, number, least in (
        ("cpus", settings.cpus, 1),
        ("memory", settings.memory_mb, 1),
        ("gpus", settings.gpus, 0),
    ):
        if number is not None and number < least:
            raise SlurmError(f"a node cannot have {name} = {number}: ask for {least} or more")
    cpus = settings.cpus or max(1, machine.cpus // settings.nodes)
    memory_mb = settings.memory_mb or max(1, machine.memory_mb // settings.nodes)
    gpus = len(machine.gpu_devices) // settings.nodes if settings.gpus is None else settings.gpus
    if 0 < len(machine.gpu_devices) < gpus * settings.nodes:
        raise SlurmError(
            f"{settings.nodes} nodes of {gpus} GPUs need {settings.nodes * gpus}, and this machine has "
            f"{len(machine.gpu_devices)}: ask for fewer"
        )
    if settings.hosts and len(settings.hosts) != settings.nodes:
        raise SlurmError(f"{settings.nodes} nodes cannot be on {len(settings.hosts)} hosts: name one for each")
    crowded = settings.nodes > 1 and cpus < machine.cpus
    return Shape(
        nodes=tuple(
            Node(
                name=settings.hosts[place].name if settings.hosts else f"127.0.1.{place + 1}",
                cpus=cpus,
                memory_mb=memory_mb,
                gpus=gpus,
                gpu_devices=machine.gpu_devices[place * gpus : (place + 1) * gpus],
                host=settings.hosts[place] if settings.hosts else None,
            )
            for place in range(settings.nodes)
        ),
        bind_cpus=not crowded and cpus <= machine.cpus if settings.bind_cpus is None else settings.bind_cpus,
    )
