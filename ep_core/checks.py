"""The checks of arguments, all in one place. They run before anything is published to other ranks.

Each names the argument, what was wanted and what came. `TypeError` is for what is not a tensor (or not the kind of
object wanted) at all, `ValueError` for everything else. Used by `ep_core.buffer` and its two halves,
`ep_core.low_latency` and `ep_core.high_throughput`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ep_core import _host
from ep_core.event import EventOverlap

ROW_ALIGNMENT_BYTES = 16
SCALE_BLOCK = 128


def tensor(
    name: str,
    value: object,
    device: torch.device,
    dtype: torch.dtype | Sequence[torch.dtype],
    shape: Sequence[int | None],
    stride: Sequence[int] | None = None,
) -> torch.Tensor:
    """`value` if it is a tensor on `device`, of a wanted `dtype`, of `shape` (None: any size), dense in `stride` order.

    stride: wanted strides in elements; None: contiguous.
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: wanted a torch.Tensor, got {type(value).__name__}")
    if value.device != device and (value.device.type, device.type) != ("cpu", "cpu"):
        other = f'; make it with device="{value.device}"' if value.device.type in ("cpu", "cuda") else ""
        raise ValueError(f"{name}: is on {value.device}, but this buffer was made for {device}{other}")
    dtypes = (dtype,) if isinstance(dtype, torch.dtype) else tuple(dtype)
    if value.dtype not in dtypes:
        raise ValueError(f"{name}: wanted dtype {' or '.join(map(str, dtypes))}, got {value.dtype}")
    got = value.shape
    if len(got) != len(shape) or any(want is not None and want != have for want, have in zip(shape, got, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: wanted shape [{wanted}], got {list(got)}")
    if stride is None:
        if not value.is_contiguous():
            raise ValueError(f"{name}: wanted a contiguous tensor, got shape {list(got)} with strides {value.stride()}")
    elif value.numel() > 0 and any(
        size > 1 and have != want for size, have, want in zip(got, value.stride(), stride, strict=True)
    ):
        raise ValueError(f"{name}: wanted strides {tuple(stride)}, got {value.stride()}")
    if value.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name}: wanted a tensor that needs no gradient; call it under torch.no_grad() or detach it")
    return value


def rows(name: str, value: torch.Tensor | None) -> None:
    """Raise `ValueError` unless the rows of `value`, if given, begin where the engines can move 16 bytes at once."""
    if value is not None and value.numel() > 0 and value.data_ptr() % ROW_ALIGNMENT_BYTES:
        raise ValueError(
            f"{name}: wanted rows that begin at a multiple of {ROW_ALIGNMENT_BYTES} bytes, got memory that begins "
            f"{value.data_ptr() % ROW_ALIGNMENT_BYTES} bytes behind one"
        )


def hidden(value: int, fp8: bool, bytes_per_element: int) -> None:
    """Raise `ValueError` unless rows of `value` elements can travel."""
    if value < 1 or value * bytes_per_element % ROW_ALIGNMENT_BYTES:
        raise ValueError(
            f"hidden: wanted rows of a multiple of {ROW_ALIGNMENT_BYTES} bytes, got {value} elements of "
            f"{bytes_per_element} bytes"
        )
    if fp8 and value % SCALE_BLOCK:
        raise ValueError(
            f"hidden: wanted a multiple of {SCALE_BLOCK} for fp8 (one scale for each {SCALE_BLOCK}), got {value}"
        )


def topk(count: int) -> None:
    """Raise `ValueError` unless a token may have `count` selections."""
    if not 1 <= count <= _host.MAX_TOPK:
        raise ValueError(f"topk_idx: wanted from 1 to {_host.MAX_TOPK} selections for each token, got {count}")


def experts(count: int, ranks: int, most: int = _host.MAX_EXPERTS) -> None:
    """Raise `ValueError` unless `count` experts, `most` at the most, can be spread over `ranks` ranks."""
    if count < 1 or count % ranks or count > most:
        raise ValueError(f"num_experts: wanted a multiple of the {ranks} ranks, at most {most}, got {count}")


def max_tokens(count: int, ranks: int) -> None:
    """Raise `ValueError` unless each of `ranks` ranks may send `count` tokens at the most."""
    if not 1 <= count <= 2**31 // (2 * ranks):
        raise ValueError(
            f"num_max_dispatch_tokens_per_rank: wanted from 1 to {2**31 // (2 * ranks)} on {ranks} ranks, got {count}"
        )


def finish(async_finish: bool, return_recv_hook: bool) -> None:
    """Raise `ValueError` when an operation is to have both an event and a hook."""
    if async_finish and return_recv_hook:
        raise ValueError("async_finish: wanted False with return_recv_hook, got both")


def previous(event: object, async_finish: bool, allocate_on_comm_stream: bool) -> None:
    """Raise `TypeError` for an `event` that is none, `ValueError` for an allocation that no event orders."""
    if event is not None and not isinstance(event, EventOverlap):
        raise TypeError(f"previous_event: wanted an ep_core.EventOverlap, got {type(event).__name__}")
    if allocate_on_comm_stream and (event is None or not async_finish):
        raise ValueError("allocate_on_comm_stream: wanted only with previous_event and async_finish")


def no_overlap(outputs: dict[str, torch.Tensor | None], inputs: dict[str, torch.Tensor | None]) -> None:
    """Raise `ValueError` when an output shares memory with an input or with another output."""
    spans: list[tuple[int, int, str, bool]] = []
    for is_output, group in ((True, outputs), (False, inputs)):
        for name, value in group.items():
            if value is not None and value.numel() > 0:
                start = value.data_ptr()
                spans.append((start, start + value.numel() * value.element_size(), name, is_output))
    spans.sort()
    # Inputs may overlap each other, so the furthest end so far is kept apart for outputs and for all.
    furthest: tuple[int, str] = (0, "")
    furthest_output: tuple[int, str] = (0, "")
    for start, end, name, is_output in spans:
        reach, other = furthest if is_output else furthest_output
        if start < reach:
            raise ValueError(f"{name}: wanted memory of its own, but it overlaps {other}")
        furthest = max(furthest, (end, name))
        if is_output:
            furthest_output = max(furthest_output, (end, name))
