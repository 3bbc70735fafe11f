"""Wrong calls on GPUs: each refusal names the argument; what only a kernel can see is raised by the next call."""

from __future__ import annotations

import ep_oracle
import pytest
import torch
from ep_oracle import Problem
from ep_world import Context, RankWorld
from test_ep_core_refusals import combine_refusals, dispatch_refusals

from ep_core import Buffer

PROBLEM = Problem(2, 4, 256, 2, 4, (4, 4))
RDMA = Buffer.get_low_latency_rdma_size_hint(4, 256, 2, 4)


def test_dispatch_names_what_is_wrong(world: RankWorld) -> None:
    world.run(dispatch_refusals, 2)


def test_combine_names_what_is_wrong(world: RankWorld) -> None:
    world.run(combine_refusals, 2)


def the_device(context: Context) -> None:
    group = context.group(1)
    here = context.new_buffer(1, 1 << 20, 1 << 24)
    assert here.device == context.device
    torch.zeros(1, device=context.device)
    assert Buffer(group, 1 << 20).device.type == "cuda"
    on_cpu = Buffer(group, 1 << 20, 1 << 24, device="cpu")
    assert on_cpu.device == torch.device("cpu")
    for device in ("meta", "cuda:99"):
        with pytest.raises(ValueError, match="device"):
            Buffer(group, 1 << 20, device=device)
    x = torch.zeros((3, 128), dtype=torch.bfloat16)
    idx, weights = torch.zeros((3, 1), dtype=torch.int64), torch.ones((3, 1))
    gpu = {"x": x.to(context.device), "topk_idx": idx.to(context.device)}
    for buffer, arguments, message in [
        (here, {**gpu, "x": x}, r'x: is on cpu, but this buffer was made for cuda:\d+; make it with device="cpu"'),
        (on_cpu, gpu, r"x: is on cuda:\d+, but this buffer was made for cpu"),
        (here, {**gpu, "topk_idx": idx}, r"topk_idx: "),
        (here, {**gpu, "topk_weights": weights}, r"topk_weights: "),
        (here, {**gpu, "out_count": torch.zeros(2, dtype=torch.int32)}, r"out_count: "),
    ]:
        with pytest.raises(ValueError, match=message):
            buffer.low_latency_dispatch(**arguments, num_max_dispatch_tokens_per_rank=3, num_experts=2, use_fp8=False)
    with pytest.raises(ValueError, match="topk_idx: "):
        here.get_dispatch_layout(idx, 2)
    per_rank, _, per_expert, in_rank, _ = here.get_dispatch_layout(gpu["topk_idx"], 2)
    good = {"num_tokens_per_rank": per_rank, "is_token_in_rank": in_rank, "num_tokens_per_expert": per_expert}
    for name in good:
        with pytest.raises(ValueError, match=f"{name}: "):
            here.dispatch(gpu["x"], **{**good, name: good[name].cpu()})
    assert torch.equal(here.dispatch(gpu["x"], **good)[0].cpu(), x)


def test_tensors_of_another_device_are_refused(world: RankWorld) -> None:
    world.run(the_device, 1)


def differing(context: Context) -> None:
    with pytest.raises(ValueError, match="device"):
        Buffer(context.group(2), 1 << 20, device="cpu" if context.rank else context.device, timeout_s=5)


def test_devices_must_be_of_one_kind_on_all_ranks(world: RankWorld) -> None:
    world.run(differing, 2)


def hidden(context: Context) -> None:
    buffer = context.new_buffer(1, 1 << 20, 1 << 24)
    idx = torch.zeros((3, 1), dtype=torch.int64, device=context.device)
    for columns in (8, 136, 16384 + 128):
        x = torch.zeros((3, columns), dtype=torch.bfloat16, device=context.device)
        with pytest.raises(ValueError, match="hidden: wanted"):
            buffer.low_latency_dispatch(x, idx, 3, 2, use_fp8=False)
    x = torch.zeros((3, 256), dtype=torch.bfloat16, device=context.device)
    with pytest.raises(ValueError, match="hidden: wanted a multiple of 512"):
        buffer.low_latency_dispatch(x, idx, 3, 2, round_scale=True, use_ue8m0=True)
    with pytest.raises(ValueError, match="use_ue8m0: "):
        buffer.low_latency_dispatch(x, idx, 3, 2, use_ue8m0=True)
    with pytest.raises(ValueError, match="num_experts: wanted"):
        buffer.low_latency_dispatch(x, idx, 3, 1025, use_fp8=False)


def test_sizes_that_kernels_do_not_take_are_refused(world: RankWorld) -> None:
    world.run(hidden, 1)


