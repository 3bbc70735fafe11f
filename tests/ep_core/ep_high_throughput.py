"""High throughput on a rank, on any device: rows, counts, handles and sums against plain torch, bit for bit.

Functions that take a `Context` run on ranks (`ep_world`). The tests of both engines ask for them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ep_oracle
import torch
from ep_low_latency import assert_same_bits
from ep_oracle import Problem
from ep_world import Context

from ep_core import Buffer, EventOverlap


def arrivals(problem: Problem, world: list[ep_oracle.Inputs], rank: int) -> list[tuple[int, int]]:
    """(source, token) of every row that `rank` must get, in order."""
    found = []
    for source, each in enumerate(world):
        here = ((each.topk_idx >= 0) & (each.topk_idx // problem.local == rank)).any(1)
        found += [(source, t) for t in here.nonzero().flatten().tolist()]
    return found


def gathered(rows: list[torch.Tensor], found: list[tuple[int, int]]) -> torch.Tensor:
    raw = [each.view(torch.uint8) if each.element_size() == 1 else each for each in rows]
    if not found:
        return raw[0][:0]
    return torch.stack([raw[source][t] for source, t in found])


def partial(problem: Problem, rank: int, source: int, token: int, dtype: torch.dtype) -> torch.Tensor:
    """The row that `rank` gives back for a token of `source`."""
    make = torch.Generator().manual_seed(problem.seed * 104729 + rank * 8191 + source * 127 + token)
    return torch.randn(problem.hidden, generator=make).to(dtype)


def partials(problem: Problem, rank: int, found: list[tuple[int, int]], dtype: torch.dtype) -> torch.Tensor:
    """The rows that `rank` gives back for all that it got."""
    rows = torch.empty((len(found), problem.hidden), dtype=dtype)
    for row, (source, token) in enumerate(found):
        rows[row] = partial(problem, rank, source, token, dtype)
    return rows


def summed(
    problem: Problem, mine: ep_oracle.Inputs, rank: int, dtype: torch.dtype, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """What combine must give `rank` when every rank returns its `partials`."""
    total = torch.zeros((mine.x.shape[0], problem.hidden)) if bias is None else bias.float().clone()
    in_rank = tokens_in_rank(problem, mine.topk_idx)
    for token, other in in_rank.nonzero().tolist():
        total[token] += partial(problem, other, rank, token, dtype).float()
    return total.to(dtype)


def tokens_in_rank(problem: Problem, topk_idx: torch.Tensor) -> torch.Tensor:
    ranks = torch.where(topk_idx >= 0, topk_idx // problem.local, -1)
    return torch.stack([(ranks == r).any(1) for r in range(problem.ranks)], 1)


def assert_layout(problem: Problem, topk_idx: torch.Tensor, layout: Any) -> None:
    """`topk_idx` is on the CPU."""
    per_rank, _, per_expert, in_rank, _ = layout
    wanted = tokens_in_rank(problem, topk_idx)
    assert torch.equal(in_rank.cpu(), wanted)
    assert torch.equal(per_rank.cpu(), wanted.sum(0, dtype=torch.int32))
    assert torch.equal(per_expert.cpu(), torch.bincount(topk_idx[topk_idx >= 0], minlength=problem.experts).int())


def assert_rows(got: Any, sent: list[Any], found: list[tuple[int, int]]) -> None:
    """sent: what each rank sent, on the CPU: rows, or rows and scales. Rows beyond those found are not looked at."""
    if isinstance(got, tuple):
        assert torch.equal(got[0].cpu()[: len(found)].view(torch.uint8), gathered([one[0] for one in sent], found))
        assert torch.equal(got[1].cpu()[: len(found)], gathered([one[1] for one in sent], found))
    else:
        assert torch.equal(got.cpu()[: len(found)], gathered(sent, found))


def in_streams(streams: str, event: EventOverlap | None = None) -> dict[str, Any]:
    """The arguments of an operation that runs in the caller's order (`plain`), behind `event` or what was called so far
    beside it (`beside`), or so with tensors allocated there, too (`allocate`).
    """
    if streams == "plain":
        return {}
    return {
        "previous_event": event or Buffer.capture(),
        "async_finish": True,
        "allocate_on_comm_stream": streams == "allocate",
    }


def round_trip(
    context: Context,
    problem: Problem,
    nvl: int,
    fp8: bool = False,
    with_topk: bool = True,
    alignment: int = 1,
    f32: bool = False,
    streams: str = "beside",
    sms: int | None = None,
) -> None:
    """Layout, dispatch, dispatch by handle, combine, and combine with bias: all checked in full."""
    before = Buffer.num_sms
    Buffer.set_num_sms(before if sms is None else sms)
    try:
        _round_trip(context, problem, nvl, fp8, with_topk, alignment, f32, streams)
    finally:
        Buffer.set_num_sms(before)


def _round_trip(
    context: Context, problem: Problem, nvl: int, fp8: bool, with_topk: bool, alignment: int, f32: bool, streams: str
) -> None:
    buffer = context.buffer(problem.ranks, nvl, 0)
    rank = context.rank
    world = ep_oracle.everyone(problem)
    mine = world[rank].to(context.device)
    layout = buffer.get_dispatch_layout(mine.topk_idx, problem.experts, **in_streams(streams))
    per_rank, _, per_expert, in_rank, event = layout
    sent: list[Any] = [ep_oracle.quantise(each.x) if fp8 else each.x for each in world]
    x = tuple(part.to(context.device) for part in sent[rank]) if fp8 else mine.x
    topk = {"topk_idx": mine.topk_idx, "topk_weights": mine.topk_weights} if with_topk else {}
    recv_x, recv_idx, recv_weights, counts, handle, event = buffer.dispatch(
        x,
        num_tokens_per_rank=per_rank,
        is_token_in_rank=in_rank,
        num_tokens_per_expert=per_expert,
        expert_alignment=alignment,
        **topk,
        **in_streams(streams, event),
    )
    again = buffer.dispatch(x, handle, **in_streams(streams, event))
    if streams != "plain":
        again[5].current_stream_wait()
    context.settle(buffer)
    found = arrivals(problem, world, rank)
    assert_layout(problem, world[rank].topk_idx, layout)
    for got in (recv_x, again[0]):
        assert (got[0] if fp8 else got).shape == (len(found), problem.hidden)
        assert_rows(got, sent, found)
    assert again[1:5] == (None, None, None, None)
    if with_topk:
        idx = gathered([each.topk_idx for each in world], found)
        here = (idx >= 0) & (idx // problem.local == rank)
        assert torch.equal(recv_idx.cpu(), torch.where(here, idx - rank * problem.local, -1))
        weights = gathered([each.topk_weights for each in world], found)
        assert torch.equal(recv_weights.cpu(), torch.where(here, weights, 0.0))
    else:
        assert recv_idx is None
        assert recv_weights is None
    assert len(counts) == problem.local
    for local, count in enumerate(counts):
        exact = sum(int((each.topk_idx == rank * problem.local + local).sum()) for each in world)
        assert count % alignment == 0
        assert exact <= count < exact + alignment
    assert handle[3].tolist() == [t for _, t in found]
    assert handle[0][:, rank].tolist() == [sum(s <= source for s, _ in found) for source in range(problem.ranks)]

    dtype = torch.float32 if f32 else torch.bfloat16
    y = partials(problem, rank, found, dtype).to(context.device)
    bias = torch.randn(mine.x.shape, generator=torch.Generator().manual_seed(5)).to(dtype)
    biases = (bias.to(context.device), bias.to(context.device))
    combined, weights, event = buffer.combine(y, handle, recv_weights, **in_streams(streams))
    with_bias, _, event = buffer.combine(y, handle, bias=biases, **in_streams(streams, event))
    if streams != "plain":
        event.current_stream_wait()
    context.settle(buffer)
    mine = world[rank]
    assert torch.equal(combined.cpu(), summed(problem, mine, rank, dtype))
    assert torch.equal(with_bias.cpu(), summed(problem, mine, rank, dtype, bias.float() + bias.float()))
    if with_topk:
        assert torch.equal(weights.cpu(), torch.where(mine.topk_idx >= 0, mine.topk_weights, 0.0))
    else:
        assert weights is None


def interleaved(context: Context, problem: Problem, nvl: int, rdma: int) -> None:
    """Both modes of one buffer in turn, and HT operations with nothing between them."""
    buffer = context.new_buffer(problem.ranks, nvl, rdma)
    context.state[(problem.ranks, nvl, 0, 30.0)] = buffer
    for seed in range(4):
        one = replace(problem, seed=seed)
        mine = ep_oracle.inputs(one, context.rank).to(context.device)
        result = buffer.low_latency_dispatch(
            mine.x, mine.topk_idx, one.max_tokens, one.experts, use_fp8=False, return_recv_hook=True
        )
        round_trip(context, one, nvl)
        result[4]()
        combined, _, _ = buffer.low_latency_combine(result[0], mine.topk_idx, mine.topk_weights, result[2])
        context.settle(buffer)
        mine = ep_oracle.inputs(one, context.rank)
        rows = mine.x.float().unsqueeze(1).expand(-1, one.topk, -1)
        assert_same_bits(combined, ep_oracle.weighted_sum(rows, mine.topk_weights, mine.topk_idx >= 0).bfloat16())


def worst_tokens(context: Context, problem: Problem, worst: int) -> None:
    buffer = context.buffer(problem.ranks, 1 << 20, 0)
    world = ep_oracle.everyone(problem)
    mine = world[context.rank].to(context.device)
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(mine.topk_idx, problem.experts)
    given = (mine.x, None, per_rank, None, in_rank, per_expert, mine.topk_idx, mine.topk_weights)
    found = arrivals(problem, world, context.rank)
    recv_x, recv_idx, recv_weights, counts, handle, _ = buffer.dispatch(*given, num_worst_tokens=worst)
    again = buffer.dispatch(mine.x, handle, num_worst_tokens=worst)[0]
    y = torch.zeros((worst, problem.hidden), dtype=torch.bfloat16)
    y[: len(found)] = partials(problem, context.rank, found, torch.bfloat16)
    combined, _, _ = buffer.combine(y.to(context.device), handle, recv_weights)
    context.settle(buffer)
    assert recv_x.shape == again.shape == (worst, problem.hidden)
    assert counts == []
    for rows in (recv_x, again):
        assert_rows(rows, [each.x for each in world], found)
    assert (recv_idx[len(found) :] == -1).all()
    assert handle[3][: len(found)].tolist() == [t for _, t in found]
    assert torch.equal(combined.cpu(), summed(problem, world[context.rank], context.rank, torch.bfloat16))
    assert buffer.dispatch(*given)[0].shape[0] == len(found)


def same_bits(context: Context, problem: Problem, nvl: int, times: int) -> None:
    buffer = context.buffer(problem.ranks, nvl, 0)
    mine = ep_oracle.inputs(problem, context.rank).to(context.device)
    seen = set()
    for _ in range(times):
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(mine.topk_idx, problem.experts)
        recv_x, recv_idx, weights, _, handle, _ = buffer.dispatch(
            mine.x, None, per_rank, None, in_rank, per_expert, mine.topk_idx, mine.topk_weights
        )
        combined, total, _ = buffer.combine(recv_x, handle, weights)
        context.settle(buffer)
        parts = (recv_x, recv_idx, weights, handle[0], handle[3], combined, total)
        seen.add(b"".join(part.cpu().contiguous().view(torch.uint8).numpy().tobytes() for part in parts))
    assert len(seen) == 1
