"""How the ranks of a CUDA buffer find and map each other's memory.

Addresses go through the process group's store (`ep_core.rendezvous`); memory is mapped by MSCCL++ where that is
installed, else by CUDA IPC handles. EP_CORE_TRANSPORT=ipc asks for the latter. Ranks of other nodes are reached by
MSCCL++'s port channels (`ep_core.ports`). Called by `ep_core.cuda`. Next to read: `ep_core.mscclpp_mapping`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed as dist

from ep_core import mscclpp_mapping, ports, rendezvous
from ep_core.nodes import Nodes

if TYPE_CHECKING:
    from ep_core._cuda import Cuda

_TRANSPORT = "EP_CORE_TRANSPORT"
Transport = Literal["mscclpp", "ipc"]


def transport() -> Transport:
    """What maps the peers here. Raises `ValueError` for an EP_CORE_TRANSPORT that is unknown or cannot be used."""
    wanted = os.environ.get(_TRANSPORT, "")
    if wanted == "ipc":
        return "ipc"
    if wanted not in ("", "mscclpp"):
        raise ValueError(f"{_TRANSPORT}: wanted mscclpp or ipc, got {wanted!r}")
    obstacle = mscclpp_mapping.obstacle()
    if wanted and obstacle:
        raise ValueError(f"{_TRANSPORT}: mscclpp cannot be used here: {obstacle}")
    return "ipc" if obstacle else "mscclpp"


@dataclass(frozen=True)
class Peers:
    """The other ranks, within reach.

    pids: by rank, None where it lives among other process numbers than ours. nodes: who shares memory.
    """

    pids: list[int | None]
    nodes: Nodes
    mapping: mscclpp_mapping.PeerMapping | None

    def failure(self) -> str:
        """What ended a proxy; empty while all is well."""
        return "" if self.mapping is None else self.mapping.failure()

    def close(self) -> None:
        """Give up what maps them; waits for nobody."""
        if self.mapping is not None:
            self.mapping.close()


def map_peers(
    group: dist.ProcessGroup,
    cuda: Cuda,
    num_nvl_bytes: int,
    num_rdma_bytes: int,
    timeout_s: float,
    device: torch.device,
) -> Peers:
    """Connect `cuda` with the segments of all ranks of `group`; returns when every rank has mapped every segment.

    Raises `EPTimeoutError` naming the ranks that do not come within `timeout_s` seconds, `ValueError` for ranks that
    cannot be reached or were given something else.
    """
    chosen = transport()
    mine = rendezvous.Address.of_this_process(
        -1,
        "",
        num_nvl_bytes,
        num_rdma_bytes,
        device="cuda",
        gpu=str(torch.cuda.get_device_properties(device).uuid),
        ipc_handle=cuda.ipc_handle().hex() if chosen == "ipc" else "",
        transport=chosen,
        ports=ports.offer(mscclpp_mapping.ib_devices()) if chosen == "mscclpp" else "",
    )
    name = rendezvous.next_name(group)
    found = rendezvous.exchange(group, name, mine, timeout_s)
    for rank, address in enumerate(found):
        address.check(rank, mine)
    nodes = Nodes.found(group.rank(), [address.boot_id for address in found])
    plan = port_plan(nodes, found, torch.cuda.get_device_capability(device)[0]) if nodes.count > 1 else None
    for rank in nodes.ranks_of(nodes.mine):
        _check_reachable(rank, found[rank].gpu, device)
    mapping = None
    if chosen == "mscclpp":
        mapping = mscclpp_mapping.map_peers(group, cuda.base, cuda.size, device.index, timeout_s, plan)
        cuda.connect_pointers(mapping.addresses)
        if plan is not None:
            cuda.connect_ports(list(nodes.node_of), mapping.port_handles, plan.most_message_bytes)
            if group.rank() == 0:
                print(plan.sentence, file=sys.stderr, flush=True)
    else:
        cuda.connect_ipc([bytes.fromhex(address.ipc_handle) for address in found])
    # Nobody may write into, or free, what a peer is still mapping.
    rendezvous.exchange(group, f"{name}/mapped", mine, timeout_s)
    with contextlib.suppress(RuntimeError):
        rendezvous.forget(group, name)
    return Peers([address.pid if address.machine == mine.machine else None for address in found], nodes, mapping)


def port_obstacle() -> str:
    """Why ranks of several nodes cannot be joined on CUDA here; empty when they can, as far as can be said without."""
    obstacle = mscclpp_mapping.obstacle()
    if obstacle:
        return f"MSCCL++: {obstacle}"
    if transport() != "mscclpp":
        return f"{_TRANSPORT} says ipc, and it takes mscclpp"
    from ep_core import _cuda

    return "" if _cuda.PORT_HANDLE_BYTES else "ep_core._cuda was built without MSCCL++; build it again"


def port_plan(nodes: Nodes, found: list[rendezvous.Address], major: int) -> ports.PortPlan:
    """How the ranks of `nodes`, of which there are several, reach each other. major: of the compute capability.

    Raises `ValueError` where they cannot.
    """
    mine = found[nodes.rank]
    obstacle = port_obstacle()
    if obstacle:
        there = next(address.host for rank, address in enumerate(found) if not nodes.same(rank, nodes.rank))
        where = f"{mine.host} and {there}" if there != mine.host else f"{mine.host}, which EP_RANKS_PER_NODE divides"
        raise ValueError(f"group: its ranks are on {nodes.count} nodes ({where}), and cannot be joined: {obstacle}")
    chosen = ports.agreed([address.ports for address in found], len({address.boot_id for address in found}) == 1)
    others = len(nodes.node_of) - len(nodes.ranks_of(nodes.mine))
    ranks_here = sum(address.boot_id == mine.boot_id for address in found)
    count = ports.proxies_of(chosen, others, major, len(os.sched_getaffinity(0)), ranks_here)
    return ports.PortPlan(nodes, chosen, count)


def _check_reachable(rank: int, gpu: str, device: torch.device) -> None:
    """Raise `ValueError` when `device` cannot map the memory of `gpu`, if this process sees both."""
    for index in range(torch.cuda.device_count()):
        if index == device.index or str(torch.cuda.get_device_properties(index).uuid) != gpu:
            continue
        if not torch.cuda.can_device_access_peer(device, index):
            raise ValueError(
                f"rank {rank} uses cuda:{index}, whose memory {device} cannot map: nvidia-smi topo -p2p r says which "
                "GPUs can; choose ranks among those"
            )
