"""Events, as DeepEP has them: a point in the order of operations that the current stream can be made to wait for.

On the host every operation has ended when its call returns, so there its event is complete. Returned by every operation
of `ep_core.buffer.Buffer`; made by `ep_core.streams`.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import torch


class EventHandle:
    """A point in the order of operations: by default what the current stream was given so far, where CUDA is in use.

    On the host it is reached as soon as it exists.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._event: torch.cuda.Event | None = None
        if torch.cuda.is_initialized():
            self._event = torch.cuda.current_stream().record_event()

    @classmethod
    def complete(cls) -> EventHandle:
        """A point that is reached already."""
        self = cls.__new__(cls)
        self._stream = self._event = None
        return self

    @classmethod
    def on(cls, stream: torch.cuda.Stream) -> EventHandle:
        """What `stream` was given so far."""
        self = cls.complete()
        self._event = stream.record_event()
        return self

    @classmethod
    def behind(cls, stream: torch.cuda.Stream) -> EventHandle:
        """What `stream` was given when the event is first waited for on another stream: it costs nothing before."""
        self = cls.complete()
        self._stream = stream
        return self

    def current_stream_wait(self) -> None:
        """Make the current stream wait for the point; the host goes on."""
        if self._event is None and self._stream is not None:
            if torch.cuda.current_stream(self._stream.device) == self._stream:
                return
            self._event = self._stream.record_event()
        if self._event is not None:
            self._event.wait()


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
        """Make the current stream wait for the event. Raises `ValueError` when there is none."""
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
