"""What benchmarks/cuda_engine.py measures: the contenders, in blocks that are timed turn by turn. Torch-free.

A block is one mode and one protocol. Its contenders are set up side by side in the same processes and timed in turn,
round after round. Made by benchmarks/cuda_engine.py, done by benchmarks/cuda_engine_ranks.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from harness.case import Case, Mode, Protocol
from harness.job import JobSpec
from harness.record import PlannedRun, new_run_id

OURS = "ep_core"
ALL_SMS = 0
FEW_SMS = 20
MODES: tuple[Mode, ...] = ("ll", "ht")
PROTOCOLS: tuple[Protocol, ...] = ("phased", "paired", "graph", "kernel")
NO_TOKENS = "ep_core, no tokens"

PUT, PUT_FEW = "put", f"put, {FEW_SMS} SMs"
COPY, FILL = "memory copy (read and written)", "memory fill"
FLAGS, EMPTY = "flags there and back, in a graph", "empty kernel, in a graph"
"""The names of the physical limits in a document."""


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """Where a peer's backend is, "module:class", and what it is measured in. own_gpu: it wants a GPU for each rank."""

    backend: str
    modes: tuple[Mode, ...] = MODES
    fp8: bool = True
    protocols: tuple[Protocol, ...] = PROTOCOLS
    own_gpu: bool = True


PEERS: MappingProxyType[str, Peer] = MappingProxyType(
    {
        "torch": Peer(backend="harness.backends.torch_a2a:TorchBackend", protocols=("phased", "paired")),
        "torch-agrs": Peer(
            backend="cuda_peers:GatherScatterBackend", modes=("ht",), fp8=False, protocols=("phased", "paired")
        ),
        "deep_ep": Peer(backend="cuda_peers:DeepEpBackend"),
        "mscclpp.ext.ep": Peer(backend="cuda_peers:MscclppBackend", modes=("ll",)),
    }
)
"""Peers by name. torch's ask the host how much arrived, so no graph holds them, and have no kernels of their own."""


class Contender(msgspec.Struct, frozen=True, kw_only=True):
    """One backend with one case. backend: "module:class". ht_sms: processors for high throughput, `ALL_SMS` for all.

    ranks_per_node: so many ranks act as a node of their own; 0: as they are.
    """

    name: str
    run: PlannedRun
    backend: str
    peer: str = ""
    ht_sms: int = ALL_SMS
    ranks_per_node: int = 0


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """Contenders that take turns."""

    mode: Mode
    protocol: Protocol
    contenders: list[Contender]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All that the ranks are told. rounds: by mode. ll_sms: processors for low latency, 0 for the engine's choice, or
    for a rank's part of a GPU that it shares. settings: what was asked for, as it goes into the document.
    """

    spec: JobSpec
    blocks: list[Block]
    rounds: dict[str, int]
    ll_sms: int
    settings: dict[str, Any]


def blocks(
    sizes: Case,
    ht_tokens: int,
    ht_sms: Sequence[int],
    options: Mapping[str, Sequence[str]],
    *,
    fp8: bool,
    ranks_per_node: int = 0,
) -> list[Block]:
    """The blocks of a plan. sizes: a case `ll` with all sizes. options: `modes`, `protocols` and `peers` by name.

    ranks_per_node: not 0: beside each of ours of low latency the same with nodes of so many ranks.
    """
    return [
        Block(
            mode=mode,
            protocol=protocol,
            contenders=_low_latency(sizes, protocol, options["peers"], ranks_per_node, fp8=fp8)
            if mode == "ll"
            else _high_throughput(msgspec.structs.replace(sizes, tokens=ht_tokens), protocol, ht_sms, options["peers"]),
        )
        for mode in MODES
        if mode in options["modes"]
        for protocol in PROTOCOLS
        if protocol in options["protocols"]
    ]


def _low_latency(
    sizes: Case, protocol: Protocol, peers: Sequence[str], ranks_per_node: int, *, fp8: bool
) -> list[Contender]:
    exact = msgspec.structs.replace(sizes, mode="ll", protocol=protocol)
    reduced = msgspec.structs.replace(exact, combine="local_reduce")
    made = [_ours("ep_core, exact", exact), _ours("ep_core, local_reduce", reduced)]
    made += _peers(exact, peers)
    if fp8:
        made.append(_ours("ep_core, fp8, local_reduce", msgspec.structs.replace(reduced, dtype="fp8")))
        made += _peers(msgspec.structs.replace(exact, dtype="fp8"), peers)
    split = [_split(one, ranks_per_node) for one in made if ranks_per_node and not one.peer]
    return [*made, *split, _ours(NO_TOKENS, msgspec.structs.replace(reduced, tokens=0))]


def _split(contender: Contender, ranks_per_node: int) -> Contender:
    """The same over nodes of so many ranks."""
    return msgspec.structs.replace(
        contender,
        name=f"{contender.name}, {ranks_per_node} a node",
        run=PlannedRun(run_id=new_run_id(), case=contender.run.case),
        ranks_per_node=ranks_per_node,
    )


def _high_throughput(sizes: Case, protocol: Protocol, sms: Sequence[int], peers: Sequence[str]) -> list[Contender]:
    case = msgspec.structs.replace(sizes, mode="ht", combine="local_reduce", protocol=protocol)
    if case.device == "cpu":
        return [_ours("ep_core", case), *_peers(case, peers)]
    ours = [
        _ours("ep_core, all SMs" if count == ALL_SMS else f"ep_core, {count} SMs", case, count)
        for count in dict.fromkeys(sms)
    ]
    return [*ours, *_peers(case, peers)]


def _ours(name: str, case: Case, ht_sms: int = ALL_SMS) -> Contender:
    run = PlannedRun(run_id=new_run_id(), case=case)
    return Contender(name=name, run=run, backend="harness.backends.ep_core:EpCoreBackend", ht_sms=ht_sms)


def _peers(case: Case, wanted: Sequence[str]) -> list[Contender]:
    fp8 = case.dtype == "fp8"
    return [
        Contender(
            name=f"{name}, fp8" if fp8 else name,
            run=PlannedRun(run_id=new_run_id(), case=msgspec.structs.replace(case, backend=name)),
            backend=peer.backend,
            peer=name,
        )
        for name, peer in PEERS.items()
        if name in wanted and case.mode in peer.modes and case.protocol in peer.protocols and (peer.fp8 or not fp8)
    ]
