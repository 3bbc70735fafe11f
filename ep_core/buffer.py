"""`Buffer`: expert-parallel dispatch and combine with the interface of DeepEP's legacy `deep_ep.Buffer`.

Names, argument orders, shapes and return values are DeepEP's, so code written for it runs by changing the import. What
is beyond it is marked so. This module checks arguments and shapes results; engines move the rows (`ep_core.engine`).
High throughput's half is in `ep_core.high_throughput`. The protocol is described in docs/ep_core.md.

Notation: R ranks, T tokens on a rank, K top-k, H hidden, E experts, L = E / R local experts (expert e lives on rank
e // L), Tmax = num_max_dispatch_tokens_per_rank, S = R * Tmax slots.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import torch
import torch.distributed as dist

from ep_core import _host, checks, high_throughput
from ep_core.config import Config
from ep_core.engine import Engine, LowLatencyOut, engine_for
from ep_core.event import EventHandle, EventOverlap
from ep_core.host import HostEngine

DEFAULT_TIMEOUT_S = 60.0

Hook = Callable[[], None]
LowLatencyHandle = tuple[torch.Tensor, torch.Tensor, int, int, int]


class Buffer(high_throughput.HighThroughputFace):
    """The buffers and operations of one group of ranks. Every operation is collective: all ranks call it alike.

    One operation at a time; two threads must not use a buffer at once (`RuntimeError`). A wrong argument is a
    `ValueError` or `TypeError` before anything is sent, and the buffer stays usable on all ranks: the rank may call
    again while the others wait. A peer that does not arrive is an `EPTimeoutError`, after which the buffer is unusable.

    Attributes:
        group, rank, group_size, num_nvl_bytes, num_rdma_bytes, low_latency_mode: as given.
        timeout_s: the deadline of every wait, seconds.
        num_sms: processors for high-throughput kernels (used by the CUDA engine only).
    """

    num_sms: int = 20

    def __init__(
        self,
        group: dist.ProcessGroup,
        num_nvl_bytes: int = 0,
        num_rdma_bytes: int = 0,
        low_latency_mode: bool = False,
        num_qps_per_rank: int = 24,
        allow_nvlink_for_low_latency_mode: bool = True,
        allow_mnnvl: bool = False,
        explicitly_destroy: bool = False,
        *,
        timeout_s: float | None = None,
    ) -> None:
        """Make the buffer; collective over `group`.

        Arguments:
            group: the ranks, 1 to 64, all on one machine.
            num_nvl_bytes: ring for `dispatch` and `combine`, bytes; 0 for none, else at least
                `Config.least_nvl_bytes`, better `Config.get_nvl_buffer_size_hint`.
            num_rdma_bytes: region for low latency, bytes; at least `get_low_latency_rdma_size_hint`, or 0 for none.
                Memory is taken as it is touched, in each rank's own name.
            low_latency_mode: whether low-latency operations will be used.
            num_qps_per_rank, allow_nvlink_for_low_latency_mode, allow_mnnvl: for networks, of which there is none.
            explicitly_destroy: accepted; memory goes with `destroy` or with the buffer, whichever is first.
            timeout_s: beyond DeepEP: the deadline of every wait, seconds; None: the variable EP_TIMEOUT_S, else 60.

        Raises `ValueError` for sizes that differ between ranks or ranks that cannot share memory, and `EPTimeoutError`
        naming the ranks that did not come.
        """
        if not isinstance(group, dist.ProcessGroup):
            raise TypeError(f"group: wanted a torch.distributed.ProcessGroup, got {type(group).__name__}")
        if not 1 <= group.size() <= _host.MAX_RANKS:
            raise ValueError(f"group: wanted from 1 to {_host.MAX_RANKS} ranks, got {group.size()}")
        for name, value in (("num_nvl_bytes", num_nvl_bytes), ("num_rdma_bytes", num_rdma_bytes)):
            if value < 0:
                raise ValueError(f"{name}: wanted 0 or more bytes, got {value}")
        self.group = group
        self.rank = group.rank()
        self.group_size = group.size()
        self.num_nvl_bytes = num_nvl_bytes
        self.num_rdma_bytes = num_rdma_bytes
        self.low_latency_mode = low_latency_mode
        self.explicitly_destroy = explicitly_destroy
        self.timeout_s = _timeout_s(timeout_s)
        self._engines: dict[str, Engine] = {"cpu": HostEngine(group, num_nvl_bytes, num_rdma_bytes, self.timeout_s)}

    def destroy(self) -> None:
        """Give back the memory; the buffer cannot be used afterwards. Not collective, may be called twice.

        Receive hooks that are still open raise `RuntimeError` when called.
        """
        for engine in self._engines.values():
            engine.destroy()

    @staticmethod
    def set_num_sms(new_num_sms: int) -> None:
        """Set `num_sms`, an even number."""
        if new_num_sms < 0 or new_num_sms % 2:
            raise ValueError(f"new_num_sms: wanted an even number from 0 on, got {new_num_sms}")
        Buffer.num_sms = new_num_sms

    @staticmethod
    def capture() -> EventOverlap:
        """An event for everything that was called before."""
        return EventOverlap(EventHandle())

    @staticmethod
    def get_dispatch_config(num_ranks: int) -> Config:
        """The recommended `Config` for `dispatch` on `num_ranks` ranks."""
        return _config(num_ranks, {2: 24, 4: 6, 8: 6}, default=16)

    @staticmethod
    def get_combine_config(num_ranks: int) -> Config:
        """The recommended `Config` for `combine` on `num_ranks` ranks."""
        return _config(num_ranks, {2: 10, 4: 9, 8: 4}, default=4)

    @staticmethod
    def get_low_latency_rdma_size_hint(
        num_max_dispatch_tokens_per_rank: int, hidden: int, num_ranks: int, num_experts: int
    ) -> int:
        """The least `num_rdma_bytes` for low-latency operations of these sizes, bytes: twice 2 E Tmax H and a bit.

        Untouched pages cost nothing: a half is touched only where rows are staged.
        """
        checks.experts(num_experts, num_ranks)
        checks.hidden(hidden, fp8=False, bytes_per_element=2)
        _check_max_tokens(num_max_dispatch_tokens_per_rank, num_ranks)
        return _host.low_latency_size_hint(num_max_dispatch_tokens_per_rank, hidden, num_ranks, num_experts)

    def clean_low_latency_buffer(self, num_max_dispatch_tokens_per_rank: int, hidden: int, num_experts: int) -> None:
        """Make the buffer ready for low-latency operations of these sizes.

        The host engine's counters are never in need of cleaning, so this checks that the sizes fit and does no more.
        """
        checks.experts(num_experts, self.group_size)
        checks.hidden(hidden, fp8=False, bytes_per_element=2)
        _check_max_tokens(num_max_dispatch_tokens_per_rank, self.group_size)
        for engine in self._engines.values():
            engine.check_low_latency_fits(num_max_dispatch_tokens_per_rank, hidden, num_experts)

    def low_latency_dispatch(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        num_max_dispatch_tokens_per_rank: int,
        num_experts: int,
        cumulative_local_expert_recv_stats: torch.Tensor | None = None,
        dispatch_wait_recv_cost_stats: torch.Tensor | None = None,
        use_fp8: bool = True,
        round_scale: bool = False,
        use_ue8m0: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
        *,
        out_packed_recv_x: torch.Tensor | None = None,
        out_packed_recv_x_scales: torch.Tensor | None = None,
        out_src_info: torch.Tensor | None = None,
        out_layout_range: torch.Tensor | None = None,
        out_count: torch.Tensor | None = None,
    ) -> tuple[
        torch.Tensor | tuple[torch.Tensor, torch.Tensor], torch.Tensor, LowLatencyHandle, EventOverlap, Hook | None
    ]:
        """Send every token to each of its experts.

        Arguments:
            x: bf16 [T, H], T <= Tmax, rows a multiple of 16 bytes (H a multiple of 128 for fp8).
            topk_idx: int64 [T, K], experts, -1 masked. An expert may appear twice in a token: two rows then.
            num_max_dispatch_tokens_per_rank: Tmax, the same on all ranks. num_experts: E.
            cumulative_local_expert_recv_stats: int32 [L], to which the counts are added.
            dispatch_wait_recv_cost_stats, use_ue8m0: not in the host engine, `ValueError`.
            use_fp8: send float8_e4m3fn with a float32 scale per 128 columns: amax = max(|x|, 1e-4), scale = amax / 448,
                value = x * (448 / amax) rounded to nearest even. round_scale: scale rounded up to a power of two.
            async_finish: the event may be waited for (on the host it is complete). Not with return_recv_hook.
            return_recv_hook: only send; calling the returned hook receives. At most two operations can be open.
            out_packed_recv_x, out_packed_recv_x_scales, out_src_info, out_layout_range, out_count: beyond DeepEP:
                tensors to receive into, each returned as the very object given.

        Returns:
            recv_x: bf16 [L, S, H], or (float8_e4m3fn [L, S, H], scales float32 [L, S, H / 128] over storage
                [L, H / 128, S]). Rows in order of source rank, token, position in top-k; undefined beyond the count.
            recv_count: int32 [L].
            handle: (src_info int32 [L, S]: token on its source rank; layout_range int64 [L, R]: begin << 32 | count;
                Tmax; H; E).
            event, hook (None without return_recv_hook; calling it a second time is a `RuntimeError`).

        Raises `ValueError`/`TypeError` before anything is sent; `ValueError` also when ranks did not call alike.
        """
        engine = engine_for(self._engines, "x", x)
        checks.tensor("x", x, torch.bfloat16, (None, None))
        tokens, hidden = x.shape
        checks.tensor("topk_idx", topk_idx, torch.int64, (tokens, None))
        checks.topk(topk_idx.shape[1])
        checks.experts(num_experts, self.group_size)
        checks.hidden(hidden, use_fp8, 2)
        _check_max_tokens(num_max_dispatch_tokens_per_rank, self.group_size)
        if tokens > num_max_dispatch_tokens_per_rank:
            raise ValueError(
                f"x: wanted at most num_max_dispatch_tokens_per_rank={num_max_dispatch_tokens_per_rank} tokens, "
                f"got {tokens}"
            )
        _check_finish(async_finish, return_recv_hook)
        if dispatch_wait_recv_cost_stats is not None:
            raise ValueError("dispatch_wait_recv_cost_stats: wanted None, the host engine does not measure it")
        if use_ue8m0:
            raise ValueError("use_ue8m0: wanted False, the host engine writes float32 scales")
        if round_scale and not use_fp8:
            raise ValueError("round_scale: wanted only with use_fp8, which is off")
        stats = cumulative_local_expert_recv_stats
        local = num_experts // self.group_size
        if stats is not None:
            checks.tensor("cumulative_local_expert_recv_stats", stats, torch.int32, (local,))
        slots = self.group_size * num_max_dispatch_tokens_per_rank
        out = LowLatencyOut(
            x=_out(
                "out_packed_recv_x",
                out_packed_recv_x,
                torch.float8_e4m3fn if use_fp8 else torch.bfloat16,
                (local, slots, hidden),
            ),
            scales=_out_scales(out_packed_recv_x_scales, use_fp8, (local, slots, hidden // checks.SCALE_BLOCK)),
            src_info=_out("out_src_info", out_src_info, torch.int32, (local, slots)),
            layout_range=_out("out_layout_range", out_layout_range, torch.int64, (local, self.group_size)),
            count=_out("out_count", out_count, torch.int32, (local,)),
        )
        checks.no_overlap(
            {
                "out_packed_recv_x": out_packed_recv_x,
                "out_packed_recv_x_scales": out_packed_recv_x_scales,
                "out_src_info": out_src_info,
                "out_layout_range": out_layout_range,
                "out_count": out_count,
                "cumulative_local_expert_recv_stats": stats,
            },
            {"x": x, "topk_idx": topk_idx},
        )
        hook = engine.low_latency_dispatch(
            x,
            topk_idx,
            num_max_dispatch_tokens_per_rank,
            num_experts,
            out,
            round_scale=round_scale,
            stats=stats,
            defer=return_recv_hook,
        )
        handle = (out.src_info, out.layout_range, num_max_dispatch_tokens_per_rank, hidden, num_experts)
        recv_x = out.x if out.scales is None else (out.x, out.scales)
        return recv_x, out.count, handle, EventOverlap(EventHandle()), hook

    def low_latency_combine(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        topk_weights: torch.Tensor,
        handle: LowLatencyHandle,
        use_logfmt: bool = False,
        zero_copy: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
        out: torch.Tensor | None = None,
        combine_wait_recv_cost_stats: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, EventOverlap, Hook | None]:
        """Return the experts' rows to their tokens and sum them: bf16(((0 + w0 * y0) + w1 * y1) + ...) in top-k order.

        Products and sums are rounded to float32 one by one, so the result is the same on every machine.

        Arguments:
            x: bf16 [L, S, H], the experts' output rows, each in the slot of its input row.
            topk_idx: int64 [T, K] as dispatched; entries may be masked further. An expert's j-th selection by a token
                takes the j-th row that the token sent it. topk_weights: float32 [T, K].
            handle: what `low_latency_dispatch` returned.
            zero_copy: the rows are in the tensor of `get_next_low_latency_combine_buffer`, and x is not read.
            async_finish, return_recv_hook: as for dispatch. Inputs may change once the call has returned.
            out: bf16 [T, H] to write into, returned as the very object given.
            use_logfmt, combine_wait_recv_cost_stats: not in the host engine, `ValueError`.

        Returns (combined bf16 [T, H], event, hook or None). A token without selections gives zeros.
        """
        engine = engine_for(self._engines, "x", x)
        src_info, layout_range, max_tokens, hidden, num_experts = _handle(handle)
        checks.experts(num_experts, self.group_size)
        checks.hidden(hidden, fp8=False, bytes_per_element=2)
        _check_max_tokens(max_tokens, self.group_size)
        local, slots = num_experts // self.group_size, self.group_size * max_tokens
        checks.tensor("x", x, torch.bfloat16, (local, slots, hidden))
        checks.tensor("topk_idx", topk_idx, torch.int64, (None, None))
        tokens, topk = topk_idx.shape
        checks.topk(topk)
        if tokens > max_tokens:
            raise ValueError(f"topk_idx: wanted at most the handle's {max_tokens} tokens, got {tokens}")
        checks.tensor("topk_weights", topk_weights, torch.float32, (tokens, topk))
        checks.tensor("handle[0] (src_info)", src_info, torch.int32, (local, slots))
        checks.tensor("handle[1] (layout_range)", layout_range, torch.int64, (local, self.group_size))
        _check_finish(async_finish, return_recv_hook)
        if use_logfmt:
            raise ValueError("use_logfmt: wanted False, the host engine sends bf16 rows")
        if combine_wait_recv_cost_stats is not None:
            raise ValueError("combine_wait_recv_cost_stats: wanted None, the host engine does not measure it")
        combined = _out("out", out, torch.bfloat16, (tokens, hidden))
        checks.no_overlap(
            {"out": out},
            {
                "x": x,
                "topk_idx": topk_idx,
                "topk_weights": topk_weights,
                "handle[0] (src_info)": src_info,
                "handle[1] (layout_range)": layout_range,
            },
        )
        hook = engine.low_latency_combine(
            x,
            topk_idx,
            topk_weights,
            src_info,
            layout_range,
            max_tokens,
            num_experts,
            combined,
            zero_copy=zero_copy,
            defer=return_recv_hook,
        )
        return combined, EventOverlap(EventHandle()), hook

    def get_next_low_latency_combine_buffer(self, handle: LowLatencyHandle) -> torch.Tensor:
        """The bf16 [L, S, H] to fill for a `zero_copy` combine, which must be the next low-latency operation.

        It lies in shared memory that a later operation uses again: ask anew for each combine. Waits until every peer
        has read what the operation before the last left there (`EPTimeoutError`).
        """
        src_info, _, max_tokens, hidden, num_experts = _handle(handle)
        checks.experts(num_experts, self.group_size)
        checks.hidden(hidden, fp8=False, bytes_per_element=2)
        _check_max_tokens(max_tokens, self.group_size)
        return engine_for(self._engines, "handle[0]", src_info).next_combine_buffer(max_tokens, hidden, num_experts)


def _timeout_s(given: float | None) -> float:
    """The deadline to use, seconds: the argument, else EP_TIMEOUT_S, else 60."""
    name, text = ("timeout_s", given) if given is not None else ("EP_TIMEOUT_S", os.environ.get("EP_TIMEOUT_S", ""))
    if text == "":
        return DEFAULT_TIMEOUT_S
    try:
        value = float(text)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: wanted seconds, got {text!r}") from None
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: wanted seconds above 0, and finite, got {text!r}")
    return value


def _config(num_ranks: int, chunked_send_tokens: dict[int, int], default: int) -> Config:
    if not 1 <= num_ranks <= _host.MAX_RANKS:
        raise ValueError(f"num_ranks: wanted from 1 to {_host.MAX_RANKS}, got {num_ranks}")
    return Config(Buffer.num_sms, chunked_send_tokens.get(num_ranks, default), 256, 6, 128)


def _check_max_tokens(count: int, ranks: int) -> None:
    if not 1 <= count <= 2**31 // (2 * ranks):
        raise ValueError(
            f"num_max_dispatch_tokens_per_rank: wanted from 1 to {2**31 // (2 * ranks)} on {ranks} ranks, got {count}"
        )


def _check_finish(async_finish: bool, return_recv_hook: bool) -> None:
    if async_finish and return_recv_hook:
        raise ValueError("async_finish: wanted False with return_recv_hook, got both")


def _handle(handle: object) -> LowLatencyHandle:
    if not isinstance(handle, tuple) or len(handle) != 5:
        raise TypeError(f"handle: wanted the 5-tuple that low_latency_dispatch returned, got {type(handle).__name__}")
    return handle


def _out(name: str, given: torch.Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor to write into: the caller's, checked, or a new one."""
    if given is None:
        return torch.empty(shape, dtype=dtype)
    return checks.tensor(name, given, dtype, shape)


def _out_scales(given: torch.Tensor | None, use_fp8: bool, shape: tuple[int, int, int]) -> torch.Tensor | None:
    """Likewise for scales, whose storage has the last two dimensions swapped; None without fp8."""
    name = "out_packed_recv_x_scales"
    local, slots, blocks = shape
    if not use_fp8:
        if given is not None:
            raise ValueError(f"{name}: wanted None without use_fp8, got a tensor")
        return None
    if given is None:
        return torch.empty((local, blocks, slots), dtype=torch.float32).transpose(1, 2)
    return checks.tensor(name, given, torch.float32, shape, stride=(blocks * slots, 1, slots))
