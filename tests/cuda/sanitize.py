"""A small round trip of both modes on one rank, for compute-sanitizer.

    compute-sanitizer --tool memcheck --error-exitcode 1 python tests/cuda/sanitize.py
    compute-sanitizer --tool racecheck --error-exitcode 1 python tests/cuda/sanitize.py ll
    compute-sanitizer --tool synccheck --error-exitcode 1 --num-cuda-barriers 8192 python tests/cuda/sanitize.py

Every result is checked. The argument is `ll`, `ht`, or none for both; `--device cpu` shows that the program is right.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent.parent / "ep_core"))

import ep_high_throughput
import ep_low_latency
from ep_low_latency import BF16, FP8, UE8M0
from ep_oracle import Problem
from ep_world import Context, device_of, poison_new_tensors

from ep_core import Buffer

PROBLEM = Problem(1, 7, 512, 3, 4, (7,), seed=1, masked=0.2, duplicates=True)


def low_latency(context: Context) -> None:
    for rows in (BF16, FP8, UE8M0):
        for local_reduce in (False, True):
            for hooks in (False, True):
                ep_low_latency.round_trip(context, PROBLEM, rows, hooks=hooks, local_reduce=local_reduce)
    ep_low_latency.round_trip(context, PROBLEM, zero_copy=True, given_outs=True)


def high_throughput(context: Context) -> None:
    for fp8 in (False, True):
        ep_high_throughput.round_trip(context, PROBLEM, nvl=1 << 20, fp8=fp8)
    ep_high_throughput.round_trip(context, PROBLEM, nvl=1 << 20, f32=True, with_topk=False, streams="plain")
    ep_high_throughput.worst_tokens(context, PROBLEM, worst=9)


def main() -> None:
    modes = {"ll": low_latency, "ht": high_throughput}
    parser = argparse.ArgumentParser(description="A small round trip of both modes on one rank, checked.")
    parser.add_argument("mode", nargs="?", choices=modes, help="one of them; both without")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    given = parser.parse_args()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # Few blocks do as well as many, and the tools follow each of them.
    os.environ.setdefault("EP_LL_SMS", "8")
    Buffer.set_num_sms(8)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    poison_new_tensors()
    device = device_of(0, given.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    context = Context(0, 1, {1: dist.group.WORLD}, device)
    for mode in [given.mode] if given.mode else modes:
        modes[mode](context)
        print(f"{mode}: every result is right")
    for buffer in context.state.values():
        buffer.destroy()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
