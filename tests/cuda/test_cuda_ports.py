"""Low latency over several nodes on GPUs: the same rows and bits whichever peers are reached by channels; and faults.

EP_RANKS_PER_NODE makes nodes of the ranks of this machine. Between them MSCCL++'s port channels carry everything, over
each transport that works on one machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ep_faults import act
from ep_low_latency import (
    BF16,
    FP8,
    UE8M0,
    Rows,
    back_to_back,
    big_combine,
    hook_over_fused,
    hooks_in_any_order,
    room,
    round_trip,
    same_bits,
)
from ep_oracle import Problem
from ep_problems import FEW, problems
from ep_world import Context, RankWorld
from hypothesis import given
from hypothesis import strategies as st
from test_cuda_graphs import WAYS, in_turn, no_pause, replayed
from test_cuda_low_latency import COMBINES, MODES, one_region, with_sms

from ep_core import Buffer, EPTimeoutError, peers

pytestmark = pytest.mark.skipif(bool(peers.port_obstacle()), reason=f"port channels: {peers.port_obstacle()}")

LIMIT_S = 5.0
ANSWER_S = 60.0
SHAPES = {"1+1": (2, 1), "2+2": (4, 2), "2+1": (3, 2), "1+1+1+1": (4, 1), "2+2+2": (6, 2), "3+1": (4, 3)}
TOKENS = (24, 7, 0, 19, 3, 24)


def split(ranks: int, per_node: int, transport: str = "ipc", proxies: int = 1) -> RankWorld:
    variables = {
        "EP_RANKS_PER_NODE": str(per_node),
        "EP_PORT_TRANSPORT": transport,
        "EP_PROXIES": str(proxies),
        "MSCCLPP_SOCKET_IFNAME": os.environ.get("MSCCLPP_SOCKET_IFNAME", "lo"),
    }
    return RankWorld(ranks, env=variables, subgroups=[], device="cuda")


@pytest.fixture(scope="module", params=SHAPES.values(), ids=[*SHAPES])
def nodes(request: pytest.FixtureRequest) -> Iterator[RankWorld]:
    with split(*request.param) as world:
        yield world


@pytest.fixture(scope="module")
def pair() -> Iterator[RankWorld]:
    """Two nodes of two ranks."""
    with split(4, 2) as world:
        yield world


def problem_of(ranks: int, **changes: object) -> Problem:
    usual = Problem(ranks, 24, 512, 4, 3 * ranks, TOKENS[:ranks], seed=ranks, masked=0.1)
    return replace(usual, **changes)  # type: ignore[arg-type]


def shape_is(context: Context, per_node: int) -> None:
    buffer = context.buffer(context.ranks, 0, room(problem_of(context.ranks)))
    assert buffer.nodes.node_of == tuple(rank // per_node for rank in range(context.ranks))


def test_nodes_are_as_asked_for(pair: RankWorld) -> None:
    pair.run(shape_is, per_node=2, timeout_s=ANSWER_S)


@COMBINES
@pytest.mark.parametrize("rows", [BF16, FP8, UE8M0], ids=["bf16", "fp8", "ue8m0"])
def test_every_row_and_every_bit(nodes: RankWorld, rows: Rows, local_reduce: bool) -> None:
    problem = problem_of(nodes.ranks)
    nodes.run(round_trip, problem=problem, rows=rows, local_reduce=local_reduce, timeout_s=120)


@COMBINES
@pytest.mark.parametrize("mode", MODES)
def test_every_way_to_call(pair: RankWorld, local_reduce: bool, mode: str) -> None:
    for rows in (BF16, FP8):
        pair.run(round_trip, problem=problem_of(4), rows=rows, local_reduce=local_reduce, timeout_s=120, **MODES[mode])


@COMBINES
@pytest.mark.parametrize(
    ("hidden", "topk", "experts"), [(128, 1, 4), (128, 32, 64), (2560, 9, 12), (7168, 8, 16), (16384, 8, 8)]
)
def test_any_hidden_and_topk(pair: RankWorld, hidden: int, topk: int, experts: int, local_reduce: bool) -> None:
    problem = Problem(4, 9, hidden, topk, experts, (9, 5, 0, 9), seed=hidden + topk)
    for rows in (BF16, FP8):
        pair.run(round_trip, problem=problem, rows=rows, local_reduce=local_reduce, timeout_s=120)


@COMBINES
@pytest.mark.parametrize("sms", ["1", "3", "all"])
def test_any_number_of_sms(pair: RankWorld, sms: str, local_reduce: bool) -> None:
    """With few of them a warp has several pieces to send, and own rows take the way of the others."""
    problem = problem_of(4, max_tokens=40, hidden=2560, tokens=(40, 20, 0, 33))
    pair.run(with_sms, problem=problem, sms=sms, local_reduce=local_reduce, timeout_s=120)


@COMBINES
def test_the_canonical_size(local_reduce: bool) -> None:
    with split(2, 1) as two:
        problem = Problem(2, 128, 7168, 8, 256, (128, 128), seed=3)
        for rows in (BF16, FP8):
            two.run(round_trip, problem=problem, rows=rows, local_reduce=local_reduce, timeout_s=120)


@COMBINES
@FEW
@given(data=st.data())
def test_any_routing(pair: RankWorld, local_reduce: bool, data: st.DataObject) -> None:
    rows = data.draw(st.sampled_from([BF16, FP8, UE8M0]), "rows")
    columns = st.integers(1, 3).map(lambda n: (512 if rows.ue8m0 else 128) * n)
    drawn = data.draw(problems(columns, most_tokens=40, most_topk=12, least_ranks=4, most_ranks=4))
    hooks = data.draw(st.booleans(), "hooks")
    pair.run(round_trip, problem=drawn, rows=rows, hooks=hooks, local_reduce=local_reduce, timeout_s=120)


@COMBINES
def test_back_to_back_with_changing_routing(pair: RankWorld, local_reduce: bool) -> None:
    problem = Problem(4, 8, 128, 3, 8, (8, 2, 5, 0), masked=0.1)
    pair.run(back_to_back, problem=problem, times=9, local_reduce=local_reduce, timeout_s=120)


def test_one_rank_receives_by_hook(pair: RankWorld) -> None:
    problem = Problem(4, 32, 1024, 6, 16, (32, 0, 17, 32), seed=6, masked=0.05)
    pair.run(big_combine, problem=problem, hooked_rank=3, timeout_s=120)


def test_two_hooks_open_in_any_order(pair: RankWorld) -> None:
    """Each side has to be told that the other has read what it will write over, ahead of any message."""
    pair.run(hooks_in_any_order, problem=Problem(4, 4, 128, 3, 8, (4, 4, 4, 4)), timeout_s=120)


def test_a_hook_open_over_another_operation(pair: RankWorld) -> None:
    pair.run(hook_over_fused, problem=Problem(4, 6, 128, 2, 4, (6, 6, 6, 6)), timeout_s=120)


def test_sizes_may_change_within_one_buffer() -> None:
    with split(2, 1) as two:
        small, large = Problem(2, 16, 512, 4, 8, (16, 16)), Problem(2, 128, 4096, 4, 8, (128, 128))
        two.run(one_region, small=small, large=large, times=12, timeout_s=120)


@COMBINES
def test_the_same_call_gives_the_same_bits(pair: RankWorld, local_reduce: bool) -> None:
    problem = Problem(4, 32, 1024, 8, 32, (32, 32, 32, 32))
    pair.run(same_bits, problem=problem, times=20, local_reduce=local_reduce, timeout_s=120)


@COMBINES
@pytest.mark.parametrize("way", WAYS)
def test_graphs_are_replayed_with_another_routing(pair: RankWorld, way: str, local_reduce: bool) -> None:
    pair.run(replayed, problem=problem_of(4, seed=40), local_reduce=local_reduce, timeout_s=180, **WAYS[way])


def test_replays_without_a_pause(pair: RankWorld) -> None:
    pair.run(no_pause, problem=problem_of(4, seed=5), timeout_s=180)


def test_two_graphs_of_one_buffer_in_turn(pair: RankWorld) -> None:
    pair.run(in_turn, problem=problem_of(4, seed=7), timeout_s=180)


@pytest.mark.timeout(300)
def test_over_ethernet() -> None:
    """Each connection takes half a gibibyte of the host's memory, so few ranks."""
    with split(3, 2, transport="ethernet", proxies=2) as three:
        for rows in (BF16, FP8):
            for hooks in (False, True):
                three.run(round_trip, problem=problem_of(3), rows=rows, hooks=hooks, timeout_s=120)
        three.run(back_to_back, problem=Problem(3, 8, 128, 3, 6, (8, 2, 5), masked=0.1), times=9, timeout_s=120)


