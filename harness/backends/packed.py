"""DeepEP's packed layout of low-latency rows, read for the oracle: which slots are in use, and whose rows they hold.

Called by `harness.backends.ep_core` and by adapters of libraries that have the same layout. Next to read:
`harness.backends.base`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.backends.base import Received

if TYPE_CHECKING:
    import torch


def received(
    x: torch.Tensor,
    scales: torch.Tensor | None,
    src_info: torch.Tensor,
    layout_range: torch.Tensor,
    count: torch.Tensor,
    *,
    ordered: bool,
) -> Received:
    """The rows in use of x [L, S, H] with scales [L, S, H / 128], src_info [L, S], layout_range [L, R] and count [L].

    ordered: whether the library promises slots in order of source rank and token.
    """
    import torch

    slots = src_info.shape[1]
    in_use = torch.arange(slots, device=count.device) < count[:, None]
    expert, slot = torch.nonzero(in_use, as_tuple=True)
    begin, length = layout_range >> 32, layout_range & 0xFFFFFFFF
    # A slot's source is the block it lies in; -1 where it lies in none.
    position = slot[:, None]
    inside = (position >= begin[expert]) & (position < (begin + length)[expert])
    source = torch.where(inside.any(1), inside.to(torch.int8).argmax(1), -1)
    rows = x.view(torch.uint8) if scales is not None else x
    return Received(
        x=rows[expert, slot].view(x.dtype),
        scales=None if scales is None else scales[expert, slot],
        source=source,
        token=src_info[expert, slot].to(torch.int64),
        expert=expert,
        slot=slot,
        counts=count,
        begin=begin,
        length=length,
        ordered=ordered,
    )
