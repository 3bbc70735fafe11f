"""Low latency on GPUs against the oracle: every row, count, range, scale, and every bit of both combines."""

from __future__ import annotations

import os
from dataclasses import replace

import ep_oracle
import pytest
import torch
from ep_low_latency import (
    BF16,
    FP8,
    ROUNDED,
    UE8M0,
    Rows,
    assert_dispatched,
    assert_same_bits,
    back_to_back,
    big_combine,
    changing_sizes,
    expected,
    hard_values,
    hook_over_fused,
    hooks_in_any_order,
    outputs,
    room,
    round_trip,
    same_bits,
    statistics,
)
from ep_oracle import Problem
from ep_problems import FEW, problems
from ep_world import Context, RankWorld
from hypothesis import given
from hypothesis import strategies as st

ROWS = pytest.mark.parametrize("rows", [BF16, FP8, ROUNDED, UE8M0], ids=["bf16", "fp8", "rounded", "ue8m0"])
A_WHILE_CYCLES = 1_000_000
COMBINES = pytest.mark.parametrize("local_reduce", [False, True], ids=["exact", "local_reduce"])
MODES = {
    "outs": {"given_outs": True},
    "hooks": {"hooks": True},
    "hooks and outs": {"hooks": True, "given_outs": True},
    "zero_copy": {"zero_copy": True},
    "zero_copy and hooks": {"zero_copy": True, "hooks": True},
    "async_finish": {"async_finish": True},
}


@ROWS
@COMBINES
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_every_row_and_every_bit(world: RankWorld, ranks: int, rows: Rows, local_reduce: bool) -> None:
    problem = Problem(ranks, 24, 512, 4, 12, (24, 7, 0, 19)[:ranks], seed=ranks, masked=0.1)
    world.run(round_trip, ranks, problem=problem, rows=rows, local_reduce=local_reduce)


@ROWS
@COMBINES
@pytest.mark.parametrize("mode", MODES)
def test_every_way_to_call(world: RankWorld, rows: Rows, local_reduce: bool, mode: str) -> None:
    problem = Problem(2, 24, 512, 4, 12, (24, 7), seed=1, masked=0.1)
    world.run(round_trip, 2, problem=problem, rows=rows, local_reduce=local_reduce, **MODES[mode])


@COMBINES
@pytest.mark.parametrize(
    ("hidden", "topk", "experts"),
    [
        (128, 1, 2),
        (128, 32, 64),
        (384, 3, 4),
        (2560, 9, 10),
        (3072, 7, 266),
        (4096, 32, 32),
        (5120, 8, 16),
        (7168, 8, 16),
        (7296, 5, 6),
        (16384, 8, 8),
    ],
)
def test_any_hidden_and_topk(world: RankWorld, hidden: int, topk: int, experts: int, local_reduce: bool) -> None:
    problem = Problem(2, max_tokens=9, hidden=hidden, topk=topk, experts=experts, tokens=(9, 5), seed=hidden + topk)
    for rows in (BF16, FP8):
        world.run(round_trip, 2, problem=problem, rows=rows, local_reduce=local_reduce)


@COMBINES
@pytest.mark.parametrize(("hidden", "topk"), [(128, 8), (1024, 32), (16384, 32)])
def test_1024_experts(world: RankWorld, hidden: int, topk: int, local_reduce: bool) -> None:
    problem = Problem(2, max_tokens=3, hidden=hidden, topk=topk, experts=1024, tokens=(3, 2), seed=topk)
    world.run(round_trip, 2, problem=problem, local_reduce=local_reduce)


@COMBINES
@pytest.mark.timeout(300)
def test_the_canonical_size(world: RankWorld, local_reduce: bool) -> None:
    problem = Problem(2, 128, 7168, 8, 256, (128, 128), seed=3)
    for rows in (BF16, FP8):
        world.run(round_trip, 2, problem=problem, rows=rows, local_reduce=local_reduce, timeout_s=120)


