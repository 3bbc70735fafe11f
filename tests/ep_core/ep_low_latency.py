"""Low latency on a rank, on any device: operations, and every row, count, range, scale and bit against the oracle.

Functions that take a `Context` run on ranks (`ep_world`). The tests of both engines ask for them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ep_oracle
import pytest
import torch
from ep_oracle import Problem
from ep_world import Context

from ep_core import Buffer
from ep_core.nodes import ranks_per_node

LEAST_ROOM = 64 << 20


@dataclass(frozen=True)
class Rows:
    """How rows travel."""

    fp8: bool = False
    round_scale: bool = False
    ue8m0: bool = False

    @property
    def arguments(self) -> dict[str, bool]:
        given = {"use_fp8": self.fp8, "round_scale": self.round_scale}
        return {**given, "use_ue8m0": True} if self.ue8m0 else given


BF16 = Rows()
FP8 = Rows(fp8=True)
ROUNDED = Rows(fp8=True, round_scale=True)
UE8M0 = Rows(fp8=True, round_scale=True, ue8m0=True)


def room(problem: Problem) -> int:
    """`num_rdma_bytes` for a problem, in few sizes so that buffers are shared between problems."""
    per_node = ranks_per_node() or problem.ranks
    # Uneven nodes take as much as nodes of a rank each.
    nodes = problem.ranks if problem.ranks % per_node else problem.ranks // per_node
    hint = Buffer.get_low_latency_rdma_size_hint(
        problem.max_tokens, problem.hidden, problem.ranks, problem.experts, num_nodes=nodes
    )
    return max(LEAST_ROOM, 1 << (hint - 1).bit_length())


def poisoned(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of bytes 0xA5."""
    raw = torch.full((*shape[:-1], shape[-1] * dtype.itemsize), 0xA5, dtype=torch.uint8, device=device)
    return raw.view(dtype)


