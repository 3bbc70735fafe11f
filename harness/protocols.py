"""The timing protocols by name, as docs/metrics.md defines them: `phased`, `paired`, `graph`, `kernel`.

Each warms up, takes the time of both phases on all ranks with a clock of `harness.timers`, and has what timing left
compared by the oracle. Called by `harness.measure`; next to read: `harness.graphs` and `harness.kernels`, which only a
GPU can run.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from harness.backends.base import Backend
from harness.case import CPU_PROTOCOLS, PHASES, Device
from harness.checking import look_at_combine, look_at_dispatch
from harness.graphs import graph
from harness.kernels import kernel
from harness.steps import Run, warm_up
from harness.timers import Operation, Timed, clock_for


def phased(run: Run, backend: Backend, align: Operation) -> Timed:
    """Warm-up in pairs; N dispatches back to back; N combines on what the last dispatch left.

    What the last of each left is compared too, outside of the clock: a wrong result under load is a wrong result.
    """
    iters, clock = run.spec.iters, clock_for(run.case.device)
    warm_up(run, backend)
    dispatch = run.agreed("time dispatch", lambda: clock.time([backend.dispatch], iters, align)[0])
    rows = sum(run.agreed("check timed dispatch after", lambda: look_at_dispatch(run, backend)))
    combine = run.agreed("time combine", lambda: clock.time([backend.combine], iters, align)[0])
    rows += sum(run.agreed("check timed combine after", lambda: look_at_combine(run, backend)))
    return Timed({"dispatch": dispatch, "combine": combine}, rows)


def paired(run: Run, backend: Backend, align: Operation) -> Timed:
    """Warm-up in pairs; N pairs of dispatch and combine, each operation timed, no barrier inside."""
    operations, clock = [backend.dispatch, backend.combine], clock_for(run.case.device)
    warm_up(run, backend)
    pairs = run.agreed("time pairs", lambda: clock.time(operations, run.spec.iters, align))
    rows = sum(run.agreed("check timed dispatch after", lambda: look_at_dispatch(run, backend)))
    return Timed({phase: [rank[at] for rank in pairs] for at, phase in enumerate(PHASES)}, rows)


_ALL: dict[str, Callable[[Run, Backend, Operation], Timed]] = {
    "phased": phased,
    "paired": paired,
    "graph": graph,
    "kernel": kernel,
}
PROTOCOLS: MappingProxyType[Device, MappingProxyType[str, Callable[[Run, Backend, Operation], Timed]]] = (
    MappingProxyType(
        {
            "cpu": MappingProxyType({name: _ALL[name] for name in CPU_PROTOCOLS}),
            "cuda": MappingProxyType(_ALL),
        }
    )
)
"""Device to the protocols that can be run there: functions of the run, the backend and what aligns the ranks."""
