"""Low latency with weights that travel: each rank reduces its own experts' rows, bit for bit; and packed fp8 scales."""

from __future__ import annotations

import ep_oracle
import pytest
import torch
from ep_oracle import Inputs, Problem
from ep_world import Context, RankWorld
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ep_core import Buffer

RDMA = 64 << 20


def reduced(problem: Problem, world: list[Inputs], rank: int) -> torch.Tensor:
    """What local_reduce must give `rank` when experts put `ep_oracle.expert_output` into their slots."""
    mine = world[rank]
    total = torch.zeros((len(mine.topk_idx), problem.hidden))
    outputs = {expert: ep_oracle.expert_output(problem, expert).float() for expert in range(problem.experts)}
    slots = {expert: ep_oracle.selections(world, expert) for expert in range(problem.experts)}
    for t, chosen in enumerate(mine.topk_idx.tolist()):
        for owner in range(problem.ranks):
            part = torch.zeros(problem.hidden)
            came = False
            for k, expert in enumerate(chosen):
                if expert >= 0 and expert // problem.local == owner:
                    before = sum(len(found) for found in slots[expert][:rank])
                    row = outputs[expert][before + slots[expert][rank].index((t, k))]
                    part = part + mine.topk_weights[t, k] * row
                    came = True
            if came:
                total[t] += part.bfloat16().float()
    return total.bfloat16()


def outputs(problem: Problem, rank: int) -> torch.Tensor:
    experts = range(rank * problem.local, (rank + 1) * problem.local)
    return torch.stack([ep_oracle.expert_output(problem, expert) for expert in experts])


def round_trip(
    context: Context,
    problem: Problem,
    fp8: bool = False,
    hooks: bool = False,
    zero_copy: bool = False,
    rdma: int = RDMA,
) -> None:
    """One dispatch and one combine with weights, and one of each without, whose rows must be the same."""
    buffer = context.buffer(problem.ranks, 0, rdma)
    world = ep_oracle.everyone(problem)
    mine = world[context.rank]
    sizes = (problem.max_tokens, problem.experts)
    plain_x, plain_count, plain_handle, _, _ = buffer.low_latency_dispatch(mine.x, mine.topk_idx, *sizes, use_fp8=fp8)
    weights = mine.topk_weights.clone()
    recv_x, count, handle, _, hook = buffer.low_latency_dispatch(
        mine.x, mine.topk_idx, *sizes, use_fp8=fp8, topk_weights=weights, return_recv_hook=hooks
    )
    if hooks:
        weights.fill_(99)
        hook()
    assert (plain_handle.combine, handle.combine) == ("exact", "local_reduce")
    assert torch.equal(count, plain_count)
    assert torch.equal(handle[1], plain_handle[1])
    got, want = (recv_x[0], plain_x[0]) if fp8 else (recv_x, plain_x)
    for local, rows in enumerate(count.tolist()):
        assert torch.equal(got[local, :rows].view(torch.uint8), want[local, :rows].view(torch.uint8))
        assert torch.equal(handle[0][local, :rows], plain_handle[0][local, :rows])

    y = outputs(problem, context.rank)
    if zero_copy:
        buffer.get_next_low_latency_combine_buffer(handle)[:] = y
        y = torch.full_like(y, 77)
    out = torch.full_like(mine.x, 55)
    combined, _, hook = buffer.low_latency_combine(
        y,
        mine.topk_idx,
        torch.full_like(mine.topk_weights, 88),
        handle,
        zero_copy=zero_copy,
        return_recv_hook=hooks,
        out=out,
    )
    if hooks:
        y.fill_(66)
        hook()
    assert combined is out
    assert torch.equal(out.view(torch.int16), reduced(problem, world, context.rank).view(torch.int16))
    exact = buffer.low_latency_combine(outputs(problem, context.rank), mine.topk_idx, mine.topk_weights, plain_handle)[
        0
    ]
    assert torch.equal(exact, ep_oracle.combined(problem, world, context.rank))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("mode", ["plain", "hooks", "zero_copy"])
def test_every_bit(world: RankWorld, ranks: int, fp8: bool, mode: str) -> None:
    problem = Problem(
        ranks, max_tokens=24, hidden=256, topk=4, experts=12, tokens=(24, 7, 0, 19)[:ranks], seed=ranks, masked=0.1
    )
    world.run(round_trip, ranks, problem=problem, fp8=fp8, hooks=mode == "hooks", zero_copy=mode == "zero_copy")


