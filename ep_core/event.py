"""Events, as DeepEP has them. On the host every operation has ended when its call returns, so its event is complete.

Returned by every operation of `ep_core.buffer.Buffer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import torch


class EventHandle:
    """A point in the order of operations. On the host it is reached as soon as it exists."""

    def current_stream_wait(self) -> None:
        """Return when the point is reached: at once."""


class EventOverlap:
    """What an operation hands back for overlapping: wait for it, give it as `previous_event`, or use it in `with`.

    Attributes:
        event: the event, or None for an operation that gave none.
        extra_tensors: tensors kept alive as long as this object is.
    """

    def __init__(self, event: EventHandle | None = None, extra_tensors: Sequence[torch.Tensor] | None = None) -> None:
        self.event = event
        self.extra_tensors = extra_tensors

    def current_stream_wait(self) -> None:
        """Wait for the event. Raises `ValueError` when there is none."""
        if self.event is None:
            raise ValueError("event: there is none to wait for; ask the operation for one with async_finish=True")
        self.event.current_stream_wait()

    def __enter__(self) -> EventOverlap:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.event is not None:
            self.event.current_stream_wait()
