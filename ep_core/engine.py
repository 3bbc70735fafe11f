"""The seam between the face (`ep_core.buffer`) and what moves rows: one engine per kind of device.

A buffer has one engine, for the device it was made for. Arguments that reach an engine have been checked. To add one,
implement `Engine` and choose it in `ep_core.buffer`. Next to read: `ep_core.host`, `ep_core.cuda`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from ep_core.event import EventOverlap
from ep_core.nodes import Nodes
from ep_core.streams import Call

Hook = Callable[[], None]
Combine = Literal["exact", "local_reduce"]
HighThroughputHandle = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class LowLatencyMap:
    """Where the selections of every source token went, so that combine need not search; a dispatch writes all of it.

    rows: int32 [R, Tmax, K], by source rank, token and position in top-k: local expert * S + slot of the row here, -1
    where the expert is elsewhere. weights: float32 [R, Tmax, K] for `local_reduce`, else None. sent: int64 [Tmax, 2],
    of this rank's own tokens: bit r set where it went to rank r; bit k set where selection k is not masked. What lies
    beyond a source's tokens is undefined.
    """

    rows: torch.Tensor
    weights: torch.Tensor | None
    sent: torch.Tensor | None


class LowLatencyHandle(tuple[torch.Tensor, torch.Tensor, int, int, int]):
    """DeepEP's handle (src_info, layout_range, Tmax, H, E), and what it cannot hold.

    Attributes:
        map: where rows went; None where the engine finds them by the handle.
        combine: the arithmetic of its combine.
        tokens: those that this rank sent, as many as its combine is for; None where nobody knows.
    """

    map: LowLatencyMap | None
    combine: Combine
    tokens: int | None

    def __new__(
        cls,
        values: tuple[torch.Tensor, torch.Tensor, int, int, int],
        map: LowLatencyMap | None = None,
        combine: Combine = "exact",
        tokens: int | None = None,
    ) -> LowLatencyHandle:
        """A handle of these five values; without the rest, what a plain tuple says."""
        self = super().__new__(cls, values)
        self.map = map
        self.combine = combine
        self.tokens = tokens
        return self


@dataclass(frozen=True)
class LowLatencyIn:
    """What a low-latency dispatch sends; see `ep_core.low_latency` for shapes.

    topk_weights: given for `local_reduce`. ue8m0: scales as packed exponents.
    """

    x: torch.Tensor
    topk_idx: torch.Tensor
    topk_weights: torch.Tensor | None
    max_tokens: int
    experts: int
    round_scale: bool
    ue8m0: bool


@dataclass(frozen=True)
class LowLatencyOut:
    """Where a low-latency dispatch puts what it receives; L local experts, R ranks, S = R * max tokens slots.

    x: [L, S, H] bf16 or float8_e4m3fn. scales: float32 [L, S, H / 128] over storage [L, H / 128, S], or int32
    [L, S, H / 512] likewise, None for bf16. src_info: int32 [L, S]. layout_range: int64 [L, R]. count: int32 [L].
    stats: int32 [L] to which counts are added, or None.
    """

    x: torch.Tensor
    scales: torch.Tensor | None
    src_info: torch.Tensor
    layout_range: torch.Tensor
    count: torch.Tensor
    stats: torch.Tensor | None


@dataclass(frozen=True)
class LowLatencyBack:
    """What a low-latency combine returns, by the handle of its dispatch. zero_copy: x is not read."""

    x: torch.Tensor
    topk_idx: torch.Tensor
    topk_weights: torch.Tensor
    handle: LowLatencyHandle
    zero_copy: bool


@dataclass(frozen=True)
class HighThroughputIn:
    """What a high-throughput dispatch sends; see `ep_core.buffer.Buffer.dispatch` for shapes.

    cached: the handle whose routing is used again. room: the rows there will be space for; 0: as many as needed.
    num_sms: processors to use.
    """

    x: torch.Tensor
    scales: torch.Tensor | None
    topk_idx: torch.Tensor | None
    topk_weights: torch.Tensor | None
    is_token_in_rank: torch.Tensor
    num_tokens_per_rank: torch.Tensor | None
    num_tokens_per_expert: torch.Tensor | None
    cached: HighThroughputHandle | None
    room: int
    num_sms: int


@dataclass(frozen=True)
class DispatchPlan:
    """What a high-throughput dispatch is about to receive, and what of it the handle keeps.

    rank_prefix: int32 [R, R], rows from sources up to and including the row's rank to the column's rank.
    channel_prefix, recv_channel_prefix: int32 [R, 1], as there is one channel. send_head: int32 [T, R], the place of
    the token among those that go to a rank, -1 where it does not. per_expert: rows for each local expert, empty when
    they are not known. received: rows in all, or those there is room for when that is not known.
    """

    rank_prefix: torch.Tensor
    channel_prefix: torch.Tensor
    recv_channel_prefix: torch.Tensor
    send_head: torch.Tensor
    per_expert: list[int]
    received: int


@dataclass(frozen=True)
class HighThroughputOut:
    """Where a high-throughput dispatch puts the rows it receives."""

    x: torch.Tensor
    scales: torch.Tensor | None
    topk_idx: torch.Tensor | None
    topk_weights: torch.Tensor | None
    src_idx: torch.Tensor


@dataclass(frozen=True)
class HighThroughputBack:
    """What a high-throughput combine returns; see `ep_core.buffer.Buffer.combine` for shapes."""

    x: torch.Tensor
    topk_weights: torch.Tensor | None
    bias: tuple[torch.Tensor, ...]
    src_idx: torch.Tensor
    rank_prefix: torch.Tensor
    is_token_in_rank: torch.Tensor
    send_head: torch.Tensor
    num_sms: int


class Engine(Protocol):
    """Moves rows between the ranks of one buffer. Every wait inside has a deadline (`EPTimeoutError`).

    device: where its tensors are. max_experts: the most experts it can serve. nodes: which ranks share memory.
    """

    device: torch.device
    max_experts: int
    nodes: Nodes

    def check(self) -> None:
        """Raise what earlier operations have reported since they returned. Never waits."""

    def call(self, previous_event: EventOverlap | None, async_finish: bool) -> Call:
        """What an operation runs in, its tensors are allocated in, and its event comes from."""

    def check_low_latency_fits(self, max_tokens: int, hidden: int, experts: int) -> None:
        """Raise `ValueError` when the buffer is too small for low-latency operations of these sizes."""

    def new_map(self, max_tokens: int, topk: int, combine: Combine) -> LowLatencyMap | None:
        """An undefined map for a dispatch of these sizes, None where `combine` needs none."""

    def low_latency_dispatch(
        self, given: LowLatencyIn, out: LowLatencyOut, map: LowLatencyMap | None, call: Call, *, defer: bool
    ) -> Hook | None:
        """Dispatch; with `defer` only send, and return what receives."""

    def low_latency_combine(self, given: LowLatencyBack, out: torch.Tensor, call: Call, *, defer: bool) -> Hook | None:
        """Combine; with `defer` only send, and return what receives."""

    def next_combine_buffer(self, max_tokens: int, hidden: int, experts: int) -> torch.Tensor:
        """The bf16 [L, R * max_tokens, hidden] that a zero-copy combine, if it comes next, takes its rows from."""

    def dispatch_layout(
        self, topk_idx: torch.Tensor, experts: int, call: Call
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """int32 [R] tokens per rank, int32 [E] selections per expert, bool [T, R] whether a token goes to a rank."""

    def dispatch_begin(self, given: HighThroughputIn, call: Call) -> DispatchPlan:
        """Tell the others what will be sent and learn what will be received.

        `ValueError` when more comes than there is room for.
        """

    def dispatch_finish(self, given: HighThroughputIn, plan: DispatchPlan, out: HighThroughputOut, call: Call) -> None:
        """Move the rows of the dispatch that was begun."""

    def combine(
        self, given: HighThroughputBack, out: torch.Tensor, out_weights: torch.Tensor | None, call: Call
    ) -> None:
        """Return rows to where they came from, summed over ranks."""

    def destroy(self) -> None:
        """Give back what the engine holds. May be called twice."""


def address_of(value: torch.Tensor | None) -> int:
    """Where the elements of `value` begin, as the extensions take it; 0 for None."""
    return 0 if value is None else value.data_ptr()
