"""Whether a backend moved the right bytes: an oracle in plain torch that knows only the case.

It recomputes every rank's tokens and routing, so it needs no communication and shares nothing with what it judges.
Each function raises `WrongAnswer` with one sentence naming the first thing that is wrong. `harness.measure` calls it
before and after timing. The arithmetic of combine is in docs/metrics.md.

`check_dispatch` compares, for every row received: source, token, expert, slot, every column, scales; and counts,
blocks of slots and order as a whole. `check_combine` compares every element, bit for bit.
"""

from __future__ import annotations

import numpy as np
import torch

from harness import routing
from harness.backends.base import Received
from harness.case import FP8_BLOCK, Case
from harness.errors import WrongAnswer
from harness.inputs import DIGITS, token_rows

FP8_MAX = 448.0
FP8_AMAX_FLOOR = 1e-4
FP8_MANTISSA_BITS = 3
FP8_LEAST_EXPONENT = -6
SCALE_TOLERANCE = 1e-6
POISON_INTEGER = -7777777
_FACTOR_EXPONENTS = 16
_SHIFTS = 17
_CACHED_ROWS = 32


def poison(tensor: torch.Tensor) -> None:
    """Fill a tensor so that whatever is read from it unwritten is noticed: NaN, or -7777777 for integers."""
    if tensor.dtype == torch.float8_e4m3fn:
        tensor.view(torch.uint8).fill_(0x7F)
    elif tensor.dtype.is_floating_point:
        tensor.fill_(torch.nan)
    elif tensor.dtype in (torch.int32, torch.int64):
        tensor.fill_(POISON_INTEGER)
    else:
        tensor.zero_()