@COMBINES
@pytest.mark.parametrize("hooks", [False, True])
def test_an_expert_twice_in_a_token(world: RankWorld, hooks: bool, local_reduce: bool) -> None:
    problem = Problem(2, max_tokens=40, hidden=128, topk=6, experts=4, tokens=(6, 6), seed=5, duplicates=True)
    world.run(round_trip, 2, problem=problem, hooks=hooks, local_reduce=local_reduce)


@COMBINES
@pytest.mark.parametrize("tokens", [(0, 0, 0), (0, 5, 0), (1, 1, 1)])
@pytest.mark.parametrize("masked", [0.0, 1.0])
def test_nothing_to_send(world: RankWorld, tokens: tuple[int, ...], masked: float, local_reduce: bool) -> None:
    problem = Problem(3, max_tokens=5, hidden=128, topk=2, experts=6, tokens=tokens, seed=9, masked=masked)
    for hooks in (False, True):
        world.run(round_trip, 3, problem=problem, hooks=hooks, local_reduce=local_reduce)


def test_combine_may_mask_more_than_dispatch(world: RankWorld) -> None:
    problem = Problem(3, max_tokens=16, hidden=128, topk=4, experts=6, tokens=(16, 3, 8), seed=11, masked=0.2)
    world.run(round_trip, 3, problem=problem, masked=0.5)


def with_sms(context: Context, problem: Problem, sms: str, local_reduce: bool) -> None:
    before = os.environ.get("EP_LL_SMS")
    every = torch.cuda.get_device_properties(context.device).multi_processor_count
    os.environ["EP_LL_SMS"] = str(every) if sms == "all" else sms
    try:
        for rows in (BF16, FP8):
            round_trip(context, problem, rows=rows, local_reduce=local_reduce, fresh=True)
    finally:
        if before is None:
            del os.environ["EP_LL_SMS"]
        else:
            os.environ["EP_LL_SMS"] = before


@COMBINES
@pytest.mark.parametrize("sms", ["1", "2", "7", "64", "all"])
def test_any_number_of_sms(world: RankWorld, sms: str, local_reduce: bool) -> None:
    problem = Problem(2, 33, 1024, 6, 18, (33, 20), seed=2, masked=0.1)
    world.run(with_sms, 2, problem=problem, sms=sms, local_reduce=local_reduce)


def test_fewer_tokens_than_warps_of_the_grid(world: RankWorld) -> None:
    """The grid's later rounds begin behind the tokens that the ranks have."""
    problem = Problem(2, 100, 256, 2, 4, (0, 5), seed=4)
    world.run(with_sms, 2, problem=problem, sms="3", local_reduce=False)


@COMBINES
@FEW
@given(data=st.data())
def test_any_routing(world: RankWorld, local_reduce: bool, data: st.DataObject) -> None:
    rows = data.draw(st.sampled_from([BF16, FP8, ROUNDED, UE8M0]), "rows")
    columns = st.integers(1, 3).map(lambda n: (512 if rows.ue8m0 else 128) * n)
    problem = data.draw(problems(columns, most_tokens=40, most_topk=12, most_ranks=3))
    hooks, given_outs = data.draw(st.booleans(), "hooks"), data.draw(st.booleans(), "given_outs")
    world.run(
        round_trip,
        problem.ranks,
        problem=problem,
        rows=rows,
        hooks=hooks,
        given_outs=given_outs,
        local_reduce=local_reduce,
    )


@pytest.mark.parametrize(("ranks", "tokens", "topk"), [(2, (64, 64), 8), (3, (64, 0, 37), 6), (2, (3, 64), 32)])
def test_many_rows_with_one_rank_receiving_by_hook(
    world: RankWorld, ranks: int, tokens: tuple[int, ...], topk: int
) -> None:
    problem = Problem(ranks, 64, 4096, topk, 4 * ranks, tokens, seed=topk, masked=0.05, duplicates=topk > 8)
    world.run(big_combine, ranks, problem=problem, hooked_rank=ranks - 1, timeout_s=120)


