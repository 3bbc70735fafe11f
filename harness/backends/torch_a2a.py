"""The thing a user would otherwise write: dispatch and combine with `all_to_all_single`, on gloo or, for CUDA, NCCL.

`ll`: expand every token once per selection, sort by expert, exchange counts, exchange rows, permute to experts; the way
back reversed, then the weighted sum on the token's rank. `ht`: one copy per destination rank, with its selections and
weights; the way back summed over ranks in rank order. Counts are exchanged in every dispatch, as routing changes in a
model. Imports torch only when used. Next to read: `harness.backends.ep_core`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, ClassVar

from harness import routing, traffic
from harness.backends.base import Received, Setup
from harness.case import FP8_BLOCK, Case, Phase
from harness.errors import BackendError

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

FP8_MAX = 448.0
FP8_AMAX_FLOOR = 1e-4


class TorchBackend:
    """`all_to_all_single` on CPU or CUDA tensors; see the module."""

    name: ClassVar[str] = "torch"

    @classmethod
    def availability(cls) -> str | None:
        """None: torch is a dependency; a reason when it was built without distributed or gloo."""
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_gloo_available():
            return "this torch was built without torch.distributed and gloo"
        return None

    @classmethod
    def supports(cls, case: Case) -> str | None:
        """`ll` in bf16 or fp8 with combine exact, `ht` in bf16; CUDA where torch has NCCL."""
        if case.device == "cuda":
            import torch.distributed as dist

            if not dist.is_nccl_available():
                return "this torch was built without NCCL, and gloo's all_to_all takes no CUDA tensors"
        if case.mode == "ll" and case.combine != "exact":
            return "in mode ll its combine is exact"
        if case.mode == "ht" and case.dtype != "bf16":
            return "in mode ht it carries bf16 only"
        return None

    def setup(self, given: Setup) -> None:
        """Keep what was given; every buffer's size is known only from each dispatch's counts.

        CUDA tensors go over a group of their own, by NCCL: raises `BackendError` where ranks share a GPU.
        """
        self._case = given.case
        self._nccl = nccl_group(given) if given.case.device == "cuda" else None
        group = self._nccl or given.group
        self._engine: _Packed | _Ranked = _Packed(given, group) if given.case.mode == "ll" else _Ranked(given, group)

    def scratch(self) -> Sequence[torch.Tensor]:
        """The tensors of the last dispatch and combine: poisoned, their memory cannot pass for a new result."""
        return self._engine.scratch()

    def dispatch(self) -> None:
        """Exchange counts, then rows."""
        self._engine.dispatch()

    def received(self) -> Received:
        """The rows, with their sources and tokens reconstructed from the order in which they were sent."""
        return self._engine.received()

    def give(self, expert_output: torch.Tensor) -> None:
        """Keep the experts' outputs for combine."""
        self._engine.expert_output = expert_output

    def combine(self) -> None:
        """Exchange rows back and reduce."""
        self._engine.combine()

    def combined(self) -> torch.Tensor:
        """The last combine's result: bf16 [T, H]."""
        return self._engine.out

    def wire_bytes(self) -> dict[Phase, float] | None:
        """Rows that leave their rank: one per remote selection (`ll`) or remote rank (`ht`)."""
        topk_idx = routing.all_selections(self._case)
        count = traffic.remote_selections if self._case.mode == "ll" else traffic.remote_tokens
        rows = count(self._case, topk_idx)
        return {
            "dispatch": rows * traffic.dispatch_row_bytes(self._case),
            "combine": rows * traffic.combine_row_bytes(self._case),
        }

    def notes(self) -> list[str]:
        """Nothing to add."""
        return []

    def close(self) -> None:
        """Drop the tensors and the group."""
        nccl = self.__dict__.pop("_nccl", None)
        self.__dict__.clear()
        if nccl is not None:
            abort(nccl)


def abort(group: dist.ProcessGroup) -> None:
    """Give a group of NCCL back at once: to destroy it would be to wait for the peers."""
    from torch.distributed.distributed_c10d import _abort_process_group

    _abort_process_group(group)


