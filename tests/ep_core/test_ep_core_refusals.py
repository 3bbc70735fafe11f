"""Wrong arguments of low latency: each is named, with what was wanted and what came, and the buffer goes on."""

from __future__ import annotations

import ep_oracle
import pytest
import torch
from ep_oracle import Problem
from ep_world import Context, RankWorld

import ep_core
from ep_core import Buffer

PROBLEM = Problem(2, 4, 256, 2, 4, (4, 4))
RDMA = Buffer.get_low_latency_rdma_size_hint(4, 256, 2, 4)


def dispatch_refusals(context: Context) -> None:
    buffer = context.new_buffer(2, 0, RDMA)
    mine = ep_oracle.inputs(PROBLEM, context.rank).to(context.device)
    with context.device:
        _dispatch_refusals(buffer, mine, context.device.type)


def _dispatch_refusals(buffer: Buffer, mine: ep_oracle.Inputs, device: str) -> None:
    good = {
        "x": mine.x,
        "topk_idx": mine.topk_idx,
        "num_max_dispatch_tokens_per_rank": 4,
        "num_experts": 4,
        "use_fp8": False,
    }
    fp8 = {"use_fp8": True}
    bf16, f8, i32 = torch.bfloat16, torch.float8_e4m3fn, torch.int32
    big = torch.empty(2 * 8 * 256 + 4 * 256, dtype=bf16)
    overlapping = big[: 2 * 8 * 256].view(2, 8, 256)
    wrong = [
        ({"x": mine.x.double()}, ValueError, r"x: wanted dtype torch.bfloat16, got torch.float64"),
        ({"x": mine.x[0]}, ValueError, r"x: wanted shape \[any, any\], got \[256\]"),
        ({"x": mine.x.t().contiguous().t()}, ValueError, r"x: wanted a contiguous tensor, got .* strides \(1, 4\)"),
        ({"x": mine.x.to("meta")}, ValueError, r"x: is on meta, but this buffer was made for (cpu|cuda)"),
        ({"x": [1]}, TypeError, r"x: wanted a torch.Tensor, got list"),
        ({"x": mine.x[:, :136].contiguous(), **fp8}, ValueError, r"hidden: wanted a multiple of 128 for fp8"),
        ({"x": mine.x.float().requires_grad_().bfloat16()}, ValueError, r"x: wanted a tensor that needs no gradient"),
        ({"topk_idx": mine.topk_idx.int()}, ValueError, r"topk_idx: wanted dtype torch.int64, got torch.int32"),
        ({"topk_idx": mine.topk_idx[:3]}, ValueError, r"topk_idx: wanted shape \[4, any\], got \[3, 2\]"),
        ({"topk_idx": mine.topk_idx.repeat(1, 17)}, ValueError, r"topk_idx: wanted from 1 to 32 selections .* got 34"),
        ({"topk_idx": mine.topk_idx[:, :0]}, ValueError, r"topk_idx: wanted from 1 to 32 selections"),
        ({"num_max_dispatch_tokens_per_rank": 3}, ValueError, r"x: wanted at most num_max_.*=3 tokens, got 4"),
        ({"num_max_dispatch_tokens_per_rank": 0}, ValueError, r"num_max_dispatch_tokens_per_rank: wanted from 1"),
        ({"num_max_dispatch_tokens_per_rank": 99}, ValueError, rf"num_rdma_bytes: \d+ are wanted .* made with {RDMA}"),
        ({"async_finish": True, "return_recv_hook": True}, ValueError, r"async_finish: wanted False with return_recv_"),
        ({"use_ue8m0": True}, ValueError, r"use_ue8m0: wanted only with use_fp8"),
        ({"round_scale": True}, ValueError, r"round_scale: wanted only with use_fp8"),
        ({"dispatch_wait_recv_cost_stats": torch.zeros(2)}, ValueError, r"dispatch_wait_recv_cost_stats: wanted None"),
        ({"cumulative_local_expert_recv_stats": torch.zeros(2)}, ValueError, r"cumulative_local_expert_recv_stats: "),
        ({"out_packed_recv_x": torch.empty(2, 8, 256)}, ValueError, r"out_packed_recv_x: wanted dtype torch.bfloat16"),
        ({"out_packed_recv_x": torch.empty(2, 8, 256, dtype=bf16), **fp8}, ValueError, r"wanted dtype torch.float8"),
        ({"out_packed_recv_x": torch.empty(2, 8, 256, dtype=f8)}, ValueError, r"out_packed_recv_x: wanted dtype"),
        (
            {"out_packed_recv_x": torch.empty(8, 2, 256, dtype=bf16)},
            ValueError,
            r"out_packed_recv_x: wanted shape \[2, 8",
        ),
        (
            {"out_packed_recv_x": torch.empty(2, 256, 8, dtype=bf16).mT},
            ValueError,
            r"out_packed_recv_x: wanted a contig",
        ),
        (
            {"out_packed_recv_x_scales": torch.empty(2, 8, 2)},
            ValueError,
            r"out_packed_recv_x_scales: wanted None without",
        ),
        (
            {"out_packed_recv_x_scales": torch.empty(2, 8, 2), **fp8},
            ValueError,
            r"wanted strides \(16, 1, 8\), got \(16, 2, 1",
        ),
        ({"out_packed_recv_x_scales": torch.empty(2, 2, 8).double().mT, **fp8}, ValueError, r"_scales: wanted dtype"),
        ({"out_src_info": torch.empty(2, 8)}, ValueError, r"out_src_info: wanted dtype torch.int32, got torch.float32"),
        (
            {"out_src_info": torch.empty(2, 7, dtype=i32)},
            ValueError,
            r"out_src_info: wanted shape \[2, 8\], got \[2, 7\]",
        ),
        ({"out_layout_range": torch.empty(2, 2, dtype=i32)}, ValueError, r"out_layout_range: wanted dtype torch.int64"),
        ({"out_count": torch.empty(4, dtype=i32)[::2]}, ValueError, r"out_count: wanted a contiguous tensor"),
        ({"out_count": 3}, TypeError, r"out_count: wanted a torch.Tensor, got int"),
        ({"x": big[-1024 - 256 : -256].view(4, 256), "out_packed_recv_x": overlapping}, ValueError, r"overlaps"),
    ]
    # What a kernel would have to look for is found before anything is sent on the host alone.
    if device == "cpu":
        wrong += [
            (
                {"x": mine.x[:, :250].contiguous()},
                ValueError,
                r"hidden: wanted rows of a multiple of 16 bytes, got 250",
            ),
            ({"topk_idx": mine.topk_idx - 9}, ValueError, r"topk_idx\[0, 0\]: wanted -1 or an expert below 4, got -"),
            (
                {"topk_idx": torch.zeros_like(mine.topk_idx)},
                ValueError,
                r"topk_idx: expert 0 is selected more often than",
            ),
            ({"num_experts": 3}, ValueError, r"num_experts: wanted a multiple of the 2 ranks, at most 65536, got 3"),
        ]
    shared = torch.empty(18, dtype=i32)
    wrong.append(
        ({"out_src_info": shared[:16].view(2, 8), "out_count": shared[15:17]}, ValueError, r"out_count: .* over")
    )
    for change, kind, message in wrong:
        with pytest.raises(kind, match=message):
            buffer.low_latency_dispatch(**{**good, **change})
    recv_x, count, _, _, _ = buffer.low_latency_dispatch(**good)
    assert int(count.sum()) > 0
    assert recv_x.shape == (2, 8, 256)


