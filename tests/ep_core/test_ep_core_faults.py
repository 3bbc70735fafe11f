"""What happens when a rank is killed, stopped, late, interrupted or wrong: an error that names it, and nothing left."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ep_oracle
import pytest
import torch
from ep_faults import CASES, NVL, PROBLEM, RDMA, act, forever, make, shared_memory
from ep_world import Context, RankWorld

import ep_core
from ep_core import Buffer, EPTimeoutError


@pytest.fixture
def trio() -> Iterator[RankWorld]:
    """Three ranks for one test, which may do to them what it likes; /dev/shm must be as before in the end."""
    before = shared_memory()
    with RankWorld(3, subgroups=[2]) as ranks:
        yield ranks
    assert shared_memory() == before


def assert_names(error: object, phase: str, rank: int, missing: list[int], exited: list[int]) -> None:
    assert isinstance(error, EPTimeoutError)
    assert (error.phase, error.rank, error.missing, error.exited) == (phase, rank, missing, exited)
    assert str(error).startswith(f"{phase} on rank {rank} waited {error.waited_s:.1f} s for rank {missing[0]}")


@pytest.mark.parametrize(("before", "operation", "phase"), CASES)
def test_a_killed_rank_is_named_before_the_deadline(trio: RankWorld, before, operation: str, phase: str) -> None:
    trio.run(make, limit_s=50)
    for one in before:
        if operation == "hook":
            trio.run(act, [0, 2], operation=one)
        else:
            trio.run(act, operation=one)
    trio.processes[1].kill()
    trio.processes[1].join()
    for rank, error in zip([0, 2], trio.run(act, [0, 2], operation=operation, timeout_s=30), strict=True):
        assert_names(error, phase, rank, [1], [1])
        assert "rank 1 has exited" in str(error)


@pytest.mark.parametrize(("before", "operation", "phase"), CASES)
def test_a_stopped_rank_is_named_at_the_deadline(trio: RankWorld, before, operation: str, phase: str) -> None:
    trio.run(make, limit_s=1.0)
    for one in before:
        if operation == "hook":
            trio.run(act, [0, 1], operation=one)
        else:
            trio.run(act, operation=one)
    os.kill(trio.processes[2].pid, signal.SIGSTOP)
    for rank, error in zip([0, 1], trio.run(act, [0, 1], operation=operation, timeout_s=30), strict=True):
        assert_names(error, phase, rank, [2], [])
        assert error.waited_s >= 1.0
        assert "no sign of life before the deadline (timeout_s, EP_TIMEOUT_S)" in str(error)
    trio.run(refuses_to_go_on, [0, 1])


def refuses_to_go_on(context: Context) -> None:
    for operation in ("dispatch", "ht dispatch"):
        with pytest.raises(RuntimeError, match="an earlier operation timed out; make a new one on all ranks"):
            act(context, operation)
    context.state["buffer"].destroy()


def test_killed_while_busy(trio: RankWorld) -> None:
    """SIGKILL in the middle of a stream of operations, whatever it is doing just then."""
    trio.run(make, limit_s=50)
    asked = trio.start(forever, rank_to_die=1)
    time.sleep(0.3)
    trio.processes[1].kill()
    for rank, error in zip([0, 2], trio.collect([r for r in asked if r != 1], timeout_s=30), strict=True):
        assert_names(error, error.phase, rank, error.missing, [1])


def construct(context: Context, limit_s: float) -> Any:
    try:
        context.state["buffer"] = Buffer(context.group(3), NVL, RDMA, True, timeout_s=limit_s)
    except EPTimeoutError as error:
        return error
    return None


def test_a_rank_killed_before_construction_is_named(trio: RankWorld) -> None:
    trio.processes[0].kill()
    trio.processes[0].join()
    for rank, error in zip([1, 2], trio.run(construct, [1, 2], limit_s=1.0), strict=True):
        assert_names(error, "construction", rank, [0], [])


def test_a_rank_that_is_late_for_construction_is_waited_for(trio: RankWorld) -> None:
    first = trio.start(construct, [0, 1], limit_s=30)
    time.sleep(0.5)
    assert trio.collect(trio.start(construct, [2], limit_s=30)) == [None]
    assert trio.collect(first) == [None, None]


def half_construct(context: Context) -> None:
    """Announce a segment, then die before mapping the others'."""
    from ep_core import _host, rendezvous

    host = _host.Host(context.rank, 3, NVL, RDMA, 5.0, bytes(16))
    group = context.group(3)
    address = rendezvous.Address.of_this_process(host.fd, bytes(16).hex(), NVL, RDMA)
    rendezvous.exchange(group, rendezvous.next_name(group), address, 5.0)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_rank_killed_in_construction_is_named(trio: RankWorld) -> None:
    asked = trio.start(construct, [0, 1], limit_s=20)
    trio.start(half_construct, [2])
    for rank, error in zip(asked, trio.collect(asked, timeout_s=40), strict=True):
        assert isinstance(error, EPTimeoutError)
        assert_names(error, "construction", rank, error.missing, error.exited)
        assert 2 in error.missing or error.missing == [1 - rank]


def interrupted(context: Context) -> str:
    """Ctrl-C while waiting for a peer."""
    import threading

    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    try:
        act(context, "dispatch")
    except KeyboardInterrupt:
        with pytest.raises(RuntimeError, match="an earlier operation was interrupted"):
            act(context, "dispatch")
        return "interrupted"
    return "went through"


def test_ctrl_c_ends_a_wait(trio: RankWorld) -> None:
    trio.run(make, limit_s=50)
    assert trio.run(interrupted, [0], timeout_s=20) == ["interrupted"]


