"""Which stream an operation runs on, what it waits for and what waits for it.

An engine makes one `Call` for each operation (`Engine.call`); the face allocates the results inside of it. Host
operations have no stream: `Call` itself. CUDA operations run on the current stream, or with `async_finish` or
`previous_event` on the buffer's own: `CudaCall`, made by the buffer's `Streams`. Called by `ep_core.low_latency` and
`ep_core.high_throughput` through `ep_core.engine`.
"""

from __future__ import annotations

from types import TracebackType
from typing import ClassVar

import torch

from ep_core.event import EventHandle, EventOverlap


class Call:
    """One operation on the host: it begins when `previous_event` is reached and has ended when it returns.

    Attributes:
        stream: the CUDA stream to enqueue on, a cudaStream_t; 0 here.
    """

    stream: int = 0

    def __init__(self, previous_event: EventOverlap | None) -> None:
        self._previous = previous_event

    def __enter__(self) -> Call:
        if self._previous is not None:
            self._previous.current_stream_wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return

    def uses(self, *tensors: torch.Tensor | None) -> None:
        """Say which tensors the operation reads or writes, so that their memory is kept until it has."""

    def event(self) -> EventOverlap:
        """The operation's event, once it has been enqueued."""
        return EventOverlap(EventHandle.complete())


class Streams:
    """The stream of one buffer, and the order between operations of all buffers of a device.

    An operation's kernel may fill the device and then waits for the same operation of its peers. So operations that
    come from different streams follow each other in the order in which they were called, whichever buffer they are of:
    a rank on which another one ran first would wait for a peer that waits for it.
    """

    _last: ClassVar[dict[torch.device, torch.cuda.Stream]] = {}

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._own: torch.cuda.Stream | None = None

    @property
    def own(self) -> torch.cuda.Stream:
        """The buffer's own stream, made when first asked for."""
        if self._own is None:
            self._own = torch.cuda.Stream(self.device)
        return self._own

    def ordered(self, stream: torch.cuda.Stream) -> None:
        """Make `stream` wait for the operation before on this device, if that was on another stream.

        While a graph is captured that goes for the operations captured; those before it cannot be waited for there.
        """
        last = self._last.get(self.device)
        if stream == last:
            return
        self._last[self.device] = stream
        if last is not None and self._captures(None) == self._captures(last):
            stream.wait_event(last.record_event())

    def _captures(self, stream: torch.cuda.Stream | None) -> bool:
        """Whether what `stream` is given is captured; None: the current one."""
        with torch.cuda.device(self.device), torch.cuda.stream(stream):
            return torch.cuda.is_current_stream_capturing()


class CudaCall(Call):
    """One operation on CUDA.

    With `previous_event` or `async_finish` it runs on the buffer's own stream, which waits for that event or else for
    the current stream, and which is the current one inside. So what is allocated there belongs to the own stream,
    whether that is asked for (`allocate_on_comm_stream`) or not: memory of the current stream might still be in use by
    what that stream was given since `previous_event`. Without `async_finish` the current stream waits for the end.
    """

    def __init__(self, streams: Streams, previous_event: EventOverlap | None, async_finish: bool) -> None:
        super().__init__(previous_event)
        self._streams = streams
        self._async_finish = async_finish
        self._current = torch.cuda.current_stream(streams.device)
        self._aside = async_finish or previous_event is not None
        self._runs_on = streams.own if self._aside else self._current
        self._inside: torch.cuda.StreamContext | None = None
        self.stream = self._runs_on.cuda_stream

    def __enter__(self) -> Call:
        self._streams.ordered(self._runs_on)
        if self._aside:
            if self._previous is None:
                self._runs_on.wait_stream(self._current)
            else:
                with torch.cuda.stream(self._runs_on):
                    self._previous.current_stream_wait()
            self._inside = torch.cuda.stream(self._runs_on)
            self._inside.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._inside is not None:
            self._inside.__exit__(kind, error, traceback)
        if self._aside and not self._async_finish:
            self._current.wait_stream(self._runs_on)

    def uses(self, *tensors: torch.Tensor | None) -> None:
        """Keep the memory of `tensors` until both streams are done with it."""
        if self._aside:
            for tensor in tensors:
                if tensor is not None:
                    tensor.record_stream(self._runs_on)
                    tensor.record_stream(self._current)

    def event(self) -> EventOverlap:
        """The end of the operation: with `async_finish` recorded, else in the current stream's own order."""
        if self._async_finish:
            return EventOverlap(EventHandle.on(self._runs_on))
        return EventOverlap(EventHandle.behind(self._current))
