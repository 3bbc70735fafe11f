"""Low latency over the nodes of a job: every row, count and bit, for whoever has several machines.

On each machine, with 8 GPUs there:

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 tests/cuda/across.py

Every rank prints a line: what passed, or what is wrong, with exit code 1. `--device cpu` runs the same on the host
engine. What the lines should say is in docs/transports.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent.parent / "ep_core"))

from ep_low_latency import BF16, FP8, back_to_back, round_trip
from ep_oracle import Problem
from ep_world import Context

from ep_core import Buffer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    kind = parser.parse_args().device
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    device = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    context = Context(rank, ranks, {ranks: dist.group.WORLD}, device)

    with_buffer = Buffer(dist.group.WORLD, 0, 0, True, device=device)
    nodes = with_buffer.nodes.count
    with_buffer.destroy()
    small = Problem(ranks, 24, 512, 4, 4 * ranks, tuple((24, 7, 0, 19)[one % 4] for one in range(ranks)), masked=0.1)
    large = Problem(ranks, 64, 7168, 8, 8 * ranks, (64,) * ranks, seed=1)
    for problem in (small, large):
        for rows in (BF16, FP8):
            for local_reduce in (False, True):
                round_trip(context, problem, rows=rows, local_reduce=local_reduce)
                round_trip(context, problem, rows=rows, local_reduce=local_reduce, hooks=True)
    back_to_back(context, small, times=9)
    # Memory goes when all have ended.
    dist.barrier()
    dist.barrier()
    for key in list(context.state):
        context.state.pop(key).destroy()
    dist.barrier()
    print(f"rank {rank} of {ranks}, node {with_buffer.nodes.mine} of {nodes}: passed", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