def bare_handle(context: Context) -> None:
    buffer = context.new_buffer(2, 0, RDMA)
    mine = ep_oracle.inputs(PROBLEM, context.rank).to(context.device)
    y, _, handle, _, _ = buffer.low_latency_dispatch(mine.x, mine.topk_idx, 4, 4, use_fp8=False)
    src_info, layout_range, *sizes = handle
    assert sizes == [4, 256, 4]
    with pytest.raises((ValueError, TypeError), match="handle: "):
        buffer.low_latency_combine(y, mine.topk_idx, mine.topk_weights, (src_info, layout_range, *sizes))
    buffer.low_latency_combine(y, mine.topk_idx, mine.topk_weights, handle)
    context.settle(buffer)


def test_a_handle_made_by_hand_is_refused(world: RankWorld) -> None:
    world.run(bare_handle, 2)


WRONG = {
    "out of range": (lambda idx: idx + 100, r"topk_idx.*10\d"),
    "below -1": (lambda idx: idx - 9, r"topk_idx.*-\d"),
    "selected too often": (lambda idx: torch.zeros_like(idx), r"topk_idx.*expert 0"),
}


def found_by_the_kernel(context: Context, what: str, of: int) -> None:
    """The call returns, the next one or `check` raises, and the buffer is of no use any more. On all ranks alike."""
    change, message = WRONG[what]
    buffer = context.new_buffer(of, 0, 1 << 24, timeout_s=3)
    mine = ep_oracle.inputs(Problem(of, 4, 256, 2, 4, (4,) * of), context.rank).to(context.device)
    buffer.check()
    buffer.low_latency_dispatch(mine.x, change(mine.topk_idx), 4, 4, use_fp8=False)
    torch.cuda.synchronize()
    with pytest.raises(ValueError, match=message):
        buffer.check()
    with pytest.raises((ValueError, RuntimeError)):
        buffer.low_latency_dispatch(mine.x, mine.topk_idx, 4, 4, use_fp8=False)
    buffer.destroy()
    assert float(torch.ones(1000, device=context.device).sum()) == 1000.0


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("what", WRONG)
def test_wrong_values_are_found_by_the_kernel(world: RankWorld, what: str, ranks: int) -> None:
    world.run(found_by_the_kernel, ranks, what=what, of=ranks)


def layout_out_of_range(context: Context) -> None:
    buffer = context.new_buffer(1, 1 << 20, 0)
    idx = torch.tensor([[0, 1], [7, -1]], device=context.device)
    buffer.get_dispatch_layout(idx, 4)
    torch.cuda.synchronize()
    with pytest.raises(ValueError, match=r"topk_idx.*7"):
        buffer.check()
    buffer.destroy()


def test_a_layout_of_wrong_experts_is_found_by_the_kernel(world: RankWorld) -> None:
    world.run(layout_out_of_range, 1)


def too_little_room(context: Context) -> None:
    buffer = context.new_buffer(1, 1 << 20, 0)
    mine = ep_oracle.inputs(Problem(1, 6, 256, 2, 4, (6,)), 0).to(context.device)
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(mine.topk_idx, 4)
    buffer.dispatch(mine.x, None, per_rank, None, in_rank, per_expert, num_worst_tokens=2)
    torch.cuda.synchronize()
    with pytest.raises(ValueError, match="num_worst_tokens"):
        buffer.check()
    buffer.destroy()


def test_more_rows_than_the_worst_case_are_found_by_the_kernel(world: RankWorld) -> None:
    world.run(too_little_room, 1)


def uncached_in_a_capture(context: Context) -> None:
    buffer = context.new_buffer(1, 1 << 20, 0)
    mine = ep_oracle.inputs(Problem(1, 6, 256, 2, 4, (6,)), 0).to(context.device)
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(mine.topk_idx, 4)
    given = (mine.x, None, per_rank, None, in_rank, per_expert)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mine.x.add_(0)
        with pytest.raises((ValueError, RuntimeError), match="captur"):
            buffer.dispatch(*given)
    graph.replay()
    recv_x = buffer.dispatch(*given)[0]
    context.settle(buffer)
    assert torch.equal(recv_x, mine.x)
    buffer.destroy()


def test_a_dispatch_that_must_ask_the_host_is_refused_in_a_capture(world: RankWorld) -> None:
    world.run(uncached_in_a_capture, 1)


@pytest.mark.parametrize("value", ["0", "-3", "many"])
def test_a_number_of_sms_that_is_none_is_refused(world: RankWorld, value: str) -> None:
    world.run(wrong_sms, 1, value=value)


def wrong_sms(context: Context, value: str) -> None:
    idx = torch.zeros((3, 1), dtype=torch.int64, device=context.device)
    x = torch.zeros((3, 256), dtype=torch.bfloat16, device=context.device)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EP_LL_SMS", value)
        with pytest.raises(ValueError, match="EP_LL_SMS"):
            context.new_buffer(1, 0, 1 << 24).low_latency_dispatch(x, idx, 3, 2, use_fp8=False)