def combine_refusals(context: Context) -> None:
    buffer = context.new_buffer(2, 0, RDMA)
    mine = ep_oracle.inputs(PROBLEM, context.rank).to(context.device)
    with context.device:
        _combine_refusals(buffer, mine, context.device.type)


def _combine_refusals(buffer: Buffer, mine: ep_oracle.Inputs, device: str) -> None:
    y, _, handle, _, _ = buffer.low_latency_dispatch(mine.x, mine.topk_idx, 4, 4, use_fp8=False)
    src_info, layout_range, *sizes = handle
    good = {"x": y, "topk_idx": mine.topk_idx, "topk_weights": mine.topk_weights, "handle": handle}
    ranges = layout_range.clone()
    ranges[0, 0] += 100
    tokens = torch.full_like(src_info, 4)
    wrong = [
        ({"x": y.float()}, ValueError, r"x: wanted dtype torch.bfloat16"),
        ({"x": y[:, :7]}, ValueError, r"x: wanted shape \[2, 8, 256\], got \[2, 7, 256\]"),
        ({"topk_idx": mine.topk_idx.float()}, ValueError, r"topk_idx: wanted dtype torch.int64"),
        ({"topk_weights": mine.topk_weights[:, :1]}, ValueError, r"topk_weights: wanted shape \[4, 2\], got \[4, 1\]"),
        ({"topk_weights": mine.topk_weights.double()}, ValueError, r"topk_weights: wanted dtype torch.float32"),
        ({"handle": handle[:4]}, TypeError, r"handle: wanted the 5-tuple that low_latency_dispatch returned"),
        ({"out": torch.empty(4, 256)}, ValueError, r"out: wanted dtype torch.bfloat16"),
        (
            {"out": torch.empty(3, 256, dtype=torch.bfloat16)},
            ValueError,
            r"out: wanted shape \[4, 256\], got \[3, 256\]",
        ),
        ({"out": y.view(-1, 256)[:4]}, ValueError, r"overlaps"),
        ({"zero_copy": True}, RuntimeError, r"zero_copy: the rows must be in the buffer that get_next_low_latency_com"),
        ({"use_logfmt": True}, ValueError, r"use_logfmt: wanted False"),
        ({"combine_wait_recv_cost_stats": torch.zeros(2)}, ValueError, r"combine_wait_recv_cost_stats: wanted None"),
        ({"async_finish": True, "return_recv_hook": True}, ValueError, r"async_finish: wanted False with return_recv_"),
    ]
    # A handle made by hand is refused as such where there are kernels.
    if device == "cpu":
        wrong += [
            (
                {"handle": (src_info.long(), layout_range, *sizes)},
                ValueError,
                r"handle\[0\] \(src_info\): wanted dtype",
            ),
            (
                {"handle": (src_info, ranges, *sizes)},
                ValueError,
                r"handle: layout_range\[0, 0\] is begin 0, count 10\d",
            ),
            (
                {"handle": (tokens, layout_range, *sizes)},
                ValueError,
                r"handle: src_info\[\d, 0\] is 4, wanted a token below 4",
            ),
        ]
    for change, kind, message in wrong:
        with pytest.raises(kind, match=message):
            buffer.low_latency_combine(**{**good, **change})
    # What was not dispatched cannot be combined: found when the others' handles are there, and harmless.
    if device == "cpu":
        other = torch.where(mine.topk_idx == 0, 1, 0)
        with pytest.raises(ValueError, match=r"topk_idx\[\d, \d\]: expert \d got no such row from this token"):
            buffer.low_latency_combine(**{**good, "topk_idx": other})
    buffer.low_latency_combine(**good)
    # The zero-copy buffer is for the very next operation only.
    buffer.get_next_low_latency_combine_buffer(handle)
    buffer.low_latency_combine(**good)
    with pytest.raises(RuntimeError, match="zero_copy"):
        buffer.low_latency_combine(**good, zero_copy=True)


