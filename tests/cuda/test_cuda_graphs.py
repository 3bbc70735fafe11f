"""CUDA graphs: what was captured once is replayed with other rows and another routing, and is right every time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import ep_oracle
import pytest
import torch
from ep_high_throughput import arrivals, assert_rows, in_streams, partials, summed
from ep_low_latency import (
    BF16,
    FP8,
    UE8M0,
    Rows,
    assert_dispatched,
    assert_same_bits,
    expected,
    outputs,
    outs,
    room,
    round_trip,
)
from ep_oracle import Problem
from ep_world import Context, RankWorld

REPLAYS = 5


def captured(operations: Callable[[], None]) -> Callable[[], None]:
    """`operations` in a CUDA graph, and what replays it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        operations()
    return graph.replay


def poison(tensor: torch.Tensor) -> None:
    tensor.fill_(math.nan if tensor.is_floating_point() else -7)


class LowLatencyGraph:
    """A dispatch, a combine and, for an odd number of operations, one dispatch more, captured together."""

    def __init__(
        self,
        context: Context,
        problem: Problem,
        rows: Rows = BF16,
        local_reduce: bool = False,
        hooks: bool = False,
        given_outs: bool = True,
        odd: bool = False,
    ) -> None:
        self.context, self.rows, self.local_reduce, self.hooks, self.odd = context, rows, local_reduce, hooks, odd
        self.problem = problem
        self.buffer = context.buffer(problem.ranks, 0, room(problem))
        mine = ep_oracle.inputs(problem, context.rank).to(context.device)
        self.x, self.topk_idx, self.weights = mine.x.clone(), mine.topk_idx.clone(), mine.topk_weights.clone()
        self.y = outputs(problem, context)
        self.into = [outs(problem, rows, context.device) if given_outs else {} for _ in range(2)]
        self.out = torch.empty_like(self.x) if given_outs else None
        self.operations()
        context.settle(self.buffer)
        self.replay = captured(self.operations)

    def dispatch(self, into: dict[str, torch.Tensor]) -> tuple:
        result = self.buffer.low_latency_dispatch(
            self.x,
            self.topk_idx,
            self.problem.max_tokens,
            self.problem.experts,
            return_recv_hook=self.hooks,
            **self.rows.arguments,
            **({"topk_weights": self.weights} if self.local_reduce else {}),
            **into,
        )
        if self.hooks:
            result[4]()
        return result

    def operations(self) -> None:
        self.results = [self.dispatch(self.into[0])]
        self.combined, _, hook = self.buffer.low_latency_combine(
            self.y, self.topk_idx, self.weights, self.results[0][2], return_recv_hook=self.hooks, out=self.out
        )
        if hook is not None:
            hook()
        if self.odd:
            self.results.append(self.dispatch(self.into[1]))

    def rewrite(self, problem: Problem) -> None:
        """Other rows and another routing in the tensors that were captured."""
        self.problem = problem
        mine = ep_oracle.inputs(problem, self.context.rank)
        self.x.copy_(mine.x)
        self.topk_idx.copy_(mine.topk_idx)
        self.weights.copy_(mine.topk_weights)
        self.y.copy_(outputs(problem, self.context))
        for tensor in (self.combined, *self.into[0].values(), *self.into[1].values()):
            poison(tensor)

    def check(self) -> None:
        self.context.settle(self.buffer)
        world = ep_oracle.everyone(self.problem)
        for result in self.results:
            assert_dispatched(self.problem, world, self.context.rank, result, self.rows)
        assert_same_bits(self.combined, expected(self.problem, world, self.context.rank, self.local_reduce))


def replayed(context: Context, problem: Problem, eager: bool = False, **captured_with: object) -> None:
    """eager: operations that are not of the graph go between, an odd number of them."""
    graph = LowLatencyGraph(context, problem, **captured_with)  # type: ignore[arg-type]
    for seed in range(1, REPLAYS + 1):
        graph.rewrite(replace(problem, seed=problem.seed + seed))
        graph.replay()
        graph.check()
        if eager:
            round_trip(context, replace(problem, seed=problem.seed + 100 + seed))
            mine = ep_oracle.inputs(problem, context.rank).to(context.device)
            graph.buffer.low_latency_dispatch(mine.x, mine.topk_idx, problem.max_tokens, problem.experts, use_fp8=False)


WAYS = {
    "bf16": {},
    "fp8": {"rows": FP8},
    "ue8m0": {"rows": UE8M0},
    "hooks": {"hooks": True},
    "own tensors": {"given_outs": False},
    "an odd number of operations": {"odd": True},
    "odd, with hooks": {"odd": True, "hooks": True, "rows": FP8},
    "eager operations between": {"eager": True},
    "odd, with eager operations between": {"odd": True, "eager": True},
}


@pytest.mark.parametrize("local_reduce", [False, True], ids=["exact", "local_reduce"])
@pytest.mark.parametrize("way", WAYS)
def test_low_latency_is_replayed_with_another_routing(world: RankWorld, way: str, local_reduce: bool) -> None:
    problem = Problem(2, 24, 512, 4, 12, (24, 7), seed=40, masked=0.1)
    world.run(replayed, 2, problem=problem, local_reduce=local_reduce, timeout_s=120, **WAYS[way])


@pytest.mark.parametrize(("ranks", "tokens"), [(1, (9,)), (3, (9, 0, 4))])
def test_low_latency_is_replayed_on_other_numbers_of_ranks(
    world: RankWorld, ranks: int, tokens: tuple[int, ...]
) -> None:
    world.run(replayed, ranks, problem=Problem(ranks, 9, 256, 3, 6, tokens, seed=3, duplicates=True), timeout_s=120)


