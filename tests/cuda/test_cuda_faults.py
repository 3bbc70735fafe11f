"""A rank that is killed, or does not call: the others get an error that names it, and the GPU goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import ep_oracle
import pytest
import torch
import torch.distributed as dist
from ep_faults import CASES, PROBLEM, act, forever, make
from ep_low_latency import round_trip
from ep_oracle import Problem
from ep_world import Context, RankWorld

from ep_core import EPTimeoutError

LIMIT_S = 3.0
ANSWER_S = 30.0


@pytest.fixture
def trio() -> Iterator[RankWorld]:
    """Three ranks for one test, which may do to them what it likes."""
    with RankWorld(3, subgroups=[2], device="cuda") as ranks:
        yield ranks


def assert_names(error: object, phase: str, rank: int, missing: list[int]) -> None:
    assert isinstance(error, EPTimeoutError)
    assert (error.phase, error.rank, error.missing) == (phase, rank, missing)


def leave(context: Context) -> float:
    """The buffer is of no use any more, but can be destroyed, and the device still reckons."""
    for operation in ("dispatch", "ht dispatch"):
        assert_refused(context, operation)
    drop(context)
    return float(torch.ones(1000, device=context.device).sum())


def drop(context: Context) -> None:
    context.state.pop("buffer").destroy()
    for name in ("got", "ht"):
        context.state.pop(name, None)


def assert_refused(context: Context, operation: str) -> None:
    try:
        error = act(context, operation)
    except RuntimeError:
        return
    assert isinstance(error, EPTimeoutError)


@pytest.mark.parametrize(("before", "operation", "phase"), CASES)
def test_a_killed_rank_is_named(trio: RankWorld, before: list[str], operation: str, phase: str) -> None:
    trio.run(make, limit_s=LIMIT_S)
    for one in before:
        trio.run(act, [0, 2] if operation == "hook" else None, operation=one)
    trio.processes[1].kill()
    trio.processes[1].join()
    errors = trio.run(act, [0, 2], operation=operation, timeout_s=ANSWER_S)
    for rank, error in zip([0, 2], errors, strict=True):
        assert_names(error, phase, rank, [1])
    assert trio.run(leave, [0, 2], timeout_s=ANSWER_S) == [1000.0] * 2


@pytest.mark.parametrize(("before", "operation", "phase"), CASES)
def test_a_rank_that_does_not_call_is_named(world: RankWorld, before: list[str], operation: str, phase: str) -> None:
    world.run(make, 3, limit_s=LIMIT_S)
    for one in before:
        world.run(act, [0, 1] if operation == "hook" else 3, operation=one)
    errors = world.run(act, [0, 1], operation=operation, timeout_s=ANSWER_S)
    for rank, error in zip([0, 1], errors, strict=True):
        assert_names(error, phase, rank, [2])
        assert error.waited_s >= LIMIT_S
    world.run(drop, [2])
    assert world.run(leave, [0, 1], timeout_s=ANSWER_S) == [1000.0] * 2


def queued_behind_a_failure(context: Context) -> None:
    """A combine is in the queue when its dispatch fails, and reads what that has not written."""
    buffer = context.state["buffer"]
    mine = ep_oracle.inputs(PROBLEM, context.rank).to(context.device)
    recv_x, _, handle, _, _ = buffer.low_latency_dispatch(
        mine.x, mine.topk_idx, PROBLEM.max_tokens, PROBLEM.experts, use_fp8=False
    )
    buffer.low_latency_combine(recv_x, mine.topk_idx, mine.topk_weights, handle)
    torch.cuda.synchronize()
    with pytest.raises(EPTimeoutError):
        buffer.check()


def test_what_is_queued_behind_a_failure_does_no_harm(trio: RankWorld) -> None:
    trio.run(make, limit_s=LIMIT_S)
    trio.run(queued_behind_a_failure, [0, 2], timeout_s=ANSWER_S)
    trio.run(drop, [1])
    assert trio.run(leave, [0, 2], timeout_s=ANSWER_S) == [1000.0] * 2


def test_killed_while_busy(trio: RankWorld) -> None:
    """SIGKILL in the middle of a stream of operations, whatever it is doing just then; then a new world."""
    trio.run(make, limit_s=LIMIT_S)
    asked = trio.start(forever, rank_to_die=1)
    time.sleep(1)
    trio.processes[1].kill()
    errors = trio.collect([rank for rank in asked if rank != 1], timeout_s=ANSWER_S)
    assert any(error.missing == [1] for error in errors)
    for rank, error in zip([0, 2], errors, strict=True):
        assert_names(error, error.phase, rank, error.missing)
    assert trio.run(leave, [0, 2], timeout_s=ANSWER_S) == [1000.0] * 2
    with RankWorld(2, device="cuda") as others:
        others.run(round_trip, problem=Problem(2, 9, 256, 3, 6, (9, 5)))


def test_the_survivor_of_a_killed_rank_exits_as_if_nothing_had_been() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    program = str(Path(__file__).parent / "survivor.py")
    ranks = [
        subprocess.Popen([sys.executable, program, str(rank), str(store.port), str(LIMIT_S)], stdout=subprocess.PIPE)
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