def test_dispatch_names_what_is_wrong(world: RankWorld) -> None:
    world.run(dispatch_refusals, 2)


def test_combine_names_what_is_wrong(world: RankWorld) -> None:
    world.run(combine_refusals, 2)


def construction_refusals(context: Context) -> None:
    group = context.group(1)
    for arguments, kind, message in [
        ((None,), TypeError, "group: wanted a torch.distributed.ProcessGroup, got NoneType"),
        ((group, -1), ValueError, "num_nvl_bytes: wanted 0 or more bytes, got -1"),
        ((group, 0, -5), ValueError, "num_rdma_bytes: wanted 0 or more bytes, got -5"),
    ]:
        with pytest.raises(kind, match=message):
            Buffer(*arguments)
    with pytest.raises(ValueError, match="timeout_s: wanted seconds above 0"):
        Buffer(group, timeout_s=0)


def test_construction_names_what_is_wrong(world: RankWorld) -> None:
    world.run(construction_refusals, 1)


def test_static_helpers_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="new_num_sms: wanted an even number"):
        Buffer.set_num_sms(7)
    with pytest.raises(ValueError, match="num_experts: wanted a multiple of the 3 ranks"):
        Buffer.get_low_latency_rdma_size_hint(4, 64, 3, 7)
    with pytest.raises(ValueError, match="num_ranks: wanted from 1 to 64, got 65"):
        Buffer.get_dispatch_config(65)
    with pytest.raises(ValueError, match="event: there is none to wait for"):
        ep_core.EventOverlap().current_stream_wait()
    with Buffer.capture() as event:
        assert event.event is not None
