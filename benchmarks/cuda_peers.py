"""Peers of benchmarks/cuda_engine.py that no entry point announces: DeepEP, MSCCL++'s EP, and torch's two collectives.

Backends as harness/backends/base.py describes them; each imports its library only when asked. `LegacyBackend` speaks
DeepEP's legacy interface, which `ep_core.Buffer` has too, so it can be tried without DeepEP. Libraries that fuse
products and sums in low-latency combine round some elements otherwise than the oracle: `within_rounding` says which of
these count as right.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.distributed as dist

from harness import oracle, routing
from harness.backends import packed, torch_a2a
from harness.backends.base import Received, Setup
from harness.backends.ranked import Ranked, ring_bytes
from harness.case import FP8_BLOCK, Case, Phase
from harness.inputs import token_rows

BF16_STEP = 2.0**-7
FLOAT_ROUNDING = 2.0**-22


def within_rounding(case: Case, rank: int, combined: torch.Tensor) -> torch.Tensor:
    """The result of a combine, with the oracle's element in place of each that differs from it by rounding alone.

    That is by one step of bf16, or by what float32 loses of the largest terms of the element's token.
    """
    wanted = oracle.expected_combine(case, rank).float()
    chosen, weights = (torch.from_numpy(one(case, rank)) for one in (routing.selections, routing.weights))
    factors = torch.where(chosen >= 0, oracle.expert_factor(chosen.clamp_min(0)).abs() * weights, 0.0)
    reach = token_rows(case, rank).float().abs().amax(1) * factors.sum(1)
    got = combined.cpu().float()
    near = (got - wanted).abs() <= BF16_STEP * wanted.abs() + FLOAT_ROUNDING * reach[:, None]
    return torch.where(near, wanted, got).to(torch.bfloat16)


class _Peer:
    """What the peers have in common."""

    name: ClassVar[str]
    module: ClassVar[str]

    @classmethod
    def availability(cls) -> str | None:
        """None when the library can be imported, else why not."""
        try:
            importlib.import_module(cls.module)
        except (ImportError, OSError) as error:
            return f"{cls.module} cannot be imported ({str(error).partition(chr(10))[0]})"
        return None

    def wire_bytes(self) -> dict[Phase, float] | None:
        """Not known."""
        return None

    def notes(self) -> list[str]:
        """Nothing to add."""
        return []

    def close(self) -> None:
        """Drop everything."""
        self.__dict__.clear()


class GatherScatterBackend(_Peer):
    """`ht` by all_gather and reduce_scatter, as inference engines do it by default: every rank gets every token.

    What is timed moves all tokens with their top-k; which rows have work here is found outside of the clock, as an
    engine's expert kernels find it.
    """

    name = "torch-agrs"
    module = "torch.distributed"

    @classmethod
    def supports(cls, case: Case) -> str | None:
        """`ht` in bf16 on two ranks."""
        if case.mode != "ht" or case.dtype != "bf16":
            return "it has mode ht in bf16"
        if case.ranks > 2:
            return "its sum over more than two ranks is rounded on the way"
        if case.device == "cuda" and not dist.is_nccl_available():
            return "this torch was built without NCCL"
        return None

    def setup(self, given: Setup) -> None:
        """Every rank's tokens, and this rank's part of their results."""
        self._case, self._rank, self._given = given.case, given.rank, given.inputs
        self._nccl = torch_a2a.nccl_group(given) if given.case.device == "cuda" else None
        self._group = self._nccl or given.group
        tokens = given.case.ranks * given.case.tokens
        self._sent = (given.inputs.x, given.inputs.topk_idx, given.inputs.topk_weights)
        self._all = [one.new_empty((tokens, one.shape[1])) for one in self._sent]
        self._partial = torch.zeros_like(self._all[0])
        self._out = torch.empty_like(given.inputs.x)
        self._reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

    def scratch(self) -> Sequence[torch.Tensor]:
        """Everything that is written."""
        return [*self._all, self._partial, self._out]

    def dispatch(self) -> None:
        """Gather tokens, experts and weights."""
        for everyone, mine in zip(self._all, self._sent, strict=True):
            dist.all_gather_into_tensor(everyone, mine, group=self._group)

    def received(self) -> Received:
        """The tokens that have an expert here."""
        x, topk_idx, weights = self._all
        local = topk_idx - self._rank * self._case.experts_per_rank
        here = (topk_idx >= 0) & (local >= 0) & (local < self._case.experts_per_rank)
        self._rows = torch.nonzero(here.any(1)).flatten()
        return Received(
            x=x[self._rows],
            source=self._rows // self._case.tokens,
            token=self._rows % self._case.tokens,
            topk_idx=torch.where(here, local, -1)[self._rows],
            topk_weights=weights.masked_fill(~here, 0.0)[self._rows],
            ordered=True,
        )

    def give(self, expert_output: torch.Tensor) -> None:
        """Put the sums where the tokens are; a token without work here adds nothing."""
        self._partial.zero_()
        self._partial[self._rows] = expert_output

    def combine(self) -> None:
        """Sum over the ranks."""
        self._reduce_scatter(self._out, self._partial, group=self._group)

    def combined(self) -> torch.Tensor:
        """The last combine's result."""
        return self._out

    def close(self) -> None:
        """Drop the tensors and the group."""
        nccl = self.__dict__.pop("_nccl", None)
        super().close()
        if nccl is not None:
            torch_a2a.abort(nccl)


