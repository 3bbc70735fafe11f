"""The CUDA engine: CUDA tensors, kernels that write into the memory of their node's ranks, channels to other nodes.

The Python half of `ep_core._cuda`: turns checked tensors into addresses. Made by `ep_core.buffer`. The extension is
built where nvcc is found; without it everything here still imports, and `obstacle` says why the engine cannot be used.
Next to read: `ep_core.peers` (how peers' memory is mapped), `ep_core.streams`, `ep_core/csrc/cuda/layout.hpp`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable

import torch
import torch.distributed as dist

from ep_core import peers, rendezvous, told
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
from ep_core.errors import EPTimeoutError
from ep_core.event import EventOverlap
from ep_core.open_operations import OpenOperations
from ep_core.streams import Call, CudaCall, Streams

_load_error = "its extension was not built, which wants nvcc"
if importlib.util.find_spec("ep_core._cuda") is not None:
    try:
        from ep_core import _cuda
    except ImportError as error:
        _load_error = f"its extension cannot be loaded: {error}"
    else:
        _load_error = ""

_HIDDEN_STEP = 128
_SEND, _RECEIVE, _BOTH = 1, 2, 3
_LL_SMS = "EP_LL_SMS"
_KERNEL_FIRST_S = 10.0  # the kernel knows whom it waits for, so its deadline should pass before the host's


def not_built() -> str:
    """Why there is no extension; empty when there is one."""
    return _load_error


def built_for() -> str:
    """The architectures and the compiler of the extension, which there is."""
    return f"{_cuda.BUILT_FOR}; {_cuda.COMPILER}; up to {_cuda.MAX_RANKS} ranks, {_cuda.MAX_EXPERTS} experts"


def obstacle() -> str:
    """Why the engine cannot be used here; empty when it can."""
    if _load_error:
        return _load_error
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    return _cuda.obstacle()


def low_latency_size_hint(max_tokens: int, hidden: int, ranks: int, experts: int, nodes: int = 1) -> int:
    """The least `num_rdma_bytes` for low-latency operations of these sizes, bytes; 0 where there can be none.

    nodes: that the ranks are on, as many on each.
    """
    if _load_error or experts > _cuda.MAX_EXPERTS or hidden > _cuda.MAX_HIDDEN or hidden % _HIDDEN_STEP:
        return 0
    # Where nodes differ, the smallest one's ranks have the most others.
    others = 0 if nodes == 1 else ranks - ranks // nodes if ranks % nodes == 0 else ranks - 1
    return _cuda.low_latency_size_hint(max_tokens, hidden, ranks, experts, others)


def high_throughput_least_bytes(row_bytes: int, extra_bytes: int, ranks: int) -> int:
    """The least `num_nvl_bytes` for rows of so many bytes, and of what travels with each; 0 without the extension."""
    return 0 if _load_error else _cuda.high_throughput_least_bytes(row_bytes, extra_bytes, ranks)


class CudaEngine:
    """Implements `ep_core.engine.Engine`. Constructing it is collective over `group`; `obstacle` must be empty.

    Raises `EPTimeoutError` for ranks that do not come within `timeout_s` seconds, `ValueError` for ranks that cannot be
    reached or were given other sizes. The variable EP_LL_SMS says how many processors low-latency kernels use; without
    it they choose themselves.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        num_nvl_bytes: int,
        num_rdma_bytes: int,
        timeout_s: float,
        device: torch.device,
    ) -> None:
        self.device = device
        self.max_experts = _cuda.MAX_EXPERTS
        self._rank, self._ranks = group.rank(), group.size()
        self._timeout_s = timeout_s
        self._ll_sms = sms_wanted(os.environ.get(_LL_SMS, ""))
        self._streams = Streams(device)
        self._open = OpenOperations()
        self._sizes: set[tuple[int, int, int]] = set()
        self._rows: dict[tuple[int, int, int], torch.Tensor] = {}
        self._offered: tuple[int, int, int] | None = None
        self._destroyed = False
        self._broken = ""
        torch.cuda.init()
        self._cuda = _cuda.Cuda(self._rank, self._ranks, num_nvl_bytes, num_rdma_bytes, timeout_s, device.index)
        try:
            self._peers = peers.map_peers(group, self._cuda, num_nvl_bytes, num_rdma_bytes, timeout_s, device)
        except BaseException:
            self._cuda.destroy()
            raise
        self.nodes = self._peers.nodes
        self._starts = torch.zeros((self._ranks, 1), dtype=torch.int32, device=device)

    def check(self) -> None:
        """See `ep_core.engine.Engine`. What was reported once is raised by every later call."""
        if self._destroyed:
            raise RuntimeError("this buffer cannot be used: it was destroyed")
        if self._broken:
            raise RuntimeError(f"this buffer cannot be used any more: {self._broken}")
        failure = self._cuda.failure()
        if failure is None:
            return
        phase, code, ranks, waited_s, what, where = failure
        if code == told.DEADLINE:
            exited = [peer for peer in ranks if rendezvous.has_exited(self._peers.pids[peer])]
            proxies = self._peers.failure()
            why = f"a proxy has ended: {proxies}" if proxies else ""
            raise EPTimeoutError(phase, self._rank, ranks, waited_s, exited, why=why)
        raise ValueError(told.wrong(phase, code, ranks, what, where))

    def call(self, previous_event: EventOverlap | None, async_finish: bool) -> Call:
        """See `ep_core.engine.Engine`."""
        return CudaCall(self._streams, previous_event, async_finish)

    def check_low_latency_fits(self, max_tokens: int, hidden: int, experts: int) -> None:
        """Raise `ValueError` when the kernels do not take these sizes or `num_rdma_bytes` is too small for them."""
        sizes = (max_tokens, hidden, experts)
        if sizes in self._sizes:
            return
        if hidden % _HIDDEN_STEP or hidden > _cuda.MAX_HIDDEN:
            raise ValueError(
                f"hidden: wanted a multiple of {_HIDDEN_STEP} up to {_cuda.MAX_HIDDEN} for low latency on CUDA, "
                f"got {hidden}"
            )
        self._cuda.check_low_latency_fits(*sizes)
        self._sizes.add(sizes)

    def new_map(self, max_tokens: int, topk: int, combine: Combine) -> LowLatencyMap | None:
        """See `ep_core.engine.Engine`."""
        shape = (self._ranks, max_tokens, topk)
        return LowLatencyMap(
            rows=torch.empty(shape, dtype=torch.int32, device=self.device),
            weights=torch.empty(shape, dtype=torch.float32, device=self.device) if combine == "local_reduce" else None,
            sent=torch.empty((max_tokens, 2), dtype=torch.int64, device=self.device),
        )

    def low_latency_dispatch(
        self, given: LowLatencyIn, out: LowLatencyOut, map: LowLatencyMap | None, call: Call, *, defer: bool
    ) -> Hook | None:
        """See `ep_core.engine.Engine`."""
        tokens, topk = given.topk_idx.shape
        hidden = given.x.shape[1]
        self.check_low_latency_fits(given.max_tokens, hidden, given.experts)
        addresses = (
            given.x.data_ptr(),
            given.topk_idx.data_ptr(),
            address_of(given.topk_weights),
            tokens,
            topk,
            given.max_tokens,
            hidden,
            given.experts,
            out.scales is not None,
            given.round_scale,
            given.ue8m0,
            out.x.data_ptr(),
            address_of(out.scales),
            out.src_info.data_ptr(),
            out.layout_range.data_ptr(),
            out.count.data_ptr(),
            address_of(out.stats),
            *_addresses(map),
        )

        def launch(stream: int, parts: int, ticket: int) -> None:
            self._cuda.ll_dispatch(stream, parts, self._ll_sms, ticket, *addresses)

        received = (out.x, out.scales, out.src_info, out.layout_range, out.count, out.stats)
        keep = (given.x, given.topk_idx, given.topk_weights, *received, *_tensors(map))
        return self._low_latency("low_latency_dispatch", launch, call, defer, keep)

    def low_latency_combine(self, given: LowLatencyBack, out: torch.Tensor, call: Call, *, defer: bool) -> Hook | None:
        """See `ep_core.engine.Engine`."""
        handle = given.handle
        _, _, max_tokens, hidden, experts = handle
        tokens, topk = given.topk_idx.shape
        self.check_low_latency_fits(max_tokens, hidden, experts)
        if given.zero_copy and self._offered != (max_tokens, hidden, experts):
            raise RuntimeError(
                "zero_copy: the rows must be in the buffer that get_next_low_latency_combine_buffer(handle) gave since "
                "the last low-latency operation"
            )
        # What a receive hook reads later is the caller's to change by then.
        topk_idx = given.topk_idx.clone() if defer else given.topk_idx
        topk_weights = given.topk_weights.clone() if defer else given.topk_weights
        x = self._rows[max_tokens, hidden, experts] if given.zero_copy else given.x
        addresses = (
            x.data_ptr(),
            topk_idx.data_ptr(),
            topk_weights.data_ptr(),
            tokens,
            topk,
            max_tokens,
            hidden,
            experts,
            handle.combine == "local_reduce",
            *_addresses(handle.map),
            out.data_ptr(),
        )

        def launch(stream: int, parts: int, ticket: int) -> None:
            self._cuda.ll_combine(stream, parts, self._ll_sms, ticket, *addresses)

        keep = (x, topk_idx, topk_weights, out, *_tensors(handle.map))
        return self._low_latency("low_latency_combine", launch, call, defer, keep)

    def _low_latency(
        self,
        name: str,
        launch: Callable[[int, int, int], None],
        call: Call,
        defer: bool,
        keep: tuple[torch.Tensor | None, ...],
    ) -> Hook | None:
        """Launch an operation, or its send; `keep` holds what the returned receive will still need."""
        self._open.check(name)
        self._offered = None
        if not defer:
            launch(call.stream, _BOTH, 0)
            self._open.begin(received=True)
            return None
        ticket = torch.empty(1, dtype=torch.int64, device=self.device)
        launch(call.stream, _SEND, ticket.data_ptr())
        number = self._open.begin(received=False)
        captured = torch.cuda.is_current_stream_capturing()

        def receive() -> None:
            self.check()
            if torch.cuda.is_current_stream_capturing() != captured:
                raise RuntimeError(
                    f"{name}: the receive hook must be called while the same CUDA graph is captured as the send, or "
                    "both outside of one"
                )
            self._open.receive(name, number)
            with self.call(None, False) as later:
                launch(later.stream, _RECEIVE, ticket.data_ptr())
            if later.stream == call.stream:
                return
            for tensor in (ticket, *keep):
                if tensor is not None:
                    tensor.record_stream(torch.cuda.current_stream(self.device))

        return receive

    def next_combine_buffer(self, max_tokens: int, hidden: int, experts: int) -> torch.Tensor:
        """See `ep_core.engine.Engine`. No peer reads or writes these rows, so they are memory of their own.

        It is kept as long as the engine, as a CUDA graph may hold its address.
        """
        self.check_low_latency_fits(max_tokens, hidden, experts)
        sizes = self._offered = (max_tokens, hidden, experts)
        if sizes not in self._rows:
            shape = (experts // self._ranks, self._ranks * max_tokens, hidden)
            self._rows[sizes] = torch.empty(shape, dtype=torch.bfloat16, device=self.device)
        return self._rows[sizes]

    def dispatch_layout(
        self, topk_idx: torch.Tensor, experts: int, call: Call
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `ep_core.engine.Engine`. The kernel writes every element."""
        tokens, topk = topk_idx.shape
        per_rank = torch.empty(self._ranks, dtype=torch.int32, device=self.device)
        per_expert = torch.empty(experts, dtype=torch.int32, device=self.device)
        in_rank = torch.empty((tokens, self._ranks), dtype=torch.bool, device=self.device)
        self._cuda.dispatch_layout(
            call.stream,
            topk_idx.data_ptr(),
            tokens,
            topk,
            experts,
            per_rank.data_ptr(),
            per_expert.data_ptr(),
            in_rank.data_ptr(),
        )
        return per_rank, per_expert, in_rank

    def dispatch_begin(self, given: HighThroughputIn, call: Call) -> DispatchPlan:
        """See `ep_core.engine.Engine`. Waits for the counts of all ranks unless it need not know them."""
        self._refuse_several_nodes("dispatch")
        if given.cached is not None:
            rank_prefix, channel_prefix, starts, src_idx, _, send_head = given.cached
            return DispatchPlan(rank_prefix, channel_prefix, starts, send_head, [], src_idx.shape[0])
        if not given.room and torch.cuda.is_current_stream_capturing():
            raise ValueError("handle: wanted one, or num_worst_tokens, while a CUDA graph is captured, got neither")
        per_rank, per_expert = given.num_tokens_per_rank, given.num_tokens_per_expert
        if per_rank is None or per_expert is None:
            raise RuntimeError("dispatch: the CUDA engine wants counts or a handle")
        tokens = given.x.shape[0]
        rank_prefix = torch.empty((self._ranks, self._ranks), dtype=torch.int32, device=self.device)
        send_head = torch.empty((tokens, self._ranks), dtype=torch.int32, device=self.device)
        self._cuda.ht_notify(
            call.stream,
            tokens,
            per_expert.shape[0],
            per_rank.data_ptr(),
            per_expert.data_ptr(),
            given.is_token_in_rank.data_ptr(),
            given.room,
            rank_prefix.data_ptr(),
            send_head.data_ptr(),
            not given.room,
        )
        received, local_counts = given.room, list[int]()
        if not given.room:
            received, local_counts = self._counts()
        return DispatchPlan(rank_prefix, per_rank.unsqueeze(1), self._starts, send_head, local_counts, received)

    def _counts(self) -> tuple[int, list[int]]:
        """What the notify just enqueued will receive. What its kernel reports goes before the host's own deadline."""
        try:
            return self._cuda.ht_counts(self._timeout_s + _KERNEL_FIRST_S)
        except Exception as error:
            self.check()
            self._broken = str(error)
            raise

    def dispatch_finish(self, given: HighThroughputIn, plan: DispatchPlan, out: HighThroughputOut, call: Call) -> None:
        """See `ep_core.engine.Engine`."""
        tokens, columns = given.x.shape
        self._cuda.ht_dispatch(
            call.stream,
            given.num_sms,
            given.x.data_ptr(),
            columns * given.x.element_size(),
            address_of(given.scales),
            0 if given.scales is None else given.scales.shape[1],
            address_of(given.topk_idx),
            address_of(given.topk_weights),
            0 if given.topk_idx is None else given.topk_idx.shape[1],
            tokens,
            0 if given.num_tokens_per_expert is None else given.num_tokens_per_expert.shape[0],
            given.is_token_in_rank.data_ptr(),
            plan.send_head.data_ptr(),
            plan.rank_prefix.data_ptr(),
            out.x.shape[0],
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
        self._refuse_several_nodes("combine")
        biases = [one.data_ptr() for one in given.bias] + [0, 0]
        self._cuda.ht_combine(
            call.stream,
            given.num_sms,
            given.x.data_ptr(),
            given.x.dtype == torch.float32,
            given.x.shape[1],
            address_of(given.topk_weights),
            0 if given.topk_weights is None else given.topk_weights.shape[1],
            given.is_token_in_rank.data_ptr(),
            given.send_head.data_ptr(),
            given.rank_prefix.data_ptr(),
            given.is_token_in_rank.shape[0],
            given.x.shape[0],
            biases[0],
            biases[1],
            out.data_ptr(),
            address_of(out_weights),
        )

    def _refuse_several_nodes(self, name: str) -> None:
        if self.nodes.count > 1:
            raise ValueError(
                f"{name}: high throughput on CUDA joins the ranks of one node, and these are on {self.nodes.count}: "
                'use low latency, or make the buffer for device="cpu"'
            )

    def destroy(self) -> None:
        """Wait for the device and give up the memory. May be called twice."""
        if self._destroyed:
            return
        self._destroyed = True
        if self.nodes.count > 1:
            # Proxies end, and forget the memory, before it is freed.
            with contextlib.suppress(RuntimeError):
                torch.cuda.synchronize(self.device)
            self._peers.close()
        self._cuda.destroy()
        self._peers.close()


def _tensors(map: LowLatencyMap | None) -> tuple[torch.Tensor | None, ...]:
    return () if map is None else (map.rows, map.weights, map.sent)


def _addresses(map: LowLatencyMap | None) -> tuple[int, int, int]:
    """Of the tensors of a map that `CudaEngine.new_map` made."""
    if map is None or map.sent is None:
        raise TypeError(
            "handle: wanted the very LowLatencyHandle that low_latency_dispatch returned, got its five values alone, "
            "without the map that the CUDA engine goes by"
        )
    return map.rows.data_ptr(), address_of(map.weights), map.sent.data_ptr()


def sms_wanted(text: str) -> int:
    """What EP_LL_SMS says; 0 when it says nothing."""
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise ValueError(f"{_LL_SMS}: wanted a number of processors from 1 on, got {text!r}")
    return int(text)
