"""The configuration files of a private Slurm, as text. Pure: the same description gives the same files.

Called by `jobs.private_slurm.engine`, which writes them and starts the daemons that read them. Each setting that is
not plain wiring says why it is as it is. Next to read: `jobs.private_slurm.engine`.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from jobs.private_slurm.settings import Host, Node, Shape, SlurmError, SlurmSettings

CLUSTER_NAME = "private"
_LONGEST_SOCKET_BYTES = 107
_LONGEST_STEP = "_67043328.4294967291"
_PLAIN_PATH = re.compile(r"[\w./+@~-]+")


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """TCP ports of this machine that the daemons listen on; nodes: one each, in order."""

    controller: int
    accounting: int
    nodes: tuple[int, ...]


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """All that the files say. host: this machine's short name. first_job_id: jobs are counted from there."""

    folder: Path
    host: str
    user: str
    ports: Ports
    shape: Shape
    settings: SlurmSettings
    first_job_id: int
    cgroup_plugin: str


class ConfigurationFile(msgspec.Struct, frozen=True):
    """What one file holds, and its mode."""

    text: str
    mode: int = 0o644


class Places:
    """Where things lie in a folder. Sockets are named here, since the system limits the length of their paths."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.slurm_conf = folder / "slurm.conf"
        self.munge_socket = folder / "munge.sock"
        self.database = folder / "db"
        self.database_socket = folder / "db.sock"
        self.control_socket = folder / "control.sock"
        self.lock = folder / ".epwatch-slurm.lock"
        self.logs = folder / "log"
        self.state = folder / "state"
        self.devices = folder / "dev"
        self.task_prolog = folder / "gpus.sh"

    def made(self) -> set[Path]:
        """What a Slurm has made in its folder besides its logs, and the next one must not find."""
        patterns = ("*.conf", "*.sock", "*.pid", "munge.*", "gpus.sh", "n-*", "state", "dev", "db")
        return {path for pattern in patterns for path in self.folder.glob(pattern)}

    def spool(self, node: str) -> Path:
        """A node's own folder; the sockets of its job steps lie there."""
        return self.folder / f"n-{node}"

    def log(self, daemon: str) -> Path:
        """What a daemon says."""
        return self.logs / f"{daemon}.log"


def check_folder(folder: Path, nodes: tuple[Node, ...]) -> None:
    """Raise `SlurmError` when no Slurm can live under a path: too long for its sockets, or odd characters in it."""
    if not _PLAIN_PATH.fullmatch(str(folder)):
        raise SlurmError(
            f"the folder {str(folder)!r} has characters in its path that Slurm's files cannot hold: name one of "
            "letters, digits and ./+@~-_"
        )
    places = Places(folder)
    sockets = [places.munge_socket, places.control_socket, places.database_socket]
    sockets += [places.spool(node.name) / f"{node.name}{_LONGEST_STEP}" for node in nodes]
    longest = max(len(bytes(socket)) for socket in sockets)
    if longest > _LONGEST_SOCKET_BYTES:
        most = len(bytes(folder)) - (longest - _LONGEST_SOCKET_BYTES)
        raise SlurmError(
            f"the path of the folder {folder} has {len(bytes(folder))} bytes, and with more than {most} the paths of "
            "Slurm's sockets get longer than the system allows: name a shorter one with --folder"
        )


def files(description: Description) -> dict[str, ConfigurationFile]:
    """File names in the folder, with what is in them."""
    made = {
        "slurm.conf": ConfigurationFile(_slurm_conf(description)),
        "gres.conf": ConfigurationFile(_gres_conf(description)),
        # slurmd loads a cgroup plugin even where none is used, and this one asks nothing of the machine.
        "cgroup.conf": ConfigurationFile(f"CgroupPlugin={description.cgroup_plugin}\n"),
    }
    if _shares_gpus(description.shape):
        made[Places(description.folder).task_prolog.name] = ConfigurationFile(_task_prolog(description.shape), 0o700)
    if description.settings.accounting:
        made["slurmdbd.conf"] = ConfigurationFile(_slurmdbd_conf(description), 0o600)
    return made


def stand_in_devices(description: Description) -> list[Path]:
    """The paths of the GPUs that are no devices of the machine."""
    places = Places(description.folder)
    return [
        path for node in description.shape.nodes for path in _devices(places, node) if path.parent == places.devices
    ]


def _devices(places: Places, node: Node) -> list[Path]:
    """The device files of a node's GPUs: the machine's, else stand-ins."""
    if node.gpu_devices:
        return [Path(device) for device in node.gpu_devices]
    return [places.devices / f"{node.name}-gpu{number}" for number in range(node.gpus)]


