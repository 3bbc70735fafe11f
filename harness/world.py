"""The ranks' world: who am I, who are my peers, and how to leave without noise.

Understands the rank variables of torchrun (and the local launcher, which is torchrun's), mpirun (OMPI_*, PMI_*) and
srun (SLURM_*). `place` is pure: environment in, place out. `join` is the one door into `torch.distributed`, which is
not imported before. Called by `harness.worker`; next to read: `harness.measure`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from harness import gpus, placement
from harness.case import Device
from harness.errors import WorldError
from harness.gpus import Gpu
from harness.record import RankPlacement

if TYPE_CHECKING:
    import torch.distributed as dist

T = TypeVar("T")

FIRST_PORT, PORTS = 20000, 12000
"""A launcher that names no MASTER_PORT gets one from this range, by its job's id."""


@dataclass(frozen=True)
class Place:
    """This process's place in its world, and where rank 0 listens. local_*: among the ranks of this host."""

    launcher: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    master_addr: str
    master_port: int

    @property
    def one_machine(self) -> bool:
        """Whether all ranks are known to be on one machine: the launcher says so, or they meet on its loopback.

        The hosts of one machine may be several: nodes of a Slurm that runs on it, named by loopback addresses.
        """
        return self.local_size == self.size or _is_loopback(self.master_addr)


def _is_loopback(address: str) -> bool:
    """Whether the text itself is a loopback address. A name that resolves to one may do so on its own machine only."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


@dataclass(frozen=True)
class _Names:
    """One launcher's variables. identity: those that name the job, equal on all its ranks."""

    launcher: str
    rank: str
    size: str
    local_rank: str
    local_size: str
    identity: tuple[str, ...]


_TORCHRUN = _Names("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", ())
_OPEN_MPI = _Names(
    "mpirun (Open MPI)",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_hnp_uri"),
)
_PMI = _Names(
    "mpirun (PMI)", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", ("PMI_ID", "PMI_JOBID", "PMI_PORT")
)
_SLURM = _Names(
    "srun",
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_LOCALID",
    "SLURM_STEP_TASKS_PER_NODE",
    ("SLURM_JOB_ID", "SLURM_STEP_ID"),
)


def _integer(environ: Mapping[str, str], name: str, least: int) -> int:
    text = environ.get(name)
    if text is None:
        raise WorldError(f"{name} is not set: start the ranks with `epwatch run`, torchrun, mpirun or srun")
    try:
        value = int(text)
    except ValueError:
        raise WorldError(f"{name}={text!r} is not an integer") from None
    if value < least:
        raise WorldError(f"{name} is {value}, wanted at least {least}")
    return value


def _launchers(environ: Mapping[str, str]) -> list[_Names]:
    """The launchers whose variables are here, innermost first."""
    found = []
    if "TORCHELASTIC_RUN_ID" in environ or "RANK" in environ or "WORLD_SIZE" in environ:
        found.append(_TORCHRUN)
    if "OMPI_COMM_WORLD_RANK" in environ:
        found.append(_OPEN_MPI)
    if "PMI_RANK" in environ:
        found.append(_PMI)
    # A batch script has SLURM_PROCID too, but is no rank: only a step's processes are.
    if "SLURM_STEP_ID" in environ and "SLURM_PROCID" in environ:
        found.append(_SLURM)
    return found


def place(environ: Mapping[str, str]) -> Place:
    """This process's place, from the environment. Pure.

    torchrun's own variables win over those of whatever started torchrun. RANK set by a script, Open MPI's and PMI's
    must agree where several are set; they win over Slurm's, under which mpirun may run. Raises `WorldError` naming the
    variables.
    """
    found = _launchers(environ)
    if not found:
        raise WorldError(
            "no rank variables are set (RANK, OMPI_COMM_WORLD_RANK, PMI_RANK or SLURM_PROCID): "
            "start the ranks with `epwatch run`, torchrun, mpirun or srun"
        )
    names = found[0]
    rank, size = _integer(environ, names.rank, 0), _integer(environ, names.size, 1)
    if rank >= size:
        raise WorldError(f"{names.rank} is {rank} but {names.size} is {size}: ranks go from 0 to {size - 1}")
    if "TORCHELASTIC_RUN_ID" not in environ:
        _must_agree(environ, names, rank, size, found[1:])
    local_rank, local_size = _local(environ, names, rank, size)
    if not 0 <= local_rank < local_size <= size:
        raise WorldError(
            f"{names.launcher} says local rank {local_rank} of {local_size} in a world of {size} "
            f"({names.local_rank}, {names.local_size}): they cannot all be true"
        )
    addr, port = _master(environ, names, single=local_size == size)
    return Place(names.launcher, rank, size, local_rank, local_size, addr, port)


