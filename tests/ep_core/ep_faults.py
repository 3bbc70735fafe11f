"""What ranks do in the tests of faults, on any device: operations whose deadline error is the answer.

Functions that take a `Context` run on ranks (`ep_world`). The tests of both engines ask for them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ep_oracle
from ep_oracle import Problem
from ep_world import Context

from ep_core import Buffer, EPTimeoutError

PROBLEM = Problem(3, 4, 128, 2, 6, (4, 4, 4))
NVL = 1 << 20
RDMA = Buffer.get_low_latency_rdma_size_hint(4, 128, 3, 6)
# What a rank does before, the operation in which it misses its peers, and the phase that the error names.
CASES = [
    ([], "dispatch", "dispatch"),
    (["dispatch"], "combine", "combine"),
    (["send"], "hook", "dispatch"),
    ([], "ht dispatch", "dispatch"),
    (["ht dispatch"], "ht combine", "combine"),
]


def shared_memory() -> list[Path]:
    """What stands in /dev/shm, but for what servers of other tests have there."""
    return sorted(path for path in Path("/dev/shm").iterdir() if not path.name.startswith("PostgreSQL."))


def make(context: Context, limit_s: float) -> None:
    context.state["buffer"] = context.new_buffer(3, NVL, RDMA, timeout_s=limit_s)


def act(context: Context, operation: str) -> Any:
    """Run one operation to its end; gives the EPTimeoutError if there is one."""
    buffer: Buffer = context.state["buffer"]
    mine = ep_oracle.inputs(PROBLEM, context.rank).to(context.device)
    sizes = (PROBLEM.max_tokens, PROBLEM.experts)
    try:
        if operation == "dispatch":
            context.state["got"] = buffer.low_latency_dispatch(mine.x, mine.topk_idx, *sizes, use_fp8=False)
        elif operation == "combine":
            recv_x, _, handle, _, _ = context.state["got"]
            buffer.low_latency_combine(recv_x, mine.topk_idx, mine.topk_weights, handle)
        elif operation == "send":
            context.state["got"] = buffer.low_latency_dispatch(
                mine.x, mine.topk_idx, *sizes, use_fp8=False, return_recv_hook=True
            )
        elif operation == "hook":
            context.state["got"][4]()
        elif operation == "ht dispatch":
            per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(mine.topk_idx, PROBLEM.experts)
            context.state["ht"] = buffer.dispatch(mine.x, None, per_rank, None, in_rank, per_expert)
        elif operation == "ht combine":
            buffer.combine(context.state["ht"][0], context.state["ht"][4])
        context.settle(buffer)
    except EPTimeoutError as error:
        return error
    return None


def forever(context: Context, rank_to_die: int) -> EPTimeoutError:
    while True:
        for operation in ("dispatch", "combine", "send", "hook", "ht dispatch", "ht combine"):
            error = act(context, operation)
            if error is not None:
                return error
