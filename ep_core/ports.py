"""How a CUDA buffer reaches ranks of other nodes: over which transport, with how many proxies. Pure, but for the
environment.

Port channels are MSCCL++'s: a kernel asks, and a thread of the host, the *proxy*, carries out. Called by
`ep_core.peers`, and by `python -m ep_core`. Next to read: `ep_core/csrc/cuda/ports.hpp`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ep_core.nodes import Nodes

TRANSPORT = "EP_PORT_TRANSPORT"
PROXIES = "EP_PROXIES"
MOST_PROXIES = 64
_USUAL_PROXIES = 8
_ETHERNET_BUFFER_BYTES = (256 << 20) - 64  # less what goes before a message in it
_REQUEST_BYTES = (1 << 32) - 1  # a proxy's request has 32 bits for it
_NEW_ARCHITECTURE = 10  # major compute capability from which one proxy is the default

PortTransport = Literal["ib", "ethernet", "ipc"]
_NAMES: dict[str, PortTransport] = {"ib": "ib", "ethernet": "ethernet", "ipc": "ipc"}
WORDS: dict[PortTransport, str] = {"ib": "InfiniBand", "ethernet": "Ethernet (TCP)", "ipc": "CUDA IPC"}


@dataclass(frozen=True)
class PortPlan:
    """What a buffer's ranks on several nodes use: the transport between them, and this rank's proxies."""

    nodes: Nodes
    transport: PortTransport
    proxies: int

    @property
    def most_message_bytes(self) -> int:
        """That the transport carries at once: MSCCL++'s connections over Ethernet lose what is beyond their buffer."""
        return _ETHERNET_BUFFER_BYTES if self.transport == "ethernet" else _REQUEST_BYTES

    @property
    def sentence(self) -> str:
        """What is told once, when the buffer is made."""
        threads = "1 proxy" if self.proxies == 1 else f"{self.proxies} proxies"
        return (
            f"ep_core: {len(self.nodes.node_of)} ranks on {self.nodes.count} nodes, by port channels over "
            f"{WORDS[self.transport]}, {threads} for each rank ({TRANSPORT}, {PROXIES} choose others)"
        )


def offer(ib_devices: int) -> str:
    """What this rank asks for, or has: what EP_PORT_TRANSPORT says, else "ib" where there is a device, else ""."""
    wanted = os.environ.get(TRANSPORT, "")
    if not wanted:
        return "ib" if ib_devices else ""
    if wanted not in _NAMES:
        raise ValueError(f"{TRANSPORT}: wanted ib, ethernet or ipc, got {wanted!r}")
    if wanted == "ib" and not ib_devices:
        raise ValueError(f"{TRANSPORT}: ib cannot be used here: MSCCL++ finds no InfiniBand device")
    return f"{wanted}!"


def agreed(offers: Sequence[str], one_machine: bool) -> PortTransport:
    """The transport for ranks with these offers, the same on every rank.

    What was asked for; else InfiniBand where every rank has it; else CUDA IPC where all ranks are on one machine, and
    Ethernet where they are not.
    """
    asked = {offered[:-1] for offered in offers if offered.endswith("!")}
    if asked:
        if len(asked) > 1 or not all(offered.endswith("!") for offered in offers):
            found = ", ".join(f"rank {rank} {offered.rstrip('!') or 'none'}" for rank, offered in enumerate(offers))
            raise ValueError(f"{TRANSPORT}: give the same on all ranks, got {found}")
        name = _NAMES[asked.pop()]
        if name == "ipc" and not one_machine:
            raise ValueError(f"{TRANSPORT}: ipc joins ranks of one machine, not of several: give ib or ethernet")
        return name
    if all(offered == "ib" for offered in offers):
        return "ib"
    return "ipc" if one_machine else "ethernet"


def proxies_of(transport: PortTransport, others: int, major: int, cores: int, ranks_here: int) -> int:
    """How many proxies a rank has: what EP_PROXIES says, else a number for the machine; never more than channels.

    others: ranks of other nodes. major: of the GPU's compute capability. cores: that this process may use, which
    ranks_here ranks share. A proxy keeps a core busy, so at most half of a rank's cores are taken; at most 8 of them on
    GPUs up to compute capability 9, and 1 on newer ones.
    """
    text = os.environ.get(PROXIES, "")
    if text and not (text.isascii() and text.isdecimal() and 1 <= int(text) <= MOST_PROXIES):
        raise ValueError(f"{PROXIES}: wanted a number of proxies from 1 to {MOST_PROXIES}, got {text!r}")
    if transport == "ipc":
        if text and int(text) > 1:
            raise ValueError(f"{PROXIES}: wanted 1 over CUDA IPC, whose copies all go through one stream, got {text}")
        return 1
    if text:
        return min(int(text), max(others, 1))
    usual = 1 if major >= _NEW_ARCHITECTURE else _USUAL_PROXIES
    return max(1, min(usual, others, cores // (2 * max(ranks_here, 1))))