def nccl_group(given: Setup) -> dist.ProcessGroup:
    """A group of NCCL over the ranks of the run. Raises `BackendError` where two of them share a GPU."""
    import torch
    import torch.distributed as dist

    mine = str(torch.cuda.get_device_properties(given.inputs.x.device).uuid)
    gpu_of_rank: list[str] = [""] * given.case.ranks
    dist.all_gather_object(gpu_of_rank, mine, group=given.group)
    for rank, gpu in enumerate(gpu_of_rank):
        first = gpu_of_rank.index(gpu)
        if first != rank:
            raise BackendError(
                f"NCCL wants a GPU for each rank, and ranks {first} and {rank} share one; gloo's all_to_all takes no "
                "CUDA tensors"
            )
    group: dist.ProcessGroup = dist.new_group(backend="nccl", timeout=timedelta(seconds=given.deadline_s))
    return group


@dataclass(frozen=True)
class _Exchange:
    """One all-to-all of rows with known splits, and its way back. Rows travel as bytes, so any dtype goes."""

    group: torch.distributed.ProcessGroup
    sent: list[int]
    came: list[int]

    def there(self, rows: torch.Tensor) -> torch.Tensor:
        return self._move(rows, self.sent, self.came)

    def back(self, rows: torch.Tensor) -> torch.Tensor:
        return self._move(rows, self.came, self.sent)

    def _move(self, rows: torch.Tensor, give: list[int], take: list[int]) -> torch.Tensor:
        import torch
        import torch.distributed as dist

        taken = torch.empty((sum(take), *rows.shape[1:]), dtype=rows.dtype, device=rows.device)
        dist.all_to_all_single(taken.view(torch.uint8), rows.view(torch.uint8), take, give, group=self.group)
        return taken


