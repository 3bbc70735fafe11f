"""Which device a buffer serves, and what is refused because of it; what a machine without a GPU can say of CUDA."""

from __future__ import annotations

import os
import subprocess
import sys

import ep_oracle
import pytest
import torch
from ep_oracle import Problem
from ep_world import Context, RankWorld
from hypothesis import given
from hypothesis import strategies as st

import ep_core
from ep_core import Buffer, cuda, rendezvous, told
from ep_core.open_operations import OpenOperations

PROBLEM = Problem(2, 4, 256, 2, 4, (4, 4))
RDMA = Buffer.get_low_latency_rdma_size_hint(4, 256, 2, 4)


def devices(context: Context) -> None:
    group = context.group(1)
    for device in (None, "cpu", torch.device("cpu")):
        assert Buffer(group, device=device).device == torch.device("cpu")
    with pytest.raises(ValueError, match="device: wanted cpu or cuda, got meta"):
        Buffer(group, device="meta")


def test_a_buffer_serves_the_cpu_where_nothing_says_cuda(world: RankWorld) -> None:
    world.run(devices, 1)


def cuda_refused(context: Context, obstacle: str) -> None:
    with pytest.raises(ValueError, match="device: cuda cannot be used here: ") as raised:
        Buffer(context.group(1), device="cuda")
    assert obstacle in str(raised.value)


@pytest.mark.skipif(not cuda.obstacle(), reason="the CUDA engine can be used here")
def test_cuda_is_refused_with_the_reason_that_the_report_gives(world: RankWorld) -> None:
    world.run(cuda_refused, 1, obstacle=cuda.obstacle())
    report = subprocess.run([sys.executable, "-m", "ep_core"], capture_output=True, text=True, check=True).stdout
    assert f"  cuda: no: {cuda.obstacle()}" in report.splitlines()


def misaligned(context: Context) -> None:
    buffer = context.buffer(2, 0, RDMA)
    mine = ep_oracle.inputs(PROBLEM, context.rank)
    x = torch.empty(4 * 256 + 1, dtype=torch.bfloat16)[1:].view(4, 256)
    with pytest.raises(ValueError, match=r"x: wanted rows that begin at a multiple of 16 bytes, got .* 2 bytes behind"):
        buffer.low_latency_dispatch(x, mine.topk_idx, 4, 4, use_fp8=False)


def test_rows_that_are_not_aligned_are_refused(world: RankWorld) -> None:
    world.run(misaligned, 2)


def plain_handle(context: Context) -> None:
    buffer = context.buffer(2, 0, RDMA)
    world = ep_oracle.everyone(PROBLEM)
    mine = world[context.rank]
    handle = buffer.low_latency_dispatch(mine.x, mine.topk_idx, 4, 4, use_fp8=False)[2]
    assert isinstance(handle, ep_core.LowLatencyHandle)
    assert handle.combine == "exact"
    y = torch.stack([ep_oracle.expert_output(PROBLEM, context.rank * 2 + local) for local in range(2)])
    for same in (handle, tuple(handle)):
        got = buffer.low_latency_combine(y, mine.topk_idx, mine.topk_weights, same)[0]
        assert torch.equal(got, ep_oracle.combined(PROBLEM, world, context.rank))
    buffer.check()


def test_the_five_values_of_a_handle_will_do_on_the_host(world: RankWorld) -> None:
    world.run(plain_handle, 2)


def unordered_allocation(context: Context) -> None:
    buffer = context.buffer(1, 1 << 20, 0)
    event = Buffer.capture()
    for arguments in ({}, {"previous_event": event}, {"async_finish": True}):
        with pytest.raises(ValueError, match="allocate_on_comm_stream: wanted only with previous_event and async_fini"):
            buffer.get_dispatch_layout(
                torch.zeros((1, 1), dtype=torch.int64), 1, allocate_on_comm_stream=True, **arguments
            )


def test_an_allocation_that_no_event_orders_is_refused(world: RankWorld) -> None:
    world.run(unordered_allocation, 1)


@given(st.lists(st.sampled_from(["whole", "send", "receive oldest", "receive newest"]), max_size=40))
def test_two_operations_may_be_open_and_no_more(steps: list[str]) -> None:
    operations = OpenOperations()
    number, still_open = 0, []
    for step in steps:
        if step.startswith("receive"):
            if still_open:
                chosen = still_open.pop(0 if step.endswith("oldest") else -1)
                operations.receive("dispatch", chosen)
                with pytest.raises(RuntimeError, match="dispatch: this receive hook was already called"):
                    operations.receive("dispatch", chosen)
        elif number - 1 in still_open:
            with pytest.raises(RuntimeError, match="at most two operations can be open"):
                operations.check("dispatch")
        else:
            operations.check("dispatch")
            number += 1
            assert operations.begin(received=step == "whole") == number
            if step == "send":
                still_open.append(number)
    assert len(still_open) <= 2


def test_a_process_that_has_ended_is_known_to_have() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert not rendezvous.has_exited(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert rendezvous.has_exited(child.pid)
    child.communicate()
    assert rendezvous.has_exited(child.pid)
    assert not rendezvous.has_exited(None)


@pytest.mark.parametrize(
    ("code", "what", "where", "sentence"),
    [
        (
            told.UNLIKE,
            0,
            0,
            "dispatch: rank 1, 3 called with other sizes, types or options; all ranks must call alike",
        ),
        (told.EXPERT, 99, 5, "topk_idx.flatten()[5]: dispatch wanted -1 or an expert that there is, got 99; "),
        (told.EXPERT, 7, -1, "topk_idx: dispatch found expert 7 selected more often than its receive buffer holds; "),
        (told.ROOM, 9, 4, "num_worst_tokens: rank 1, 3 receives 9 rows and has space for 4; "),
        (
            told.RANK,
            9,
            4,
            "topk_idx.flatten()[4]: expert 9 is on a rank that is_token_in_rank leaves out; ",
        ),
        (told.COUNTS, 9, 1, "num_tokens_per_rank: says 9 tokens for rank 1, is_token_in_rank says otherwise; "),
        (told.HANDLE, 0, 0, "handle: its parts, or they and x, do not belong together; "),
        (99, 0, 0, "dispatch: a kernel failed with code 99; "),
    ],
)
def test_what_a_kernel_found_is_said_in_a_sentence(code: int, what: int, where: int, sentence: str) -> None:
    said = told.wrong("dispatch", code, [1, 3], what, where)
    assert said.startswith(sentence)
    assert said.endswith("; the buffer cannot be used any more")


@given(st.one_of(st.integers(-3, 200).map(str), st.text(max_size=4)))
def test_the_processors_of_low_latency_are_a_count_from_one_on(text: str) -> None:
    if text == "":
        assert cuda.sms_wanted(text) == 0
    elif text.isascii() and text.isdigit() and int(text) > 0:
        assert cuda.sms_wanted(text) == int(text)
    else:
        with pytest.raises(ValueError, match="EP_LL_SMS: wanted a number of processors from 1 on, got "):
            cuda.sms_wanted(text)