def test_eight_ranks_on_two_nodes() -> None:
    problem = Problem(8, 8, 128, 4, 16, (8, 0, 3, 8, 8, 1, 8, 5), masked=0.1)
    with split(8, 4) as eight:
        for rows in (BF16, FP8):
            eight.run(round_trip, problem=problem, rows=rows, timeout_s=180)


def refusals(context: Context) -> None:
    hint = Buffer.get_low_latency_rdma_size_hint(4, 128, 4, 8)
    buffer = context.new_buffer(4, 1 << 20, hint)
    x = torch.zeros((2, 128), dtype=torch.bfloat16, device=context.device)
    topk_idx = torch.zeros((2, 1), dtype=torch.int64, device=context.device)
    layout = buffer.get_dispatch_layout(topk_idx, 8)
    with pytest.raises(ValueError, match=r"^dispatch: high throughput on CUDA joins the ranks of one node, and .* 2: "):
        buffer.dispatch(x, None, layout[0], None, layout[3], layout[2])
    with pytest.raises(
        ValueError, match=r"^num_rdma_bytes: \d+ are wanted .*\(get_low_latency_rdma_size_hint, with num"
    ):
        buffer.low_latency_dispatch(x.repeat(1, 40), topk_idx, 64, 8, use_fp8=False)
    buffer.destroy()