def _quantise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float8_e4m3fn rows and float32 scales [T, H / 128]: amax over 128 columns, at least 1e-4, over 448."""
    import torch

    blocks = x.float().view(len(x), x.shape[1] // FP8_BLOCK, FP8_BLOCK)
    scales = blocks.abs().amax(2).clamp_min(FP8_AMAX_FLOOR) / FP8_MAX
    return (blocks / scales[:, :, None]).flatten(1).to(torch.float8_e4m3fn), scales


class _Packed:
    """`ll`: one row per (token, expert) selection, delivered expert by expert."""

    def __init__(self, given: Setup, group: dist.ProcessGroup) -> None:
        import torch

        self._given, self._case, self._group = given, given.case, group
        self.expert_output = torch.empty(0)
        self.out = torch.empty(0)
        self._scales: torch.Tensor | None = None
        self._rows = torch.empty(0)

    def scratch(self) -> list[torch.Tensor]:
        return [t for t in (self._rows, self._scales, self.expert_output, self.out) if t is not None and t.numel()]

    def dispatch(self) -> None:
        import torch
        import torch.distributed as dist

        case, inputs = self._case, self._given.inputs
        experts = inputs.topk_idx.flatten()
        chosen = torch.nonzero(experts >= 0).flatten()
        self._sent = chosen[torch.argsort(experts[chosen], stable=True)]
        counts = torch.bincount(experts[chosen], minlength=case.experts)
        self._counts = torch.empty_like(counts)
        dist.all_to_all_single(self._counts, counts, group=self._group)
        by_source = self._counts.view(case.ranks, case.experts_per_rank)
        self._exchange = _Exchange(self._group, counts.view(case.ranks, -1).sum(1).tolist(), by_source.sum(1).tolist())
        experts_here = torch.arange(case.experts_per_rank, device=counts.device)
        local = experts_here.repeat(case.ranks).repeat_interleave(self._counts)
        self._to_expert = torch.argsort(local, stable=True)
        tokens = self._sent // case.topk
        if case.dtype == "fp8":
            rows, scales = _quantise(inputs.x)
            self._scales = self._exchange.there(scales[tokens])[self._to_expert]
            self._rows = self._exchange.there(rows.view(torch.uint8)[tokens])[self._to_expert].view(rows.dtype)
        else:
            self._rows = self._exchange.there(inputs.x[tokens])[self._to_expert]

    def combine(self) -> None:
        import torch

        case, inputs = self._case, self._given.inputs
        by_source = torch.empty_like(self.expert_output)
        by_source[self._to_expert] = self.expert_output
        came = self._exchange.back(by_source)
        selected = torch.zeros(case.tokens * case.topk, case.hidden, dtype=came.dtype, device=came.device)
        selected[self._sent] = came
        selected = selected.view(case.tokens, case.topk, case.hidden)
        weights = inputs.topk_weights.masked_fill(inputs.topk_idx < 0, 0.0)
        total = torch.zeros(case.tokens, case.hidden, device=came.device)
        for column in range(case.topk):
            total += selected[:, column].float() * weights[:, column, None]
        self.out = total.to(torch.bfloat16)

    def received(self) -> Received:
        import torch

        case, rank = self._case, self._given.rank
        all_counts, to_expert = self._counts.cpu(), self._to_expert.cpu()
        by_source = all_counts.view(case.ranks, case.experts_per_rank)
        first = rank * case.experts_per_rank
        tokens = []
        for source in range(case.ranks):
            experts = torch.from_numpy(routing.selections(case, source)).flatten() - first
            chosen = torch.nonzero((experts >= 0) & (experts < case.experts_per_rank)).flatten()
            tokens.append(chosen[torch.argsort(experts[chosen], stable=True)] // case.topk)
        cells = torch.arange(case.ranks * case.experts_per_rank).repeat_interleave(all_counts)
        expert = (cells % case.experts_per_rank)[to_expert]
        counts = by_source.sum(0)
        return Received(
            x=self._rows,
            scales=self._scales,
            source=(cells // case.experts_per_rank)[to_expert],
            token=torch.cat(tokens)[to_expert],
            expert=expert,
            slot=torch.arange(len(expert)) - (torch.cumsum(counts, 0) - counts)[expert],
            counts=counts,
            ordered=True,
        )


class _Ranked:
    """`ht`: one row per (token, destination rank), with the selections that are local there."""

    def __init__(self, given: Setup, group: dist.ProcessGroup) -> None:
        import torch

        self._given, self._case, self._group = given, given.case, group
        self.expert_output = torch.empty(0)
        self.out = torch.empty(0)
        self._rows = torch.empty(0)
        self._topk_idx = self._topk_weights = torch.empty(0)

    def scratch(self) -> list[torch.Tensor]:
        made = (self._rows, self._topk_idx, self._topk_weights, self.expert_output, self.out)
        return [tensor for tensor in made if tensor.numel()]

    def dispatch(self) -> None:
        import torch
        import torch.distributed as dist

        case, inputs = self._case, self._given.inputs
        owner = torch.where(inputs.topk_idx >= 0, inputs.topk_idx // case.experts_per_rank, case.ranks)
        in_rank = torch.zeros(case.tokens, case.ranks + 1, dtype=torch.bool, device=owner.device)
        in_rank = in_rank.scatter_(1, owner, True)[:, : case.ranks]
        destination, tokens = torch.nonzero(in_rank.T, as_tuple=True)
        counts = in_rank.sum(0)
        self._came = torch.empty_like(counts)
        dist.all_to_all_single(self._came, counts, group=self._group)
        self._sent, self._sent_counts = tokens, counts.tolist()
        self._exchange = _Exchange(self._group, self._sent_counts, self._came.tolist())
        there = owner[tokens] == destination[:, None]
        local = torch.where(there, inputs.topk_idx[tokens] % case.experts_per_rank, -1)
        self._rows = self._exchange.there(inputs.x[tokens])
        self._topk_idx = self._exchange.there(local)
        self._topk_weights = self._exchange.there(inputs.topk_weights[tokens].masked_fill(~there, 0.0))

    def combine(self) -> None:
        import torch

        came = self._exchange.back(self.expert_output)
        total = torch.zeros(self._case.tokens, self._case.hidden, device=came.device)
        for rows, tokens in zip(
            torch.split(came, self._sent_counts), torch.split(self._sent, self._sent_counts), strict=True
        ):
            total[tokens] += rows.float()
        self.out = total.to(torch.bfloat16)

    def received(self) -> Received:
        import torch

        case, rank = self._case, self._given.rank
        tokens = [
            torch.from_numpy((routing.selections(case, source) // case.experts_per_rank == rank).any(1).nonzero()[0])
            for source in range(case.ranks)
        ]
        return Received(
            x=self._rows,
            source=torch.arange(case.ranks).repeat_interleave(self._came.cpu()),
            token=torch.cat(tokens),
            topk_idx=self._topk_idx,
            topk_weights=self._topk_weights,
            ordered=True,
        )
