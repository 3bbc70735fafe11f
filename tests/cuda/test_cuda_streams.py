"""Streams: two buffers on two of them, one buffer on several in turn, and events between streams."""

from __future__ import annotations

from dataclasses import replace

import ep_oracle
import torch
from ep_high_throughput import arrivals, assert_rows, partials, summed
from ep_low_latency import BF16, assert_dispatched, assert_same_bits, outputs, room
from ep_oracle import Problem
from ep_world import Context, RankWorld

from ep_core import Buffer

A_WHILE_CYCLES = 20_000_000


def two_buffers(context: Context, problem: Problem) -> None:
    buffers = [context.new_buffer(problem.ranks, 0, room(problem)) for _ in range(2)]
    streams = [torch.cuda.Stream() for _ in range(2)]
    for seed in range(5):
        problems = [replace(problem, seed=problem.seed + 2 * seed + which) for which in range(2)]
        worlds = [ep_oracle.everyone(one) for one in problems]
        inputs = [world[context.rank].to(context.device) for world in worlds]
        rows = [outputs(one, context) for one in problems]
        torch.cuda.synchronize()
        results, combined = [], []
        for buffer, stream, mine in zip(buffers, streams, inputs, strict=True):
            with torch.cuda.stream(stream):
                results.append(
                    buffer.low_latency_dispatch(
                        mine.x, mine.topk_idx, problem.max_tokens, problem.experts, use_fp8=False
                    )
                )
        for buffer, stream, mine, y, result in zip(buffers, streams, inputs, rows, results, strict=True):
            with torch.cuda.stream(stream):
                combined.append(buffer.low_latency_combine(y, mine.topk_idx, mine.topk_weights, result[2])[0])
        for which, buffer in enumerate(buffers):
            context.settle(buffer)
            assert_dispatched(problems[which], worlds[which], context.rank, results[which], BF16)
            assert_same_bits(combined[which], ep_oracle.combined(problems[which], worlds[which], context.rank))
    for buffer in buffers:
        buffer.destroy()


def test_two_buffers_on_two_streams(world: RankWorld) -> None:
    world.run(two_buffers, 2, problem=Problem(2, 24, 512, 4, 12, (24, 7), seed=1))


def one_buffer(context: Context, problem: Problem) -> None:
    """Every operation comes from another stream than the one before, and waits for it by itself."""
    buffer = context.new_buffer(problem.ranks, 4 << 20, room(problem))
    streams = [torch.cuda.Stream() for _ in range(3)]
    world = ep_oracle.everyone(problem)
    mine = world[context.rank].to(context.device)
    found = arrivals(problem, world, context.rank)
    y = outputs(problem, context)
    returned = partials(problem, context.rank, found, torch.bfloat16).to(context.device)
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(mine.topk_idx, problem.experts)
    torch.cuda.synchronize()
    for _ in range(4):
        with torch.cuda.stream(streams[0]):
            result = buffer.low_latency_dispatch(
                mine.x, mine.topk_idx, problem.max_tokens, problem.experts, use_fp8=False
            )
        with torch.cuda.stream(streams[1]):
            combined = buffer.low_latency_combine(y, mine.topk_idx, mine.topk_weights, result[2])[0]
        with torch.cuda.stream(streams[2]):
            dispatched = buffer.dispatch(mine.x, None, per_rank, None, in_rank, per_expert)
        with torch.cuda.stream(streams[0]):
            total = buffer.combine(returned, dispatched[4])[0]
        context.settle(buffer)
        assert_dispatched(problem, world, context.rank, result, BF16)
        assert_same_bits(combined, ep_oracle.combined(problem, world, context.rank))
        assert_rows(dispatched[0], [each.x for each in world], found)
        assert torch.equal(total.cpu(), summed(problem, world[context.rank], context.rank, torch.bfloat16))
    buffer.destroy()


def test_one_buffer_on_several_streams_in_turn(world: RankWorld) -> None:
    world.run(one_buffer, 2, problem=Problem(2, 24, 512, 4, 12, (24, 7), seed=2, masked=0.1))


def late_rows(context: Context, problem: Problem, allocate: bool) -> None:
    """Rows that are written late, on a stream that only `previous_event` knows of."""
    buffer = context.buffer(problem.ranks, 4 << 20, 0)
    world = ep_oracle.everyone(problem)
    mine = world[context.rank].to(context.device)
    found = arrivals(problem, world, context.rank)
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(mine.topk_idx, problem.experts)
    returned = partials(problem, context.rank, found, torch.bfloat16).to(context.device)
    x, y = torch.zeros_like(mine.x), torch.zeros_like(returned)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()

    def written_late(into: torch.Tensor, rows: torch.Tensor) -> dict[str, object]:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(A_WHILE_CYCLES)
            into.copy_(rows)
            return {
                "previous_event": Buffer.capture(),
                "async_finish": True,
                "allocate_on_comm_stream": allocate,
            }

    recv_x, _, _, _, handle, event = buffer.dispatch(
        x, None, per_rank, None, in_rank, per_expert, **written_late(x, mine.x)
    )
    event.current_stream_wait()
    received = recv_x.clone()
    combined, _, event = buffer.combine(y, handle, **written_late(y, returned))
    event.current_stream_wait()
    total = combined.clone()
    context.settle(buffer)
    assert_rows(received, [each.x for each in world], found)
    assert torch.equal(total.cpu(), summed(problem, world[context.rank], context.rank, torch.bfloat16))


def test_a_previous_event_is_waited_for_and_the_event_is_enough(world: RankWorld) -> None:
    for allocate in (False, True):
        problem = Problem(2, 60, 512, 4, 12, (60, 41), seed=7 + allocate, masked=0.1)
        world.run(late_rows, 2, problem=problem, allocate=allocate)


def event_of_low_latency(context: Context, problem: Problem) -> None:
    buffer = context.buffer(problem.ranks, 0, room(problem))
    world = ep_oracle.everyone(problem)
    mine = world[context.rank].to(context.device)
    y = outputs(problem, context)
    x = torch.zeros_like(mine.x)
    torch.cuda.synchronize()
    torch.cuda._sleep(A_WHILE_CYCLES)
    x.copy_(mine.x)
    recv_x, count, handle, event, _ = buffer.low_latency_dispatch(
        x, mine.topk_idx, problem.max_tokens, problem.experts, use_fp8=False, async_finish=True
    )
    event.current_stream_wait()
    received = (recv_x.clone(), count.clone(), handle)
    combined, event, _ = buffer.low_latency_combine(y, mine.topk_idx, mine.topk_weights, handle, async_finish=True)
    event.current_stream_wait()
    total = combined.clone()
    context.settle(buffer)
    assert_dispatched(problem, world, context.rank, received, BF16)
    assert_same_bits(total, ep_oracle.combined(problem, world, context.rank))


def test_low_latency_beside_the_current_stream(world: RankWorld) -> None:
    world.run(event_of_low_latency, 2, problem=Problem(2, 24, 512, 4, 12, (24, 7), seed=9))
