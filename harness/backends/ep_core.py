"""epwatch's own extension, `ep_core.Buffer`, under measurement.

`ll`: `low_latency_dispatch` and `low_latency_combine` with every output handed in. `ht`: `harness.backends.ranked`.
EPWATCH_INJECT_DELAY_US, the fault for drills, makes every combine sleep that long inside the timed region, on a GPU in
its stream; the record's notes say so. Imports torch and ep_core only when used. Next to read: `ep_core.buffer`.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from harness import overrides, placement, routing, traffic
from harness.backends import packed
from harness.backends.base import Received, Setup
from harness.backends.ranked import Ranked, ring_bytes
from harness.case import FP8_BLOCK, Case, Phase

if TYPE_CHECKING:
    import torch


_SPIN_TO_CALIBRATE = 10_000_000


class EpCoreBackend:
    """`ep_core.Buffer` on CPU or CUDA tensors; see the module."""

    name: ClassVar[str] = "ep_core"
    kernels: ClassVar[MappingProxyType[Phase, tuple[str, ...]]] = MappingProxyType(
        {
            "dispatch": ("ep_ll_dispatch", "ep_ht_layout", "ep_ht_notify", "ep_ht_dispatch"),
            "combine": ("ep_ll_combine", "ep_ht_combine"),
        }
    )

    @classmethod
    def availability(cls) -> str | None:
        """None when the compiled extension can be imported, else why not."""
        try:
            import ep_core.buffer  # noqa: F401
        except ImportError as error:
            return f"the extension cannot be imported ({error}); `python -m ep_core` says more"
        return None

    @classmethod
    def supports(cls, case: Case) -> str | None:
        """`ll` in bf16 or fp8 with either combine, `ht` in bf16; on CUDA where its engine is, `ht` on one node."""
        if case.device == "cuda":
            from ep_core import cuda, peers

            if case.nodes != 1 and case.mode == "ht":
                return "on CUDA the ranks of high throughput must be on one node"
            if case.nodes != 1 and (why := peers.port_obstacle()):
                return f"its ranks on CUDA cannot be on several nodes here: {why}"

            if why := cuda.obstacle():
                return f"its CUDA engine cannot be used: {why}"
        if case.mode == "ht" and case.dtype != "bf16":
            return "in mode ht it is measured with bf16 only"
        return None

    def setup(self, given: Setup) -> None:
        """Make the buffer and, for `ll`, every output. Raises `CaseError` for a bad EPWATCH_INJECT_DELAY_US."""
        self._case = given.case
        self._delay_us = overrides.injected_delay_us(os.environ)
        self._delay_cycles = round(self._delay_us * _cycles_per_us()) if self._on_gpu and self._delay_us else 0
        self._engine: _LowLatency | Ranked = _LowLatency(given) if given.case.mode == "ll" else _high_throughput(given)

    @property
    def _on_gpu(self) -> bool:
        return self._case.device == "cuda"

    def dispatch(self) -> None:
        """Layout (`ht`) and dispatch."""
        self._engine.dispatch()

    def combine(self) -> None:
        """Combine, after the injected delay where there is one."""
        if self._delay_cycles:
            _spin(self._delay_cycles)
        elif self._delay_us:
            time.sleep(self._delay_us * 1e-6)
        self._engine.combine()

    def scratch(self) -> Sequence[torch.Tensor]:
        """Every output; for `ht` those of the last call, whose memory the next one may be given again."""
        return self._engine.scratch()

    def received(self) -> Received:
        """The rows, with source and token as the handle says."""
        self._settle()
        return self._engine.received()

    def give(self, expert_output: torch.Tensor) -> None:
        """Put the experts' outputs into the slots of their rows."""
        self._engine.give(expert_output)

    def combined(self) -> torch.Tensor:
        """The last combine's result: bf16 [T, H]."""
        self._settle()
        return self._engine.out

    def _settle(self) -> None:
        """Wait until the GPU is idle, and raise what its kernels have found."""
        if self._on_gpu:
            import torch

            torch.cuda.synchronize()
        self._engine.buffer.check()

    def wire_bytes(self) -> dict[Phase, float] | None:
        """CUDA: what is left when a token goes once to each rank. CPU: what goes to other nodes.

        None on the CPU of one node, where rows are read in place from shared memory: there is no link.
        """
        if not self._on_gpu and self._case.nodes == 1:
            return None
        count = traffic.deduplicated_bytes if self._on_gpu else traffic.bytes_between_nodes
        return count(self._case, routing.all_selections(self._case))

    def notes(self) -> list[str]:
        """The injected delay, where there is one."""
        if not self._delay_us:
            return []
        return [f"{overrides.INJECT_DELAY}={self._delay_us:g}: every combine slept that long, a fault for drills"]

    def close(self) -> None:
        """Destroy the buffer; drop the tensors."""
        engine = self.__dict__.pop("_engine", None)
        if engine is not None:
            engine.close()
        self.__dict__.clear()