def _must_agree(environ: Mapping[str, str], names: _Names, rank: int, size: int, others: list[_Names]) -> None:
    """Raise when two launchers claim this process for different worlds. srun may have started either: not asked."""
    for other in others:
        theirs = environ.get(other.rank), environ.get(other.size)
        if other is not _SLURM and theirs != (str(rank), str(size)):
            raise WorldError(
                f"{names.launcher} says rank {rank} of {size} ({names.rank}, {names.size}) but {other.launcher} says "
                f"rank {theirs[0]} of {theirs[1]} ({other.rank}, {other.size}): unset the ones that are not meant"
            )


def _local(environ: Mapping[str, str], names: _Names, rank: int, size: int) -> tuple[int, int]:
    """Local rank and size; a launcher that gives neither is taken to have all ranks on this machine."""
    if names is _SLURM:
        local = _integer(environ, names.local_rank, 0)
        node = _integer(environ, "SLURM_NODEID", 0) if "SLURM_NODEID" in environ else 0
        return local, _tasks_of_node(environ.get(names.local_size, str(size)), node)
    if names.local_rank not in environ and names.local_size not in environ:
        return rank, size
    return _integer(environ, names.local_rank, 0), _integer(environ, names.local_size, 1)


def _tasks_of_node(text: str, node: int) -> int:
    """Tasks on the node-th node, from Slurm's compressed list: "2(x3),1" is 2, 2, 2, 1."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            raise WorldError(f"SLURM_STEP_TASKS_PER_NODE={text!r} is not a list of counts such as 2(x3),1")
        counts += [int(match[1])] * int(match[2] or 1)
    if node >= len(counts):
        raise WorldError(f"SLURM_NODEID is {node} but SLURM_STEP_TASKS_PER_NODE={text!r} names {len(counts)} nodes")
    return counts[node]


def first_host(nodelist: str) -> str:
    """The first host of a Slurm node list: "gpu[03-05,9],head" begins with "gpu03". Raises `WorldError`."""
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\])?([^,]*)", nodelist)
    if match is None:
        raise WorldError(f"SLURM_STEP_NODELIST={nodelist!r} names no host")
    return match[1] + (match[2] or "") + match[3]


def _master(environ: Mapping[str, str], names: _Names, *, single: bool) -> tuple[str, int]:
    """Where rank 0 listens: MASTER_ADDR and MASTER_PORT, else what all ranks of the job can work out alike."""
    addr, port = environ.get("MASTER_ADDR"), environ.get("MASTER_PORT")
    if addr is None:
        if single:
            addr = "127.0.0.1"
        elif names is _SLURM and environ.get("SLURM_STEP_NODELIST"):
            addr = first_host(environ["SLURM_STEP_NODELIST"])
        else:
            raise WorldError(
                f"{names.launcher} spans several machines and does not say where rank 0 is: set MASTER_ADDR to its host"
            )
    if port is not None:
        value = _integer(environ, "MASTER_PORT", 1)
        if value > 65535:
            raise WorldError(f"MASTER_PORT is {value}, wanted at most 65535")
        return addr, value
    identity = [environ[name] for name in names.identity if name in environ]
    if not identity:
        raise WorldError(f"{names.launcher} names no port to meet on: set MASTER_PORT to a free one")
    return addr, FIRST_PORT + zlib.crc32("/".join(identity).encode()) % PORTS


@dataclass(frozen=True)
class World:
    """The ranks that measure together. Collectives here are for control, never timed.

    placement: of each rank. domain_of_rank: whose memory each rank can map, as `placement.memory_domain` names it.
    gpu_of_rank: the GPU of each rank, None where it has none or the world is one of CPUs.
    deadline_s: of one operation of a backend; control waits longer, so that a rank which gave up at the deadline can
    still tell its peers.
    """

    place: Place
    placement: tuple[RankPlacement, ...]
    domain_of_rank: tuple[str, ...]
    gpu_of_rank: tuple[Gpu | None, ...]
    deadline_s: float
    control: dist.ProcessGroup

    @property
    def rank(self) -> int:
        """This rank."""
        return self.place.rank

    @property
    def size(self) -> int:
        """Ranks in the world."""
        return self.place.size

    @property
    def host_of_rank(self) -> tuple[str, ...]:
        """The host of each rank."""
        return tuple(one.hostname for one in self.placement)

    @property
    def nodes(self) -> int:
        """Nodes in the world: sets of ranks that can map each other's memory, on however many hosts."""
        return len(set(self.domain_of_rank))

    @property
    def gpu(self) -> Gpu | None:
        """The GPU of this rank."""
        return self.gpu_of_rank[self.rank]

    def device(self, kind: Device) -> str:
        """This rank's device of a kind, as torch names it."""
        return kind if self.gpu is None or kind == "cpu" else f"{kind}:{self.gpu.index}"

    @property
    def gpus_of_first_node(self) -> list[Gpu]:
        """The GPUs that the ranks of the first node have, each once, in order of their first ranks."""
        return gpus.distinct(
            [
                gpu
                for gpu, domain in zip(self.gpu_of_rank, self.domain_of_rank, strict=True)
                if domain == self.domain_of_rank[0]
            ]
        )

    @property
    def cpus_per_node(self) -> int:
        """CPUs that the ranks of the first node may use together, however a launcher has shared them out."""
        of_first = (
            one
            for one, domain in zip(self.placement, self.domain_of_rank, strict=True)
            if domain == self.domain_of_rank[0]
        )
        return len(set[int]().union(*(placement.members(one.cpus) for one in of_first)))

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on every rank, in rank order."""
        import torch.distributed as dist

        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values  # type: ignore[return-value]

    @contextlib.contextmanager
    def group(self) -> Iterator[dist.ProcessGroup]:
        """A process group of all ranks for one run alone: what a failed run leaves in it harms no other."""
        import torch.distributed as dist

        group = dist.new_group(timeout=timedelta(seconds=self.deadline_s), backend="gloo")
        try:
            yield group
        finally:
            dist.destroy_process_group(group)


def _control_deadline(deadline_s: float) -> timedelta:
    return timedelta(seconds=3 * deadline_s + 30)


@contextlib.contextmanager
def join(deadline_s: float = 60.0, *, device: Device = "cpu") -> Iterator[World]:
    """Join the world the environment describes; leave it by a barrier and `destroy_process_group`, whatever happens.

    The barrier is left out when the body raised: peers may be gone. With `device` cuda the rank takes the GPU of its
    local rank; where there is none its world has none, and it is for a case to say that it needs one. What ranks say
    to each other never goes over their GPUs. Raises `WorldError` when variables are wrong or peers do not come in time.
    """
    where = place(os.environ)
    # Its watchdog reports peers that left as lost, with a stack trace, when the store's rank is first out.
    os.environ.setdefault("TORCH_NCCL_ENABLE_MONITORING", "0")
    # What its sockets log with a stack trace comes to us as an exception too.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    if where.one_machine:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = where.master_addr, str(where.master_port)
    import torch.distributed as dist

    gpu = gpus.take(where.local_rank) if device == "cuda" else None
    try:
        dist.init_process_group("gloo", rank=where.rank, world_size=where.size, timeout=_control_deadline(deadline_s))
    except (RuntimeError, ValueError, OSError) as error:
        raise WorldError(
            f"rank {where.rank} of {where.size} could not join its peers at {where.master_addr}:{where.master_port} "
            f"({where.launcher}): {str(error).partition(chr(10))[0]}"
        ) from error
    try:
        control = dist.new_group(timeout=_control_deadline(deadline_s), backend="gloo")
        world = World(where, (), (), (), deadline_s, control)
        heard = world.gather((placement.here(where.rank), placement.memory_domain(), gpu))
        places, domains, had = zip(*heard, strict=True)
        domains = placement.memory_domains(domains)
        yield replace(world, placement=places, domain_of_rank=domains, gpu_of_rank=had)
        dist.barrier(group=control)
    finally:
        dist.destroy_process_group()
