"""One of two ranks, as a user's program is: rank 1 kills itself between dispatch and combine, and rank 0 says who died.

    python survivor.py RANK PORT_OF_THE_STORE DEADLINE_S [DEVICE]

Rank 0 prints the error as JSON, destroys the buffer and returns as any program does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent.parent / "ep_core"))

import ep_oracle
from ep_low_latency import room
from ep_oracle import Problem
from ep_world import Context, device_of

from ep_core import EPTimeoutError


def main(rank: int, port: int, limit_s: float, kind: str = "cuda") -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    device = device_of(rank, kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    context = Context(rank, 2, {2: dist.group.WORLD}, device)
    problem = Problem(2, 9, 256, 3, 6, (9, 9))
    mine = ep_oracle.inputs(problem, rank).to(device)
    buffer = context.new_buffer(2, 0, room(problem), timeout_s=limit_s)
    recv_x, _, handle, _, _ = buffer.low_latency_dispatch(
        mine.x, mine.topk_idx, problem.max_tokens, problem.experts, use_fp8=False
    )
    context.settle(buffer)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        buffer.low_latency_combine(recv_x, mine.topk_idx, mine.topk_weights, handle)
        context.settle(buffer)
    except EPTimeoutError as error:
        print(json.dumps({"phase": error.phase, "rank": error.rank, "missing": error.missing}))
    buffer.destroy()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:])
