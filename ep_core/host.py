"""The host engine: CPU tensors, one process per rank. The Python half of `ep_core._host`.

Shared memory inside a node, couriers between nodes. Turns checked tensors into addresses. Made by `ep_core.buffer`.
Next to read: `ep_core/csrc/low_latency.hpp`; for several nodes `ep_core/csrc/outbox.hpp`, `ep_core.couriers`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import weakref
from collections.abc import Callable

import torch
import torch.distributed as dist

from ep_core import _host, rendezvous
from ep_core.couriers import start
from ep_core.engine import (
    Combine,
    DispatchPlan,
    HighThroughputBack,
    HighThroughputIn,
    HighThroughputOut,
    Hook,
    LowLatencyBack,
    LowLatencyIn,
    LowLatencyMap,
    LowLatencyOut,
    address_of,
)
from ep_core.event import EventOverlap
from ep_core.nodes import Nodes
from ep_core.streams import Call


def _nothing() -> None:
    pass


def _addresses(map: LowLatencyMap | None) -> tuple[int, int]:
    return (0, 0) if map is None else (map.rows.data_ptr(), address_of(map.weights))


class HostEngine:
    """Implements `ep_core.engine.Engine`. Constructing it is collective over `group`.

    Raises `EPTimeoutError` for ranks that do not come within `timeout_s` seconds, `ValueError` for ranks that were
    given other sizes.

    Attributes:
        nodes: which ranks share memory.
    """

    max_experts = _host.MAX_EXPERTS

    def __init__(
        self,
        group: dist.ProcessGroup,
        num_nvl_bytes: int,
        num_rdma_bytes: int,
        timeout_s: float,
        device: torch.device,
    ) -> None:
        self.device = device
        rank, ranks = group.rank(), group.size()
        token = secrets.token_bytes(16)
        self._ranks = ranks
        self._host = _host.Host(rank, ranks, num_nvl_bytes, num_rdma_bytes, timeout_s, token)
        self._close_couriers: Callable[[], object] = _nothing
        try:
            mine = rendezvous.Address.of_this_process(self._host.fd, token.hex(), num_nvl_bytes, num_rdma_bytes)
            name = rendezvous.next_name(group)
            found = rendezvous.exchange(group, name, mine, timeout_s)
            for peer, address in enumerate(found):
                address.check(peer, mine)
            self.nodes = Nodes.found(rank, [address.machine for address in found])
            if self.nodes.count == 1:
                self._host.map([(one.pid, one.fd, bytes.fromhex(one.token)) for one in found], self.nodes.node_of)
            else:
                self._reach_other_nodes(group, name, found, timeout_s)
            self._host.meet()
        except BaseException:
            self.destroy()
            raise
        with contextlib.suppress(RuntimeError):
            rendezvous.forget(group, name)

    def _reach_other_nodes(
        self, group: dist.ProcessGroup, name: str, found: list[rendezvous.Address], timeout_s: float
    ) -> None:
        """Make the mirrors that are this rank's to hold, map those of its node, and send couriers."""
        nodes = self.nodes
        held = nodes.held(nodes.rank)
        fds = {str(source): self._host.hold(source, bytes.fromhex(found[source].token)) for source in held}
        mine = dataclasses.replace(found[nodes.rank], mirrors=fds)
        mirrors = rendezvous.exchange(group, f"{name}/mirrors", mine, timeout_s)
        places = []
        for rank, address in enumerate(found):
            place = (address.pid, address.fd)
            if not nodes.same(rank, nodes.rank):
                holder = mirrors[nodes.holder(rank, nodes.mine)]
                place = (holder.pid, holder.mirrors[str(rank)])
            places.append((*place, bytes.fromhex(address.token)))
        self._host.map(places, nodes.node_of)
        couriers = start(group, f"{name}/couriers", self._host, nodes, timeout_s)
        # Also when the process ends without destroying the buffer: others may still want what was sent last.
        self._close_couriers = weakref.finalize(self, couriers.close)

    def check(self) -> None:
        """See `ep_core.engine.Engine`: nothing is ever left to be reported."""

    def call(self, previous_event: EventOverlap | None, async_finish: bool) -> Call:
        """See `ep_core.engine.Engine`."""
        return Call(previous_event)

    def check_low_latency_fits(self, max_tokens: int, hidden: int, experts: int) -> None:
        """Raise `ValueError` when `num_rdma_bytes` is too small for these sizes."""
        self._host.check_low_latency_fits(max_tokens, hidden, experts)

    def new_map(self, max_tokens: int, topk: int, combine: Combine) -> LowLatencyMap | None:
        """See `ep_core.engine.Engine`: for `exact` the handle says where rows are."""
        if combine == "exact":
            return None
        shape = (self._ranks, max_tokens, topk)
        return LowLatencyMap(torch.empty(shape, dtype=torch.int32), torch.empty(shape), None)

    def low_latency_dispatch(
        self, given: LowLatencyIn, out: LowLatencyOut, map: LowLatencyMap | None, call: Call, *, defer: bool
    ) -> Hook | None:
        """See `ep_core.engine.Engine`."""
        tokens, topk = given.topk_idx.shape
        sends = (
            given.x.data_ptr(),
            given.topk_idx.data_ptr(),
            address_of(given.topk_weights),
            tokens,
            topk,
            given.max_tokens,
            given.x.shape[1],
            given.experts,
            given.topk_weights is not None,
            out.scales is not None,
            given.round_scale,
            given.ue8m0,
        )
        into = (
            out.x.data_ptr(),
            address_of(out.scales),
            out.src_info.data_ptr(),
            out.layout_range.data_ptr(),
            out.count.data_ptr(),
            address_of(out.stats),
            *_addresses(map),
        )
        if not defer:
            self._host.ll_dispatch(*sends, *into)
            return None
        epoch = self._host.ll_dispatch_send(*sends)

        def receive(_keep: object = (out, map)) -> None:
            self._host.ll_dispatch_receive(epoch, *into)

        return receive

    def low_latency_combine(self, given: LowLatencyBack, out: torch.Tensor, call: Call, *, defer: bool) -> Hook | None:
        """See `ep_core.engine.Engine`."""
        src_info, layout_range, max_tokens, hidden, experts = given.handle
        tokens, topk = given.topk_idx.shape
        sends = (
            given.x.data_ptr(),
            given.topk_idx.data_ptr(),
            given.topk_weights.data_ptr(),
            src_info.data_ptr(),
            layout_range.data_ptr(),
            tokens,
            topk,
            max_tokens,
            hidden,
            experts,
            given.zero_copy,
            *_addresses(given.handle.map),
        )
        if not defer:
            self._host.ll_combine(*sends, out.data_ptr())
            return None
        epoch = self._host.ll_combine_send(*sends)

        def receive() -> None:
            self._host.ll_combine_receive(epoch, out.data_ptr())

        return receive

    def next_combine_buffer(self, max_tokens: int, hidden: int, experts: int) -> torch.Tensor:
        """See `ep_core.engine.Engine`."""
        rows = torch.from_numpy(self._host.ll_next_combine_buffer(max_tokens, hidden, experts))
        return rows.view(torch.bfloat16).view(experts // self._ranks, self._ranks * max_tokens, hidden)

    def dispatch_layout(
        self, topk_idx: torch.Tensor, experts: int, call: Call
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `ep_core.engine.Engine`."""
        tokens, topk = topk_idx.shape
        per_rank = torch.zeros(self._ranks, dtype=torch.int32)
        per_expert = torch.zeros(experts, dtype=torch.int32)
        in_rank = torch.zeros((tokens, self._ranks), dtype=torch.bool)
        wrong = _host.dispatch_layout(
            topk_idx.data_ptr(),
            tokens,
            topk,
            experts,
            self._ranks,
            per_rank.data_ptr(),
            per_expert.data_ptr(),
            in_rank.data_ptr(),
        )
        if wrong >= 0:
            at = divmod(wrong, topk)
            raise ValueError(
                f"topk_idx[{at[0]}, {at[1]}]: wanted -1 or an expert below {experts}, got {int(topk_idx[at])}"
            )
        return per_rank, per_expert, in_rank

    def dispatch_begin(self, given: HighThroughputIn, call: Call) -> DispatchPlan:
        """See `ep_core.engine.Engine`."""
        tokens, columns = given.x.shape
        experts = 0 if given.num_tokens_per_expert is None else given.num_tokens_per_expert.shape[0]
        rank_prefix, per_expert, received = self._host.ht_dispatch_begin(
            given.x.data_ptr(),
            columns * given.x.element_size(),
            address_of(given.scales),
            0 if given.scales is None else given.scales.shape[1],
            address_of(given.topk_idx),
            address_of(given.topk_weights),
            0 if given.topk_idx is None else given.topk_idx.shape[1],
            tokens,
            experts,
            given.is_token_in_rank.data_ptr(),
            address_of(given.num_tokens_per_rank),
            address_of(given.num_tokens_per_expert),
            0 if given.cached is None else given.cached[0].data_ptr(),
            given.room,
        )
        matrix = torch.tensor(rank_prefix, dtype=torch.int32).view(self._ranks, self._ranks)
        if given.cached is not None:
            _, channel_prefix, recv_channel_prefix, _, _, send_head = given.cached
            return DispatchPlan(matrix, channel_prefix, recv_channel_prefix, send_head, per_expert, received)
        order = given.is_token_in_rank.cumsum(0, dtype=torch.int32)
        return DispatchPlan(
            rank_prefix=matrix,
            channel_prefix=order[-1:].sum(0, dtype=torch.int32).unsqueeze(1),
            recv_channel_prefix=torch.zeros((self._ranks, 1), dtype=torch.int32),
            send_head=torch.where(given.is_token_in_rank, order - 1, torch.full_like(order, -1)),
            per_expert=per_expert,
            received=received,
        )

    def dispatch_finish(self, given: HighThroughputIn, plan: DispatchPlan, out: HighThroughputOut, call: Call) -> None:
        """See `ep_core.engine.Engine`."""
        self._host.ht_dispatch_finish(
            out.x.data_ptr(),
            address_of(out.scales),
            address_of(out.topk_idx),
            address_of(out.topk_weights),
            out.src_idx.data_ptr(),
        )

    def combine(
        self, given: HighThroughputBack, out: torch.Tensor, out_weights: torch.Tensor | None, call: Call
    ) -> None:
        """See `ep_core.engine.Engine`."""
        biases = [one.data_ptr() for one in given.bias] + [0, 0]
        self._host.ht_combine(
            given.x.data_ptr(),
            given.x.dtype == torch.float32,
            given.x.shape[1],
            given.src_idx.shape[0],
            address_of(given.topk_weights),
            0 if given.topk_weights is None else given.topk_weights.shape[1],
            given.src_idx.data_ptr(),
            given.rank_prefix.data_ptr(),
            given.is_token_in_rank.data_ptr(),
            given.is_token_in_rank.shape[0],
            biases[0],
            biases[1],
            out.data_ptr(),
            address_of(out_weights),
        )

    def destroy(self) -> None:
        """Give up the shared memory, once other nodes have what was sent to them. May be called twice."""
        self._close_couriers()
        self._host.destroy()
