"""One rank of a world whose nodes are containers: `python far_rank.py FOLDER`, with torchrun's rank variables.

Leaves FOLDER/rank<r>.json with what it found.
"""

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import ep_high_throughput
import ep_low_latency
import ep_oracle
import torch
import torch.distributed as dist
from ep_low_latency import BF16, FP8
from ep_oracle import Problem
from ep_world import Context, poison_new_tensors

from ep_core import EPTimeoutError


def main() -> None:
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    poison_new_tensors()
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    context = Context(rank, ranks, {ranks: dist.group.WORLD}, torch.device("cpu"))
    problem = Problem(ranks, 24, 512, 4, 2 * ranks, (24, 7, 0, 19)[:ranks], seed=1, masked=0.1)
    for rows in (BF16, FP8):
        for local_reduce in (False, True):
            ep_low_latency.round_trip(context, problem, rows=rows, hooks=local_reduce, local_reduce=local_reduce)
    ep_high_throughput.round_trip(context, problem, 1 << 18, streams="plain")
    found: dict[str, object] = {"node_of": next(iter(context.state.values())).nodes.node_of}
    folder = Path(sys.argv[1])
    # From here on the link may go down: what is left is a peer that never comes.
    buffer = context.new_buffer(ranks, 1 << 18, ep_low_latency.room(problem), timeout_s=3.0)
    (folder / f"ready{rank}").touch()
    while not (folder / "go").exists():
        time.sleep(0.05)
    mine = ep_oracle.inputs(problem, rank)
    try:
        buffer.low_latency_dispatch(mine.x, mine.topk_idx, problem.max_tokens, problem.experts, use_fp8=False)
    except EPTimeoutError as error:
        found |= {"phase": error.phase, "missing": error.missing}
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


main()
