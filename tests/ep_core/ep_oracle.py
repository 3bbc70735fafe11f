"""What dispatch and combine must give, in plain torch, from all ranks' inputs at once.

Every rank can make every rank's inputs from the seed, so checking needs no communication.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Problem:
    ranks: int
    max_tokens: int
    hidden: int
    topk: int
    experts: int
    tokens: tuple[int, ...]
    seed: int = 0
    masked: float = 0.0
    duplicates: bool = False

    @property
    def local(self) -> int:
        return self.experts // self.ranks

    @property
    def slots(self) -> int:
        return self.ranks * self.max_tokens


@dataclass(frozen=True)
class Inputs:
    x: torch.Tensor
    topk_idx: torch.Tensor
    topk_weights: torch.Tensor

    def to(self, device: torch.device) -> Inputs:
        """Copies on `device`; itself where that is the CPU."""
        return Inputs(self.x.to(device), self.topk_idx.to(device), self.topk_weights.to(device))


def inputs(problem: Problem, rank: int) -> Inputs:
    make = torch.Generator().manual_seed(problem.seed * 1000 + rank)
    tokens, topk = problem.tokens[rank], problem.topk
    x = torch.randn((tokens, problem.hidden), generator=make).bfloat16()
    if problem.duplicates or topk > problem.experts:
        idx = torch.randint(0, problem.experts, (tokens, topk), generator=make)
    else:
        idx = torch.rand((tokens, problem.experts), generator=make).argsort(1)[:, :topk].contiguous()
    # No expert may be selected more than max_tokens times by a rank: what is too much is masked.
    for expert in range(problem.experts):
        hits = (idx == expert).nonzero()[problem.max_tokens :]
        idx[hits[:, 0], hits[:, 1]] = -1
    idx[torch.rand(idx.shape, generator=make) < problem.masked] = -1
    weights = torch.rand((tokens, topk), generator=make) * 2 - 0.5
    return Inputs(x, idx.to(torch.int64), weights)


def everyone(problem: Problem) -> list[Inputs]:
    return [inputs(problem, rank) for rank in range(problem.ranks)]


def quantise(x: torch.Tensor, round_scale: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """float8 rows and scales of bf16 rows, by torch's own conversion."""
    blocks = x.float().view(*x.shape[:-1], x.shape[-1] // 128, 128)
    amax = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-4)
    if round_scale:
        scale = torch.exp2(torch.ceil(torch.log2(amax.double() / 448))).float()
        return (blocks * (1 / scale)).to(torch.float8_e4m3fn).view(x.shape), scale.squeeze(-1)
    # `448 / amax` would be a rounded reciprocal times 448 in torch: not the quotient.
    return (blocks * torch.full_like(amax, 448.0).div(amax)).to(torch.float8_e4m3fn).view(x.shape), (
        amax / 448
    ).squeeze(-1)


def packed_exponents(scales: torch.Tensor) -> torch.Tensor:
    """Scales that are powers of two, as UE8M0: four exponents of neighbouring blocks in an int32, lowest byte first."""
    exponents = (scales.view(torch.int32) >> 23).to(torch.uint8)
    return exponents.contiguous().view(torch.int32)


def selections(world: list[Inputs], expert: int) -> list[list[tuple[int, int]]]:
    """By source rank: the (token, k) that select `expert`, in order of token, then k."""
    return [[(t, k) for t, k in (rank.topk_idx == expert).nonzero().tolist()] for rank in world]


def expert_output(problem: Problem, expert: int, slots: range | None = None) -> torch.Tensor:
    """Some output rows for slots of an expert, by default all: a hash of expert, slot and column, from 0.5 to 8."""
    slots = range(problem.slots) if slots is None else slots
    bits = torch.arange(slots.start * problem.hidden, slots.stop * problem.hidden, dtype=torch.int32)
    bits.add_((problem.seed * 7919 + expert + 1) * 40503 % 2**31).mul_(-1640531535)
    bits.bitwise_xor_(bits >> 15).mul_(739982445).bitwise_xor_(bits >> 12)
    exponent_and_below = bits.bitwise_and_(0x81FF).add_(0x3F00)
    return exponent_and_below.to(torch.int16).view(torch.bfloat16).view(len(slots), problem.hidden)


def returned_rows(problem: Problem, world: list[Inputs], rank: int) -> torch.Tensor:
    """float32 [T, K, H]: the experts' rows for each selection of `rank`, zeros where it is masked."""
    mine = world[rank]
    rows = torch.zeros((*mine.topk_idx.shape, problem.hidden))
    for expert in mine.topk_idx[mine.topk_idx >= 0].unique().tolist():
        by_source = selections(world, expert)
        first = sum(len(found) for found in by_source[:rank])
        output = expert_output(problem, expert, range(first, first + len(by_source[rank])))
        for (t, k), row in zip(by_source[rank], output, strict=True):
            rows[t, k] = row.float()
    return rows


def weighted_sum(rows: torch.Tensor, weights: torch.Tensor, take: torch.Tensor) -> torch.Tensor:
    """Products and sums rounded to float32 one by one, in top-k order from 0; `take` says which selections count."""
    total = torch.zeros((rows.shape[0], rows.shape[2]))
    for k in range(rows.shape[1]):
        product = weights[:, k : k + 1] * rows[:, k]
        total = torch.where(take[:, k].unsqueeze(1), total + product, total)
    return total


def combined(problem: Problem, world: list[Inputs], rank: int, mask: torch.Tensor | None = None) -> torch.Tensor:
    """What an `exact` low-latency combine must give `rank` when experts put `expert_output` into their slots.

    mask: bool [T, K], selections that are left out at combine.
    """
    mine = world[rank]
    take = mine.topk_idx >= 0
    if mask is not None:
        take = take & ~mask
    return weighted_sum(returned_rows(problem, world, rank), mine.topk_weights, take).bfloat16()


def combined_local_reduce(problem: Problem, world: list[Inputs], rank: int) -> torch.Tensor:
    """What a `local_reduce` combine must give: each rank's sum rounded to bf16, these added in rank order."""
    mine = world[rank]
    rows = returned_rows(problem, world, rank)
    owner = torch.where(mine.topk_idx >= 0, mine.topk_idx // problem.local, -1)
    total = torch.zeros((mine.topk_idx.shape[0], problem.hidden))
    for other in range(problem.ranks):
        total = total + weighted_sum(rows, mine.topk_weights, owner == other).bfloat16().float()
    return total.bfloat16()
