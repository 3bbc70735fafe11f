"""High throughput on GPUs against plain torch: rows, counts, handles, rings of every size, sums bit for bit."""

from __future__ import annotations

import pytest
import torch
from ep_high_throughput import interleaved, round_trip, same_bits, worst_tokens
from ep_oracle import Problem
from ep_problems import FEW, problems
from ep_world import Context, RankWorld
from hypothesis import given
from hypothesis import strategies as st

from ep_core import Buffer, Config

LEAST = Config.least_nvl_bytes


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("ring", ["least", "ample"])
def test_round_trip(world: RankWorld, ranks: int, fp8: bool, ring: str) -> None:
    problem = Problem(ranks, 50, 256, 4, 12, (50, 7, 0, 33)[:ranks], seed=ranks, masked=0.15)
    nvl = LEAST(problem.hidden * 4, 4) if ring == "least" else 16 << 20
    world.run(round_trip, ranks, problem=problem, nvl=nvl, fp8=fp8, alignment=8)
    world.run(round_trip, ranks, problem=problem, nvl=nvl, fp8=fp8, with_topk=False, f32=True)


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("streams", ["plain", "beside", "allocate"])
def test_streams_make_no_difference(world: RankWorld, streams: str, fp8: bool) -> None:
    problem = Problem(2, 60, 512, 4, 12, (60, 41), seed=7, masked=0.1)
    world.run(round_trip, 2, problem=problem, nvl=4 << 20, fp8=fp8, streams=streams)


@pytest.mark.parametrize(
    ("hidden", "topk", "experts"),
    [(128, 1, 2), (128, 32, 1024), (384, 3, 4), (2560, 9, 10), (7168, 8, 256), (7296, 5, 266), (16384, 32, 64)],
)
def test_any_hidden_and_topk(world: RankWorld, hidden: int, topk: int, experts: int) -> None:
    problem = Problem(2, 30, hidden, topk, experts, (30, 21), seed=hidden + topk)
    for fp8 in (False, True):
        world.run(round_trip, 2, problem=problem, nvl=16 << 20, fp8=fp8)


def every_sm(context: Context) -> int:
    return torch.cuda.get_device_properties(context.device).multi_processor_count


@pytest.mark.parametrize("sms", ["2", "6", "64", "all"])
def test_any_number_of_sms(world: RankWorld, sms: str) -> None:
    number = world.run(every_sm, 1)[0] // 2 * 2 if sms == "all" else int(sms)
    problem = Problem(2, 333, 256, 4, 12, (333, 120), seed=4, masked=0.1)
    for nvl in (LEAST(problem.hidden * 4, 4) * 3, 16 << 20):
        world.run(round_trip, 2, problem=problem, nvl=nvl, sms=number)


def test_more_tokens_than_the_ring_holds(world: RankWorld) -> None:
    problem = Problem(3, 700, 128, 3, 6, (700, 400, 1), seed=2)
    world.run(round_trip, 3, problem=problem, nvl=LEAST(problem.hidden * 4, 4) + 5000)


@pytest.mark.timeout(300)
def test_the_canonical_size(world: RankWorld) -> None:
    problem = Problem(2, 4096, 7168, 8, 256, (4096, 4096), seed=3)
    nvl = Buffer.get_dispatch_config(2).get_nvl_buffer_size_hint(problem.hidden * 2, 2)
    world.run(round_trip, 2, problem=problem, nvl=nvl, timeout_s=240)


@pytest.mark.parametrize(("tokens", "masked"), [((0, 0, 0), 0.0), ((0, 9, 0), 0.0), ((4, 4, 4), 1.0)])
def test_nothing_to_send(world: RankWorld, tokens: tuple[int, ...], masked: float) -> None:
    problem = Problem(3, 9, 128, 2, 6, tokens, seed=1, masked=masked)
    world.run(round_trip, 3, problem=problem, nvl=1 << 20)


@FEW
@given(data=st.data())
def test_any_routing(world: RankWorld, data: st.DataObject) -> None:
    columns = st.integers(1, 3).map(lambda n: 128 * n)
    problem = data.draw(problems(columns, most_tokens=60, most_topk=8, most_ranks=3))
    nvl = data.draw(st.sampled_from([LEAST(4 * 384, 4), LEAST(4 * 384, 4) * 5 + 64, 8 << 20]), "nvl")
    world.run(
        round_trip,
        problem.ranks,
        problem=problem,
        nvl=nvl,
        fp8=data.draw(st.booleans(), "fp8"),
        f32=data.draw(st.booleans(), "f32"),
        with_topk=data.draw(st.booleans(), "with_topk"),
        streams=data.draw(st.sampled_from(["plain", "beside", "allocate"]), "streams"),
    )


def test_both_modes_in_one_buffer(world: RankWorld) -> None:
    problem = Problem(3, 20, 128, 3, 6, (20, 11, 3))
    rdma = Buffer.get_low_latency_rdma_size_hint(20, 128, 3, 6)
    world.run(interleaved, 3, problem=problem, nvl=300_000, rdma=rdma)


def test_room_for_the_worst_case(world: RankWorld) -> None:
    world.run(worst_tokens, 2, problem=Problem(2, 20, 128, 2, 4, (20, 20), masked=0.2), worst=100)


def test_the_same_call_gives_the_same_bits(world: RankWorld) -> None:
    problem = Problem(3, 200, 512, 6, 24, (200, 200, 37))
    world.run(same_bits, 3, problem=problem, nvl=1 << 20, times=20)


def test_eight_ranks(eight: RankWorld) -> None:
    problem = Problem(8, 20, 128, 4, 16, (20, 0, 3, 8, 20, 1, 8, 5), masked=0.1)
    eight.run(round_trip, problem=problem, nvl=4 << 20, timeout_s=120)
