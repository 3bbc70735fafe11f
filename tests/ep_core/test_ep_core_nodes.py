"""Buffers over several nodes: the same rows and bits as on one, whatever the split; and what is said when one goes.

Nodes are made of ranks of this machine by EP_RANKS_PER_NODE: between them everything travels over gloo.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import ep_faults
import ep_high_throughput
import ep_low_latency
import ep_oracle
import pytest
import torch
from ep_low_latency import BF16, FP8, UE8M0, Rows
from ep_oracle import Problem
from ep_problems import problems
from ep_world import Context, RankWorld
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ep_core import Buffer, EPTimeoutError
from ep_core.nodes import Nodes

SOME = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(scope="module", params=[(4, 2), (6, 2), (5, 3)], ids=["2x2", "3x2", "3+2"])
def nodes(request: pytest.FixtureRequest) -> Iterator[RankWorld]:
    """Worlds of two nodes of two ranks, of three of two, and of one of three and one of two."""
    ranks, per_node = request.param
    with RankWorld(ranks, env={"EP_RANKS_PER_NODE": str(per_node)}, subgroups=[]) as world:
        yield world


def a_problem(ranks: int, **changes: object) -> Problem:
    sizes: dict[str, object] = {
        "max_tokens": 24,
        "hidden": 512,
        "topk": 4,
        "experts": 2 * ranks,
        "tokens": (24, 7, 0, 19, 3, 24)[:ranks],
        "seed": ranks,
        "masked": 0.1,
    }
    return Problem(ranks, **(sizes | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [BF16, FP8, UE8M0], ids=["bf16", "fp8", "ue8m0"])
@pytest.mark.parametrize("mode", ["plain", "outs", "hooks", "zero_copy"])
@pytest.mark.parametrize("local_reduce", [False, True], ids=["exact", "local_reduce"])
def test_every_row_and_every_bit_of_low_latency(nodes: RankWorld, rows: Rows, mode: str, local_reduce: bool) -> None:
    nodes.run(
        ep_low_latency.round_trip,
        problem=a_problem(nodes.ranks),
        rows=rows,
        hooks=mode == "hooks",
        zero_copy=mode == "zero_copy",
        given_outs=mode == "outs",
        local_reduce=local_reduce,
    )


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("f32", [False, True], ids=["back in bf16", "back in f32"])
@pytest.mark.parametrize("ring", [1 << 16, 1 << 20])
def test_every_row_and_every_bit_of_high_throughput(nodes: RankWorld, fp8: bool, f32: bool, ring: int) -> None:
    problem = a_problem(nodes.ranks)
    nodes.run(ep_high_throughput.round_trip, problem=problem, nvl=ring, fp8=fp8, f32=f32, streams="plain")


def test_a_combine_through_the_rings(nodes: RankWorld) -> None:
    problem = a_problem(nodes.ranks, max_tokens=64, hidden=4096, topk=6, tokens=(64, 0, 37, 64, 5, 64)[: nodes.ranks])
    nodes.run(ep_low_latency.big_combine, problem=problem, hooked_rank=nodes.ranks - 1, timeout_s=120)


def test_one_operation_after_another(nodes: RankWorld) -> None:
    for local_reduce in (False, True):
        nodes.run(ep_low_latency.back_to_back, problem=a_problem(nodes.ranks), times=10, local_reduce=local_reduce)
    nodes.run(ep_low_latency.hooks_in_any_order, problem=a_problem(nodes.ranks))
    nodes.run(ep_low_latency.two_buffers, problem=a_problem(nodes.ranks))
    nodes.run(ep_high_throughput.same_bits, problem=a_problem(nodes.ranks), nvl=1 << 18, times=5)


def test_both_modes_in_turn(nodes: RankWorld) -> None:
    problem = a_problem(nodes.ranks)
    rdma = Buffer.get_low_latency_rdma_size_hint(problem.max_tokens, problem.hidden, nodes.ranks, problem.experts)
    nodes.run(ep_high_throughput.interleaved, problem=problem, nvl=1 << 18, rdma=rdma)


def layout(context: Context, problem: Problem) -> tuple[object, ...]:
    """The nodes, and what the layout says of them beside what it should."""
    buffer = context.buffer(problem.ranks, 1 << 17, 0)
    mine = ep_oracle.inputs(problem, context.rank)
    per_rank, per_node, per_expert, in_rank, _ = buffer.get_dispatch_layout(mine.topk_idx, problem.experts)
    found = buffer.nodes
    to_node = torch.stack([in_rank[:, list(found.ranks_of(node))].any(1) for node in range(found.count)], 1)
    assert torch.equal(per_node, to_node.sum(0, dtype=torch.int32))
    rows = buffer.dispatch(mine.x, None, per_rank, per_node, in_rank, per_expert)[0]
    with pytest.raises(ValueError, match=r"num_tokens_per_rdma_rank\[0\]: is_token_in_rank has"):
        buffer.dispatch(mine.x, None, per_rank, per_node + 1, in_rank, per_expert)
    return found.node_of, found.mine, rows.shape[0]


def test_the_layout_counts_a_token_once_for_each_node(nodes: RankWorld) -> None:
    problem = a_problem(nodes.ranks)
    per_node = {4: 2, 6: 2, 5: 3}[nodes.ranks]
    for rank, (node_of, mine, rows) in enumerate(nodes.run(layout, problem=problem)):
        assert node_of == tuple(one // per_node for one in range(nodes.ranks))
        assert mine == rank // per_node
        assert rows == len(ep_high_throughput.arrivals(problem, ep_oracle.everyone(problem), rank))


@pytest.fixture(scope="module")
def two_by_two() -> Iterator[RankWorld]:
    with RankWorld(4, env={"EP_RANKS_PER_NODE": "2"}, subgroups=[]) as world:
        yield world


@SOME
@given(data=st.data())
def test_any_problem(two_by_two: RankWorld, data: st.DataObject) -> None:
    problem = data.draw(problems(st.sampled_from([128, 256, 640]), 20, 6).filter(lambda one: one.ranks == 4))
    two_by_two.run(ep_low_latency.round_trip, problem=problem, rows=data.draw(st.sampled_from([BF16, FP8])))
    two_by_two.run(ep_high_throughput.round_trip, problem=problem, nvl=1 << 17, streams="plain")


@pytest.fixture
def trio() -> Iterator[RankWorld]:
    """Ranks 0 and 1 on one node, rank 2 on another, for one test."""
    before = ep_faults.shared_memory()
    with RankWorld(3, env={"EP_RANKS_PER_NODE": "2"}, subgroups=[]) as ranks:
        yield ranks
    assert ep_faults.shared_memory() == before


def arrive(world: RankWorld, steps: list[str], gone: int, limit_s: float) -> list[int]:
    """Make buffers, take the steps before the one that will miss rank `gone`; gives the ranks that are left."""
    world.run(ep_faults.make, limit_s=limit_s)
    left = [rank for rank in range(3) if rank != gone]
    for one in steps:
        world.run(ep_faults.act, left if one == "send" else None, operation=one)
    return left


@pytest.mark.parametrize(
    ("steps", "operation", "phase", "gone"),
    [*((*case, 2) for case in ep_faults.CASES), *((*case, 0) for case in ep_faults.CASES[::3])],
)
def test_a_killed_rank_is_named_on_every_node_before_the_deadline(
    trio: RankWorld, steps: list[str], operation: str, phase: str, gone: int
) -> None:
    left = arrive(trio, steps, gone, limit_s=50)
    trio.processes[gone].kill()
    trio.processes[gone].join()
    for rank, error in zip(left, trio.run(ep_faults.act, left, operation=operation, timeout_s=30), strict=True):
        assert (error.phase, error.rank, error.missing, error.exited) == (phase, rank, [gone], [gone])


@pytest.mark.parametrize(("steps", "operation", "phase"), ep_faults.CASES[::2])
def test_a_node_that_gives_no_sign_of_life_is_named_at_the_deadline(
    trio: RankWorld, steps: list[str], operation: str, phase: str
) -> None:
    left = arrive(trio, steps, 2, limit_s=1.0)
    os.kill(trio.processes[2].pid or 0, signal.SIGSTOP)
    for rank, error in zip(left, trio.run(ep_faults.act, left, operation=operation, timeout_s=30), strict=True):
        assert (error.phase, error.rank, error.missing, error.exited) == (phase, rank, [2], [])
    trio.run(give_up, left, timeout_s=30)


def give_up(context: Context) -> None:
    with pytest.raises(RuntimeError, match="an earlier operation timed out; make a new one on all ranks"):
        ep_faults.act(context, "dispatch")
    context.state["buffer"].destroy()


def test_killed_while_busy(trio: RankWorld) -> None:
    trio.run(ep_faults.make, limit_s=10)
    asked = trio.start(ep_faults.forever, rank_to_die=1)
    time.sleep(0.3)
    trio.processes[1].kill()
    near, far = trio.collect([rank for rank in asked if rank != 1], timeout_s=60)
    assert far.exited == [1]
    # What rank 1 sent last is on its own node, and may not have left it: then rank 2 has given up, and is waited for.
    assert near.exited == [1] or near.missing == [2]


def leave_first(context: Context, problem: Problem) -> None:
    """Rank 0 gives its buffer back as soon as its own combine is there."""
    ep_low_latency.round_trip(context, problem)
    if context.rank == 0:
        for buffer in context.state.values():
            buffer.destroy()
    else:
        time.sleep(0.3)


def test_what_was_sent_last_arrives_though_its_sender_has_left(two_by_two: RankWorld) -> None:
    with RankWorld(4, env={"EP_RANKS_PER_NODE": "1"}, subgroups=[]) as world:
        world.run(leave_first, problem=a_problem(4))


def test_ranks_that_end_at_different_times_all_end_well() -> None:
    store = socket.create_server(("127.0.0.1", 0))
    port = store.getsockname()[1]
    store.close()
    program = [sys.executable, str(Path(__file__).parent / "leaving_rank.py")]
    given = {"WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    environment = {**os.environ, **given, "EP_RANKS_PER_NODE": "2", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([*program, "0.5" if rank else "0"], env=environment | {"RANK": str(rank)}) for rank in range(4)
    ]
    try:
        assert [rank.wait(90) for rank in ranks] == [0, 0, 0, 0]
    finally:
        for rank in ranks:
            rank.kill()


def refused(context: Context, text: str) -> str:
    os.environ["EP_RANKS_PER_NODE"] = text if context.rank else "1"
    try:
        context.new_buffer(2, 1 << 16)
    except (ValueError, EPTimeoutError) as error:
        return str(error)
    finally:
        del os.environ["EP_RANKS_PER_NODE"]
    return ""


def test_an_override_that_is_wrong_or_not_the_same_everywhere_is_refused() -> None:
    with RankWorld(2, subgroups=[]) as pair:
        zero, one = pair.run(refused, text="2")
        assert "EP_RANKS_PER_NODE: rank 1 was given 2, this rank 1: give the same on all ranks" in zero
        assert "EP_RANKS_PER_NODE: rank 0 was given 1, this rank 2" in one
    with pytest.MonkeyPatch.context() as patch:
        for text in ("0", "-1", "two", "1.5", "²"):
            patch.setenv("EP_RANKS_PER_NODE", text)
            with pytest.raises(ValueError, match="EP_RANKS_PER_NODE: wanted a number of ranks above 0"):
                Nodes.found(0, ["a"])


@given(st.lists(st.integers(0, 4), min_size=1, max_size=16), st.integers(0, 5), st.data())
def test_every_rank_of_another_node_has_one_holder_on_this(
    machines: list[int], per_node: int, data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EP_RANKS_PER_NODE", str(per_node) if per_node else "")
        rank = data.draw(st.sampled_from(range(len(machines))))
        nodes = Nodes.found(rank, machines)
    assert sorted(one for node in range(nodes.count) for one in nodes.ranks_of(node)) == list(range(len(machines)))
    firsts = [nodes.ranks_of(node)[0] for node in range(nodes.count)]
    assert firsts == sorted(firsts)
    for node in range(nodes.count):
        ranks = nodes.ranks_of(node)
        assert len({machines[one] for one in ranks}) == 1
        assert not per_node or len(ranks) <= per_node
        far = [source for source in range(len(machines)) if nodes.node_of[source] != node]
        assert sorted(source for holder in ranks for source in nodes.held(holder)) == far
        assert all(source in nodes.held(nodes.holder(source, node)) for source in far)
