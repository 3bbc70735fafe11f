"""High throughput: the half of `ep_core.buffer.Buffer` with exact-size receive, one copy per destination rank.

Checks arguments, makes the result tensors and the handle; the engines move the rows
(`ep_core/csrc/high_throughput.hpp`, `ep_core.cuda`).
Notation as in `ep_core.buffer`; N is the number of rows received.
"""

from __future__ import annotations

import torch

from ep_core import checks
from ep_core.config import Config
from ep_core.engine import (
    DispatchPlan,
    Engine,
    HighThroughputBack,
    HighThroughputHandle,
    HighThroughputIn,
    HighThroughputOut,
)
from ep_core.event import EventOverlap

RowsOrPair = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


class HighThroughputFace:
    """The high-throughput operations of `Buffer`."""

    num_sms: int
    group_size: int
    rank: int
    device: torch.device
    _engine: Engine

    def get_dispatch_layout(
        self,
        topk_idx: torch.Tensor,
        num_experts: int,
        previous_event: EventOverlap | None = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor, EventOverlap]:
        """What `dispatch` wants to know of a routing. Local to the rank.

        Arguments: topk_idx int64 [T, K], -1 masked; num_experts E; the last three as for `dispatch`.

        Returns:
            num_tokens_per_rank: int32 [R], a token counted once for each rank it goes to.
            num_tokens_per_rdma_rank: int32 [nodes], a token counted once for each node it goes to, in the order of
                `Buffer.nodes`; None where there is one node.
            num_tokens_per_expert: int32 [E], every selection counted.
            is_token_in_rank: bool [T, R].
            event.
        """
        self._engine.check()
        checks.tensor("topk_idx", topk_idx, self.device, torch.int64, (None, None))
        checks.topk(topk_idx.shape[1])
        checks.experts(num_experts, self.group_size, self._engine.max_experts)
        checks.previous(previous_event, async_finish, allocate_on_comm_stream)
        with self._engine.call(previous_event, async_finish) as call:
            per_rank, per_expert, in_rank = self._engine.dispatch_layout(topk_idx, num_experts, call)
            per_node = self._tokens_per_node(in_rank)
            call.uses(topk_idx, per_rank, per_node, per_expert, in_rank)
        return per_rank, per_node, per_expert, in_rank, call.event()

    def dispatch(
        self,
        x: RowsOrPair,
        handle: HighThroughputHandle | None = None,
        num_tokens_per_rank: torch.Tensor | None = None,
        num_tokens_per_rdma_rank: torch.Tensor | None = None,
        is_token_in_rank: torch.Tensor | None = None,
        num_tokens_per_expert: torch.Tensor | None = None,
        topk_idx: torch.Tensor | None = None,
        topk_weights: torch.Tensor | None = None,
        expert_alignment: int = 1,
        num_worst_tokens: int = 0,
        config: Config | None = None,
        previous_event: EventOverlap | None = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[
        RowsOrPair,
        torch.Tensor | None,
        torch.Tensor | None,
        list[int] | None,
        HighThroughputHandle | None,
        EventOverlap,
    ]:
        """Send every token once to each rank that has one of its experts.

        Arguments:
            x: bf16 [T, H], or (float8_e4m3fn [T, H], scales float32 [T, H / 128]).
            handle: of an earlier dispatch, to send along the same routing again; then none of the next six is given.
            num_tokens_per_rank, num_tokens_per_rdma_rank, is_token_in_rank, num_tokens_per_expert: from
                `get_dispatch_layout`. The second may be left out, and is ignored on one node.
            topk_idx, topk_weights: int64 and float32 [T, K], both or none, to travel with the rows.
            expert_alignment: counts per expert are rounded up to a multiple of it.
            num_worst_tokens: when above 0, results have this many rows, rows beyond N undefined (their topk_idx is -1),
                and the list of counts is empty.
            config: how many processors to use, else `Buffer.num_sms`; the host engine takes its chunks from
                num_nvl_bytes and no more.
            previous_event, async_finish: on CUDA run on the buffer's own stream, after that event (None: after the
                current stream) and, with async_finish, without holding up the current stream.
            allocate_on_comm_stream: wanted only with these two; results are allocated on the own stream anyway.

        Returns:
            recv_x: like x, [N, H], rows in order of source rank, then token.
            recv_topk_idx: int64 [N, K], local expert or -1; None without topk_idx.
            recv_topk_weights: float32 [N, K], 0 where the expert is elsewhere; None without topk_weights.
            num_recv_tokens_per_expert_list: L counts of selections, from num_tokens_per_expert of all ranks.
            handle: (rank_prefix_matrix int32 [R, R], channel_prefix_matrix int32 [R, 1], recv_channel_prefix_matrix
                int32 [R, 1], recv_src_idx int32 [N], is_token_in_rank bool [T, R], send_head int32 [T, R]).
            event.
        With `handle` given, the second to fifth are None, as in DeepEP. Under CUDA graph capture a `handle` or
        num_worst_tokens is wanted (`ValueError`): nothing else says beforehand how many rows will come.
        """
        self._engine.check()
        rows, scales = self._rows_and_scales(x)
        num_sms = self._sms(config)
        if expert_alignment < 1:
            raise ValueError(f"expert_alignment: wanted 1 or more, got {expert_alignment}")
        if num_worst_tokens < 0:
            raise ValueError(f"num_worst_tokens: wanted 0 or more, got {num_worst_tokens}")
        checks.previous(previous_event, async_finish, allocate_on_comm_stream)
        routing = (num_tokens_per_rank, is_token_in_rank, num_tokens_per_expert, topk_idx, topk_weights)
        if handle is not None:
            names = ("num_tokens_per_rank", "is_token_in_rank", "num_tokens_per_expert", "topk_idx", "topk_weights")
            for name, value in zip(names, routing, strict=True):
                if value is not None:
                    raise ValueError(f"{name}: wanted None when a handle is given, got a {type(value).__name__}")
            cached = self._handle(handle, rows.shape[0])
            given = HighThroughputIn(rows, scales, None, None, cached[4], None, None, cached, num_worst_tokens, num_sms)
        else:
            given = self._routed(rows, scales, *routing, num_worst_tokens, num_sms)
            self._check_tokens_per_node(num_tokens_per_rdma_rank, given.is_token_in_rank)
        with self._engine.call(previous_event, async_finish) as call:
            plan = self._engine.dispatch_begin(given, call)
            out = _received(given, plan)
            self._engine.dispatch_finish(given, plan, out, call)
            call.uses(rows, scales, given.topk_idx, given.topk_weights, given.is_token_in_rank, plan.rank_prefix)
            call.uses(plan.send_head, out.x, out.scales, out.topk_idx, out.topk_weights, out.src_idx)
        event = call.event()
        received: RowsOrPair = out.x if out.scales is None else (out.x, out.scales)
        if handle is not None:
            return received, None, None, None, None, event
        per_expert = [-(-rows_of // expert_alignment) * expert_alignment for rows_of in plan.per_expert]
        return (
            received,
            out.topk_idx,
            out.topk_weights,
            [] if num_worst_tokens else per_expert,
            (
                plan.rank_prefix,
                plan.channel_prefix,
                plan.recv_channel_prefix,
                out.src_idx,
                given.is_token_in_rank,
                plan.send_head,
            ),
            event,
        )

    def combine(
        self,
        x: torch.Tensor,
        handle: HighThroughputHandle,
        topk_weights: torch.Tensor | None = None,
        bias: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
        config: Config | None = None,
        previous_event: EventOverlap | None = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, EventOverlap]:
        """Return rows to their source ranks and add those of a token: unweighted, in rank order.

        Arguments:
            x: bf16 or float32 [N, H], in the order that `dispatch` gave.
            handle: what `dispatch` returned.
            topk_weights: float32 [N, K], added up likewise.
            bias: none, one or two [T, H] of x's dtype, added first.

        Returns (combined [T, H], combined weights float32 [T, K] or None, event). Sums start from 0, are in float32 and
        rounded once to x's dtype; a token that went nowhere gives zeros (or its bias).
        """
        self._engine.check()
        checks.tensor("x", x, self.device, (torch.bfloat16, torch.float32), (None, None))
        checks.rows("x", x)
        checks.hidden(x.shape[1], fp8=False, bytes_per_element=x.element_size())
        num_sms = self._sms(config)
        checks.previous(previous_event, async_finish, allocate_on_comm_stream)
        rank_prefix, _, _, src_idx, in_rank, send_head = self._handle(handle, None)
        if x.shape[0] < src_idx.shape[0]:
            raise ValueError(f"x: wanted the {src_idx.shape[0]} rows that the handle's dispatch gave, got {x.shape[0]}")
        if topk_weights is not None:
            checks.tensor("topk_weights", topk_weights, self.device, torch.float32, (x.shape[0], None))
            checks.topk(topk_weights.shape[1])
        tokens = in_rank.shape[0]
        biases = () if bias is None else (bias,) if isinstance(bias, torch.Tensor) else tuple(bias)
        if len(biases) > 2:
            raise ValueError(f"bias: wanted at most two tensors, got {len(biases)}")
        for one in biases:
            checks.tensor("bias", one, self.device, x.dtype, (tokens, x.shape[1]))
            checks.rows("bias", one)
        given = HighThroughputBack(x, topk_weights, biases, src_idx, rank_prefix, in_rank, send_head, num_sms)
        with self._engine.call(previous_event, async_finish) as call:
            out = x.new_empty((tokens, x.shape[1]))
            out_weights = None if topk_weights is None else topk_weights.new_empty((tokens, topk_weights.shape[1]))
            self._engine.combine(given, out, out_weights, call)
            call.uses(x, topk_weights, *biases, src_idx, rank_prefix, in_rank, send_head, out, out_weights)
        return out, out_weights, call.event()

    def _tokens_per_node(self, in_rank: torch.Tensor) -> torch.Tensor | None:
        """int32 [nodes]: tokens for each node by is_token_in_rank; None where there is one node."""
        nodes = self._engine.nodes
        if nodes.count == 1:
            return None
        to_node = [in_rank[:, list(nodes.ranks_of(node))].any(1).sum() for node in range(nodes.count)]
        return torch.stack(to_node).to(torch.int32)

    def _check_tokens_per_node(self, given: torch.Tensor | None, in_rank: torch.Tensor) -> None:
        if given is None:
            return
        wanted = self._tokens_per_node(in_rank)
        if wanted is None:
            return
        checks.tensor("num_tokens_per_rdma_rank", given, self.device, torch.int32, tuple(wanted.shape))
        for node, (have, said) in enumerate(zip(wanted.tolist(), given.tolist(), strict=True)):
            if have != said:
                raise ValueError(
                    f"num_tokens_per_rdma_rank[{node}]: is_token_in_rank has {have} tokens for that node, got {said}"
                )

    def _sms(self, config: object) -> int:
        """The processors to use."""
        if config is None:
            return self.num_sms
        if not isinstance(config, Config):
            raise TypeError(f"config: wanted an ep_core.Config, got {type(config).__name__}")
        return config.num_sms

    def _rows_and_scales(self, x: object) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x as rows and, for fp8, scales; checked."""
        if isinstance(x, tuple):
            if len(x) != 2:
                raise ValueError(f"x: wanted a tensor or a pair (rows, scales), got a tuple of {len(x)}")
            rows = checks.tensor("x[0]", x[0], self.device, torch.float8_e4m3fn, (None, None))
            checks.rows("x[0]", rows)
            checks.hidden(rows.shape[1], fp8=True, bytes_per_element=1)
            shape = (rows.shape[0], rows.shape[1] // checks.SCALE_BLOCK)
            return rows, checks.tensor("x[1] (scales)", x[1], self.device, torch.float32, shape)
        rows = checks.tensor("x", x, self.device, torch.bfloat16, (None, None))
        checks.rows("x", rows)
        checks.hidden(rows.shape[1], fp8=False, bytes_per_element=2)
        return rows, None

    def _routed(
        self,
        rows: torch.Tensor,
        scales: torch.Tensor | None,
        num_tokens_per_rank: torch.Tensor | None,
        is_token_in_rank: torch.Tensor | None,
        num_tokens_per_expert: torch.Tensor | None,
        topk_idx: torch.Tensor | None,
        topk_weights: torch.Tensor | None,
        room: int,
        num_sms: int,
    ) -> HighThroughputIn:
        """The checked input of a dispatch without a handle."""
        tokens, device = rows.shape[0], self.device
        per_rank = checks.tensor("num_tokens_per_rank", num_tokens_per_rank, device, torch.int32, (self.group_size,))
        in_rank = checks.tensor("is_token_in_rank", is_token_in_rank, device, torch.bool, (tokens, self.group_size))
        per_expert = checks.tensor("num_tokens_per_expert", num_tokens_per_expert, device, torch.int32, (None,))
        checks.experts(per_expert.shape[0], self.group_size, self._engine.max_experts)
        if (topk_idx is None) != (topk_weights is None):
            raise ValueError("topk_weights: wanted together with topk_idx or not at all, got one of the two")
        if topk_idx is not None:
            checks.tensor("topk_idx", topk_idx, device, torch.int64, (tokens, None))
            checks.topk(topk_idx.shape[1])
            checks.tensor("topk_weights", topk_weights, device, torch.float32, (tokens, topk_idx.shape[1]))
        return HighThroughputIn(
            rows, scales, topk_idx, topk_weights, in_rank, per_rank, per_expert, None, room, num_sms
        )

    def _handle(self, handle: object, tokens: int | None) -> HighThroughputHandle:
        """`handle`, checked; for `tokens` tokens on this rank if given."""
        if not isinstance(handle, tuple) or len(handle) != 6:
            raise TypeError(f"handle: wanted the 6-tuple that dispatch returned, got {type(handle).__name__}")
        ranks, device = self.group_size, self.device
        checks.tensor("handle[0] (rank_prefix_matrix)", handle[0], device, torch.int32, (ranks, ranks))
        checks.tensor("handle[3] (recv_src_idx)", handle[3], device, torch.int32, (None,))
        in_rank = checks.tensor("handle[4] (is_token_in_rank)", handle[4], device, torch.bool, (tokens, ranks))
        checks.tensor("handle[5] (send_head)", handle[5], device, torch.int32, (in_rank.shape[0], ranks))
        return handle


def _received(given: HighThroughputIn, plan: DispatchPlan) -> HighThroughputOut:
    """Tensors for the rows to come. Where there is room for more than that, the rest of top-k says so."""
    count = given.room or plan.received
    x, scales, topk_idx, weights = given.x, given.scales, given.topk_idx, given.topk_weights
    out = HighThroughputOut(
        x=x.new_empty((count, x.shape[1])),
        scales=None if scales is None else scales.new_empty((count, scales.shape[1])),
        topk_idx=None if topk_idx is None else topk_idx.new_empty((count, topk_idx.shape[1])),
        topk_weights=None if weights is None else weights.new_empty((count, weights.shape[1])),
        src_idx=torch.empty(plan.received, dtype=torch.int32, device=x.device),
    )
    if given.room and out.topk_idx is not None and out.topk_weights is not None:
        out.topk_idx.fill_(-1)
        out.topk_weights.zero_()
    return out