def _spin(cycles: int) -> None:
    """Keep the current stream busy for so many cycles of the GPU's clock."""
    import torch

    torch.cuda._sleep(cycles)


def _cycles_per_us() -> float:
    """How many cycles of the GPU's clock make a microsecond, by trying."""
    import torch

    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    _spin(_SPIN_TO_CALIBRATE)
    begin.record()
    _spin(_SPIN_TO_CALIBRATE)
    end.record()
    torch.cuda.synchronize()
    spun_us: float = begin.elapsed_time(end) * 1e3
    return _SPIN_TO_CALIBRATE / spun_us


class _LowLatency:
    """Packed receive buffers [L, S, H] with S = R * Tmax slots per local expert, allocated once."""

    def __init__(self, given: Setup) -> None:
        import torch

        from ep_core import Buffer

        case = self._case = given.case
        self._inputs = given.inputs
        self._max_tokens = max(case.tokens, 1)
        # Weights that go along with the tokens are what makes combine reduce on the experts' ranks.
        self._early_weights = given.inputs.topk_weights if case.combine == "local_reduce" else None
        device = given.inputs.x.device
        self.buffer = Buffer(
            given.group,
            num_rdma_bytes=Buffer.get_low_latency_rdma_size_hint(
                self._max_tokens, case.hidden, case.ranks, case.experts, num_nodes=_nodes(given)
            ),
            low_latency_mode=True,
            timeout_s=given.deadline_s,
            device=device,
        )
        local, slots = case.experts_per_rank, case.ranks * self._max_tokens
        fp8 = case.dtype == "fp8"
        dtype, shape = torch.float8_e4m3fn if fp8 else torch.bfloat16, (local, slots, case.hidden)
        scales = (local, case.hidden // FP8_BLOCK, slots)
        self._x = torch.empty(shape, dtype=dtype, device=device)
        self._scales = torch.empty(scales, device=device).transpose(1, 2) if fp8 else None
        self._src_info = torch.empty(local, slots, dtype=torch.int32, device=device)
        self._layout_range = torch.empty(local, case.ranks, dtype=torch.int64, device=device)
        self._count = torch.empty(local, dtype=torch.int32, device=device)
        self._expert_output = torch.zeros(shape, dtype=torch.bfloat16, device=device)
        self.out = torch.empty(case.tokens, case.hidden, dtype=torch.bfloat16, device=device)
        self._handle: Any = None

    def scratch(self) -> list[torch.Tensor]:
        made = (self._x, self._scales, self._src_info, self._layout_range, self._count, self._expert_output, self.out)
        return [tensor for tensor in made if tensor is not None]

    def dispatch(self) -> None:
        self._handle = self.buffer.low_latency_dispatch(
            self._inputs.x,
            self._inputs.topk_idx,
            self._max_tokens,
            self._case.experts,
            use_fp8=self._scales is not None,
            out_packed_recv_x=self._x,
            out_packed_recv_x_scales=self._scales,
            out_src_info=self._src_info,
            out_layout_range=self._layout_range,
            out_count=self._count,
            topk_weights=self._early_weights,
        )[2]

    def combine(self) -> None:
        self.buffer.low_latency_combine(
            self._expert_output, self._inputs.topk_idx, self._inputs.topk_weights, self._handle, out=self.out
        )

    def received(self) -> Received:
        made = packed.received(self._x, self._scales, self._src_info, self._layout_range, self._count, ordered=True)
        self._in_use = made.expert, made.slot
        return made

    def give(self, expert_output: torch.Tensor) -> None:
        self._expert_output[self._in_use] = expert_output

    def close(self) -> None:
        self.buffer.destroy()


def _nodes(given: Setup) -> int:
    """How many nodes to make room for: on CUDA what goes to other nodes takes memory of the buffer."""
    if given.case.device == "cpu":
        return 1
    import torch.distributed as dist

    domains: list[str] = [""] * given.case.ranks
    dist.all_gather_object(domains, placement.memory_domain(), group=given.group)
    sizes = Counter(placement.memory_domains(domains)).values()
    # As many ranks on each is what the hint knows; else as for a rank on each, which is enough for any.
    return len(sizes) if len(set(sizes)) == 1 else given.case.ranks


def _high_throughput(given: Setup) -> Ranked:
    from ep_core import Buffer

    buffer = Buffer(
        given.group,
        num_nvl_bytes=ring_bytes(Buffer, given.case),
        timeout_s=given.deadline_s,
        device=given.inputs.x.device,
    )
    return Ranked(buffer, given, ordered=True)
