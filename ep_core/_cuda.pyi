"""The extension: see ep_core/csrc/cuda/module.cpp.

Addresses are integers (0: none), a stream is a cudaStream_t; callers have checked what lies there. Every method
enqueues and returns unless its comment says that it waits.
"""

BUILT_FOR: str
COMPILER: str
MAX_RANKS: int
MAX_TOPK: int
MAX_EXPERTS: int
MAX_HIDDEN: int
PORT_HANDLE_BYTES: int  # 0 where this was built without MSCCL++

def obstacle() -> str: ...
def low_latency_size_hint(max_tokens: int, hidden: int, ranks: int, experts: int, others: int = 0) -> int: ...
def port_slots(rank: int, node_of: list[int], /) -> tuple[list[int], list[int], int]: ...
def high_throughput_least_bytes(row_bytes: int, extra_bytes: int, ranks: int, /) -> int: ...

class Cuda:
    def __init__(
        self, rank: int, ranks: int, nvl_bytes: int, rdma_bytes: int, timeout_s: float, device: int
    ) -> None: ...
    @property
    def base(self) -> int: ...
    @property
    def size(self) -> int: ...
    def ipc_handle(self) -> bytes: ...
    def connect_ipc(self, handles: list[bytes]) -> None: ...
    def connect_pointers(self, bases: list[int]) -> None: ...
    def connect_ports(self, node_of: list[int], handles: list[bytes], most_message_bytes: int, /) -> None: ...
    def destroy(self) -> None: ...  # waits for the device
    # Phase, kind (1 a deadline passed, 2 ranks did not call alike, 3 a wrong value), ranks, seconds waited; of a wrong
    # value the expert and its flat index in topk_idx, -1 for one that is selected too often.
    def failure(self) -> tuple[str, int, list[int], float, int, int] | None: ...
    def check_low_latency_fits(self, max_tokens: int, hidden: int, experts: int) -> None: ...
    def dispatch_layout(
        self,
        stream: int,
        topk: int,
        tokens: int,
        topk_count: int,
        experts: int,
        per_rank: int,
        per_expert: int,
        in_rank: int,
        /,
    ) -> None: ...
    def ll_dispatch(
        self,
        stream: int,
        parts: int,
        sms: int,
        ticket: int,
        x: int,
        topk: int,
        weights: int,
        tokens: int,
        topk_count: int,
        max_tokens: int,
        hidden: int,
        experts: int,
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
        map_sent: int,
        /,
    ) -> None: ...
    def ll_combine(
        self,
        stream: int,
        parts: int,
        sms: int,
        ticket: int,
        x: int,
        topk: int,
        weights: int,
        tokens: int,
        topk_count: int,
        max_tokens: int,
        hidden: int,
        experts: int,
        local_reduce: bool,
        map_rows: int,
        map_weights: int,
        map_sent: int,
        out: int,
        /,
    ) -> None: ...
    def ht_notify(
        self,
        stream: int,
        tokens: int,
        experts: int,
        per_rank: int,
        per_expert: int,
        in_rank: int,
        room: int,
        rank_prefix: int,
        send_head: int,
        host_wanted: bool,
        /,
    ) -> None: ...
    def ht_counts(self, timeout_s: float, /) -> tuple[int, list[int]]: ...  # waits for the last ht_notify
    def ht_dispatch(
        self,
        stream: int,
        sms: int,
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
        send_head: int,
        rank_prefix: int,
        room: int,
        out_x: int,
        out_scales: int,
        out_topk: int,
        out_weights: int,
        out_src_idx: int,
        /,
    ) -> None: ...
    def ht_combine(
        self,
        stream: int,
        sms: int,
        x: int,
        is_f32: bool,
        columns: int,
        weights: int,
        topk_count: int,
        in_rank: int,
        send_head: int,
        rank_prefix: int,
        tokens: int,
        rows: int,
        bias_0: int,
        bias_1: int,
        out: int,
        out_weights: int,
        /,
    ) -> None: ...
