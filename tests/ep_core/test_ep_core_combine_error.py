"""How far each combine may be from the true sum: what docs/cuda_engine.md derives, on the oracle's arithmetic.

The engines are compared with that arithmetic bit for bit elsewhere, so the bounds are theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import ep_oracle
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

BF16, FLOAT32 = 2.0**-8, 2.0**-24
TOKENS, HIDDEN = 16, 128


@dataclass(frozen=True)
class Sums:
    """All [T, H]: both combines; in float64 the true sum and the absolute values of its parts (ranks) and terms."""

    exact: torch.Tensor
    local_reduce: torch.Tensor
    true: torch.Tensor
    parts: torch.Tensor
    sizes: torch.Tensor


def sums(rows: torch.Tensor, weights: torch.Tensor, owner: torch.Tensor, ranks: int) -> Sums:
    """rows: bf16 [T, K, H]. weights: float32 [T, K]. owner: [T, K], the rank of each selection."""
    taken = [owner == rank for rank in range(ranks)]
    terms = weights.double()[..., None] * rows.double()
    total, parts = torch.zeros_like(terms[:, 0], dtype=torch.float32), torch.zeros_like(terms[:, 0])
    for take in taken:
        total += ep_oracle.weighted_sum(rows.float(), weights, take).bfloat16().float()
        parts += (terms * take[..., None]).sum(1).abs()
    exact = ep_oracle.weighted_sum(rows.float(), weights, torch.ones_like(owner, dtype=torch.bool)).bfloat16()
    return Sums(exact.double(), total.bfloat16().double(), terms.sum(1), parts, terms.abs().sum(1))


@settings(max_examples=60, deadline=None)
@given(
    ranks=st.integers(1, 64),
    topk=st.integers(1, 32),
    cancelling=st.booleans(),
    spread=st.integers(0, 6),
    seed=st.integers(0, 2**31),
)
def test_no_element_is_further_from_the_true_sum_than_the_bound(
    ranks: int, topk: int, cancelling: bool, spread: int, seed: int
) -> None:
    make = torch.Generator().manual_seed(seed)
    weights = torch.rand((TOKENS, topk), generator=make)
    rows = torch.randn((TOKENS, topk, HIDDEN), generator=make)
    rows *= 10.0 ** torch.randint(-spread, spread + 1, (TOKENS, topk, 1), generator=make)
    if cancelling:
        half = topk // 2
        weights[:, topk - half :], rows[:, topk - half :] = weights[:, :half], rows[:, :half] * -1.01
    owner = torch.randint(0, ranks, (TOKENS, topk), generator=make)
    found = sums(rows.bfloat16(), weights, owner, ranks)

    float32 = 1.01 * (topk + min(topk, ranks)) * FLOAT32 * found.sizes
    exact = BF16 * found.true.abs() + float32
    assert bool(((found.exact - found.true).abs() <= exact).all())
    more = BF16 * (1 + BF16) * found.parts
    assert bool(((found.local_reduce - found.true).abs() <= exact + more).all())


@settings(max_examples=20, deadline=None)
@given(ranks=st.integers(1, 8), topk=st.integers(1, 32), seed=st.integers(0, 2**31))
def test_a_token_on_one_rank_has_the_same_value_by_both_combines(ranks: int, topk: int, seed: int) -> None:
    make = torch.Generator().manual_seed(seed)
    rows = torch.randn((TOKENS, topk, HIDDEN), generator=make).bfloat16()
    owner = torch.randint(0, ranks, (TOKENS, 1), generator=make).expand(TOKENS, topk)
    found = sums(rows, torch.rand((TOKENS, topk), generator=make), owner, ranks)
    assert torch.equal(found.exact, found.local_reduce)


def test_what_local_reduce_costs_in_the_mean() -> None:
    """Eight normal rows under softmax weights: 1.4 times the error of `exact`."""
    make = torch.Generator().manual_seed(0)
    rows = torch.randn((64, 8, 1024), generator=make).bfloat16()
    weights = torch.softmax(torch.randn((64, 8), generator=make), -1)
    for ranks in (2, 8):
        owner = torch.randint(0, ranks, (64, 8), generator=make)
        found = sums(rows, weights, owner, ranks)
        exact, local = ((one - found.true).square().mean().sqrt() for one in (found.exact, found.local_reduce))
        assert 1.3 < local / exact < 1.5
        assert 0.3 < float((found.exact != found.local_reduce).double().mean()) < 0.4
