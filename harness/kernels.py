"""The protocol `kernel`: the GPU time of a phase's kernels alone, as the profiler saw it, with a cold L2.

Ranks are aligned on the device. After a barrier the GPU spins until everything up to the timed call is queued: one
call that does not count, which no rank leaves before all have come to it, a flush of the L2, and the timed call. A
backend says by which names its kernels are known (`harness.backends.base.kernels_of`). The profiler's events are read,
never its tables. docs/metrics.md has the definitions. Called through `harness.protocols`; imports torch only when used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from harness.backends.base import kernels_of
from harness.checking import look_at_combine, look_at_dispatch
from harness.errors import BackendError
from harness.steps import warm_up
from harness.timers import Operation, Samples, Timed, no_garbage_collection

if TYPE_CHECKING:
    from harness.backends.base import Backend
    from harness.case import Phase
    from harness.steps import Run

SPIN_CYCLES = 600_000
"""Of the GPU's clock: 300 µs at 2 GHz, in which the host enqueues two calls and a flush."""

FLUSH_OF_L2 = 2
"""The flush writes so many times what the L2 holds."""

Span = tuple[float, float]

_ANONYMOUS = re.compile(r"\(anonymous namespace\)::|\{anonymous\}::")


def kernel(run: Run, backend: Backend, align: Operation) -> Timed:
    """Warm-up in pairs; N dispatches, then N combines on what the last left, each with a call before that aligns.

    What the last of each left is compared too.
    """
    warm_up(run, backend)
    dispatch = run.agreed("profile dispatch", lambda: _profiled(run, backend, "dispatch", backend.dispatch, align))
    rows = sum(run.agreed("check timed dispatch after", lambda: look_at_dispatch(run, backend)))
    combine = run.agreed("profile combine", lambda: _profiled(run, backend, "combine", backend.combine, align))
    rows += sum(run.agreed("check timed combine after", lambda: look_at_combine(run, backend)))
    return Timed({"dispatch": dispatch, "combine": combine}, rows)


def _profiled(run: Run, backend: Backend, phase: Phase, operation: Operation, align: Operation) -> Samples:
    import torch
    from torch.profiler import ProfilerActivity, profile

    names = kernels_of(backend, phase)
    if not names:
        raise BackendError(
            f"backend {backend.name!r} does not say which kernels are its {phase}: protocol kernel needs it"
        )
    l2_bytes = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    flush = torch.empty(FLUSH_OF_L2 * l2_bytes // torch.int32.itemsize, dtype=torch.int32, device="cuda")
    count = run.spec.iters
    with no_garbage_collection(), profile(activities=[ProfilerActivity.CUDA]) as seen:
        for iteration in range(count):
            torch.cuda.synchronize()
            align()
            torch.cuda._sleep(SPIN_CYCLES)
            operation()
            flush.fill_(iteration)
            operation()
        torch.cuda.synchronize()
    events = [event for event in seen.events() if event.device_type.name == "CUDA"]
    spans = [
        (event.time_range.start, event.time_range.end) for event in events if kernel_name(event.name).startswith(names)
    ]
    try:
        return call_times(spans, 2 * count)[1::2]
    except ValueError as error:
        others = ", ".join(sorted({kernel_name(event.name) for event in events})) or "nothing at all"
        raise BackendError(
            f"the profiler saw {error} of {phase}, known by {', '.join(names)}; what it saw on the GPU: {others}"
        ) from None


def kernel_name(demangled: str) -> str:
    """A kernel's name without its return type, namespaces, template arguments and parameters."""
    name = _ANONYMOUS.sub("", demangled).partition("<")[0].partition("(")[0]
    words = name.split()
    return words[-1].rpartition("::")[2] if words else ""


def call_times(spans: Iterable[Span], calls: int) -> list[float]:
    """How long the kernels of each of `calls` calls ran, in the unit of the spans, from (start, end) of all of them.

    Calls follow each other and each launches as many kernels as the others; kernels that overlap count once. Raises
    `ValueError` saying how many kernels there are when they cannot be shared out evenly.
    """
    ordered = sorted(spans)
    each, rest = divmod(len(ordered), calls)
    if rest or not each:
        raise ValueError(f"{len(ordered)} kernels in {calls} calls")
    return [_covered(ordered[first : first + each]) for first in range(0, len(ordered), each)]


def _covered(ordered: Sequence[Span]) -> float:
    """The length of the union of spans, which come in order of their starts."""
    total, reach = 0.0, ordered[0][0]
    for start, end in ordered:
        total += max(0.0, end - max(start, reach))
        reach = max(reach, end)
    return total
