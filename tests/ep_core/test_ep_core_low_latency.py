"""Low latency on real ranks against the oracle: every row, count, range, scale, and every bit of combine."""

from __future__ import annotations

from dataclasses import replace

import ep_oracle
import pytest
import torch
from ep_oracle import Problem
from ep_world import Context, RankWorld
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ep_core
from ep_core import Buffer

RDMA = 64 << 20


def outs(problem: Problem, fp8: bool) -> dict[str, torch.Tensor]:
    local, slots, hidden = problem.local, problem.slots, problem.hidden
    tensors = {
        "out_packed_recv_x": torch.empty((local, slots, hidden), dtype=torch.float8_e4m3fn if fp8 else torch.bfloat16),
        "out_src_info": torch.full((local, slots), -7, dtype=torch.int32),
        "out_layout_range": torch.full((local, problem.ranks), -7, dtype=torch.int64),
        "out_count": torch.full((local,), -7, dtype=torch.int32),
    }
    if fp8:
        tensors["out_packed_recv_x_scales"] = torch.full((local, hidden // 128, slots), -7.0).transpose(1, 2)
    return tensors


def assert_dispatched(problem, world, rank, result, fp8, round_scale=False) -> None:
    recv_x, count, handle = result[:3]
    src_info, layout_range, max_tokens, hidden, experts = handle
    assert (max_tokens, hidden, experts) == (problem.max_tokens, problem.hidden, problem.experts)
    quantised = [ep_oracle.quantise(each.x, round_scale) for each in world] if fp8 else []
    for local in range(problem.local):
        slot = 0
        for source, found in enumerate(ep_oracle.selections(world, rank * problem.local + local)):
            assert int(layout_range[local, source]) == slot << 32 | len(found)
            tokens = torch.tensor([t for t, _ in found], dtype=torch.int64)
            rows = slice(slot, slot + len(found))
            assert src_info[local, rows].tolist() == tokens.tolist()
            if fp8:
                values, scales = quantised[source]
                got = recv_x[0][local, rows].view(torch.uint8)
                assert torch.equal(got, values[tokens].view(torch.uint8))
                assert torch.equal(recv_x[1][local, rows], scales[tokens])
            else:
                assert torch.equal(recv_x[local, rows], world[source].x[tokens])
            slot += len(found)
        assert int(count[local]) == slot


def outputs(problem: Problem, rank: int) -> torch.Tensor:
    experts = range(rank * problem.local, (rank + 1) * problem.local)
    return torch.stack([ep_oracle.expert_output(problem, expert) for expert in experts])


def round_trip(
    context: Context, problem: Problem, fp8=False, hooks=False, zero_copy=False, given_outs=False, masked=0.0, rdma=RDMA
) -> None:
    """One dispatch and one combine, both checked in full."""
    buffer = context.buffer(problem.ranks, 0, rdma)
    world = ep_oracle.everyone(problem)
    mine = world[context.rank]
    x, topk_idx = mine.x.clone(), mine.topk_idx.clone()
    into = outs(problem, fp8) if given_outs else {}
    result = buffer.low_latency_dispatch(
        x, topk_idx, problem.max_tokens, problem.experts, use_fp8=fp8, return_recv_hook=hooks, **into
    )
    recv_x, count, handle, event, hook = result
    if hooks:
        x.fill_(99)
        topk_idx.fill_(0)
        hook()
    else:
        assert hook is None
    event.current_stream_wait()
    if given_outs:
        assert (recv_x[0] if fp8 else recv_x) is into["out_packed_recv_x"]
        assert not fp8 or recv_x[1] is into["out_packed_recv_x_scales"]
        assert (count, handle[0], handle[1]) == (into["out_count"], into["out_src_info"], into["out_layout_range"])
        assert count is into["out_count"]
    assert_dispatched(problem, world, context.rank, result, fp8)

    mask = torch.rand(mine.topk_idx.shape, generator=torch.Generator().manual_seed(problem.seed)) < masked
    topk_idx = torch.where(mask, -1, mine.topk_idx)
    weights = mine.topk_weights.clone()
    y = outputs(problem, context.rank)
    if zero_copy:
        buffer.get_next_low_latency_combine_buffer(handle)[:] = y
        y = torch.full_like(y, 77)
    out = torch.full_like(mine.x, 55) if given_outs else None
    got, _, hook = buffer.low_latency_combine(
        y, topk_idx, weights, handle, zero_copy=zero_copy, return_recv_hook=hooks, out=out
    )
    if hooks:
        y.fill_(66)
        topk_idx.fill_(0)
        weights.fill_(0)
        hook()
    assert out is None or got is out
    expected = ep_oracle.combined(problem, world, context.rank, mask)
    assert torch.equal(got.view(torch.int16), expected.view(torch.int16))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("mode", ["plain", "outs", "hooks", "zero_copy"])
def test_every_row_and_every_bit(world: RankWorld, ranks: int, fp8: bool, mode: str) -> None:
    problem = Problem(
        ranks, max_tokens=24, hidden=256, topk=4, experts=12, tokens=(24, 7, 0, 19)[:ranks], seed=ranks, masked=0.1
    )
    world.run(
        round_trip,
        ranks,
        problem=problem,
        fp8=fp8,
        hooks=mode == "hooks",
        zero_copy=mode == "zero_copy",
        given_outs=mode == "outs",
    )


@pytest.mark.parametrize(
    ("hidden", "topk", "experts"),
    [(8, 1, 2), (8, 32, 64), (24, 3, 4), (136, 8, 8), (7168, 8, 16), (2560, 9, 10), (4096, 32, 32)],
)
def test_any_hidden_and_topk(world: RankWorld, hidden: int, topk: int, experts: int) -> None:
    problem = Problem(2, max_tokens=9, hidden=hidden, topk=topk, experts=experts, tokens=(9, 5), seed=hidden + topk)
    world.run(round_trip, 2, problem=problem)
    if hidden % 128 == 0:
        world.run(round_trip, 2, problem=problem, fp8=True)


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
    ranks = data.draw(st.integers(1, 4), "ranks")
    max_tokens = data.draw(st.integers(1, 12), "max_tokens")
    fp8 = data.draw(st.booleans(), "fp8")
    problem = Problem(
        ranks=ranks,
        max_tokens=max_tokens,
        hidden=128 * data.draw(st.integers(1, 3)) if fp8 else 8 * data.draw(st.integers(1, 40)),
        topk=data.draw(st.integers(1, 10)),
        experts=ranks * data.draw(st.integers(1, 5)),
        tokens=tuple(data.draw(st.lists(st.integers(0, max_tokens), min_size=ranks, max_size=ranks))),
        seed=data.draw(st.integers(0, 2**16)),
        masked=data.draw(st.sampled_from([0.0, 0.3, 0.9])),
        duplicates=data.draw(st.booleans()),
    )
    hooks, given_outs = data.draw(st.booleans()), data.draw(st.booleans())
    world.run(round_trip, ranks, problem=problem, fp8=fp8, hooks=hooks, given_outs=given_outs)


def big_combine(context: Context, problem: Problem, hooked_rank: int) -> None:
    """Enough rows for the ring; with a rank that receives by hook, ring and rows in place meet in one operation."""
    rdma = Buffer.get_low_latency_rdma_size_hint(problem.max_tokens, problem.hidden, problem.ranks, problem.experts)
    buffer = context.buffer(problem.ranks, 0, rdma)
    world = ep_oracle.everyone(problem)
    mine = world[context.rank]
    expected = ep_oracle.combined(problem, world, context.rank)
    sizes = (problem.max_tokens, problem.experts)
    handle = buffer.low_latency_dispatch(mine.x, mine.topk_idx, *sizes, use_fp8=False)[2]
    y = outputs(problem, context.rank)
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
        assert torch.equal(got, expected)
    assert_dispatched(problem, world, context.rank, result, fp8=False)


@pytest.mark.parametrize(
    ("ranks", "tokens", "topk"), [(2, (64, 64), 8), (3, (64, 0, 37), 6), (4, (40, 64, 64, 1), 8), (2, (3, 64), 32)]
)
def test_many_rows_go_through_a_ring(world: RankWorld, ranks: int, tokens: tuple[int, ...], topk: int) -> None:
    problem = Problem(ranks, 64, 4096, topk, 4 * ranks, tokens, seed=topk, masked=0.05, duplicates=topk > 8)
    world.run(big_combine, ranks, problem=problem, hooked_rank=ranks - 1, timeout_s=120)


def back_to_back(context: Context, problem: Problem, times: int) -> None:
    """Dispatches with changing routing and no pause, then combines, then both in turn."""
    buffer = context.buffer(problem.ranks, 0, RDMA)
    problems = [
        replace(problem, seed=seed, tokens=problem.tokens[seed % 3 :] + problem.tokens[: seed % 3])
        for seed in range(times)
    ]
    worlds = [ep_oracle.everyone(one) for one in problems]
    results = [
        buffer.low_latency_dispatch(
            each[context.rank].x, each[context.rank].topk_idx, one.max_tokens, one.experts, use_fp8=False
        )
        for one, each in zip(problems, worlds, strict=True)
    ]
    for one, each, result in zip(problems, worlds, results, strict=True):
        assert_dispatched(one, each, context.rank, result, fp8=False)
    got = [
        buffer.low_latency_combine(
            outputs(one, context.rank), each[context.rank].topk_idx, each[context.rank].topk_weights, result[2]
        )[0]
        for one, each, result in zip(problems, worlds, results, strict=True)
    ]
    for one, each, combined in zip(problems, worlds, got, strict=True):
        assert torch.equal(combined, ep_oracle.combined(one, each, context.rank))
    for one in problems:
        round_trip(context, one)


def test_back_to_back_with_changing_routing(world: RankWorld) -> None:
    problem = Problem(3, max_tokens=8, hidden=64, topk=3, experts=6, tokens=(8, 2, 5), masked=0.1)
    world.run(back_to_back, 3, problem=problem, times=12)


def changing_sizes(context: Context) -> None:
    for seed, (tokens, hidden, experts) in enumerate([(4, 64, 8), (32, 8, 2), (1, 1024, 4), (16, 128, 16)] * 2):
        round_trip(context, Problem(2, tokens, hidden, 2, experts, (tokens, tokens // 2), seed))


def test_sizes_may_change_between_operations(world: RankWorld) -> None:
    world.run(changing_sizes, 2)


def hooks_in_any_order(context: Context, problem: Problem) -> None:
    buffer = context.buffer(problem.ranks, 0, RDMA)
    for first_opened_first in (True, False, True):
        world = ep_oracle.everyone(problem)
        other = ep_oracle.everyone(replace(problem, seed=problem.seed + 1))
        opened = [
            buffer.low_latency_dispatch(
                each[context.rank].x,
                each[context.rank].topk_idx,
                problem.max_tokens,
                problem.experts,
                use_fp8=False,
                return_recv_hook=True,
            )
            for each in (world, other)
        ]
        with pytest.raises(RuntimeError, match="receive hook of the operation before the last has not been called"):
            buffer.low_latency_dispatch(world[0].x, world[0].topk_idx, problem.max_tokens, problem.experts, None)
        for result in opened if first_opened_first else opened[::-1]:
            result[4]()
            with pytest.raises(RuntimeError, match="already called"):
                result[4]()
        assert_dispatched(problem, world, context.rank, opened[0], fp8=False)
        assert_dispatched(replace(problem, seed=problem.seed + 1), other, context.rank, opened[1], fp8=False)


def test_two_hooks_open_in_any_order(world: RankWorld) -> None:
    problem = Problem(3, max_tokens=4, hidden=128, topk=3, experts=6, tokens=(4, 4, 4))
    world.run(hooks_in_any_order, 3, problem=problem)


def hook_over_fused(context: Context, problem: Problem) -> None:
    """A dispatch is open while a whole combine of the one before goes through."""
    buffer = context.buffer(problem.ranks, 0, RDMA)
    world = ep_oracle.everyone(problem)
    mine = world[context.rank]
    sizes = (problem.max_tokens, problem.experts)
    _, _, handle, _, _ = buffer.low_latency_dispatch(mine.x, mine.topk_idx, *sizes, use_fp8=False)
    for _ in range(5):
        result = buffer.low_latency_dispatch(mine.x, mine.topk_idx, *sizes, use_fp8=False, return_recv_hook=True)
        y = outputs(problem, context.rank)
        combined, _, _ = buffer.low_latency_combine(y, mine.topk_idx, mine.topk_weights, handle)
        assert torch.equal(combined, ep_oracle.combined(problem, world, context.rank))
        result[4]()
        assert_dispatched(problem, world, context.rank, result, fp8=False)


def test_a_hook_open_over_another_operation(world: RankWorld) -> None:
    world.run(hook_over_fused, 2, problem=Problem(2, 6, 64, 2, 4, (6, 6)))


def same_bits(context: Context, problem: Problem) -> None:
    buffer = context.buffer(problem.ranks, 0, RDMA)
    mine = ep_oracle.inputs(problem, context.rank)
    seen = set()
    for _ in range(6):
        recv_x, _, handle, _, _ = buffer.low_latency_dispatch(
            mine.x, mine.topk_idx, problem.max_tokens, problem.experts, use_fp8=False
        )
        combined, _, _ = buffer.low_latency_combine(recv_x, mine.topk_idx, mine.topk_weights, handle)
        seen.add(combined.view(torch.int16).numpy().tobytes())
    assert len(seen) == 1


def test_the_same_call_gives_the_same_bits(world: RankWorld) -> None:
    world.run(same_bits, 4, problem=Problem(4, 16, 512, 8, 16, (16, 16, 16, 16)))


def two_buffers(context: Context, problem: Problem) -> None:
    first = ep_core.Buffer(context.group(problem.ranks), 1 << 20, RDMA, True, timeout_s=30)
    second = ep_core.Buffer(context.group(problem.ranks), 1 << 20, RDMA, True, timeout_s=30)
    worlds = [ep_oracle.everyone(replace(problem, seed=seed)) for seed in (1, 2)]
    results = []
    for buffer, each in zip((first, second), worlds, strict=True):
        mine = each[context.rank]
        results.append(
            buffer.low_latency_dispatch(
                mine.x, mine.topk_idx, problem.max_tokens, problem.experts, use_fp8=False, return_recv_hook=True
            )
        )
    for result, each in list(zip(results, worlds, strict=True))[::-1]:
        result[4]()
        assert_dispatched(problem, each, context.rank, result, fp8=False)
    first.destroy()
    first.destroy()
    mine = worlds[0][context.rank]
    with pytest.raises(RuntimeError, match="it was destroyed; make a new one"):
        first.low_latency_dispatch(mine.x, mine.topk_idx, problem.max_tokens, problem.experts, use_fp8=False)
    result = second.low_latency_dispatch(mine.x, mine.topk_idx, problem.max_tokens, problem.experts, use_fp8=False)
    assert_dispatched(problem, worlds[0], context.rank, result, fp8=False)


def test_two_buffers_at_once(world: RankWorld) -> None:
    world.run(two_buffers, 2, problem=Problem(2, 6, 64, 2, 4, (6, 6)))


def statistics(context: Context, problem: Problem) -> None:
    buffer = context.buffer(problem.ranks, 0, RDMA)
    mine = ep_oracle.inputs(problem, context.rank)
    stats = torch.full((problem.local,), 100, dtype=torch.int32)
    for times in (1, 2):
        _, count, _, _, _ = buffer.low_latency_dispatch(
            mine.x, mine.topk_idx, problem.max_tokens, problem.experts, stats, use_fp8=False
        )
        assert torch.equal(stats, 100 + times * count)


def test_counts_are_added_up(world: RankWorld) -> None:
    world.run(statistics, 2, problem=Problem(2, 6, 64, 2, 4, (6, 3)))


def rounded_scales(context: Context, problem: Problem) -> None:
    buffer = context.buffer(problem.ranks, 0, RDMA)
    world = ep_oracle.everyone(problem)
    mine = world[context.rank]
    result = buffer.low_latency_dispatch(
        mine.x, mine.topk_idx, problem.max_tokens, problem.experts, use_fp8=True, round_scale=True
    )
    assert_dispatched(problem, world, context.rank, result, fp8=True, round_scale=True)
    assert result[0][1].stride() == (problem.hidden // 128 * problem.slots, 1, problem.slots)


def test_scales_rounded_to_powers_of_two(world: RankWorld) -> None:
    world.run(rounded_scales, 2, problem=Problem(2, 6, 512, 2, 4, (6, 6)))


def hard_values(context: Context) -> None:
    """Every bf16 there is, in blocks of 128, quantised as torch does it."""
    buffer = context.buffer(1, 0, RDMA)
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    shuffled = every[torch.randperm(65536, generator=torch.Generator().manual_seed(3))]
    ascending = every.float().nan_to_num(0, 1, -1).sort().values.bfloat16()
    zeros = torch.zeros(1024, dtype=torch.bfloat16)
    for values in (every, shuffled, ascending, zeros):
        x = values.view(-1, 1024)
        tokens = x.shape[0]
        idx = torch.zeros((tokens, 1), dtype=torch.int64)
        (got, scales), _, _, _, _ = buffer.low_latency_dispatch(x, idx, tokens, 1, use_fp8=True)
        wanted, wanted_scales = ep_oracle.quantise(x)
        got, wanted = got[0].float(), wanted.float()
        torch.testing.assert_close(scales[0], wanted_scales, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


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
    from ep_core import _host

    return _host.ISA


def test_eight_ranks() -> None:
    problem = Problem(8, 8, 128, 4, 16, (8, 0, 3, 8, 8, 1, 8, 5), masked=0.1)
    with RankWorld(8, subgroups=[]) as eight:
        eight.run(round_trip, problem=problem)
        eight.run(round_trip, problem=problem, fp8=True, hooks=True)


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
    assert rows <= hint <= rows + metadata
