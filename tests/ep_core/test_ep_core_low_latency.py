"""Low latency on real ranks against the oracle: every row, count, range, scale, and every bit of combine."""

from __future__ import annotations

import pytest
from ep_low_latency import (
    BF16,
    FP8,
    ROUNDED,
    Rows,
    back_to_back,
    big_combine,
    changing_sizes,
    hard_values,
    hook_over_fused,
    hooks_in_any_order,
    round_trip,
    same_bits,
    statistics,
    two_buffers,
)
from ep_oracle import Problem
from ep_problems import problems
from ep_world import Context, RankWorld
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ep_core import Buffer, _host


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [BF16, FP8], ids=["bf16", "fp8"])
@pytest.mark.parametrize("mode", ["plain", "outs", "hooks", "zero_copy", "async_finish"])
def test_every_row_and_every_bit(world: RankWorld, ranks: int, rows: Rows, mode: str) -> None:
    problem = Problem(
        ranks, max_tokens=24, hidden=256, topk=4, experts=12, tokens=(24, 7, 0, 19)[:ranks], seed=ranks, masked=0.1
    )
    world.run(
        round_trip,
        ranks,
        problem=problem,
        rows=rows,
        hooks=mode == "hooks",
        zero_copy=mode == "zero_copy",
        given_outs=mode == "outs",
        async_finish=mode == "async_finish",
    )


@pytest.mark.parametrize(
    ("hidden", "topk", "experts"),
    [(8, 1, 2), (8, 32, 64), (24, 3, 4), (136, 8, 8), (7168, 8, 16), (2560, 9, 10), (4096, 32, 32)],
)
def test_any_hidden_and_topk(world: RankWorld, hidden: int, topk: int, experts: int) -> None:
    problem = Problem(2, max_tokens=9, hidden=hidden, topk=topk, experts=experts, tokens=(9, 5), seed=hidden + topk)
    world.run(round_trip, 2, problem=problem)
    if hidden % 128 == 0:
        world.run(round_trip, 2, problem=problem, rows=FP8)


@pytest.mark.parametrize("hooks", [False, True])
def test_an_expert_twice_in_a_token(world: RankWorld, hooks: bool) -> None:
    problem = Problem(2, max_tokens=40, hidden=128, topk=6, experts=4, tokens=(6, 6), seed=5, duplicates=True)
    world.run(round_trip, 2, problem=problem, hooks=hooks)


@pytest.mark.parametrize("tokens", [(0, 0, 0), (0, 5, 0), (1, 1, 1)])
@pytest.mark.parametrize("masked", [0.0, 1.0])
def test_nothing_to_send(world: RankWorld, tokens: tuple[int, ...], masked: float) -> None:
    problem = Problem(3, max_tokens=5, hidden=64, topk=2, experts=6, tokens=tokens, seed=9, masked=masked)
    world.run(round_trip, 3, problem=problem)
    world.run(round_trip, 3, problem=problem, hooks=True)


def test_combine_may_mask_more_than_dispatch(world: RankWorld) -> None:
    problem = Problem(4, max_tokens=16, hidden=64, topk=4, experts=8, tokens=(16, 16, 3, 8), seed=11, masked=0.2)
    world.run(round_trip, 4, problem=problem, masked=0.5)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_routing(world: RankWorld, data: st.DataObject) -> None:
    rows = data.draw(st.sampled_from([BF16, FP8]), "rows")
    columns = st.integers(1, 3).map(lambda n: 128 * n) if rows.fp8 else st.integers(1, 40).map(lambda n: 8 * n)
    problem = data.draw(problems(columns, most_tokens=12, most_topk=10))
    hooks, given_outs = data.draw(st.booleans()), data.draw(st.booleans())
    world.run(round_trip, problem.ranks, problem=problem, rows=rows, hooks=hooks, given_outs=given_outs)


