"""High throughput on real ranks against plain torch: rows, counts, handles, rings of every size, sums bit for bit."""

from __future__ import annotations

import ep_oracle
import pytest
import torch
from ep_high_throughput import interleaved, round_trip, same_bits, worst_tokens
from ep_oracle import Problem
from ep_problems import problems
from ep_world import Context, RankWorld
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ep_core import Buffer, Config

LEAST = Config.least_nvl_bytes


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("ring", ["least", "ample"])
def test_round_trip(world: RankWorld, ranks: int, fp8: bool, ring: str) -> None:
    problem = Problem(ranks, 50, 256, 4, 12, (50, 7, 0, 33)[:ranks], seed=ranks, masked=0.15)
    nvl = LEAST(problem.hidden * 4, 4) if ring == "least" else 16 << 20
    world.run(round_trip, ranks, problem=problem, nvl=nvl, fp8=fp8, alignment=8)
    world.run(round_trip, ranks, problem=problem, nvl=nvl, fp8=fp8, with_topk=False, f32=True)


def test_more_tokens_than_the_ring_holds(world: RankWorld) -> None:
    problem = Problem(3, 700, 128, 3, 6, (700, 400, 1), seed=2)
    world.run(round_trip, 3, problem=problem, nvl=LEAST(problem.hidden * 4, 4) + 5000)


@pytest.mark.parametrize(("tokens", "masked"), [((0, 0, 0), 0.0), ((0, 9, 0), 0.0), ((4, 4, 4), 1.0)])
def test_nothing_to_send(world: RankWorld, tokens: tuple[int, ...], masked: float) -> None:
    problem = Problem(3, 9, 64, 2, 6, tokens, seed=1, masked=masked)
    world.run(round_trip, 3, problem=problem, nvl=1 << 20)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_routing(world: RankWorld, data: st.DataObject) -> None:
    fp8 = data.draw(st.booleans(), "fp8")
    columns = st.integers(1, 2).map(lambda n: 128 * n) if fp8 else st.integers(1, 32).map(lambda n: 8 * n)
    problem = data.draw(problems(columns, most_tokens=60, most_topk=8))
    nvl = data.draw(st.sampled_from([LEAST(4 * 256, 4), LEAST(4 * 256, 4) * 5 + 64, 8 << 20]))
    f32, with_topk = data.draw(st.booleans()), data.draw(st.booleans())
    world.run(round_trip, problem.ranks, problem=problem, nvl=nvl, fp8=fp8, f32=f32, with_topk=with_topk)


def test_both_modes_in_one_buffer(world: RankWorld) -> None:
    problem = Problem(3, 20, 128, 3, 6, (20, 11, 3))
    rdma = Buffer.get_low_latency_rdma_size_hint(20, 128, 3, 6)
    world.run(interleaved, 3, problem=problem, nvl=300_000, rdma=rdma)


def too_little_room(context: Context, problem: Problem) -> None:
    buffer = context.buffer(problem.ranks, 1 << 20, 0)
    mine = ep_oracle.inputs(problem, context.rank)
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(mine.topk_idx, problem.experts)
    given = (mine.x, None, per_rank, None, in_rank, per_expert, mine.topk_idx, mine.topk_weights)
    with pytest.raises(ValueError, match=r"num_worst_tokens: rank 1 receives \d+ rows and gave 1"):
        buffer.dispatch(*given, num_worst_tokens=1 if context.rank == 1 else 100)


def test_room_for_the_worst_case(world: RankWorld) -> None:
    problem = Problem(2, 20, 64, 2, 4, (20, 20))
    world.run(worst_tokens, 2, problem=problem, worst=100)
    world.run(too_little_room, 2, problem=problem)
    world.run(worst_tokens, 2, problem=problem, worst=100)


def test_the_same_call_gives_the_same_bits(world: RankWorld) -> None:
    world.run(same_bits, 4, problem=Problem(4, 30, 512, 6, 16, (30, 30, 4, 30)), nvl=1 << 20, times=6)


@pytest.mark.parametrize("streams", ["plain", "allocate"])
def test_streams_make_no_difference(world: RankWorld, streams: str) -> None:
    problem = Problem(3, 20, 64, 3, 6, (20, 11, 3), seed=7)
    world.run(round_trip, 3, problem=problem, nvl=1 << 20, streams=streams)


