"""What kernels tell of a failure, in words: the codes of `Failure` in ep_core/csrc/cuda/layout.hpp.

A kernel raises nothing by itself; `ep_core.cuda` asks what was told before each operation and in `Buffer.check`.
"""

from __future__ import annotations

from collections.abc import Sequence

DEADLINE = 1
UNLIKE, EXPERT, ROOM, RANK, COUNTS, HANDLE = 2, 3, 4, 5, 6, 7

_END = "; the buffer cannot be used any more"


def wrong(phase: str, code: int, ranks: Sequence[int], what: int, where: int) -> str:
    """One sentence for every code but `DEADLINE`.

    phase: `dispatch` or `combine`. ranks: those concerned. what, where: the wrong value and its place, see the codes.
    """
    return _sentence(phase, code, ", ".join(map(str, ranks)), what, where) + _END


def _sentence(phase: str, code: int, ranks: str, what: int, where: int) -> str:
    if code == UNLIKE:
        return f"{phase}: rank {ranks} called with other sizes, types or options; all ranks must call alike"
    if code == EXPERT and where < 0:
        return f"topk_idx: {phase} found expert {what} selected more often than its receive buffer holds"
    if code == EXPERT and phase == "combine":
        return f"topk_idx.flatten()[{where}]: expert {what} got no such row from this token at dispatch"
    if code == EXPERT:
        return f"topk_idx.flatten()[{where}]: {phase} wanted -1 or an expert that there is, got {what}"
    if code == ROOM:
        return f"num_worst_tokens: rank {ranks} receives {what} rows and has space for {where}"
    if code == RANK:
        return f"topk_idx.flatten()[{where}]: expert {what} is on a rank that is_token_in_rank leaves out"
    if code == COUNTS:
        return f"num_tokens_per_rank: says {what} tokens for rank {where}, is_token_in_rank says otherwise"
    if code == HANDLE:
        return "handle: its parts, or they and x, do not belong together; give what dispatch returned, unchanged"
    return f"{phase}: a kernel failed with code {code}"