def _slurm_conf(description: Description) -> str:
    places = Places(description.folder)
    settings = description.settings
    controller = settings.controller or Host(name=description.host, address="127.0.0.1")
    least_memory_mb = min(node.memory_mb // node.cpus for node in description.shape.nodes)
    lines = [
        f"ClusterName={CLUSTER_NAME}",
        f"SlurmctldHost={controller.name}({controller.address})",
        f"SlurmctldPort={description.ports.controller}",
        f"SlurmUser={description.user}",
        f"SlurmdUser={description.user}",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        # A requeued job starts again once its credential has expired, after 120 s by default; 5 is the least.
        f"AuthInfo=socket={places.munge_socket},cred_expire=5",
        f"StateSaveLocation={places.state}",
        f"SlurmctldPidFile={places.folder}/slurmctld.pid",
        f"SlurmctldLogFile={places.log('slurmctld')}",
        f"SlurmdPidFile={places.folder}/slurmd-%n.pid",
        f"SlurmdSpoolDir={places.spool('%n')}",
        f"SlurmdLogFile={places.log('slurmd-%n')}",
        # Nodes have what this file says, not what the machine has.
        "SlurmdParameters=config_overrides",
        # A number that no earlier Slurm has given: job folders are often named by it.
        f"FirstJobId={description.first_job_id}",
        "ProctrackType=proctrack/linuxproc",
        f"TaskPlugin={'task/affinity' if description.shape.bind_cpus else 'task/none'}",
        "MpiDefault=none",
        # Memory limits without cgroups. Pages that ranks share are counted once among them.
        "JobAcctGatherType=jobacct_gather/linux",
        "JobAcctGatherFrequency=task=5",
        "JobAcctGatherParams=UsePss,OverMemoryKill",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        f"DefMemPerCPU={max(1, least_memory_mb)}",
        "SchedulerType=sched/backfill",
        # A lone job starts at once, not after three seconds.
        "SchedulerParameters=bf_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_continue",
        # What can never run is refused, not left to wait for ever.
        "EnforcePartLimits=ALL",
        # 2 would bring back a node that was set down on purpose, while its old processes are still there.
        "ReturnToService=1",
        "SlurmctldTimeout=10",
        f"SlurmdTimeout={settings.slurmd_timeout_s}",
        "MessageTimeout=5",
        # What ends a job whose processes ignore SIGTERM, as submitit's do.
        "KillWait=2",
        # A step that ended while slurmctld was away tells it a minute later; until then it seems not to be killed.
        "UnkillableStepTimeout=120",
        # Where there is no accounting, squeue and scontrol are all that knows of ended jobs.
        "MinJobAge=86400",
        "MailProg=/bin/true",
        "ScronParameters=enable",
        "GresTypes=gpu",
    ]
    if _shares_gpus(description.shape):
        lines.append(f"TaskProlog={places.task_prolog}")
    if settings.accounting:
        lines += [
            "AccountingStorageType=accounting_storage/slurmdbd",
            "AccountingStorageHost=127.0.0.1",
            f"AccountingStoragePort={description.ports.accounting}",
            # Towards slurmdbd, AuthInfo's socket is not used.
            f"AccountingStoragePass={places.munge_socket}",
            "AccountingStorageTRES=gres/gpu",
        ]
    for node, port in zip(description.shape.nodes, description.ports.nodes, strict=True):
        gres = f" Gres=gpu:{node.gpus}" if node.gpus else ""
        # A node's name is a loopback address: it resolves everywhere, so it does as a rendezvous address too.
        lines.append(
            f"NodeName={node.name} NodeHostname={node.host.name if node.host else description.host} "
            f"NodeAddr={node.address} Port={port} CPUs={node.cpus} Sockets=1 CoresPerSocket={node.cpus} "
            f"ThreadsPerCore=1 RealMemory={node.memory_mb}{gres} State=UNKNOWN"
        )
    lines += settings.partitions or ["PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP"]
    return "\n".join([*lines, *settings.extra_conf]) + "\n"


def _gres_conf(description: Description) -> str:
    places = Places(description.folder)
    lines = ["AutoDetect=off"]
    for node in description.shape.nodes:
        lines += [f"NodeName={node.name} Name=gpu File={device}" for device in _devices(places, node)]
    return "\n".join(lines) + "\n"


def _shares_gpus(shape: Shape) -> bool:
    """Whether several nodes have GPUs of this machine."""
    return len(shape.nodes) > 1 and any(node.gpu_devices for node in shape.nodes)


def _task_prolog(shape: Shape) -> str:
    """What runs before each task and batch script: Slurm counts a node's GPUs from 0, CUDA counts the machine's."""
    firsts, first = [], 0
    for node in shape.nodes:
        firsts.append(f"{node.name}) first={first} ;;")
        first += node.gpus
    lines = [
        "#!/bin/sh",
        'if [ -n "$SLURM_STEP_ID" ]; then given=$SLURM_STEP_GPUS; else given=$SLURM_JOB_GPUS; fi',
        '[ -n "$given" ] || exit 0',
        'case $CUDA_VISIBLE_DEVICES in "" | *[!0-9,]*) exit 0 ;; esac',
        "case $SLURMD_NODENAME in",
        *firsts,
        "*) exit 0 ;;",
        "esac",
        "seen=",
        'for gpu in $(echo "$CUDA_VISIBLE_DEVICES" | tr , " "); do seen=$seen,$((gpu + first)); done',
        'echo "export CUDA_VISIBLE_DEVICES=${seen#,}"',
    ]
    return "\n".join(lines) + "\n"


def _slurmdbd_conf(description: Description) -> str:
    places = Places(description.folder)
    lines = [
        "AuthType=auth/munge",
        f"AuthInfo=socket={places.munge_socket}",
        f"DbdHost={description.host}",
        "DbdAddr=127.0.0.1",
        f"DbdPort={description.ports.accounting}",
        f"SlurmUser={description.user}",
        f"LogFile={places.log('slurmdbd')}",
        f"PidFile={places.folder}/slurmdbd.pid",
        "StorageType=accounting_storage/mysql",
        # By the Unix socket that the environment names: the database listens nowhere else.
        "StorageHost=localhost",
        "StorageUser=root",
        "StorageLoc=slurm_acct_db",
    ]
    return "\n".join(lines) + "\n"