def outs(problem: Problem, rows: Rows, device: torch.device) -> dict[str, torch.Tensor]:
    local, slots, hidden = problem.local, problem.slots, problem.hidden
    row_dtype = torch.float8_e4m3fn if rows.fp8 else torch.bfloat16
    tensors = {
        "out_packed_recv_x": poisoned((local, slots, hidden), row_dtype, device),
        "out_src_info": poisoned((local, slots), torch.int32, device),
        "out_layout_range": poisoned((local, problem.ranks), torch.int64, device),
        "out_count": poisoned((local,), torch.int32, device),
    }
    if rows.fp8:
        columns, dtype = (hidden // 512, torch.int32) if rows.ue8m0 else (hidden // 128, torch.float32)
        tensors["out_packed_recv_x_scales"] = poisoned((local, columns, slots), dtype, device).transpose(1, 2)
    return tensors


def assert_dispatched(problem: Problem, world: list[ep_oracle.Inputs], rank: int, result: Any, rows: Rows) -> None:
    """Every row up to the counts, and all that is told about them; waits for the device."""
    recv_x, count, handle = result[:3]
    src_info, layout_range, max_tokens, hidden, experts = handle
    assert (max_tokens, hidden, experts) == (problem.max_tokens, problem.hidden, problem.experts)
    src_info, layout_range, count = src_info.cpu(), layout_range.cpu(), count.cpu()
    values, scales = (recv_x[0].cpu(), recv_x[1].cpu()) if rows.fp8 else (recv_x.cpu(), None)
    if scales is not None:
        columns = problem.hidden // (512 if rows.ue8m0 else 128)
        assert recv_x[1].stride() == (columns * problem.slots, 1, problem.slots)
    quantised = [ep_oracle.quantise(each.x, rows.round_scale) for each in world] if rows.fp8 else []
    for local in range(problem.local):
        slot = 0
        for source, found in enumerate(ep_oracle.selections(world, rank * problem.local + local)):
            assert int(layout_range[local, source]) == slot << 32 | len(found)
            tokens = torch.tensor([t for t, _ in found], dtype=torch.int64)
            at = slice(slot, slot + len(found))
            assert src_info[local, at].tolist() == tokens.tolist()
            if scales is None:
                assert torch.equal(values[local, at], world[source].x[tokens])
            else:
                wanted, wanted_scales = quantised[source]
                if rows.ue8m0:
                    wanted_scales = ep_oracle.packed_exponents(wanted_scales)
                assert torch.equal(values[local, at].view(torch.uint8), wanted[tokens].view(torch.uint8))
                assert torch.equal(scales[local, at], wanted_scales[tokens])
            slot += len(found)
        assert int(count[local]) == slot


def assert_same_bits(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert torch.equal(got.cpu().view(torch.int16), wanted.view(torch.int16))


def outputs(problem: Problem, context: Context) -> torch.Tensor:
    """The rows of this rank's experts, on its device."""
    experts = range(context.rank * problem.local, (context.rank + 1) * problem.local)
    rows = torch.stack([ep_oracle.expert_output(problem, expert) for expert in experts])
    return rows.to(context.device)


def expected(problem: Problem, world: list[ep_oracle.Inputs], rank: int, local_reduce: bool = False) -> torch.Tensor:
    reckon = ep_oracle.combined_local_reduce if local_reduce else ep_oracle.combined
    return reckon(problem, world, rank)


def round_trip(
    context: Context,
    problem: Problem,
    rows: Rows = BF16,
    hooks: bool = False,
    zero_copy: bool = False,
    given_outs: bool = False,
    async_finish: bool = False,
    masked: float = 0.0,
    local_reduce: bool = False,
    fresh: bool = False,
) -> None:
    """One dispatch and one combine, both checked in full. fresh: in a buffer made for this call."""
    buffer = (context.new_buffer if fresh else context.buffer)(problem.ranks, 0, room(problem))
    world = ep_oracle.everyone(problem)
    mine = world[context.rank].to(context.device)
    x, topk_idx = mine.x.clone(), mine.topk_idx.clone()
    into = outs(problem, rows, context.device) if given_outs else {}
    carried = {"topk_weights": mine.topk_weights.clone()} if local_reduce else {}
    result = buffer.low_latency_dispatch(
        x,
        topk_idx,
        problem.max_tokens,
        problem.experts,
        async_finish=async_finish,
        return_recv_hook=hooks,
        **rows.arguments,
        **carried,
        **into,
    )
    recv_x, count, handle, event, hook = result
    if hooks:
        x.fill_(99)
        topk_idx.fill_(0)
        for weights in carried.values():
            weights.fill_(99)
        hook()
    else:
        assert hook is None
    if async_finish:
        event.current_stream_wait()
    if given_outs:
        assert (recv_x[0] if rows.fp8 else recv_x) is into["out_packed_recv_x"]
        assert not rows.fp8 or recv_x[1] is into["out_packed_recv_x_scales"]
        assert handle[0] is into["out_src_info"]
        assert handle[1] is into["out_layout_range"]
        assert count is into["out_count"]
    context.settle(buffer)
    assert_dispatched(problem, world, context.rank, result, rows)

    mask = torch.rand(mine.topk_idx.shape, generator=torch.Generator().manual_seed(problem.seed)) < masked
    topk_idx = torch.where(mask.to(context.device), -1, mine.topk_idx)
    weights = torch.full_like(mine.topk_weights, 88) if local_reduce else mine.topk_weights.clone()
    y = outputs(problem, context)
    if zero_copy:
        buffer.get_next_low_latency_combine_buffer(handle)[:] = y
        y = torch.full_like(y, 77)
    out = torch.full_like(mine.x, 55) if given_outs else None
    got, event, hook = buffer.low_latency_combine(
        y,
        topk_idx,
        weights,
        handle,
        zero_copy=zero_copy,
        async_finish=async_finish,
        return_recv_hook=hooks,
        out=out,
    )
    if hooks:
        y.fill_(66)
        topk_idx.fill_(0)
        weights.fill_(0)
        hook()
    if async_finish:
        event.current_stream_wait()
    assert out is None or got is out
    context.settle(buffer)
    wanted = (
        ep_oracle.combined_local_reduce(problem, world, context.rank)
        if local_reduce
        else ep_oracle.combined(problem, world, context.rank, mask)
    )
    assert_same_bits(got, wanted)
    if fresh:
        buffer.destroy()


def big_combine(context: Context, problem: Problem, hooked_rank: int) -> None:
    """Enough rows for the ring; with a rank that receives by hook, ring and rows in place meet in one operation."""
    rdma = Buffer.get_low_latency_rdma_size_hint(problem.max_tokens, problem.hidden, problem.ranks, problem.experts)
    buffer = context.buffer(problem.ranks, 0, rdma)
    world = ep_oracle.everyone(problem)
    mine = world[context.rank].to(context.device)
    wanted = ep_oracle.combined(problem, world, context.rank)
    sizes = (problem.max_tokens, problem.experts)
    handle = buffer.low_latency_dispatch(mine.x, mine.topk_idx, *sizes, use_fp8=False)[2]
    y = outputs(problem, context)
    for hook_at in (-1, hooked_rank, -1, -1):
        hooks = context.rank == hook_at
        got, _, hook = buffer.low_latency_combine(
            y, mine.topk_idx, mine.topk_weights, handle, return_recv_hook=hooks, out=torch.full_like(mine.x, 9)
        )
        if hooks:
            # Nobody may wait for this hook: the others' next operation is already complete before it is called.
            result = buffer.low_latency_dispatch(mine.x, mine.topk_idx, *sizes, use_fp8=False)
            hook()
        elif hook_at >= 0:
            result = buffer.low_latency_dispatch(mine.x, mine.topk_idx, *sizes, use_fp8=False)
        assert_same_bits(got, wanted)
    context.settle(buffer)
    assert_dispatched(problem, world, context.rank, result, BF16)


def back_to_back(context: Context, problem: Problem, times: int, local_reduce: bool = False) -> None:
    """Dispatches with changing routing and no pause, then combines, then both in turn."""
    buffer = context.buffer(problem.ranks, 0, room(problem))
    problems = [
        replace(problem, seed=seed, tokens=problem.tokens[seed % 3 :] + problem.tokens[: seed % 3])
        for seed in range(times)
    ]
    worlds = [ep_oracle.everyone(one) for one in problems]
    inputs = [each[context.rank].to(context.device) for each in worlds]
    results = [
        buffer.low_latency_dispatch(
            mine.x,
            mine.topk_idx,
            one.max_tokens,
            one.experts,
            use_fp8=False,
            **({"topk_weights": mine.topk_weights} if local_reduce else {}),
        )
        for one, mine in zip(problems, inputs, strict=True)
    ]
    for one, each, result in zip(problems, worlds, results, strict=True):
        assert_dispatched(one, each, context.rank, result, BF16)
    rows = [outputs(one, context) for one in problems]
    got = [
        buffer.low_latency_combine(y, mine.topk_idx, mine.topk_weights, result[2])[0]
        for y, mine, result in zip(rows, inputs, results, strict=True)
    ]
    context.settle(buffer)
    for one, each, combined in zip(problems, worlds, got, strict=True):
        assert_same_bits(combined, expected(one, each, context.rank, local_reduce))
    for one in problems:
        round_trip(context, one, local_reduce=local_reduce)


def changing_sizes(context: Context, sizes: list[tuple[int, int, int]]) -> None:
    """sizes: tokens, hidden and experts of each problem in turn."""
    for seed, (tokens, hidden, experts) in enumerate(sizes):
        round_trip(context, Problem(2, tokens, hidden, 2, experts, (tokens, tokens // 2), seed))


def hooks_in_any_order(context: Context, problem: Problem) -> None:
    buffer = context.buffer(problem.ranks, 0, room(problem))
    other = replace(problem, seed=problem.seed + 1)
    worlds = {one: ep_oracle.everyone(one) for one in (problem, other)}
    for first_opened_first in (True, False, True):
        opened = []
        for one, world in worlds.items():
            mine = world[context.rank].to(context.device)
            opened.append(
                buffer.low_latency_dispatch(
                    mine.x, mine.topk_idx, one.max_tokens, one.experts, use_fp8=False, return_recv_hook=True
                )
            )
        with pytest.raises(RuntimeError, match="receive hook of the operation before the last has not been called"):
            buffer.low_latency_dispatch(mine.x, mine.topk_idx, problem.max_tokens, problem.experts, None)
        for result in opened if first_opened_first else opened[::-1]:
            result[4]()
            with pytest.raises(RuntimeError, match="already called"):
                result[4]()
        context.settle(buffer)
        for (one, world), result in zip(worlds.items(), opened, strict=True):
            assert_dispatched(one, world, context.rank, result, BF16)


def hook_over_fused(context: Context, problem: Problem) -> None:
    """A dispatch is open while a whole combine of the one before goes through."""
    buffer = context.buffer(problem.ranks, 0, room(problem))
    world = ep_oracle.everyone(problem)
    mine = world[context.rank].to(context.device)
    sizes = (problem.max_tokens, problem.experts)
    _, _, handle, _, _ = buffer.low_latency_dispatch(mine.x, mine.topk_idx, *sizes, use_fp8=False)
    for _ in range(5):
        result = buffer.low_latency_dispatch(mine.x, mine.topk_idx, *sizes, use_fp8=False, return_recv_hook=True)
        y = outputs(problem, context)
        combined, _, _ = buffer.low_latency_combine(y, mine.topk_idx, mine.topk_weights, handle)
        assert_same_bits(combined, ep_oracle.combined(problem, world, context.rank))
        result[4]()
        context.settle(buffer)
        assert_dispatched(problem, world, context.rank, result, BF16)


def same_bits(context: Context, problem: Problem, times: int, local_reduce: bool = False) -> None:
    buffer = context.buffer(problem.ranks, 0, room(problem))
    mine = ep_oracle.inputs(problem, context.rank).to(context.device)
    carried = {"topk_weights": mine.topk_weights} if local_reduce else {}
    seen = set()
    for _ in range(times):
        recv_x, count, handle, _, _ = buffer.low_latency_dispatch(
            mine.x, mine.topk_idx, problem.max_tokens, problem.experts, use_fp8=False, **carried
        )
        combined, _, _ = buffer.low_latency_combine(recv_x, mine.topk_idx, mine.topk_weights, handle)
        context.settle(buffer)
        received = [rows[:number] for rows, number in zip(recv_x.cpu(), count.tolist(), strict=True)]
        told = [handle[0].cpu()[row, :number] for row, number in enumerate(count.tolist())]
        parts = (*received, *told, handle[1].cpu(), count.cpu(), combined.cpu())
        seen.add(b"".join(part.contiguous().view(torch.uint8).numpy().tobytes() for part in parts))
    assert len(seen) == 1


def two_buffers(context: Context, problem: Problem) -> None:
    first, second = (context.new_buffer(problem.ranks, 1 << 20, room(problem)) for _ in range(2))
    worlds = [ep_oracle.everyone(replace(problem, seed=seed)) for seed in (1, 2)]
    results = []
    for buffer, each in zip((first, second), worlds, strict=True):
        mine = each[context.rank].to(context.device)
        results.append(
            buffer.low_latency_dispatch(
                mine.x, mine.topk_idx, problem.max_tokens, problem.experts, use_fp8=False, return_recv_hook=True
            )
        )
    for buffer, result, each in list(zip((first, second), results, worlds, strict=True))[::-1]:
        result[4]()
        context.settle(buffer)
        assert_dispatched(problem, each, context.rank, result, BF16)
    first.destroy()
    first.destroy()
    mine = worlds[0][context.rank].to(context.device)
    with pytest.raises(RuntimeError, match="it was destroyed"):
        first.low_latency_dispatch(mine.x, mine.topk_idx, problem.max_tokens, problem.experts, use_fp8=False)
    result = second.low_latency_dispatch(mine.x, mine.topk_idx, problem.max_tokens, problem.experts, use_fp8=False)
    context.settle(second)
    assert_dispatched(problem, worlds[0], context.rank, result, BF16)
    second.destroy()


def statistics(context: Context, problem: Problem) -> None:
    buffer = context.buffer(problem.ranks, 0, room(problem))
    mine = ep_oracle.inputs(problem, context.rank).to(context.device)
    stats = torch.full((problem.local,), 100, dtype=torch.int32, device=context.device)
    for times in (1, 2):
        _, count, _, _, _ = buffer.low_latency_dispatch(
            mine.x, mine.topk_idx, problem.max_tokens, problem.experts, stats, use_fp8=False
        )
        context.settle(buffer)
        assert torch.equal(stats, 100 + times * count)


def hard_values(context: Context) -> None:
    """Every bf16 there is, in blocks of 128, quantised as torch does it."""
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    shuffled = every[torch.randperm(65536, generator=torch.Generator().manual_seed(3))]
    ascending = every.float().nan_to_num(0, 1, -1).sort().values.bfloat16()
    zeros = torch.zeros(1024, dtype=torch.bfloat16)
    for values in (every, shuffled, ascending, zeros):
        x = values.view(-1, 1024)
        tokens = x.shape[0]
        buffer = context.buffer(1, 0, LEAST_ROOM)
        idx = torch.zeros((tokens, 1), dtype=torch.int64, device=context.device)
        (got, scales), _, _, _, _ = buffer.low_latency_dispatch(x.to(context.device), idx, tokens, 1, use_fp8=True)
        context.settle(buffer)
        wanted, wanted_scales = ep_oracle.quantise(x)
        torch.testing.assert_close(scales[0].cpu(), wanted_scales, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(got[0].cpu().float(), wanted.float(), rtol=0, atol=0, equal_nan=True)
