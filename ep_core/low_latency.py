"""Low latency: the half of `ep_core.buffer.Buffer` with per-expert receive buffers of fixed size.

Checks arguments, makes the result tensors and the handle; the engines move the rows (`ep_core/csrc/low_latency.hpp`,
`ep_core.cuda`). Notation as in `ep_core.buffer`.
"""

from __future__ import annotations

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from ep_core import checks
from ep_core.engine import (
    Combine,
    Engine,
    Hook,
    LowLatencyBack,
    LowLatencyHandle,
    LowLatencyIn,
    LowLatencyMap,
    LowLatencyOut,
)
from ep_core.event import EventOverlap

_PACKED_BLOCKS = 4


class LowLatencyFace:
    """The low-latency operations of `Buffer`."""

    group_size: int
    device: torch.device
    _engine: Engine
    _maps: WeakTensorKeyDictionary

    def clean_low_latency_buffer(self, num_max_dispatch_tokens_per_rank: int, hidden: int, num_experts: int) -> None:
        """Make the buffer ready for low-latency operations of these sizes.

        The engines' counters are never in need of cleaning, so this checks that the sizes fit and does no more.
        """
        self._check_sizes(num_max_dispatch_tokens_per_rank, hidden, num_experts)
        self._engine.check_low_latency_fits(num_max_dispatch_tokens_per_rank, hidden, num_experts)

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
        topk_weights: torch.Tensor | None = None,
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
            x: bf16 [T, H], T <= Tmax, rows a multiple of 16 bytes (H a multiple of 128 for fp8, and on CUDA).
            topk_idx: int64 [T, K], experts, -1 masked. An expert may appear twice in a token: two rows then.
            num_max_dispatch_tokens_per_rank: Tmax, the same on all ranks. num_experts: E.
            cumulative_local_expert_recv_stats: int32 [L], to which the counts are added.
            dispatch_wait_recv_cost_stats: not measured, `ValueError`.
            use_fp8: send float8_e4m3fn with a float32 scale per 128 columns: amax = max(|x|, 1e-4), scale = amax / 448,
                value = x * (448 / amax) rounded to nearest even. round_scale: scale rounded up to a power of two.
            use_ue8m0: with use_fp8 and round_scale, H a multiple of 512: the scales' exponents only, four blocks to an
                int32, the first in its lowest byte.
            async_finish: run on the buffer's own stream; the event is the end. Not with return_recv_hook.
            return_recv_hook: only send; calling the returned hook receives. At most two operations can be open.
            topk_weights: beyond DeepEP: float32 [T, K], to travel with the tokens; the combine of the handle is then
                `local_reduce`, see `low_latency_combine`. Given on all ranks or on none.
            out_packed_recv_x, out_packed_recv_x_scales, out_src_info, out_layout_range, out_count: beyond DeepEP:
                tensors to receive into, each returned as the very object given. With out_src_info given, a call like an
                earlier one allocates nothing.

        Returns:
            recv_x: bf16 [L, S, H], or (float8_e4m3fn [L, S, H], scales float32 [L, S, H / 128] over storage
                [L, H / 128, S], or with use_ue8m0 int32 [L, S, H / 512] likewise). Rows in order of source rank, token,
                position in top-k; undefined beyond the count.
            recv_count: int32 [L].
            handle: (src_info int32 [L, S]: token on its source rank; layout_range int64 [L, R]: begin << 32 | count;
                Tmax; H; E), a `LowLatencyHandle`.
            event, hook (None without return_recv_hook; calling it a second time is a `RuntimeError`).

        Raises `ValueError`/`TypeError` before anything is sent; `ValueError` also when ranks did not call alike. What
        is wrong inside of a CUDA tensor is found by the kernel and raised by the next call or `Buffer.check`.
        """
        self._engine.check()
        checks.tensor("x", x, self.device, torch.bfloat16, (None, None))
        checks.rows("x", x)
        tokens, hidden = x.shape
        checks.tensor("topk_idx", topk_idx, self.device, torch.int64, (tokens, None))
        topk = topk_idx.shape[1]
        checks.topk(topk)
        if topk_weights is not None:
            checks.tensor("topk_weights", topk_weights, self.device, torch.float32, (tokens, topk))
        max_tokens = num_max_dispatch_tokens_per_rank
        self._check_sizes(max_tokens, hidden, num_experts, use_fp8)
        if tokens > max_tokens:
            raise ValueError(f"x: wanted at most num_max_dispatch_tokens_per_rank={max_tokens} tokens, got {tokens}")
        checks.finish(async_finish, return_recv_hook)
        if dispatch_wait_recv_cost_stats is not None:
            raise ValueError("dispatch_wait_recv_cost_stats: wanted None, it is not measured")
        if round_scale and not use_fp8:
            raise ValueError("round_scale: wanted only with use_fp8, which is off")
        if use_ue8m0:
            _check_ue8m0(round_scale, hidden)
        stats = cumulative_local_expert_recv_stats
        local, slots = num_experts // self.group_size, self.group_size * max_tokens
        if stats is not None:
            checks.tensor("cumulative_local_expert_recv_stats", stats, self.device, torch.int32, (local,))
        combine: Combine = "exact" if topk_weights is None else "local_reduce"
        with self._engine.call(None, async_finish) as call:
            out = LowLatencyOut(
                x=self._out(
                    "out_packed_recv_x",
                    out_packed_recv_x,
                    torch.float8_e4m3fn if use_fp8 else torch.bfloat16,
                    (local, slots, hidden),
                ),
                scales=self._out_scales(out_packed_recv_x_scales, use_fp8, use_ue8m0, (local, slots, hidden)),
                src_info=self._out("out_src_info", out_src_info, torch.int32, (local, slots)),
                layout_range=self._out("out_layout_range", out_layout_range, torch.int64, (local, self.group_size)),
                count=self._out("out_count", out_count, torch.int32, (local,)),
                stats=stats,
            )
            checks.rows("out_packed_recv_x", out_packed_recv_x)
            checks.no_overlap(
                {
                    "out_packed_recv_x": out_packed_recv_x,
                    "out_packed_recv_x_scales": out_packed_recv_x_scales,
                    "out_src_info": out_src_info,
                    "out_layout_range": out_layout_range,
                    "out_count": out_count,
                    "cumulative_local_expert_recv_stats": stats,
                },
                {"x": x, "topk_idx": topk_idx, "topk_weights": topk_weights},
            )
            map = self._map(out_src_info, max_tokens, topk, combine)
            given = LowLatencyIn(x, topk_idx, topk_weights, max_tokens, num_experts, round_scale, use_ue8m0)
            hook = self._engine.low_latency_dispatch(given, out, map, call, defer=return_recv_hook)
            call.uses(x, topk_idx, topk_weights, out.x, out.scales, out.src_info, out.layout_range, out.count, stats)
            if map is not None:
                call.uses(map.rows, map.weights, map.sent)
        values = (out.src_info, out.layout_range, max_tokens, hidden, num_experts)
        handle = LowLatencyHandle(values, map, combine, tokens)
        return out.x if out.scales is None else (out.x, out.scales), out.count, handle, call.event(), hook

    def low_latency_combine(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        topk_weights: torch.Tensor,
        handle: LowLatencyHandle | tuple[torch.Tensor, torch.Tensor, int, int, int],
        use_logfmt: bool = False,
        zero_copy: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
        out: torch.Tensor | None = None,
        combine_wait_recv_cost_stats: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, EventOverlap, Hook | None]:
        """Return the experts' rows to their tokens and sum them.

        `exact`: bf16(((0 + w0 * y0) + w1 * y1) + ...) in top-k order. `local_reduce`, when the dispatch was given
        weights: each rank does so with the rows of its own experts, and the token's rank adds what the ranks return,
        bf16(((0 + r0) + r1) + ...) in rank order; one row for each rank travels instead of one for each selection, for
        one more rounding to bf16. Products and sums are rounded to float32 one by one, so the result is the same on
        every machine.

        Arguments:
            x: bf16 [L, S, H], the experts' output rows, each in the slot of its input row.
            topk_idx: int64 [T, K] as dispatched; for `exact` entries may be masked further. An expert's j-th selection
                by a token takes the j-th row that the token sent it. topk_weights: float32 [T, K]; `local_reduce` goes
                by those given to the dispatch.
            handle: what `low_latency_dispatch` returned. On CPU its five values alone will do for `exact`.
            zero_copy: the rows are in the tensor of `get_next_low_latency_combine_buffer`, and x is not read.
            async_finish, return_recv_hook: as for dispatch. On the host inputs may change once the call has returned.
            out: bf16 [T, H] to write into, returned as the very object given.
            use_logfmt, combine_wait_recv_cost_stats: not offered, `ValueError`.

        Returns (combined bf16 [T, H], event, hook or None). A token without selections gives zeros.
        """
        self._engine.check()
        handle = _handle(handle)
        src_info, layout_range, max_tokens, hidden, num_experts = handle
        self._check_sizes(max_tokens, hidden, num_experts)
        local, slots = num_experts // self.group_size, self.group_size * max_tokens
        checks.tensor("x", x, self.device, torch.bfloat16, (local, slots, hidden))
        checks.rows("x", x)
        width = None if handle.map is None else handle.map.rows.shape[2]
        checks.tensor("topk_idx", topk_idx, self.device, torch.int64, (None, width))
        tokens, topk = topk_idx.shape
        checks.topk(topk)
        if tokens > max_tokens:
            raise ValueError(f"topk_idx: wanted at most the handle's {max_tokens} tokens, got {tokens}")
        if handle.map is not None and tokens != handle.tokens:
            raise ValueError(f"topk_idx: wanted the {handle.tokens} tokens that were dispatched, got {tokens}")
        checks.tensor("topk_weights", topk_weights, self.device, torch.float32, (tokens, topk))
        checks.tensor("handle[0] (src_info)", src_info, self.device, torch.int32, (local, slots))
        checks.tensor("handle[1] (layout_range)", layout_range, self.device, torch.int64, (local, self.group_size))
        checks.finish(async_finish, return_recv_hook)
        if use_logfmt:
            raise ValueError("use_logfmt: wanted False, rows are sent as bf16")
        if combine_wait_recv_cost_stats is not None:
            raise ValueError("combine_wait_recv_cost_stats: wanted None, it is not measured")
        with self._engine.call(None, async_finish) as call:
            combined = self._out("out", out, torch.bfloat16, (tokens, hidden))
            checks.rows("out", out)
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
            given = LowLatencyBack(x, topk_idx, topk_weights, handle, zero_copy)
            hook = self._engine.low_latency_combine(given, combined, call, defer=return_recv_hook)
            call.uses(x, topk_idx, topk_weights, src_info, layout_range, combined)
            if handle.map is not None:
                call.uses(handle.map.rows, handle.map.weights, handle.map.sent)
        return combined, call.event(), hook

    def get_next_low_latency_combine_buffer(
        self, handle: LowLatencyHandle | tuple[torch.Tensor, torch.Tensor, int, int, int]
    ) -> torch.Tensor:
        """The bf16 [L, S, H] to fill for a `zero_copy` combine, which must be the next low-latency operation.

        It lies in memory that a later operation uses again: ask anew for each combine. On the host this waits until
        every peer has read what the operation before the last left there (`EPTimeoutError`).
        """
        self._engine.check()
        _, _, max_tokens, hidden, num_experts = _handle(handle)
        self._check_sizes(max_tokens, hidden, num_experts)
        return self._engine.next_combine_buffer(max_tokens, hidden, num_experts)

    def _check_sizes(self, max_tokens: int, hidden: int, experts: int, fp8: bool = False) -> None:
        checks.experts(experts, self.group_size, self._engine.max_experts)
        checks.hidden(hidden, fp8, 2)
        checks.max_tokens(max_tokens, self.group_size)

    def _map(
        self, out_src_info: torch.Tensor | None, max_tokens: int, topk: int, combine: Combine
    ) -> LowLatencyMap | None:
        """The map of a dispatch: that of the earlier one of the same kind into the same `out_src_info`, or a new one.

        None is ever dropped while the tensor lives, as a CUDA graph may hold its address.
        """
        if out_src_info is None:
            return self._engine.new_map(max_tokens, topk, combine)
        kept: dict[tuple[int, int, Combine], LowLatencyMap | None] = self._maps.get(out_src_info)
        if kept is None:
            kept = self._maps[out_src_info] = {}
        key = (max_tokens, topk, combine)
        if key not in kept:
            kept[key] = self._engine.new_map(*key)
        return kept[key]

    def _out(self, name: str, given: torch.Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor to write into: the caller's, checked, or a new one."""
        if given is None:
            return torch.empty(shape, dtype=dtype, device=self.device)
        return checks.tensor(name, given, self.device, dtype, shape)

    def _out_scales(
        self, given: torch.Tensor | None, use_fp8: bool, packed: bool, shape: tuple[int, int, int]
    ) -> torch.Tensor | None:
        """Likewise for scales of rows of `shape`, whose storage has the last two dimensions swapped; None for bf16."""
        name = "out_packed_recv_x_scales"
        if not use_fp8:
            if given is not None:
                raise ValueError(f"{name}: wanted None without use_fp8, got a tensor")
            return None
        local, slots, hidden = shape
        blocks = hidden // checks.SCALE_BLOCK // (_PACKED_BLOCKS if packed else 1)
        dtype = torch.int32 if packed else torch.float32
        if given is None:
            return torch.empty((local, blocks, slots), dtype=dtype, device=self.device).transpose(1, 2)
        stride = (blocks * slots, 1, slots)
        return checks.tensor(name, given, self.device, dtype, (local, slots, blocks), stride)


def _handle(handle: object) -> LowLatencyHandle:
    if isinstance(handle, LowLatencyHandle):
        return handle
    if not isinstance(handle, tuple) or len(handle) != 5:
        raise TypeError(f"handle: wanted the 5-tuple that low_latency_dispatch returned, got {type(handle).__name__}")
    return LowLatencyHandle(handle)


def _check_ue8m0(round_scale: bool, hidden: int) -> None:
    """Raise `ValueError` unless scales can go as packed exponents."""
    if not round_scale:
        raise ValueError(
            "use_ue8m0: wanted only with use_fp8 and round_scale, as an exponent holds a power of two only"
        )
    if hidden % (_PACKED_BLOCKS * checks.SCALE_BLOCK):
        raise ValueError(
            f"hidden: wanted a multiple of {_PACKED_BLOCKS * checks.SCALE_BLOCK} with use_ue8m0 (four exponents to an "
            f"int32), got {hidden}"
        )