@pytest.mark.parametrize(
    ("ranks", "tokens", "topk"), [(2, (64, 64), 8), (3, (64, 0, 37), 6), (4, (40, 64, 64, 1), 8), (2, (3, 64), 32)]
)
def test_many_rows_go_through_a_ring(world: RankWorld, ranks: int, tokens: tuple[int, ...], topk: int) -> None:
    problem = Problem(ranks, 64, 4096, topk, 4 * ranks, tokens, seed=topk, masked=0.05, duplicates=topk > 8)
    world.run(big_combine, ranks, problem=problem, hooked_rank=ranks - 1, timeout_s=120)


def test_back_to_back_with_changing_routing(world: RankWorld) -> None:
    problem = Problem(3, max_tokens=8, hidden=64, topk=3, experts=6, tokens=(8, 2, 5), masked=0.1)
    world.run(back_to_back, 3, problem=problem, times=12)


def test_sizes_may_change_between_operations(world: RankWorld) -> None:
    world.run(changing_sizes, 2, sizes=[(4, 64, 8), (32, 8, 2), (1, 1024, 4), (16, 128, 16)] * 2)


def test_two_hooks_open_in_any_order(world: RankWorld) -> None:
    problem = Problem(3, max_tokens=4, hidden=128, topk=3, experts=6, tokens=(4, 4, 4))
    world.run(hooks_in_any_order, 3, problem=problem)


def test_a_hook_open_over_another_operation(world: RankWorld) -> None:
    world.run(hook_over_fused, 2, problem=Problem(2, 6, 64, 2, 4, (6, 6)))


def test_the_same_call_gives_the_same_bits(world: RankWorld) -> None:
    world.run(same_bits, 4, problem=Problem(4, 16, 512, 8, 16, (16, 16, 16, 16)), times=6)


def test_two_buffers_at_once(world: RankWorld) -> None:
    world.run(two_buffers, 2, problem=Problem(2, 6, 64, 2, 4, (6, 6)))


def test_counts_are_added_up(world: RankWorld) -> None:
    world.run(statistics, 2, problem=Problem(2, 6, 64, 2, 4, (6, 3)))


def test_scales_rounded_to_powers_of_two(world: RankWorld) -> None:
    world.run(round_trip, 2, problem=Problem(2, 6, 512, 2, 4, (6, 6)), rows=ROUNDED)


def test_fp8_of_every_bf16(world: RankWorld) -> None:
    world.run(hard_values, 1)


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_lesser_instruction_sets_give_the_same_bits(isa: str) -> None:
    with RankWorld(2, env={"EP_CORE_ISA": isa}) as lesser:
        assert set(lesser.run(name_of_isa)) <= {isa, "baseline"}
        lesser.run(hard_values, 1)
        for hidden in (8, 136, 1024):
            lesser.run(round_trip, 2, problem=Problem(2, 8, hidden, 4, 8, (8, 5)))


def name_of_isa(_: Context) -> str:
    return _host.ISA


def test_eight_ranks() -> None:
    problem = Problem(8, 8, 128, 4, 16, (8, 0, 3, 8, 8, 1, 8, 5), masked=0.1)
    with RankWorld(8, subgroups=[]) as eight:
        eight.run(round_trip, problem=problem)
        eight.run(round_trip, problem=problem, rows=FP8, hooks=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sixty_four_ranks() -> None:
    problem = Problem(64, 2, 16, 4, 128, tuple(rank % 3 for rank in range(64)))
    with RankWorld(64, subgroups=[]) as many:
        for _ in range(3):
            many.run(round_trip, problem=problem, timeout_s=120)


@given(
    tokens=st.integers(1, 300),
    hidden=st.integers(1, 1000).map(lambda n: 8 * n),
    ranks=st.integers(1, 64),
    local=st.integers(1, 64),
)
def test_the_size_hint_holds_two_halves_and_not_much_more(tokens: int, hidden: int, ranks: int, local: int) -> None:
    hint = Buffer.get_low_latency_rdma_size_hint(tokens, hidden, ranks, ranks * local)
    rows = 2 * ranks * local * tokens * hidden * 2
    metadata = 2 * (ranks * local * (tokens * 4 + 8) + tokens * (256 + 2 * hidden + 64) + 4 * 4096)
    assert rows <= _host.low_latency_size_hint(tokens, hidden, ranks, ranks * local) <= min(hint, rows + metadata)
