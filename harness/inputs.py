"""What goes into a dispatch: tokens that say who they are, and their routing, as torch tensors.

Column 0 of a token's row holds its source rank and columns 1 to 3 its index in base 256, lowest digit first (bf16
holds integers exactly only to 256). The other columns are a window into a pool of numbers exact in bf16; every (rank,
token) has a window of its own, so that no two rows of a world are alike and every column says where it came from.
The pool's magnitude changes every 256 numbers, from 2^-20 (below fp8's smallest scale) over 0 to 2^6.

Imports torch. Called by `harness.measure` and `harness.oracle`. Next to read: `harness.oracle`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from harness import routing
from harness.case import Case

DIGITS = 3

_POOL_RANK = 2**33
_SEGMENT = 256
_EXPONENTS = np.array([-20, -6, -5, -4, -3, -2, -1, 0, 0, 1, 2, 3, 4, 5, 6], dtype=np.float64)


@dataclass(frozen=True)
class Inputs:
    """One rank's inputs: x bf16 [T, H]; topk_idx int64 [T, K], -1 where masked; topk_weights float32 [T, K].

    All are on the device that the case runs on.
    """

    x: torch.Tensor
    topk_idx: torch.Tensor
    topk_weights: torch.Tensor


def token_rows(case: Case, rank: int) -> torch.Tensor:
    """The tokens of one rank: bf16 [T, H]. Any rank can make any rank's."""
    size = case.ranks * case.tokens + case.hidden
    bits = np.random.Philox(key=np.array([case.seed & (2**64 - 1), _POOL_RANK], dtype=np.uint64)).random_raw(size)
    bits = np.asarray(bits, dtype=np.uint64)
    mantissa = (bits % np.uint64(255)).astype(np.float64) - 127
    choice = ((bits[::_SEGMENT] >> np.uint64(32)) % np.uint64(len(_EXPONENTS) + 1)).astype(np.int64)
    magnitude = np.append(2.0**_EXPONENTS, 0.0)[choice] / 64
    values = mantissa * np.repeat(magnitude, _SEGMENT)[:size] + 0.0
    pool = torch.from_numpy(values).to(torch.bfloat16)
    rows = pool.unfold(0, case.hidden, 1)[rank * case.tokens : (rank + 1) * case.tokens].contiguous()
    index = torch.arange(case.tokens)
    rows[:, 0] = rank
    for digit in range(DIGITS):
        rows[:, 1 + digit] = ((index >> (8 * digit)) & 255).to(torch.bfloat16)
    return rows


def make_inputs(case: Case, rank: int, device: str = "cpu") -> Inputs:
    """The inputs of one rank, on `device`. Raises `CaseError` for an unknown routing."""
    return Inputs(
        x=token_rows(case, rank).to(device),
        topk_idx=torch.from_numpy(routing.selections(case, rank)).to(device),
        topk_weights=torch.from_numpy(routing.weights(case, rank)).to(device),
    )
