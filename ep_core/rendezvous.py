"""How ranks find each other's segments: addresses through the process group's store, always with a deadline.

A collective would not do: it cannot say which rank is missing. Each rank puts its address under its own key and polls
for the others', so a missing rank is named. Called by `ep_core.host` and `ep_core.peers`. Next to read:
`ep_core/csrc/world.hpp`.
"""

from __future__ import annotations

import json
import os
import queue
import select
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from ep_core import nodes
from ep_core.errors import EPTimeoutError

_POLL_S = 0.002
_MOST_POLL_S = 0.05
_made: WeakKeyDictionary[dist.ProcessGroup, int] = WeakKeyDictionary()


@dataclass(frozen=True)
class Address:
    """Where a rank's segment is found, and what must be equal to reach it.

    fd, token: of a segment on the host. mirrors: file descriptors of the mirrors that it holds, by the rank of another
    node that each mirrors. ranks_per_node: as asked for. gpu, ipc_handle, transport: of one on a GPU: its UUID, the
    handle in hexadecimal, and what maps it. ports: how it would reach ranks of other nodes, see `ep_core.ports`.
    """

    pid: int
    fd: int
    token: str
    boot_id: str
    pid_namespace: int
    host: str
    num_nvl_bytes: int
    num_rdma_bytes: int
    device: str
    gpu: str
    ipc_handle: str
    transport: str
    ports: str
    ranks_per_node: int | None
    mirrors: dict[str, int]

    @classmethod
    def of_this_process(
        cls,
        fd: int,
        token: str,
        num_nvl_bytes: int,
        num_rdma_bytes: int,
        device: str = "cpu",
        gpu: str = "",
        ipc_handle: str = "",
        transport: str = "",
        ports: str = "",
    ) -> Address:
        """The address of a segment of these sizes here: behind file descriptor `fd`, or on a GPU."""
        return cls(
            pid=os.getpid(),
            fd=fd,
            token=token,
            boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            pid_namespace=Path("/proc/self/ns/pid").stat().st_ino,
            host=os.uname().nodename,
            num_nvl_bytes=num_nvl_bytes,
            num_rdma_bytes=num_rdma_bytes,
            device=device,
            gpu=gpu,
            ipc_handle=ipc_handle,
            transport=transport,
            ports=ports,
            ranks_per_node=nodes.ranks_per_node(),
            mirrors={},
        )

    @property
    def machine(self) -> tuple[str, int]:
        """Equal for processes that can map each other's memory: of one boot of one kernel, in one PID namespace."""
        return self.boot_id, self.pid_namespace

    def check(self, rank: int, mine: Address) -> None:
        """Raise `ValueError` when `rank`, which lives here, was given other things than this process (`mine`)."""
        for name, words in (
            ("device", "device"),
            ("num_nvl_bytes", "num_nvl_bytes"),
            ("num_rdma_bytes", "num_rdma_bytes"),
            ("transport", "transport"),
            ("ranks_per_node", nodes.OVERRIDE),
        ):
            if getattr(self, name) != getattr(mine, name):
                raise ValueError(
                    f"{words}: rank {rank} was given {getattr(self, name)}, this rank {getattr(mine, name)}: "
                    "give the same on all ranks"
                )


def has_exited(pid: int | None) -> bool:
    """Whether process `pid` is known to have ended."""
    if pid is None:
        return False
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except (AttributeError, OSError):
        return False
    try:
        return bool(select.select([process], [], [], 0)[0])
    finally:
        os.close(process)


def next_name(group: dist.ProcessGroup) -> str:
    """The name of the next buffer of `group`: the same on every rank, as all make their buffers in the same order."""
    _made[group] = _made.get(group, 0) + 1
    return f"ep_core/buffer{_made[group]}"


def store_of(group: dist.ProcessGroup) -> Store:
    """The store of `group`, through which its ranks find each other."""
    if hasattr(group, "get_group_store"):
        return group.get_group_store()
    return dist.distributed_c10d._get_process_group_store(group)


def forget(group: dist.ProcessGroup, name: str) -> None:
    """Remove this rank's address from the store, once every rank has mapped it."""
    if group.size() > 1:
        store_of(group).delete_key(f"{name}/{group.rank()}")


def exchange(group: dist.ProcessGroup, name: str, address: Address, timeout_s: float) -> list[Address]:
    """The addresses of all ranks of `group`, in rank order.

    Raises `EPTimeoutError` that names the ranks whose address did not come within `timeout_s` seconds.
    """
    rank, ranks = group.rank(), group.size()
    found: dict[int, Address] = {rank: address}
    if ranks == 1:
        return [address]
    deadline = time.monotonic() + timeout_s
    stop = threading.Event()

    def talk() -> None:
        store = store_of(group)
        store.set(f"{name}/{rank}", json.dumps(asdict(address)))
        pause = _POLL_S
        while len(found) < ranks and not stop.is_set():
            before = len(found)
            for peer in range(ranks):
                if peer not in found and store.check([f"{name}/{peer}"]):
                    found[peer] = Address(**json.loads(store.get(f"{name}/{peer}")))
            pause = _POLL_S if len(found) > before else min(2 * pause, _MOST_POLL_S)
            stop.wait(0 if len(found) == ranks else pause)

    started = time.monotonic()
    try:
        within(deadline, talk)
    except (TimeoutError, RuntimeError) as error:
        missing = [peer for peer in range(ranks) if peer not in found]
        why = "" if isinstance(error, TimeoutError) else f"the process group's store failed: {error}"
        raise EPTimeoutError("construction", rank, missing, time.monotonic() - started, why=why) from None
    finally:
        stop.set()
    return [found[peer] for peer in range(ranks)]


def within(deadline: float, talk: Callable[[], None]) -> None:
    """Run `talk` beside this thread until `deadline` (monotonic seconds), so that a store that hangs holds up nobody.

    Raises what `talk` raised, or `TimeoutError`.
    """
    ended: queue.Queue[BaseException | None] = queue.Queue()

    def run() -> None:
        try:
            talk()
        except BaseException as error:
            ended.put(error)
        else:
            ended.put(None)

    threading.Thread(target=run, name="ep_core-rendezvous", daemon=True).start()
    try:
        error = ended.get(timeout=max(deadline - time.monotonic(), 0.001))
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