def wrong_then_right(context: Context) -> None:
    """One rank errs twice; its peers are already waiting; then all is as it should be."""
    buffer: Buffer = context.state["buffer"]
    world = ep_oracle.everyone(PROBLEM)
    mine = world[context.rank]
    sizes = (PROBLEM.max_tokens, PROBLEM.experts)
    if context.rank == 1:
        time.sleep(0.3)
        with pytest.raises(ValueError, match=r"topk_idx\[0, 0\]: wanted -1 or an expert below 6, got"):
            buffer.low_latency_dispatch(mine.x, mine.topk_idx + 50, *sizes, use_fp8=False)
        with pytest.raises(ValueError, match="x: wanted dtype"):
            buffer.low_latency_dispatch(mine.x.float(), mine.topk_idx, *sizes, use_fp8=False)
    recv_x, _, handle, _, _ = buffer.low_latency_dispatch(mine.x, mine.topk_idx, *sizes, use_fp8=False)
    if context.rank == 2:
        with pytest.raises(ValueError, match="out: wanted shape"):
            buffer.low_latency_combine(recv_x, mine.topk_idx, mine.topk_weights, handle, out=mine.x[:2].clone())
    combined, _, _ = buffer.low_latency_combine(recv_x, mine.topk_idx, mine.topk_weights, handle)
    total = torch.zeros(mine.x.shape)
    for k in range(PROBLEM.topk):
        total = total + mine.topk_weights[:, k : k + 1] * mine.x.float()
    assert torch.equal(combined, total.bfloat16())


def not_alike(context: Context) -> None:
    buffer: Buffer = context.state["buffer"]
    mine = ep_oracle.inputs(PROBLEM, context.rank)
    max_tokens = 3 if context.rank == 1 else 4
    with pytest.raises(ValueError, match=r"num_max_dispatch_tokens_per_rank: rank \d gave \d, this rank \d; all ranks"):
        buffer.low_latency_dispatch(mine.x[:3], mine.topk_idx[:3], max_tokens, 6, use_fp8=False)
    got = buffer.low_latency_dispatch(mine.x, mine.topk_idx, 4, 6, use_fp8=False)
    combine = (got[0], mine.topk_idx, mine.topk_weights, got[2])
    call, given = (
        (buffer.low_latency_combine, combine)
        if context.rank == 0
        else (buffer.low_latency_dispatch, (mine.x, mine.topk_idx, 4, 6, None, None, False))
    )
    with pytest.raises(ValueError, match=r"rank \d called low_latency_(dispatch|combine), this rank"):
        call(*given)
    wrong_then_right(context)


def test_an_error_on_one_rank_leaves_the_buffer_usable(trio: RankWorld) -> None:
    trio.run(make, limit_s=30)
    trio.run(wrong_then_right)
    trio.run(not_alike)


def forked(context: Context) -> None:
    """A forked child can neither use the parent's buffer nor harm it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act(context, "dispatch")
        except RuntimeError as error:
            code = 0 if "a forked child cannot use it" in str(error) else 2
        context.state["buffer"].destroy()
        context.state.clear()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_forked_child_does_no_harm(trio: RankWorld) -> None:
    trio.run(make, limit_s=30)
    trio.run(forked)
    assert trio.run(act, operation="dispatch") == [None] * 3


def hook_after_destroy(context: Context) -> None:
    act(context, "send")
    hook = context.state["got"][4]
    context.state.pop("buffer").destroy()
    with pytest.raises(RuntimeError, match="it was destroyed"):
        hook()
    make(context, 30)
    view = None
    act(context, "dispatch")
    buffer = context.state.pop("buffer")
    view = buffer.get_next_low_latency_combine_buffer(context.state["got"][2])
    buffer.destroy()
    del buffer
    view.fill_(3)
    assert (view == 3).all()


def test_hooks_and_tensors_outlive_their_buffer(trio: RankWorld) -> None:
    trio.run(make, limit_s=30)
    trio.run(hook_after_destroy)


def differing_sizes(context: Context) -> None:
    with pytest.raises(ValueError, match=r"num_rdma_bytes: rank \d was given \d+, this rank \d+: give the same"):
        Buffer(context.group(2), NVL, RDMA + 4096 * context.rank, timeout_s=2)


def test_sizes_must_agree_between_ranks(trio: RankWorld) -> None:
    trio.run(differing_sizes, 2)


def descriptors(context: Context) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    make(context, 30)
    before = count()
    for _ in range(5):
        context.state["buffer"].destroy()
        make(context, 30)
    assert count() <= before


def test_no_descriptors_leak(trio: RankWorld) -> None:
    trio.run(descriptors)


def test_the_error_survives_pickling() -> None:
    error = EPTimeoutError("combine", 0, [2, 3], 60.04, [3])
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert str(error).startswith("combine on rank 0 waited 60.0 s for rank 2, 3: rank 3 has exited; ")
    assert isinstance(error, TimeoutError)


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf"])
def test_a_bad_deadline_is_refused(world: RankWorld, value: str) -> None:
    world.run(bad_deadline, 1, value=value)


def bad_deadline(context: Context, value: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EP_TIMEOUT_S", value)
        with pytest.raises(ValueError, match="EP_TIMEOUT_S: wanted seconds"):
            Buffer(context.group(1))
        patch.setenv("EP_TIMEOUT_S", "7.5")
        assert Buffer(context.group(1)).timeout_s == 7.5
        assert Buffer(context.group(1), timeout_s=3).timeout_s == 3.0


def test_the_report_of_what_can_be_used() -> None:
    done = subprocess.run([sys.executable, "-m", "ep_core"], capture_output=True, text=True, check=True, timeout=60)
    assert "host: yes, on CPU tensors" in done.stdout
    assert re.search(r"^  cuda: (yes|no: \S+)", done.stdout, re.M)
    assert ep_core._host.ISA in done.stdout
