"""The clocks: what takes the time of operations that are called one after another.

`HostClock` reads `perf_counter_ns` around each call; `CudaClock` records CUDA events around each on the current stream,
and asks them only when all is over. Both give µs. Called by the timing protocols (`harness.protocols`). Imports torch
only for CUDA.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from harness.case import Device, Phase

Operation = Callable[[], None]
Samples = list[float]


@dataclass(frozen=True)
class Timed:
    """What a protocol found.

    samples_us: [ranks][iterations] of each phase. rows: of timed outputs that were checked. figures: what is no phase's
    own, by name, for the record's conditions.
    """

    samples_us: dict[Phase, list[Samples]]
    rows: int
    figures: dict[str, float] = field(default_factory=dict)


class Clock(Protocol):
    """Takes the time of operations on one kind of device."""

    def time(self, operations: Sequence[Operation], count: int, align: Operation) -> list[Samples]:
        """Per operation the time of each of `count` calls, µs. The operations take turns, back to back.

        align: brings all ranks together; called once, when the device is idle, before the first call. The garbage
        collector is off from then on.
        """


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect garbage, then leave it lying while the block runs."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class HostClock:
    """For operations that are over when their call returns."""

    def time(self, operations: Sequence[Operation], count: int, align: Operation) -> list[Samples]:
        """See `Clock`."""
        spent_ns = [[0] * count for _ in operations]
        turns = list(zip(operations, spent_ns, strict=True))
        clock = time.perf_counter_ns
        with no_garbage_collection():
            align()
            for iteration in range(count):
                for operation, spent in turns:
                    start = clock()
                    operation()
                    spent[iteration] = clock() - start
        return [[nanoseconds / 1e3 for nanoseconds in spent] for spent in spent_ns]


class CudaClock:
    """For operations that are enqueued on the current stream of the current device."""

    def time(self, operations: Sequence[Operation], count: int, align: Operation) -> list[Samples]:
        """See `Clock`; events around each call, nothing waited for between the first and the last."""
        import torch

        stream = torch.cuda.current_stream()
        marks = [
            [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
            for _ in operations
        ]
        # An event is made when it is recorded for the first time.
        for begin, end in (pair for events in marks for pair in events):
            begin.record(stream)
            end.record(stream)
        turns = list(zip(operations, marks, strict=True))
        with no_garbage_collection():
            torch.cuda.synchronize()
            align()
            for iteration in range(count):
                for operation, events in turns:
                    begin, end = events[iteration]
                    begin.record(stream)
                    operation()
                    end.record(stream)
            torch.cuda.synchronize()
        return [[begin.elapsed_time(end) * 1e3 for begin, end in events] for events in marks]


def clock_for(device: Device) -> Clock:
    """The clock for operations on a device."""
    return HostClock() if device == "cpu" else CudaClock()