def test_an_expert_twice_in_a_token(world: RankWorld) -> None:
    problem = Problem(2, max_tokens=40, hidden=128, topk=6, experts=4, tokens=(6, 6), seed=5, duplicates=True)
    world.run(round_trip, 2, problem=problem)
    world.run(round_trip, 2, problem=problem, zero_copy=True)


@pytest.mark.parametrize(("hidden", "topk", "experts"), [(8, 1, 2), (8, 32, 64), (7168, 8, 16)])
def test_any_hidden_and_topk(world: RankWorld, hidden: int, topk: int, experts: int) -> None:
    problem = Problem(2, max_tokens=9, hidden=hidden, topk=topk, experts=experts, tokens=(9, 5), seed=hidden + topk)
    world.run(round_trip, 2, problem=problem)


@pytest.mark.parametrize("tokens", [(0, 0, 0), (0, 5, 0), (1, 1, 1)])
@pytest.mark.parametrize("masked", [0.0, 1.0])
def test_nothing_to_send(world: RankWorld, tokens: tuple[int, ...], masked: float) -> None:
    problem = Problem(3, max_tokens=5, hidden=64, topk=2, experts=6, tokens=tokens, seed=9, masked=masked)
    world.run(round_trip, 3, problem=problem)
    world.run(round_trip, 3, problem=problem, hooks=True)


@pytest.mark.parametrize(("ranks", "experts", "hidden"), [(1, 1, 8), (2, 2, 8), (3, 3, 128)])
def test_the_least_buffer_is_enough(world: RankWorld, ranks: int, experts: int, hidden: int) -> None:
    problem = Problem(ranks, max_tokens=7, hidden=hidden, topk=1, experts=experts, tokens=(7,) * ranks, seed=3)
    rdma = Buffer.get_low_latency_rdma_size_hint(7, hidden, ranks, experts)
    for zero_copy in (False, True):
        world.run(round_trip, ranks, problem=problem, fp8=hidden == 128, zero_copy=zero_copy, rdma=rdma)


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
    hooks, zero_copy = data.draw(st.booleans()), data.draw(st.booleans())
    world.run(round_trip, ranks, problem=problem, fp8=fp8, hooks=hooks, zero_copy=zero_copy)


PROBLEM = Problem(2, 4, 1024, 2, 4, (4, 4))


def packed_scales(context: Context) -> None:
    buffer = context.buffer(2, 0, RDMA)
    mine = ep_oracle.inputs(PROBLEM, context.rank)
    x = mine.x * torch.logspace(-6, 6, 1024, 2).bfloat16()
    packed = torch.full((2, 2, 8), -7, dtype=torch.int32).transpose(1, 2)
    (rows, scales), count, _, _, _ = buffer.low_latency_dispatch(x, mine.topk_idx, 4, 4, round_scale=True)
    (again, got), *_ = buffer.low_latency_dispatch(
        x, mine.topk_idx, 4, 4, round_scale=True, use_ue8m0=True, out_packed_recv_x_scales=packed
    )
    fresh = buffer.low_latency_dispatch(x, mine.topk_idx, 4, 4, round_scale=True, use_ue8m0=True)[0][1]
    assert got is packed
    assert fresh.dtype == torch.int32
    assert fresh.stride() == packed.stride()
    for local, received in enumerate(count.tolist()):
        assert torch.equal(rows[local, :received].view(torch.uint8), again[local, :received].view(torch.uint8))
        exponents = scales[local, :received].contiguous().view(torch.int32) >> 23
        words = sum(exponents.view(received, 2, 4)[..., byte] << (8 * byte) for byte in range(4))
        assert torch.equal(got[local, :received], words)
        assert torch.equal(fresh[local, :received], words)


def test_scales_as_packed_exponents(world: RankWorld) -> None:
    world.run(packed_scales, 2)


