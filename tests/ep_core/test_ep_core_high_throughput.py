"""High throughput on real ranks against plain torch: rows, counts, handles, rings of every size, sums bit for bit."""

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
from ep_core import Buffer, Config


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


def assert_layout(problem: Problem, topk_idx: torch.Tensor, layout: tuple) -> None:
    per_rank, per_node, per_expert, in_rank, event = layout
    event.current_stream_wait()
    assert per_node is None
    ranks = torch.where(topk_idx >= 0, topk_idx // problem.local, -1)
    assert torch.equal(in_rank, torch.stack([(ranks == r).any(1) for r in range(problem.ranks)], 1))
    assert torch.equal(per_rank, in_rank.sum(0, dtype=torch.int32))
    assert torch.equal(per_expert, torch.bincount(topk_idx[topk_idx >= 0], minlength=problem.experts).int())


def round_trip(context: Context, problem: Problem, nvl: int, fp8=False, with_topk=True, alignment=1, f32=False) -> None:
    buffer = context.buffer(problem.ranks, nvl, 0)
    rank = context.rank
    world = ep_oracle.everyone(problem)
    mine = world[rank]
    layout = buffer.get_dispatch_layout(mine.topk_idx, problem.experts)
    assert_layout(problem, mine.topk_idx, layout)
    per_rank, _, per_expert, in_rank, event = layout
    quantised = [ep_oracle.quantise(each.x) for each in world] if fp8 else []
    x = quantised[rank] if fp8 else mine.x
    topk = {"topk_idx": mine.topk_idx, "topk_weights": mine.topk_weights} if with_topk else {}
    recv_x, recv_idx, recv_weights, counts, handle, _ = buffer.dispatch(
        x,
        num_tokens_per_rank=per_rank,
        is_token_in_rank=in_rank,
        num_tokens_per_expert=per_expert,
        expert_alignment=alignment,
        previous_event=event,
        async_finish=True,
        **topk,
    )
    found = arrivals(problem, world, rank)

    def assert_rows(got) -> None:
        if fp8:
            assert torch.equal(got[0].view(torch.uint8), gathered([q[0] for q in quantised], found))
            assert torch.equal(got[1], gathered([q[1] for q in quantised], found))
        else:
            assert torch.equal(got, gathered([each.x for each in world], found))

    assert_rows(recv_x)
    if with_topk:
        idx = gathered([each.topk_idx for each in world], found)
        here = (idx >= 0) & (idx // problem.local == rank)
        assert torch.equal(recv_idx, torch.where(here, idx - rank * problem.local, -1))
        weights = gathered([each.topk_weights for each in world], found)
        assert torch.equal(recv_weights, torch.where(here, weights, 0.0))
    else:
        assert recv_idx is None
        assert recv_weights is None
    for local, count in enumerate(counts):
        exact = sum(int((each.topk_idx == rank * problem.local + local).sum()) for each in world)
        assert count % alignment == 0
        assert exact <= count < exact + alignment
    assert handle[3].tolist() == [t for _, t in found]
    assert handle[0][:, rank].tolist() == [sum(s <= source for s, _ in found) for source in range(problem.ranks)]

    again = buffer.dispatch(x, handle)
    assert_rows(again[0])
    assert again[1:5] == (None, None, None, None)

    dtype = torch.float32 if f32 else torch.bfloat16
    y = torch.empty((len(found), problem.hidden), dtype=dtype)
    for row, (source, token) in enumerate(found):
        y[row] = partial(problem, rank, source, token, dtype)
    combined, weights, _ = buffer.combine(y, handle, recv_weights)
    total = torch.zeros((mine.x.shape[0], problem.hidden))
    weight_total = torch.zeros(mine.topk_weights.shape)
    for token in range(mine.x.shape[0]):
        for other in in_rank[token].nonzero().flatten().tolist():
            total[token] += partial(problem, other, rank, token, dtype).float()
            there = (mine.topk_idx[token] >= 0) & (mine.topk_idx[token] // problem.local == other)
            weight_total[token] += torch.where(there, mine.topk_weights[token], 0.0)
    assert torch.equal(combined, total.to(dtype))
    if with_topk:
        assert torch.equal(weights, weight_total)
    else:
        assert weights is None

    bias = torch.randn(combined.shape, generator=torch.Generator().manual_seed(5)).to(dtype)
    with_bias, _, _ = buffer.combine(y, handle, bias=(bias, bias))
    wanted = bias.float() + bias.float()
    for token in range(mine.x.shape[0]):
        for other in in_rank[token].nonzero().flatten().tolist():
            wanted[token] += partial(problem, other, rank, token, dtype).float()
    assert torch.equal(with_bias, wanted.to(dtype))


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
    ranks = data.draw(st.integers(1, 4), "ranks")
    fp8 = data.draw(st.booleans(), "fp8")
    problem = Problem(
        ranks=ranks,
        max_tokens=60,
        hidden=128 * data.draw(st.integers(1, 2)) if fp8 else 8 * data.draw(st.integers(1, 32)),
        topk=data.draw(st.integers(1, 8)),
        experts=ranks * data.draw(st.integers(1, 5)),
        tokens=tuple(data.draw(st.lists(st.integers(0, 60), min_size=ranks, max_size=ranks))),
        seed=data.draw(st.integers(0, 2**16)),
        masked=data.draw(st.sampled_from([0.0, 0.3, 0.9])),
        duplicates=data.draw(st.booleans()),
    )
    nvl = data.draw(st.sampled_from([LEAST(4 * 256, 4), LEAST(4 * 256, 4) * 5 + 64, 8 << 20]))
    f32, with_topk = data.draw(st.booleans()), data.draw(st.booleans())
    world.run(round_trip, ranks, problem=problem, nvl=nvl, fp8=fp8, f32=f32, with_topk=with_topk)


def interleaved(context: Context, problem: Problem, nvl: int, rdma: int) -> None:
    """Both modes of one buffer in turn, and HT operations with nothing between them."""
    buffer = ep_core.Buffer(context.group(problem.ranks), nvl, rdma, True, timeout_s=30)
    context.state[(problem.ranks, nvl, 0, 30.0)] = buffer
    for seed in range(4):
        one = replace(problem, seed=seed)
        mine = ep_oracle.inputs(one, context.rank)
        result = buffer.low_latency_dispatch(
            mine.x, mine.topk_idx, one.max_tokens, one.experts, use_fp8=False, return_recv_hook=True
        )
        round_trip(context, one, nvl)
        result[4]()
        combined, _, _ = buffer.low_latency_combine(result[0], mine.topk_idx, mine.topk_weights, result[2])
        total = torch.zeros(mine.x.shape)
        for k in range(one.topk):
            total = total + mine.topk_weights[:, k : k + 1] * mine.x.float()
        assert torch.equal(combined, total.bfloat16())


def test_both_modes_in_one_buffer(world: RankWorld) -> None:
    problem = Problem(3, 20, 128, 3, 6, (20, 11, 3))
    rdma = Buffer.get_low_latency_rdma_size_hint(20, 128, 3, 6)
    world.run(interleaved, 3, problem=problem, nvl=300_000, rdma=rdma)


def worst_tokens(context: Context, problem: Problem) -> None:
    buffer = context.buffer(problem.ranks, 1 << 20, 0)
    world = ep_oracle.everyone(problem)
    mine = world[context.rank]
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(mine.topk_idx, problem.experts)
    given = (mine.x, None, per_rank, None, in_rank, per_expert, mine.topk_idx, mine.topk_weights)
    found = arrivals(problem, world, context.rank)
    recv_x, recv_idx, _, counts, handle, _ = buffer.dispatch(*given, num_worst_tokens=100)
    assert recv_x.shape == (100, problem.hidden)
    assert counts == []
    assert torch.equal(recv_x[: len(found)], gathered([each.x for each in world], found))
    assert (recv_idx[len(found) :] == -1).all()
    assert buffer.combine(recv_x, handle)[0].shape == mine.x.shape
    with pytest.raises(ValueError, match=r"num_worst_tokens: rank 1 receives \d+ rows and gave 1"):
        buffer.dispatch(*given, num_worst_tokens=1 if context.rank == 1 else 100)
    assert buffer.dispatch(*given)[0].shape[0] == len(found)


def test_room_for_the_worst_case(world: RankWorld) -> None:
    world.run(worst_tokens, 2, problem=Problem(2, 20, 64, 2, 4, (20, 20)))


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
