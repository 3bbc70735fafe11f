"""The extension: see ep_core/csrc/module.cpp. Addresses are integers; callers have checked what lies there."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

COMPILER: str
ISA: str
ISAS_BUILT: str
MAX_EXPERTS: int
MAX_RANKS: int
MAX_TOPK: int

def low_latency_size_hint(max_tokens: int, hidden: int, ranks: int, experts: int) -> int: ...
def high_throughput_least_bytes(row_bytes: int, extra_bytes: int, ranks: int) -> int: ...
def dispatch_layout(
    topk_idx: int,
    tokens: int,
    topk_count: int,
    experts: int,
    ranks: int,
    per_rank: int,
    per_expert: int,
    in_rank: int,
) -> int: ...

class Outbox:
    def take(self, limit_ms: int) -> npt.NDArray[np.uint8] | None: ...
    @property
    def closed(self) -> bool: ...
    def close(self) -> None: ...

class Host:
    def __init__(
        self, rank: int, ranks: int, nvl_bytes: int, rdma_bytes: int, timeout_s: float, token: bytes
    ) -> None: ...
    @property
    def fd(self) -> int: ...
    def hold(self, source: int, token: bytes) -> int: ...
    def map(self, peers: Sequence[tuple[int, int, bytes]], node_of: Sequence[int]) -> None: ...
    def meet(self) -> None: ...
    def outbox(self, node: int) -> Outbox: ...
    def deliver(self, source: int, message: int, bytes: int) -> None: ...
    def depart(self, source: int) -> None: ...
    def destroy(self) -> None: ...
    def check_low_latency_fits(self, max_tokens: int, hidden: int, experts: int) -> None: ...
    def ll_dispatch(
        self,
        x: int,
        topk: int,
        weights: int,
        tokens: int,
        topk_count: int,
        max_tokens: int,
        hidden: int,
        experts: int,
        weighted: bool,
        fp8: bool,
        round_scale: bool,
        ue8m0: bool,
        out_x: int,
        out_scales: int,
        out_src_info: int,
        out_layout_range: int,
        out_count: int,
        stats: int,
        map_rows: int,
        map_weights: int,
        /,
    ) -> None: ...
    def ll_dispatch_send(
        self,
        x: int,
        topk: int,
        weights: int,
        tokens: int,
        topk_count: int,
        max_tokens: int,
        hidden: int,
        experts: int,
        weighted: bool,
        fp8: bool,
        round_scale: bool,
        ue8m0: bool,
        /,
    ) -> int: ...
    def ll_dispatch_receive(
        self,
        epoch: int,
        out_x: int,
        out_scales: int,
        out_src_info: int,
        out_layout_range: int,
        out_count: int,
        stats: int,
        map_rows: int,
        map_weights: int,
        /,
    ) -> None: ...
    def ll_combine(
        self,
        x: int,
        topk: int,
        weights: int,
        src_info: int,
        layout_range: int,
        tokens: int,
        topk_count: int,
        max_tokens: int,
        hidden: int,
        experts: int,
        zero_copy: bool,
        map_rows: int,
        map_weights: int,
        out: int,
        /,
    ) -> None: ...
    def ll_combine_send(
        self,
        x: int,
        topk: int,
        weights: int,
        src_info: int,
        layout_range: int,
        tokens: int,
        topk_count: int,
        max_tokens: int,
        hidden: int,
        experts: int,
        zero_copy: bool,
        map_rows: int,
        map_weights: int,
        /,
    ) -> int: ...
    def ll_combine_receive(self, epoch: int, out: int, /) -> None: ...
    def ll_next_combine_buffer(self, max_tokens: int, hidden: int, experts: int, /) -> npt.NDArray[np.uint8]: ...
    def ht_dispatch_begin(
        self,
        x: int,
        row_bytes: int,
        scales: int,
        scales_per_row: int,
        topk: int,
        weights: int,
        topk_count: int,
        tokens: int,
        experts: int,
        in_rank: int,
        per_rank: int,
        per_expert: int,
        cached_prefix: int,
        room: int,
        /,
    ) -> tuple[list[int], list[int], int]: ...
    def ht_dispatch_finish(self, x: int, scales: int, topk: int, weights: int, src_idx: int, /) -> None: ...
    def ht_combine(
        self,
        x: int,
        is_f32: bool,
        columns: int,
        received: int,
        weights: int,
        topk_count: int,
        src_idx: int,
        rank_prefix: int,
        in_rank: int,
        tokens: int,
        bias_0: int,
        bias_1: int,
        out: int,
        out_weights: int,
        /,
    ) -> None: ...