class LegacyBackend(_Peer):
    """DeepEP's legacy `Buffer`, of whichever module has it; at its own defaults."""

    kernels: ClassVar[Mapping[Phase, tuple[str, ...]]] = MappingProxyType(
        {
            "dispatch": ("dispatch", "get_dispatch_layout", "notify_dispatch"),
            "combine": ("combine", "cached_notify_combine"),
        }
    )

    @classmethod
    def supports(cls, case: Case) -> str | None:
        """`ll` with combine exact, `ht` in bf16."""
        if case.mode == "ll" and case.combine != "exact":
            return "its low-latency combine is exact"
        if case.mode == "ht" and case.dtype != "bf16":
            return "it is measured with bf16 rows in mode ht"
        return None

    def setup(self, given: Setup) -> None:
        """Make the buffer."""
        buffer = importlib.import_module(self.module).Buffer
        self._case, self._rank = given.case, given.rank
        self._engine: _LegacyPacked | Ranked
        if given.case.mode == "ll":
            self._engine = _LegacyPacked(buffer, given)
        else:
            made = buffer(given.group, num_nvl_bytes=ring_bytes(buffer, given.case))
            self._engine = Ranked(made, given, ordered=False)

    def scratch(self) -> Sequence[torch.Tensor]:
        """What the last dispatch and combine returned, whose memory the next ones may be given again."""
        return self._engine.scratch()

    def dispatch(self) -> None:
        """Dispatch; in mode `ht` with its layout."""
        self._engine.dispatch()

    def received(self) -> Received:
        """The rows, as the handle describes them."""
        return self._engine.received()

    def give(self, expert_output: torch.Tensor) -> None:
        """Put the experts' outputs where combine reads them."""
        self._engine.give(expert_output)

    def combine(self) -> None:
        """Combine."""
        self._engine.combine()

    def combined(self) -> torch.Tensor:
        """The last combine's result; in mode `ll` rounding aside."""
        out = self._engine.out
        return within_rounding(self._case, self._rank, out) if self._case.mode == "ll" else out


class _LegacyPacked:
    """Mode `ll` of `LegacyBackend`: the library allocates what it receives."""

    def __init__(self, buffer: Any, given: Setup) -> None:
        case = self._case = given.case
        self._inputs = given.inputs
        sizes = (case.tokens, case.hidden, case.ranks, case.experts)
        self._buffer = buffer(
            given.group,
            num_rdma_bytes=buffer.get_low_latency_rdma_size_hint(*sizes),
            low_latency_mode=True,
            num_qps_per_rank=case.experts_per_rank,
            allow_nvlink_for_low_latency_mode=True,
        )
        self.out = torch.empty_like(given.inputs.x)
        self._made: tuple[Any, ...] = ()
        self._handle: Any = None

    def scratch(self) -> list[torch.Tensor]:
        return [one for one in (*self._made, self.out) if isinstance(one, torch.Tensor) and one.numel()]

    def dispatch(self) -> None:
        case, inputs = self._case, self._inputs
        rows, count, self._handle, _, _ = self._buffer.low_latency_dispatch(
            inputs.x, inputs.topk_idx, case.tokens, case.experts, use_fp8=case.dtype == "fp8"
        )
        self._made = (*(rows if isinstance(rows, tuple) else (rows, None)), count)

    def received(self) -> Received:
        x, scales, count = self._made
        made = packed.received(x, scales, self._handle[0], self._handle[1], count, ordered=False)
        self._in_use = made.expert, made.slot
        return made

    def give(self, expert_output: torch.Tensor) -> None:
        self._expert_output = expert_output.new_zeros(self._made[0].shape)
        self._expert_output[self._in_use] = expert_output

    def combine(self) -> None:
        inputs = self._inputs
        self._buffer.low_latency_combine(
            self._expert_output, inputs.topk_idx, inputs.topk_weights, self._handle, out=self.out
        )