@COMBINES
def test_back_to_back_with_changing_routing(world: RankWorld, local_reduce: bool) -> None:
    problem = Problem(3, max_tokens=8, hidden=128, topk=3, experts=6, tokens=(8, 2, 5), masked=0.1)
    world.run(back_to_back, 3, problem=problem, times=9, local_reduce=local_reduce)


def test_sizes_may_change_between_operations(world: RankWorld) -> None:
    world.run(changing_sizes, 2, sizes=[(4, 256, 8), (32, 128, 2), (1, 2048, 4), (16, 384, 16)] * 2)


def one_region(context: Context, small: Problem, large: Problem, times: int) -> None:
    """Operations of two sizes in one buffer, without a pause, while now one rank is late and now the other."""
    buffer = context.new_buffer(large.ranks, 0, room(large))
    turns = [replace((large, small, small)[turn % 3], seed=turn) for turn in range(times)]
    worlds = [ep_oracle.everyone(one) for one in turns]
    inputs = [world[context.rank].to(context.device) for world in worlds]
    rows = [outputs(one, context) for one in turns]
    done = []
    for turn, (one, mine, y) in enumerate(zip(turns, inputs, rows, strict=True)):
        if turn % 2 == context.rank:
            torch.cuda._sleep(A_WHILE_CYCLES)
        result = buffer.low_latency_dispatch(mine.x, mine.topk_idx, one.max_tokens, one.experts, use_fp8=False)
        done.append((result, buffer.low_latency_combine(y, mine.topk_idx, mine.topk_weights, result[2])[0]))
    context.settle(buffer)
    for one, world, (result, combined) in zip(turns, worlds, done, strict=True):
        assert_dispatched(one, world, context.rank, result, BF16)
        assert_same_bits(combined, expected(one, world, context.rank))
    buffer.destroy()


def test_sizes_may_change_within_one_buffer(world: RankWorld) -> None:
    small = Problem(2, 16, 512, 4, 8, (16, 16))
    world.run(one_region, 2, small=small, large=Problem(2, 128, 4096, 4, 8, (128, 128)), times=12, timeout_s=120)


def test_two_hooks_open_in_any_order(world: RankWorld) -> None:
    problem = Problem(3, max_tokens=4, hidden=128, topk=3, experts=6, tokens=(4, 4, 4))
    world.run(hooks_in_any_order, 3, problem=problem)


def test_a_hook_open_over_another_operation(world: RankWorld) -> None:
    world.run(hook_over_fused, 2, problem=Problem(2, 6, 128, 2, 4, (6, 6)))


@COMBINES
def test_the_same_call_gives_the_same_bits(world: RankWorld, local_reduce: bool) -> None:
    problem = Problem(3, 32, 1024, 8, 24, (32, 32, 32))
    world.run(same_bits, 3, problem=problem, times=20, local_reduce=local_reduce)


def test_counts_are_added_up(world: RankWorld) -> None:
    world.run(statistics, 2, problem=Problem(2, 6, 128, 2, 4, (6, 3)))


def test_fp8_of_every_bf16(world: RankWorld) -> None:
    world.run(hard_values, 1)


@pytest.mark.parametrize(
    ("rows", "arguments"),
    [(BF16, {}), (FP8, {"hooks": True}), (BF16, {"local_reduce": True, "given_outs": True})],
    ids=["plain", "fp8 and hooks", "local_reduce"],
)
def test_eight_ranks(eight: RankWorld, rows: Rows, arguments: dict[str, bool]) -> None:
    problem = Problem(8, 8, 128, 4, 16, (8, 0, 3, 8, 8, 1, 8, 5), masked=0.1)
    eight.run(round_trip, problem=problem, rows=rows, timeout_s=120, **arguments)
