"""Which experts each token goes to: named generators, seeded, the same on every machine.

Pure numpy, no torch. Every rank can make every rank's routing, so that the oracle and the byte counts need no
communication. The random bits come straight from Philox, whose stream is fixed for ever, and are turned into choices
here: a case in the history always means the same routing. Next to read: `harness.traffic`, `harness.inputs`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from harness.case import Case
from harness.errors import CaseError

Selections = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]

MASKED = -1

# Streams of random bits within one (seed, rank); a number is never used for two purposes.
_EXPERTS, _WEIGHTS, _MASK, _MASK_TOKEN, _DUPLICATE, _ORDER = range(6)
_ALL_RANKS = 2**32
_UINT64 = 2**64 - 1

SKEW_EXPONENT = 0.8
MASKED_ENTRY_ONE_IN = 8
MASKED_TOKEN_ONE_IN = 16


def _bits(seed: int, rank: int, stream: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint64]:
    """Uniform 64-bit values of the stream (seed, rank, stream)."""
    key = np.array([seed & _UINT64, rank * 256 + stream], dtype=np.uint64)
    count = int(np.prod(shape, dtype=np.int64))
    return np.asarray(np.random.Philox(key=key).random_raw(count), dtype=np.uint64).reshape(shape)


def _smallest(keys: npt.NDArray[np.generic], count: int) -> Selections:
    """Per row the columns of its `count` smallest keys, in order of the keys."""
    return np.argsort(keys, axis=1, kind="stable")[:, :count].astype(np.int64)


def _uniform(case: Case, rank: int) -> Selections:
    return _smallest(_bits(case.seed, rank, _EXPERTS, (case.tokens, case.experts)), case.topk)


def _shuffled_experts(case: Case) -> Selections:
    return np.argsort(_bits(case.seed, _ALL_RANKS, _ORDER, (case.experts,)), kind="stable").astype(np.int64)


def _balanced(case: Case, rank: int) -> Selections:
    token = rank * case.tokens + np.arange(case.tokens, dtype=np.int64)
    turn = token[:, None] * case.topk + np.arange(case.topk, dtype=np.int64)
    chosen: Selections = _shuffled_experts(case)[turn % case.experts]
    return chosen


def _skewed(case: Case, rank: int) -> Selections:
    popularity = np.empty(case.experts)
    popularity[_shuffled_experts(case)] = np.arange(1, case.experts + 1, dtype=np.float64) ** -SKEW_EXPONENT
    bits = _bits(case.seed, rank, _EXPERTS, (case.tokens, case.experts))
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
    # A race of exponential clocks: the k first to ring are a weighted sample without replacement.
    return _smallest(-np.log(uniform) / popularity, case.topk)


def _masked(case: Case, rank: int) -> Selections:
    chosen = _uniform(case, rank)
    entry = _bits(case.seed, rank, _MASK, (case.tokens, case.topk)) % np.uint64(MASKED_ENTRY_ONE_IN) == 0
    token = _bits(case.seed, rank, _MASK_TOKEN, (case.tokens, 1)) % np.uint64(MASKED_TOKEN_ONE_IN) == 0
    return np.where(entry | token, np.int64(MASKED), chosen)


def _duplicates(case: Case, rank: int) -> Selections:
    chosen = _uniform(case, rank)
    chance = _bits(case.seed, rank, _DUPLICATE, (case.tokens, case.topk))
    load = np.bincount(chosen.ravel(), minlength=case.experts)
    for token, column in np.argwhere(chance[:, 1:] % np.uint64(2) == 0):
        copied = int(chosen[token, int(chance[token, column + 1] >> np.uint64(1)) % (column + 1)])
        # A rank never selects one expert more often than it has tokens: packed buffers hold no more.
        if load[copied] < case.tokens:
            load[chosen[token, column + 1]] -= 1
            load[copied] += 1
            chosen[token, column + 1] = copied
    return chosen


GENERATORS: MappingProxyType[str, Callable[[Case, int], Selections]] = MappingProxyType(
    {
        "uniform": _uniform,
        "balanced": _balanced,
        "skewed": _skewed,
        "masked": _masked,
        "duplicates": _duplicates,
    }
)
"""Generator name to function of (case, rank).

uniform: top-k experts at random, without replacement. balanced: experts in turn, so that over the world no expert gets
more than one selection more than another. skewed: without replacement, popularity of the i-th expert as i ** -0.8.
masked: uniform, then one entry in 8 and one whole token in 16 masked with -1. duplicates: uniform, then about half of
the entries replaced by an earlier entry of the same token.
"""


def selections(case: Case, rank: int) -> Selections:
    """The `topk_idx` of one rank: int64 [tokens, topk], global expert or -1. Raises `CaseError` for an unknown name."""
    generator = GENERATORS.get(case.routing)
    if generator is None:
        raise CaseError(f"routing {case.routing!r} is unknown; known are {', '.join(GENERATORS)}")
    return generator(case, rank)


def weights(case: Case, rank: int) -> Weights:
    """The `topk_weights` of one rank: float32 [tokens, topk] in (0, 1], masked entries included (none may count)."""
    bits = _bits(case.seed, rank, _WEIGHTS, (case.tokens, case.topk)) >> np.uint64(40)
    return ((bits.astype(np.float32) + np.float32(1)) / np.float32(2**24)).astype(np.float32)


def all_selections(case: Case) -> Selections:
    """Every rank's `topk_idx`: int64 [ranks, tokens, topk]."""
    return np.stack([selections(case, rank) for rank in range(case.ranks)])