def expert_factor(expert: torch.Tensor) -> torch.Tensor:
    """A global expert's factor: +-2^k, k from -8 to 7, exact in bf16, equal only 32 experts apart."""
    exponent = (expert * 7) % _FACTOR_EXPONENTS - _FACTOR_EXPONENTS // 2
    sign = 1 - 2 * ((expert // _FACTOR_EXPONENTS) % 2)
    return torch.ldexp(sign.to(torch.float32), exponent)


def expert_shift(expert: torch.Tensor, hidden: int) -> torch.Tensor:
    """By how many columns a global expert rotates its rows to the left: without it a token's outputs would all be
    multiples of one row, and few sums would round differently in another order."""
    return (expert % _SHIFTS) % hidden


def _windows(rows: torch.Tensor) -> torch.Tensor:
    """[N, H + 1, H]: a view in which [n, s] is row n rotated to the left by s columns."""
    return torch.cat([rows, rows], 1).unfold(1, rows.shape[1], 1)


def check_dispatch(case: Case, rank: int, received: Received) -> int:
    """Compare one dispatch on this rank with what the case says. Returns the number of rows looked at."""
    topk_idx = torch.from_numpy(routing.all_selections(case))
    _check_shapes(received)
    if case.mode == "ll":
        _check_packed(case, rank, received, topk_idx)
    else:
        _check_ranked(case, rank, received, topk_idx)
    _check_rows(case, received)
    return len(received.source)


def _check_shapes(received: Received) -> None:
    """Every description of rows must be of the same number of rows."""
    wanted = len(received.x)
    for name in ("source", "token", "scales", "expert", "slot", "topk_idx", "topk_weights"):
        described = getattr(received, name)
        if described is not None and len(described) != wanted:
            raise WrongAnswer(f"{name} describes {len(described)} rows, x holds {wanted}")


def _same(what: str, got: torch.Tensor, wanted: torch.Tensor, row_name: str = "entry") -> None:
    """Raise when two integer or float tensors differ anywhere, naming the first place."""
    if got.shape != wanted.shape:
        raise WrongAnswer(f"{what} has shape {tuple(got.shape)}, wanted {tuple(wanted.shape)}")
    differs = torch.nonzero(got != wanted)
    if len(differs):
        place = tuple(int(index) for index in differs[0])
        raise WrongAnswer(
            f"{what} is wrong in {len(differs)} of {wanted.numel()} places: {row_name} {list(place)} is "
            f"{got[place].item()}, wanted {wanted[place].item()}"
        )


def _within(what: str, values: torch.Tensor, limit: int) -> None:
    bad = torch.nonzero((values < 0) | (values >= limit)).flatten()
    if len(bad):
        row = int(bad[0])
        raise WrongAnswer(f"{what} of received row {row} is {int(values[row])}, wanted 0 to {limit - 1}")


def _lexicographic(*keys: torch.Tensor) -> torch.Tensor:
    """Indices that sort by the first key, then the second, and so on; stable."""
    return torch.from_numpy(np.lexsort([key.numpy() for key in reversed(keys)]).astype(np.int64))


def _check_packed(case: Case, rank: int, received: Received, topk_idx: torch.Tensor) -> None:
    """`ll`: the set of (local expert, source, token), counts, blocks and slots."""
    local, ranks = case.experts_per_rank, case.ranks
    if received.expert is None or received.slot is None or received.counts is None:
        raise WrongAnswer("the backend described its rows without expert, slot or counts, which mode ll needs")
    source, token, column = torch.nonzero(topk_idx // local == rank, as_tuple=True)
    expert = topk_idx[source, token, column] - rank * local
    in_order = _lexicographic(expert, source, token)
    expert, source, token = expert[in_order], source[in_order], token[in_order]
    length = torch.bincount(expert * ranks + source, minlength=local * ranks).view(local, ranks)

    _same("the count of rows per local expert", received.counts.to(torch.int64), length.sum(1), "expert")
    if len(received.source) != len(source):
        raise WrongAnswer(f"{len(received.source)} rows were received, wanted {len(source)}")
    _within("source rank", received.source, ranks)
    _within("token", received.token, case.tokens)
    _within("local expert", received.expert, local)
    got = _lexicographic(received.expert, received.source, received.token)
    _same("the local expert of the received rows", received.expert[got], expert, "row (by expert, source, token)")
    _same("the source rank of the received rows", received.source[got], source, "row (by expert, source, token)")
    _same("the token (src_info) of the received rows", received.token[got], token, "row (by expert, source, token)")

    by_slot = _lexicographic(received.expert, received.slot)
    start = torch.cumsum(length.sum(1), 0) - length.sum(1)
    position = torch.arange(len(source)) - start[expert]
    _same("the slots of the received rows", received.slot[by_slot], position, "row (by expert, slot)")
    if received.begin is not None and received.length is not None:
        _same("the length of the blocks in layout_range", received.length, length, "[expert, source]")
        begin = received.begin[received.expert, received.source]
        offset = received.slot - begin
        outside = torch.nonzero((offset < 0) | (offset >= length[received.expert, received.source])).flatten()
        if len(outside):
            row = int(outside[0])
            raise WrongAnswer(
                f"slot {int(received.slot[row])} of local expert {int(received.expert[row])} holds a row of source "
                f"rank {int(received.source[row])}, whose block in layout_range begins at {int(begin[row])} and has "
                f"{int(length[received.expert[row], received.source[row]])} rows"
            )
    if received.ordered:
        _same("the order of the rows' sources within an expert", received.source[by_slot], source, "row")
        _same("the order of the rows' tokens within a source", received.token[by_slot], token, "row")


def _check_ranked(case: Case, rank: int, received: Received, topk_idx: torch.Tensor) -> None:
    """`ht`: the set of (source, token), and each row's local selections and weights."""
    local = case.experts_per_rank
    if received.topk_idx is None or received.topk_weights is None:
        raise WrongAnswer("the backend described its rows without topk_idx or topk_weights, which mode ht needs")
    here = topk_idx // local == rank
    source, token = torch.nonzero(here.any(2), as_tuple=True)
    if len(received.source) != len(source):
        raise WrongAnswer(f"{len(received.source)} rows were received, wanted {len(source)}")
    _within("source rank", received.source, case.ranks)
    _within("token", received.token, case.tokens)
    got = torch.arange(len(source)) if received.ordered else _lexicographic(received.source, received.token)
    _same("the source rank of the received rows", received.source[got], source, "row")
    _same("the token of the received rows", received.token[got], token, "row")
    mine = here[source, token]
    weights = torch.stack([torch.from_numpy(routing.weights(case, peer)) for peer in range(case.ranks)])
    _same(
        "topk_idx of the received rows",
        received.topk_idx[got].to(torch.int64),
        torch.where(mine, topk_idx[source, token] - rank * local, -1),
        "[row, column]",
    )
    _same(
        "topk_weights of the received rows",
        received.topk_weights[got],
        torch.where(mine, weights[source, token], 0.0),
        "[row, column]",
    )


def _check_rows(case: Case, received: Received) -> None:
    """Every column of every row against the token its metadata claims it to be."""
    wanted_dtype = torch.float8_e4m3fn if case.dtype == "fp8" else torch.bfloat16
    if received.x.dtype != wanted_dtype or received.x.shape != (len(received.source), case.hidden):
        raise WrongAnswer(
            f"received rows are {received.x.dtype} {tuple(received.x.shape)}, wanted {wanted_dtype} "
            f"{(len(received.source), case.hidden)}"
        )
    for source in range(case.ranks):
        rows = torch.nonzero(received.source == source).flatten()
        if not len(rows):
            continue
        wanted = token_rows(case, source)[received.token[rows]]
        if case.dtype == "bf16":
            differs = received.x[rows].view(torch.int16) != wanted.view(torch.int16)
        else:
            differs = _fp8_differs(received, rows, wanted)
        if differs.any():
            at = int(torch.nonzero(differs.any(1))[0])
            row, column = int(rows[at]), int(torch.nonzero(differs[at])[0])
            raise WrongAnswer(
                f"received row {row}, said to be token {int(received.token[row])} of rank {source}, is wrong in "
                f"{int(differs[at].sum())} of {case.hidden} columns: column {column} holds "
                f"{received.x[row, column].float().item()}, wanted {wanted[at, column].float().item()}"
                f"{_identity(received.x[row]) if case.dtype == 'bf16' else ''}"
            )


def _identity(row: torch.Tensor) -> str:
    """What a bf16 row says about itself, for the error."""
    numbers = row[: 1 + DIGITS].float()
    if not bool(torch.isfinite(numbers).all()):
        return "; the row was never written"
    token = sum(int(numbers[1 + digit]) << (8 * digit) for digit in range(DIGITS))
    return f"; its own columns say token {token} of rank {int(numbers[0])}"


def fp8_scales(rows: torch.Tensor) -> torch.Tensor:
    """float32 [N, H / 128] of rows [N, H]: amax over 128 columns, floored at 1e-4, over 448."""
    blocks = rows.float().view(len(rows), rows.shape[1] // FP8_BLOCK, FP8_BLOCK)
    scales: torch.Tensor = blocks.abs().amax(2).clamp_min(FP8_AMAX_FLOOR) / FP8_MAX
    return scales


def _fp8_differs(received: Received, rows: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Where a value is further from the input than half a step of e4m3 at its block's scale; also checks the scales."""
    if received.scales is None:
        raise WrongAnswer("fp8 rows were received without scales")
    scales, expected = received.scales[rows], fp8_scales(wanted)
    if scales.shape != expected.shape:
        raise WrongAnswer(
            f"scales of {len(rows)} rows have shape {tuple(scales.shape)}, wanted {tuple(expected.shape)}"
        )
    bad = torch.nonzero(~((scales - expected).abs() <= SCALE_TOLERANCE * expected))
    if len(bad):
        at, block = int(bad[0, 0]), int(bad[0, 1])
        raise WrongAnswer(
            f"the scale of received row {int(rows[at])}, block {block}, is {scales[at, block].item()}, wanted "
            f"{expected[at, block].item()} (amax / 448, amax at least 1e-4)"
        )
    scaled = wanted.float() / scales.repeat_interleave(FP8_BLOCK, 1)
    exponent = torch.frexp(scaled).exponent.sub(1).clamp_min(FP8_LEAST_EXPONENT)
    exponent[scaled == 0] = FP8_LEAST_EXPONENT
    half_step = torch.ldexp(torch.ones_like(scaled), exponent - FP8_MANTISSA_BITS - 1)
    # The quotient itself is rounded to float32 before it is rounded to e4m3, here and there.
    allowed = half_step + scaled.abs() * SCALE_TOLERANCE
    return ~((received.x[rows].float() - scaled).abs() <= allowed)


def expert_output(case: Case, rank: int, received: Received) -> torch.Tensor:
    """What this rank's experts return for the rows received: bf16 [N, H], in the order of `received`.

    An expert rotates the token's row by its shift and multiplies it by its factor, which is exact. `ll`: just that.
    `ht`: the float32 sum of it over the row's local selections, in top-k order, weighted, rounded once to bf16.
    For bf16 the row is the one received; for fp8 it is the unquantised token that `check_dispatch` found it to be, so
    that the source can recompute it exactly.
    """
    rows = received.x if case.dtype == "bf16" else _originals(case, received)
    first = rank * case.experts_per_rank
    if received.expert is not None:
        expert = received.expert + first
        rotated = _windows(rows)[torch.arange(len(rows)), expert_shift(expert, case.hidden)]
        return rotated * expert_factor(expert)[:, None].to(torch.bfloat16)
    if received.topk_idx is None or received.topk_weights is None:
        raise WrongAnswer("the backend described its rows without topk_idx or topk_weights, which mode ht needs")
    local = received.topk_idx.to(torch.int64)
    return _weighted(rows, torch.where(local >= 0, local + first, -1), received.topk_weights)


def _originals(case: Case, received: Received) -> torch.Tensor:
    rows = torch.empty(len(received.source), case.hidden, dtype=torch.bfloat16)
    for source in range(case.ranks):
        mine = received.source == source
        rows[mine] = token_rows(case, source)[received.token[mine]]
    return rows


def _weighted(x: torch.Tensor, topk_idx: torch.Tensor, topk_weights: torch.Tensor) -> torch.Tensor:
    """bf16 [N, H]: sum in float32 in top-k order of weight * expert(x), -1 skipped, rounded once.

    Product and sum are rounded apart. A factor is a power of two, so that scaling the weight instead of the row gives
    the same bits; a skipped entry adds a zero, which changes no sum that began at +0.
    """
    result = torch.empty(x.shape, dtype=torch.bfloat16)
    expert = topk_idx.clamp_min(0)
    scale = torch.where(topk_idx >= 0, topk_weights * expert_factor(expert), 0.0)
    shift = expert_shift(expert, x.shape[1])
    for first in range(0, len(x), _CACHED_ROWS):
        block = slice(first, first + _CACHED_ROWS)
        windows = _windows(x[block].float())
        each = torch.arange(len(windows))
        total = torch.zeros(len(windows), x.shape[1])
        for column in range(topk_idx.shape[1]):
            total += windows[each, shift[block, column]].mul_(scale[block, column, None])
        result[block] = total
    return result


def expected_combine(case: Case, rank: int) -> torch.Tensor:
    """What combine must give this rank: bf16 [T, H].

    exact: float32 sum in top-k order from 0, rounded once. local_reduce: each destination rank's part in float32 in
    top-k order, rounded to bf16, then the parts in rank order in float32 from 0, rounded to bf16.
    """
    x = token_rows(case, rank)
    topk_idx = torch.from_numpy(routing.selections(case, rank))
    topk_weights = torch.from_numpy(routing.weights(case, rank))
    if case.combine == "exact":
        return _weighted(x, topk_idx, topk_weights)
    total = torch.zeros(x.shape, dtype=torch.float32)
    for peer in range(case.ranks):
        there = torch.where(topk_idx // case.experts_per_rank == peer, topk_idx, -1)
        rows = torch.nonzero((there >= 0).any(1)).flatten()
        total[rows] += _weighted(x[rows], there[rows], topk_weights[rows]).float()
    return total.to(torch.bfloat16)


def check_combine(case: Case, rank: int, combined: torch.Tensor) -> int:
    """Compare one combine on this rank, bit for bit. Returns the number of rows looked at."""
    wanted = expected_combine(case, rank)
    if combined.dtype != wanted.dtype or combined.shape != wanted.shape:
        raise WrongAnswer(
            f"combine gave {combined.dtype} {tuple(combined.shape)}, wanted {wanted.dtype} {tuple(wanted.shape)}"
        )
    differs = combined.contiguous().view(torch.int16) != wanted.view(torch.int16)
    if differs.any():
        token = int(torch.nonzero(differs.any(1))[0])
        column = int(torch.nonzero(differs[token])[0])
        raise WrongAnswer(
            f"combine is wrong in {int(differs.sum())} of {wanted.numel()} elements: token {token}, column {column} is "
            f"{combined[token, column].item()}, wanted {wanted[token, column].item()}"
        )
    return len(wanted)