def refusals(context: Context, problem: Problem) -> None:
    buffer = context.buffer(problem.ranks, 1 << 20, 0)
    mine = ep_oracle.inputs(problem, context.rank)
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(mine.topk_idx, problem.experts)
    good = {
        "x": mine.x,
        "num_tokens_per_rank": per_rank,
        "is_token_in_rank": in_rank,
        "num_tokens_per_expert": per_expert,
        "topk_idx": mine.topk_idx,
        "topk_weights": mine.topk_weights,
    }
    handle = buffer.dispatch(**good)[4]
    wrong = [
        ({"x": mine.x.float()}, ValueError, r"x: wanted dtype torch.bfloat16, got torch.float32"),
        ({"x": mine.x[:, ::2]}, ValueError, r"x: wanted a contiguous tensor"),
        ({"x": "rows"}, TypeError, r"x: wanted a torch.Tensor, got str"),
        ({"x": (mine.x, mine.x)}, ValueError, r"x\[0\]: wanted dtype torch.float8_e4m3fn"),
        ({"num_tokens_per_rank": per_rank + 1}, ValueError, r"num_tokens_per_rank\[0\]: is_token_in_rank has"),
        ({"num_tokens_per_rank": None}, TypeError, r"num_tokens_per_rank: wanted a torch.Tensor, got NoneType"),
        ({"is_token_in_rank": in_rank[:, :1]}, ValueError, r"is_token_in_rank: wanted shape \[6, 2\]"),
        ({"num_tokens_per_expert": per_expert[:3]}, ValueError, r"num_experts: wanted a multiple of the 2 ranks"),
        ({"topk_weights": None}, ValueError, r"topk_weights: wanted together with topk_idx"),
        ({"topk_idx": mine.topk_idx + 100}, ValueError, r"topk_idx\[0, 0\]: wanted -1 or an expert below 4, got 10"),
        ({"expert_alignment": 0}, ValueError, r"expert_alignment: wanted 1 or more"),
        ({"handle": handle}, ValueError, r"num_tokens_per_rank: wanted None when a handle is given"),
        ({"config": 3}, TypeError, r"config: wanted an ep_core.Config"),
        ({"previous_event": 3}, TypeError, r"previous_event: wanted an ep_core.EventOverlap"),
    ]
    for change, kind, message in wrong:
        with pytest.raises(kind, match=message):
            buffer.dispatch(**{**good, **change})
    y = buffer.dispatch(**good)[0]
    for change, kind, message in [
        ({"x": y[:-1]}, ValueError, r"x: wanted the \d+ rows that the handle's dispatch gave"),
        ({"x": y.half()}, ValueError, r"x: wanted dtype torch.bfloat16 or torch.float32"),
        ({"handle": handle[:5]}, TypeError, r"handle: wanted the 6-tuple that dispatch returned"),
        ({"handle": (handle[0] + 1, *handle[1:])}, ValueError, r"handle: (rank_prefix_matrix|recv_src_idx)"),
        ({"handle": (*handle[:3], handle[3].flip(0).contiguous(), *handle[4:])}, ValueError, r"recv_src_idx is not"),
        ({"handle": (*handle[:4], ~handle[4], handle[5])}, ValueError, r"handle: is_token_in_rank sends"),
        ({"bias": (mine.x, mine.x, mine.x)}, ValueError, r"bias: wanted at most two tensors"),
        ({"bias": mine.x.float()}, ValueError, r"bias: wanted dtype torch.bfloat16"),
    ]:
        with pytest.raises(kind, match=message):
            buffer.combine(**{"x": y, "handle": handle, **change})
    # One rank errs, and then does right, while the other waits.
    if context.rank == 1:
        with pytest.raises(ValueError, match="topk_idx"):
            buffer.dispatch(**{**good, "topk_idx": mine.topk_idx + 100})
    assert torch.equal(buffer.dispatch(**good)[0], y)
    # Ranks that do not call alike all learn it, and go on.
    other = {**good, "topk_idx": None, "topk_weights": None} if context.rank == 1 else good
    with pytest.raises(ValueError, match=r"topk_idx \(selections per token\): rank . gave ., this rank ."):
        buffer.dispatch(**other)
    assert torch.equal(buffer.dispatch(**good)[0], y)


def test_wrong_arguments_are_named_and_harm_nobody(world: RankWorld) -> None:
    world.run(refusals, 2, problem=Problem(2, 6, 64, 2, 4, (6, 6)))


def too_small(context: Context, problem: Problem, nvl: int) -> None:
    buffer = context.buffer(problem.ranks, nvl, 0)
    mine = ep_oracle.inputs(problem, context.rank)
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(mine.topk_idx, problem.experts)
    with pytest.raises(ValueError, match=rf"num_nvl_bytes: at least \d+ are wanted .* the Buffer was made with {nvl}"):
        buffer.dispatch(mine.x, None, per_rank, None, in_rank, per_expert)


@pytest.mark.parametrize("nvl", [0, 1000])
def test_a_ring_too_small_is_refused_with_the_size_wanted(world: RankWorld, nvl: int) -> None:
    world.run(too_small, 2, problem=Problem(2, 6, 4096, 2, 4, (6, 6)), nvl=nvl)


@given(hidden_bytes=st.integers(1, 2000).map(lambda n: 16 * n), ranks=st.integers(1, 64))
def test_config_hints_suffice(hidden_bytes: int, ranks: int) -> None:
    for config in (Buffer.get_dispatch_config(ranks), Buffer.get_combine_config(ranks)):
        assert config.get_nvl_buffer_size_hint(hidden_bytes, ranks) >= LEAST(hidden_bytes, ranks)
        assert config.get_nvl_buffer_size_hint(hidden_bytes, ranks) % 128 == 0
        assert config.get_rdma_buffer_size_hint(hidden_bytes, ranks) == 0


@pytest.mark.parametrize("values", [(21,), (20, 0), (20, 256, 256), (20, 6, 256, 9, 9)])
def test_config_refuses_nonsense(values: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="num_"):
        Config(*values)
