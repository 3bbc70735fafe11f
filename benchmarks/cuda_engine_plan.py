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

PUT, COPY, FILL, FLAGS, EMPTY = "put", "memory copy", "memory fill", "flags there and back", "empty kernel"
PUT_FEW = f"put, {FEW_SMS} SMs"
"""The names of the physical limits in a document."""

PEERS: MappingProxyType[str, tuple[str, tuple[Protocol, ...]]] = MappingProxyType(
    {
        "torch": ("harness.backends.torch_a2a:TorchBackend", ("phased", "paired")),
        "torch-agrs": ("cuda_peers:GatherScatterBackend", ("phased", "paired")),
        "deep_ep": ("cuda_peers:DeepEpBackend", ("phased", "paired", "kernel")),
        "mscclpp.ext.ep": ("cuda_peers:MscclppBackend", ("phased", "paired", "kernel")),
    }
)
"""A peer's name to where its backend is, and the protocols it is measured by: of the others none can be captured, as
they ask the host how much arrived or as they count their calls there.
"""


class Contender(msgspec.Struct, frozen=True, kw_only=True):
    """One backend with one case. backend: "module:class". ht_sms: processors for high throughput, `ALL_SMS` for all."""

    name: str
    run: PlannedRun
    backend: str
    peer: str = ""
    ht_sms: int = ALL_SMS


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


def blocks(sizes: Case, ht_tokens: int, options: Mapping[str, Sequence[str]], *, fp8: bool) -> list[Block]:
    """The blocks of a plan. sizes: a case `ll` with all sizes. options: `modes`, `protocols` and `peers` by name."""
    return [
        Block(
            mode=mode,
            protocol=protocol,
            contenders=_low_latency(sizes, protocol, options["peers"], fp8=fp8)
            if mode == "ll"
            else _high_throughput(msgspec.structs.replace(sizes, tokens=ht_tokens), protocol, options["peers"]),
        )
        for mode in MODES
        if mode in options["modes"]
        for protocol in PROTOCOLS
        if protocol in options["protocols"]
    ]


def _low_latency(sizes: Case, protocol: Protocol, peers: Sequence[str], *, fp8: bool) -> list[Contender]:
    exact = msgspec.structs.replace(sizes, mode="ll", protocol=protocol)
    reduced = msgspec.structs.replace(exact, combine="local_reduce")
    made = [_ours("ep_core, exact", exact), _ours("ep_core, local_reduce", reduced)]
    made += _peers(exact, "", peers)
    if fp8:
        made.append(_ours("ep_core, fp8", msgspec.structs.replace(reduced, dtype="fp8")))
        made += _peers(msgspec.structs.replace(exact, dtype="fp8"), ", fp8", peers)
    return [*made, _ours(NO_TOKENS, msgspec.structs.replace(reduced, tokens=0))]


def _high_throughput(sizes: Case, protocol: Protocol, peers: Sequence[str]) -> list[Contender]:
    case = msgspec.structs.replace(sizes, mode="ht", combine="local_reduce", protocol=protocol)
    if case.device == "cpu":
        return [_ours("ep_core", case), *_peers(case, "", peers)]
    return [
        _ours("ep_core, all SMs", case),
        _ours(f"ep_core, {FEW_SMS} SMs", case, FEW_SMS),
        *_peers(case, "", peers),
    ]


def _ours(name: str, case: Case, ht_sms: int = ALL_SMS) -> Contender:
    run = PlannedRun(run_id=new_run_id(), case=case)
    return Contender(name=name, run=run, backend="harness.backends.ep_core:EpCoreBackend", ht_sms=ht_sms)


def _peers(case: Case, suffix: str, wanted: Sequence[str]) -> list[Contender]:
    return [
        Contender(
            name=name + suffix,
            run=PlannedRun(run_id=new_run_id(), case=msgspec.structs.replace(case, backend=name)),
            backend=where,
            peer=name,
        )
        for name, (where, protocols) in PEERS.items()
        if name in wanted and case.protocol in protocols
    ]
