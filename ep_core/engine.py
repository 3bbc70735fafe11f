"""The seam between the face (`ep_core.buffer`) and what moves rows: one engine per kind of device.

A buffer asks `engine_for` which engine serves a tensor. Arguments that reach an engine have been checked. To add an
engine, implement `Engine` and construct it in `Buffer.__init__` under its device type. Next to read: `ep_core.host`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class LowLatencyOut:
    """Where a low-latency dispatch puts what it receives; L local experts, R ranks, S = R * max tokens slots.

    x: [L, S, H] bf16 or float8_e4m3fn. scales: float32 [L, S, H / 128] over storage [L, H / 128, S], None for bf16.
    src_info: int32 [L, S]. layout_range: int64 [L, R]. count: int32 [L].
    """

    x: torch.Tensor
    scales: torch.Tensor | None
    src_info: torch.Tensor
    layout_range: torch.Tensor
    count: torch.Tensor


@dataclass(frozen=True)
class DispatchPlan:
    """What a high-throughput dispatch is about to receive.

    rank_prefix: int32 [R, R], rows from sources up to and including the row's rank to the column's rank.
    per_expert: rows for each local expert, empty when counts came from a handle. received: rows in all.
    """

    rank_prefix: torch.Tensor
    per_expert: list[int]
    received: int


@dataclass(frozen=True)
class HighThroughputIn:
    """What a high-throughput dispatch sends; see `ep_core.buffer.Buffer.dispatch` for shapes."""

    x: torch.Tensor
    scales: torch.Tensor | None
    topk_idx: torch.Tensor | None
    topk_weights: torch.Tensor | None
    is_token_in_rank: torch.Tensor
    num_tokens_per_rank: torch.Tensor | None
    num_tokens_per_expert: torch.Tensor | None
    cached_rank_prefix: torch.Tensor | None


@dataclass(frozen=True)
class HighThroughputOut:
    """Where a high-throughput dispatch puts the rows it receives."""

    x: torch.Tensor
    scales: torch.Tensor | None
    topk_idx: torch.Tensor | None
    topk_weights: torch.Tensor | None
    src_idx: torch.Tensor


class Engine(Protocol):
    """Moves rows between the ranks of one buffer. Every wait inside has a deadline (`EPTimeoutError`)."""

    def check_low_latency_fits(self, max_tokens: int, hidden: int, experts: int) -> None:
        """Raise `ValueError` when the buffer is too small for low-latency operations of these sizes."""

    def low_latency_dispatch(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        max_tokens: int,
        experts: int,
        out: LowLatencyOut,
        *,
        round_scale: bool,
        stats: torch.Tensor | None,
        defer: bool,
    ) -> Callable[[], None] | None:
        """Dispatch; with `defer` only send, and return what receives."""

    def low_latency_combine(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        topk_weights: torch.Tensor,
        src_info: torch.Tensor,
        layout_range: torch.Tensor,
        max_tokens: int,
        experts: int,
        out: torch.Tensor,
        *,
        zero_copy: bool,
        defer: bool,
    ) -> Callable[[], None] | None:
        """Combine; with `defer` only send, and return what receives."""

    def next_combine_buffer(self, max_tokens: int, hidden: int, experts: int) -> torch.Tensor:
        """The bf16 [L, R * max_tokens, hidden] that a zero-copy combine, if it comes next, takes its rows from."""

    def dispatch_begin(self, given: HighThroughputIn, room: int) -> DispatchPlan:
        """Tell the others what will be sent and learn what will be received.

        room: the rows there will be space for; 0: as many as needed. `ValueError` when too many come.
        """

    def dispatch_finish(self, out: HighThroughputOut) -> None:
        """Move the rows of the dispatch that was begun."""

    def combine(
        self,
        x: torch.Tensor,
        topk_weights: torch.Tensor | None,
        bias: tuple[torch.Tensor, ...],
        src_idx: torch.Tensor,
        rank_prefix: torch.Tensor,
        is_token_in_rank: torch.Tensor,
        out: torch.Tensor,
        out_weights: torch.Tensor | None,
    ) -> None:
        """Return rows to where they came from, summed over ranks."""

    def destroy(self) -> None:
        """Give back what the engine holds. May be called twice."""


def engine_for(engines: dict[str, Engine], name: str, value: object) -> Engine:
    """The engine for the device that tensor `value`, the argument `name`, is on."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: wanted a torch.Tensor, got {type(value).__name__}")
    engine = engines.get(value.device.type)
    if engine is None:
        raise ValueError(
            f"{name}: is on {value.device}, for which this build of ep_core has no engine; "
            f"it has one for: {', '.join(engines)} (python -m ep_core says more)"
        )
    return engine
