"""The host engine: CPU tensors, one process per rank, shared memory. The Python half of `ep_core._host`.

Turns checked tensors into addresses. Made by `ep_core.buffer`. Next to read: `ep_core/csrc/low_latency.hpp`.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable

import torch
import torch.distributed as dist

from ep_core import _host, rendezvous
from ep_core.engine import DispatchPlan, HighThroughputIn, HighThroughputOut, LowLatencyOut


def _address(value: torch.Tensor | None) -> int:
    return 0 if value is None else value.data_ptr()


class HostEngine:
    """Implements `ep_core.engine.Engine`. Constructing it is collective over `group`.

    Raises `EPTimeoutError` for ranks that do not come within `timeout_s` seconds, `ValueError` for ranks that cannot be
    reached or were given other sizes.
    """

    def __init__(self, group: dist.ProcessGroup, num_nvl_bytes: int, num_rdma_bytes: int, timeout_s: float) -> None:
        rank, ranks = group.rank(), group.size()
        token = secrets.token_bytes(16)
        self._ranks = ranks
        self._host = _host.Host(rank, ranks, num_nvl_bytes, num_rdma_bytes, timeout_s, token)
        try:
            mine = rendezvous.Address.of_this_process(self._host.fd, token.hex(), num_nvl_bytes, num_rdma_bytes)
            name = rendezvous.next_name(group)
            found = rendezvous.exchange(group, name, mine, timeout_s)
            for peer, address in enumerate(found):
                address.check(peer, mine)
            self._host.connect([(address.pid, address.fd, bytes.fromhex(address.token)) for address in found])
        except BaseException:
            self._host.destroy()
            raise
        with contextlib.suppress(RuntimeError):
            rendezvous.forget(group, name)

    def check_low_latency_fits(self, max_tokens: int, hidden: int, experts: int) -> None:
        """Raise `ValueError` when `num_rdma_bytes` is too small for these sizes."""
        self._host.check_low_latency_fits(max_tokens, hidden, experts)

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
        """See `ep_core.engine.Engine`."""
        tokens, topk = topk_idx.shape
        given = (
            x.data_ptr(),
            topk_idx.data_ptr(),
            tokens,
            topk,
            max_tokens,
            x.shape[1],
            experts,
            out.scales is not None,
            round_scale,
        )
        into = (
            out.x.data_ptr(),
            _address(out.scales),
            out.src_info.data_ptr(),
            out.layout_range.data_ptr(),
            out.count.data_ptr(),
            _address(stats),
        )
        if not defer:
            self._host.ll_dispatch(*given, *into)
            return None
        epoch = self._host.ll_dispatch_send(*given)

        def receive(_keep: tuple[object, ...] = (out, stats)) -> None:
            self._host.ll_dispatch_receive(epoch, *into)

        return receive

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
        """See `ep_core.engine.Engine`."""
        tokens, topk = topk_idx.shape
        given = (
            x.data_ptr(),
            topk_idx.data_ptr(),
            topk_weights.data_ptr(),
            src_info.data_ptr(),
            layout_range.data_ptr(),
            tokens,
            topk,
            max_tokens,
            x.shape[2],
            experts,
            zero_copy,
        )
        if not defer:
            self._host.ll_combine(*given, out.data_ptr())
            return None
        epoch = self._host.ll_combine_send(*given)

        def receive() -> None:
            self._host.ll_combine_receive(epoch, out.data_ptr())

        return receive

    def next_combine_buffer(self, max_tokens: int, hidden: int, experts: int) -> torch.Tensor:
        """See `ep_core.engine.Engine`."""
        rows = torch.from_numpy(self._host.ll_next_combine_buffer(max_tokens, hidden, experts))
        return rows.view(torch.bfloat16).view(experts // self._ranks, self._ranks * max_tokens, hidden)

    def dispatch_begin(self, given: HighThroughputIn, room: int) -> DispatchPlan:
        """See `ep_core.engine.Engine`."""
        tokens, columns = given.x.shape
        experts = 0 if given.num_tokens_per_expert is None else given.num_tokens_per_expert.shape[0]
        rank_prefix, per_expert, received = self._host.ht_dispatch_begin(
            given.x.data_ptr(),
            columns * given.x.element_size(),
            _address(given.scales),
            0 if given.scales is None else given.scales.shape[1],
            _address(given.topk_idx),
            _address(given.topk_weights),
            0 if given.topk_idx is None else given.topk_idx.shape[1],
            tokens,
            experts,
            given.is_token_in_rank.data_ptr(),
            _address(given.num_tokens_per_rank),
            _address(given.num_tokens_per_expert),
            _address(given.cached_rank_prefix),
            room,
        )
        matrix = torch.tensor(rank_prefix, dtype=torch.int32).view(self._ranks, self._ranks)
        return DispatchPlan(matrix, per_expert, received)

    def dispatch_finish(self, out: HighThroughputOut) -> None:
        """See `ep_core.engine.Engine`."""
        self._host.ht_dispatch_finish(
            out.x.data_ptr(),
            _address(out.scales),
            _address(out.topk_idx),
            _address(out.topk_weights),
            out.src_idx.data_ptr(),
        )

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
        """See `ep_core.engine.Engine`."""
        biases = [one.data_ptr() for one in bias] + [0, 0]
        self._host.ht_combine(
            x.data_ptr(),
            x.dtype == torch.float32,
            x.shape[1],
            src_idx.shape[0],
            _address(topk_weights),
            0 if topk_weights is None else topk_weights.shape[1],
            src_idx.data_ptr(),
            rank_prefix.data_ptr(),
            is_token_in_rank.data_ptr(),
            is_token_in_rank.shape[0],
            biases[0],
            biases[1],
            out.data_ptr(),
            _address(out_weights),
        )

    def destroy(self) -> None:
        """Give up the shared memory. May be called twice."""
        self._host.destroy()