def test_what_several_nodes_cannot_do_is_said(pair: RankWorld) -> None:
    pair.run(refusals, timeout_s=ANSWER_S)


def make(context: Context) -> None:
    context.state["buffer"] = context.new_buffer(3, 0, room(problem_of(3)), timeout_s=LIMIT_S)


@pytest.mark.parametrize("transport", ["ipc", "ethernet"])
@pytest.mark.parametrize(
    ("before", "operation", "phase"),
    [([], "dispatch", "dispatch"), (["dispatch"], "combine", "combine"), (["send"], "hook", "dispatch")],
)
def test_a_killed_rank_of_another_node_is_named(transport: str, before: list[str], operation: str, phase: str) -> None:
    with split(3, 2, transport=transport) as three:
        three.run(make, timeout_s=ANSWER_S)
        for one in before:
            three.run(act, [0, 1] if operation == "hook" else None, operation=one, timeout_s=ANSWER_S)
        three.processes[2].kill()
        three.processes[2].join()
        for rank, error in enumerate(three.run(act, [0, 1], operation=operation, timeout_s=ANSWER_S)):
            assert isinstance(error, EPTimeoutError)
            assert (error.phase, error.rank, error.missing) == (phase, rank, [2])


def test_the_survivor_of_another_node_exits_with_its_proxies() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    program = str(Path(__file__).parent / "survivor.py")
    variables = {**os.environ, "EP_RANKS_PER_NODE": "1", "EP_PORT_TRANSPORT": "ipc"}
    ranks = [
        subprocess.Popen(
            [sys.executable, program, str(rank), str(store.port), str(LIMIT_S)], stdout=subprocess.PIPE, env=variables
        )
        for rank in range(2)
    ]
    try:
        said, _ = ranks[0].communicate(timeout=120)
        assert json.loads(said) == {"phase": "combine", "rank": 0, "missing": [1]}
        assert ranks[0].returncode == 0
        assert ranks[1].wait(10) == -9
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def made_again(context: Context, times: int) -> list[tuple[int, int]]:
    """Threads and free memory after each of some buffers, made, used and destroyed."""
    found = []
    for _ in range(times):
        round_trip(context, problem_of(2), fresh=True)
        torch.cuda.synchronize()
        time.sleep(0.1)
        found.append((len(list(Path("/proc/self/task").iterdir())), torch.cuda.mem_get_info(context.device)[0]))
    return found


def test_destroyed_buffers_leave_no_proxy() -> None:
    with split(2, 1) as two:
        for found in two.run(made_again, times=4, timeout_s=180):
            assert len({threads for threads, _ in found[1:]}) == 1, found