def no_pause(context: Context, problem: Problem) -> None:
    """Many replays with nothing between them but the next one's inputs, which stay the same."""
    graph = LowLatencyGraph(context, problem, odd=True)
    graph.rewrite(replace(problem, seed=problem.seed + 1))
    for _ in range(20):
        graph.replay()
    graph.check()


def test_replays_without_a_pause(world: RankWorld) -> None:
    world.run(no_pause, 2, problem=Problem(2, 24, 512, 4, 12, (24, 7), seed=5))


def across_streams(context: Context, problem: Problem) -> None:
    """An operation on the buffer's own stream, and the next one on the captured one, which waits for no event."""
    buffer = context.buffer(problem.ranks, 0, room(problem))
    world = ep_oracle.everyone(problem)
    mine = world[context.rank].to(context.device)
    sizes = (problem.max_tokens, problem.experts)
    results: list[tuple] = []

    def operations() -> None:
        first = buffer.low_latency_dispatch(mine.x, mine.topk_idx, *sizes, use_fp8=False, async_finish=True)
        results[:] = [first, buffer.low_latency_dispatch(mine.x, mine.topk_idx, *sizes, use_fp8=False)]
        first[3].current_stream_wait()

    operations()
    context.settle(buffer)
    replay = captured(operations)
    for _ in range(REPLAYS):
        for result in results:
            poison(result[0])
        replay()
        context.settle(buffer)
        for result in results:
            assert_dispatched(problem, world, context.rank, result, BF16)


def test_operations_of_a_graph_follow_each_other_across_streams(world: RankWorld) -> None:
    world.run(across_streams, 2, problem=Problem(2, 24, 512, 4, 12, (24, 7), seed=6))


def in_turn(context: Context, problem: Problem) -> None:
    graphs = [LowLatencyGraph(context, problem), LowLatencyGraph(context, problem, FP8, local_reduce=True, odd=True)]
    for seed, which in enumerate((0, 1, 1, 0, 1, 0, 0, 0, 1, 1)):
        graph = graphs[which]
        graph.rewrite(replace(problem, seed=problem.seed + seed))
        graph.replay()
        graph.check()


def test_two_graphs_of_one_buffer_in_turn(world: RankWorld) -> None:
    world.run(in_turn, 2, problem=Problem(2, 24, 512, 4, 12, (24, 7), seed=70), timeout_s=120)


def high_throughput_replayed(context: Context, problem: Problem, known: str, streams: str) -> None:
    """known: what makes the dispatch need no answer from the host, a `handle` or the `worst` number of rows.

    With a handle the rows change between replays, and with the worst number the routing, too.
    """
    buffer = context.buffer(problem.ranks, 4 << 20, 0)
    rank = context.rank
    mine = ep_oracle.inputs(problem, rank).to(context.device)
    x, topk_idx, weights = mine.x.clone(), mine.topk_idx.clone(), mine.topk_weights.clone()
    worst = sum(problem.tokens)
    y = torch.zeros((worst, problem.hidden), dtype=torch.bfloat16, device=context.device)
    results: dict[str, tuple] = {}

    def routed(how: str, worst_tokens: int = 0) -> tuple:
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(topk_idx, problem.experts)
        more = {"num_worst_tokens": worst_tokens, **in_streams(how)}
        return buffer.dispatch(x, None, per_rank, None, in_rank, per_expert, topk_idx, weights, **more)

    handle = routed("plain")[4]

    def operations() -> None:
        if known == "handle":
            dispatched = buffer.dispatch(x, handle, **in_streams(streams))
            results["combine"] = buffer.combine(y, handle, **in_streams(streams, dispatched[5]))
        else:
            dispatched = routed(streams, worst)
            results["combine"] = buffer.combine(y, dispatched[4], dispatched[2], **in_streams(streams, dispatched[5]))
        results["dispatch"] = dispatched
        if streams != "plain":
            results["combine"][2].current_stream_wait()

    operations()
    context.settle(buffer)
    replay = captured(operations)
    routing = ep_oracle.everyone(problem)
    for seed in range(1, REPLAYS + 1):
        one = replace(problem, seed=problem.seed + seed)
        world = ep_oracle.everyone(one)
        if known == "handle":
            world = [
                replace(each, topk_idx=old.topk_idx, topk_weights=old.topk_weights)
                for each, old in zip(world, routing, strict=True)
            ]
        found = arrivals(one, world, rank)
        x.copy_(world[rank].x)
        topk_idx.copy_(world[rank].topk_idx)
        weights.copy_(world[rank].topk_weights)
        y[: len(found)] = partials(one, rank, found, torch.bfloat16).to(context.device)
        poison(results["dispatch"][0])
        poison(results["combine"][0])
        replay()
        context.settle(buffer)
        assert_rows(results["dispatch"][0], [each.x for each in world], found)
        assert torch.equal(results["combine"][0].cpu(), summed(one, world[rank], rank, torch.bfloat16))
        if known == "worst":
            kept = torch.where(world[rank].topk_idx >= 0, world[rank].topk_weights, 0.0)
            assert torch.equal(results["combine"][1].cpu(), kept)
            assert (results["dispatch"][1][len(found) :] == -1).all()


@pytest.mark.parametrize("known", ["handle", "worst"])
@pytest.mark.parametrize("streams", ["plain", "beside"])
def test_high_throughput_is_replayed(world: RankWorld, known: str, streams: str) -> None:
    problem = Problem(2, 40, 256, 4, 12, (40, 23), seed=11, masked=0.2)
    world.run(high_throughput_replayed, 2, problem=problem, known=known, streams=streams, timeout_s=120)
