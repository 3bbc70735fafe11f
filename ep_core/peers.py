"""How the ranks of a CUDA buffer find and map each other's memory.

Addresses go through the process group's store (`ep_core.rendezvous`); memory is mapped by MSCCL++ where that is
installed, else by CUDA IPC handles. EP_CORE_TRANSPORT=ipc asks for the latter. Called by `ep_core.cuda`. Next to read:
`ep_core.mscclpp_mapping`.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed as dist

from ep_core import mscclpp_mapping, rendezvous

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
    """The other ranks, mapped. pids: by rank, None where it lives among other process numbers than ours."""

    pids: list[int | None]
    mapping: mscclpp_mapping.PeerMapping | None

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
    )
    name = rendezvous.next_name(group)
    found = rendezvous.exchange(group, name, mine, timeout_s)
    for rank, address in enumerate(found):
        address.check(rank, mine)
        address.check_machine(rank, mine)
        _check_reachable(rank, address.gpu, device)
    mapping = None
    if chosen == "mscclpp":
        mapping = mscclpp_mapping.map_peers(group, cuda.base, cuda.size, device.index, timeout_s)
        cuda.connect_pointers(mapping.addresses)
    else:
        cuda.connect_ipc([bytes.fromhex(address.ipc_handle) for address in found])
    # Nobody may write into, or free, what a peer is still mapping.
    rendezvous.exchange(group, f"{name}/mapped", mine, timeout_s)
    with contextlib.suppress(RuntimeError):
        rendezvous.forget(group, name)
    return Peers([address.pid if address.pid_namespace == mine.pid_namespace else None for address in found], mapping)


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
