"""Memory: operations in a loop and buffers made anew take no more of it than the first ones did."""

from __future__ import annotations

import ep_oracle
import torch
import torch.distributed as dist
from ep_high_throughput import round_trip as high_throughput_round_trip
from ep_low_latency import outputs, room, round_trip
from ep_oracle import Problem
from ep_world import Context, RankWorld

# What the driver gives out in one piece: a few descriptors more may take one piece more.
PIECE_BYTES = 2 << 20
TORCH_STREAMS = 32


def used_bytes(context: Context, ranks: int) -> tuple[int, int]:
    """Of torch's allocator on this rank, and of the device by everybody while all ranks are at rest."""
    torch.cuda.synchronize()
    dist.barrier(context.group(ranks))
    free, total = torch.cuda.mem_get_info()
    taken = torch.cuda.memory_allocated(), total - free
    dist.barrier(context.group(ranks))
    return taken


def looped(context: Context, problem: Problem) -> None:
    buffer = context.buffer(problem.ranks, 4 << 20, room(problem))
    mine = ep_oracle.inputs(problem, context.rank).to(context.device)
    y = outputs(problem, context)
    sizes = (problem.max_tokens, problem.experts)

    def operations(times: int) -> None:
        for turn in range(times):
            hooks, local_reduce = turn % 2 == 1, turn % 3 == 1
            carried = {"topk_weights": mine.topk_weights} if local_reduce else {}
            _, _, handle, _, hook = buffer.low_latency_dispatch(
                mine.x, mine.topk_idx, *sizes, use_fp8=turn % 4 == 0, return_recv_hook=hooks, **carried
            )
            if hook is not None:
                hook()
            buffer.low_latency_combine(y, mine.topk_idx, mine.topk_weights, handle)
            per_rank, _, per_expert, in_rank, event = buffer.get_dispatch_layout(mine.topk_idx, problem.experts)
            recv_x, _, _, _, handle, event = buffer.dispatch(
                mine.x, None, per_rank, None, in_rank, per_expert, async_finish=True
            )
            event.current_stream_wait()
            buffer.combine(recv_x, handle)
        context.settle(buffer)

    operations(20)
    before = used_bytes(context, problem.ranks)
    operations(50)
    after = used_bytes(context, problem.ranks)
    assert after[0] <= before[0], (before, after)
    assert after[1] <= before[1] + PIECE_BYTES, (before, after)


def test_two_hundred_operations_take_no_more_memory(world: RankWorld) -> None:
    world.run(looped, 2, problem=Problem(2, 24, 512, 4, 12, (24, 7), seed=1), timeout_s=120)


def made_anew(context: Context, problem: Problem) -> None:
    def once() -> None:
        round_trip(context, problem, fresh=True)
        buffer = context.new_buffer(problem.ranks, 4 << 20, room(problem))
        context.state[(problem.ranks, 4 << 20, 0, 30.0)] = buffer
        high_throughput_round_trip(context, problem, nvl=4 << 20)
        context.state.pop((problem.ranks, 4 << 20, 0, 30.0)).destroy()

    # Each buffer takes the next of torch's pool of streams, and a stream's first kernel takes memory once.
    for _ in range(TORCH_STREAMS):
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.zeros(1, device=context.device)
    once()
    before = used_bytes(context, problem.ranks)
    for _ in range(9):
        once()
    after = used_bytes(context, problem.ranks)
    assert after[0] <= before[0], (before, after)
    assert after[1] <= before[1] + PIECE_BYTES, (before, after)


def test_buffers_made_anew_take_no_more_memory(world: RankWorld) -> None:
    world.run(made_anew, 2, problem=Problem(2, 24, 512, 4, 12, (24, 7), seed=1), timeout_s=120)