class DeepEpBackend(LegacyBackend):
    """DeepEP itself."""

    name = "deep_ep"
    module = "deep_ep"

    @classmethod
    def supports(cls, case: Case) -> str | None:
        """As the interface, on CUDA."""
        return "it takes CUDA tensors only" if case.device == "cpu" else super().supports(case)


class MscclppBackend(_Peer):
    """MSCCL++'s EP in mode `ll`, by its `MoECommunicator`, whose rows are packed as DeepEP's are."""

    name = "mscclpp.ext.ep"
    module = "mscclpp.ext.ep"
    kernels: ClassVar[Mapping[Phase, tuple[str, ...]]] = MappingProxyType(
        {"dispatch": ("dispatch",), "combine": ("combine",)}
    )

    @classmethod
    def supports(cls, case: Case) -> str | None:
        """`ll` with combine exact, where the installed version has the interface."""
        if case.mode != "ll" or case.combine != "exact" or case.device == "cpu":
            return "it is measured in mode ll with combine exact, on CUDA"
        if not hasattr(importlib.import_module(cls.module), "MoECommunicator"):
            return "this version has no MoECommunicator"
        return None

    def setup(self, given: Setup) -> None:
        """Make the communicator and, since it takes them, the outputs."""
        self._case, self._rank, self._given = given.case, given.rank, given.inputs
        case, fp8 = given.case, given.case.dtype == "fp8"
        self._communicator = importlib.import_module(self.module).MoECommunicator(
            group=given.group,
            device=given.inputs.x.device,
            num_experts=case.experts,
            hidden_size=case.hidden,
            topk=case.topk,
            max_tokens_per_rank=case.tokens,
            mode="ll",
            quant_format="fp8_e4m3" if fp8 else None,
        )
        shape = (case.experts_per_rank, case.ranks * case.tokens, case.hidden)
        self._x = given.inputs.x.new_empty(shape, dtype=torch.float8_e4m3fn if fp8 else torch.bfloat16)
        self._expert_output = given.inputs.x.new_zeros(shape)
        self._out = torch.empty_like(given.inputs.x)

    def scratch(self) -> Sequence[torch.Tensor]:
        """The outputs."""
        return [self._x, self._expert_output, self._out]

    def dispatch(self) -> None:
        """Dispatch."""
        given = self._given
        self._made, self._handle = self._communicator.dispatch(
            given.x, given.topk_idx, given.topk_weights, output_buffer=self._x
        )

    def received(self) -> Received:
        """The rows, as the handle describes them."""
        scales = None if self._made.scales is None else self._made.scales.local
        blocks = self._case.hidden // FP8_BLOCK
        if scales is not None and scales.shape[1] == blocks:
            scales = scales.transpose(1, 2)
        handle = self._handle
        made = packed.received(
            self._x, scales, handle.src_info, handle.layout_range, self._made.num_tokens_per_expert, ordered=False
        )
        self._in_use = made.expert, made.slot
        return made

    def give(self, expert_output: torch.Tensor) -> None:
        """Put the experts' outputs into the slots of their rows."""
        self._expert_output[self._in_use] = expert_output

    def combine(self) -> None:
        """Combine."""
        self._communicator.combine(self._expert_output, self._handle, out=self._out)

    def combined(self) -> torch.Tensor:
        """The last combine's result, rounding aside."""
        return within_rounding(self._case, self._rank, self._out)