def refusals(context: Context) -> None:
    buffer = context.buffer(2, 0, RDMA)
    mine = ep_oracle.inputs(PROBLEM, context.rank)
    x, idx, weights = mine.x, mine.topk_idx, mine.topk_weights
    for change, message in [
        ({"topk_weights": weights[:3]}, r"topk_weights: wanted shape \[4, 2\], got \[3, 2\]"),
        ({"topk_weights": weights.double()}, r"topk_weights: wanted dtype torch.float32"),
        ({"use_fp8": False, "use_ue8m0": True}, r"use_ue8m0: wanted only with use_fp8 and round_scale"),
        ({"use_ue8m0": True}, r"use_ue8m0: wanted only with use_fp8 and round_scale"),
        ({"x": x[:, :256].contiguous(), "use_ue8m0": True, "round_scale": True}, r"hidden: wanted a multiple of 512"),
    ]:
        arguments = {"x": x, "topk_idx": idx, **change}
        with pytest.raises(ValueError, match=message):
            buffer.low_latency_dispatch(num_max_dispatch_tokens_per_rank=4, num_experts=4, **arguments)
    y, _, handle, _, _ = buffer.low_latency_dispatch(x, idx, 4, 4, use_fp8=False, topk_weights=weights)
    with pytest.raises(ValueError, match=r"topk_idx: wanted shape \[any, 2\], got \[4, 1\]"):
        buffer.low_latency_combine(y, idx[:, :1].contiguous(), weights[:, :1].contiguous(), handle)
    with pytest.raises(ValueError, match=r"topk_weights: wanted shape \[4, 2\]"):
        buffer.low_latency_combine(y, idx, weights[:2], handle)
    with pytest.raises(ValueError, match="topk_idx: wanted the 4 tokens that were dispatched, got 3"):
        buffer.low_latency_combine(y, idx[:3], weights[:3], handle)
    with pytest.raises(RuntimeError, match="zero_copy"):
        buffer.low_latency_combine(y, idx, weights, handle, zero_copy=True)
    handle.map.rows[0, 0, 0] += 1000
    with pytest.raises(ValueError, match=r"handle: its map says row \d+ of 16"):
        buffer.low_latency_combine(y, idx, weights, handle)


def test_what_is_wrong_is_named(world: RankWorld) -> None:
    world.run(refusals, 2)


def unlike(context: Context) -> None:
    """Ranks that do not agree on weights are told so, and go on."""
    buffer = context.buffer(2, 0, RDMA)
    mine = ep_oracle.inputs(PROBLEM, context.rank)
    x, idx, weights = mine.x, mine.topk_idx, mine.topk_weights
    given_weights = {"topk_weights": weights} if context.rank == 0 else {}
    with pytest.raises(
        ValueError, match=r"topk_weights: rank \d gave (some|none), this rank (some|none); all ranks must"
    ):
        buffer.low_latency_dispatch(x, idx, 4, 4, **given_weights)
    narrow = context.rank + 1
    with pytest.raises(ValueError, match=r"selections for each token: rank \d gave \d, this rank \d; all ranks must"):
        buffer.low_latency_dispatch(
            x, idx[:, :narrow].contiguous(), 4, 4, topk_weights=weights[:, :narrow].contiguous()
        )
    y, _, exact, _, _ = buffer.low_latency_dispatch(x, idx, 4, 4, use_fp8=False)
    _, _, reduce, _, _ = buffer.low_latency_dispatch(x, idx, 4, 4, use_fp8=False, topk_weights=weights)
    with pytest.raises(ValueError, match=r"handle: rank \d gave one of a dispatch with(out)? topk_weights, this rank"):
        buffer.low_latency_combine(y, idx, weights, exact if context.rank else reduce)
    buffer.low_latency_combine(y, idx, weights, reduce)


def test_ranks_must_agree_on_weights(world: RankWorld) -> None:
    world.run(unlike, 2)


def maps(context: Context) -> None:
    """A dispatch into the same tensors as before takes the same map; other kinds of dispatch take their own."""
    buffer = context.buffer(2, 0, RDMA)
    mine = ep_oracle.inputs(PROBLEM, context.rank)
    kept_before = len(buffer._maps)
    good = {
        "x": mine.x,
        "topk_idx": mine.topk_idx,
        "topk_weights": mine.topk_weights,
        "out_src_info": torch.empty((2, 8), dtype=torch.int32),
    }

    def dispatched(**change: object) -> object:
        arguments = {**good, **change}
        return buffer.low_latency_dispatch(num_max_dispatch_tokens_per_rank=4, num_experts=4, **arguments)[2].map

    first = dispatched()
    assert dispatched() is first
    assert dispatched(out_src_info=None) is not first
    assert dispatched(topk_weights=None) is None
    narrow = {"topk_idx": mine.topk_idx[:, :1].contiguous(), "topk_weights": mine.topk_weights[:, :1].contiguous()}
    assert dispatched(**narrow) is not first
    assert dispatched() is first
    assert len(buffer._maps) == kept_before + 1
    del good["out_src_info"]
    assert len(buffer._maps) == kept_before


def test_the_map_is_kept_with_the_tensor(world: RankWorld) -> None:
    world.run(maps, 2)
