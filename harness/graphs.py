"""The protocol `graph`: operations captured into a CUDA graph and replayed, so that no launch of theirs is timed.

Three graphs, each of `TURNS` turns: of pairs of dispatch and combine, of dispatches alone, of combines alone. The last
two give the phases' samples, time per operation; the pairs' time stands beside them among the record's conditions.
docs/metrics.md has the definitions. Called through `harness.protocols`; imports torch only when used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.checking import check, look_at_combine, look_at_dispatch
from harness.errors import BackendError
from harness.stats import LEADING_DROPPED, summarise
from harness.steps import warm_up
from harness.timers import CudaClock, Operation, Samples, Timed

if TYPE_CHECKING:
    import torch

    from harness.backends.base import Backend
    from harness.steps import Run

TURNS = 10
"""Turns in one graph: many enough that the start of a replay hardly counts."""


def graph(run: Run, backend: Backend, align: Operation) -> Timed:
    """Warm-up in pairs; then pairs, dispatches and combines, each captured, replayed and timed, in this order.

    What each left is compared, and last a replay of the phases' graphs that began with poison everywhere.
    """
    graphs = _Graphs(run, align)
    warm_up(run, backend)
    pair_us = graphs.time("pairs", [backend.dispatch, backend.combine])
    rows = sum(run.agreed("check timed pairs after", lambda: look_at_dispatch(run, backend)))
    dispatch_us = graphs.time("dispatch", [backend.dispatch])
    rows += sum(run.agreed("check timed dispatch after", lambda: look_at_dispatch(run, backend)))
    combine_us = graphs.time("combine", [backend.combine])
    rows += sum(run.agreed("check timed combine after", lambda: look_at_combine(run, backend)))
    rows += check(
        run,
        backend,
        "by replay after",
        dispatch=lambda: graphs.replay("dispatch"),
        combine=lambda: graphs.replay("combine"),
    )
    return Timed({"dispatch": dispatch_us, "combine": combine_us}, rows, pair_figures(pair_us))


def pair_figures(pair_us: Sequence[Samples]) -> dict[str, float]:
    """A pair's latency and the run's value of it, by the definitions of a phase's, from [ranks][iterations]."""
    stats = summarise(pair_us, LEADING_DROPPED)
    return {"pair_latency_us": stats.latency_us, "pair_slowest_p50_us": stats.slowest_p50_us}


class _Graphs:
    """The graphs of one run. All of them live as long as it does: what one writes is what the next one reads."""

    def __init__(self, run: Run, align: Operation) -> None:
        self._run = run
        self._align = align
        self._held: dict[str, torch.cuda.CUDAGraph] = {}

    def time(self, name: str, operations: Sequence[Operation]) -> list[Samples]:
        """Capture the operations, in turns, and time the replays: µs per turn, [ranks][iterations]."""
        run = self._run

        def capture() -> None:
            self._held[name] = captured(name, operations)

        def timed() -> Samples:
            samples = CudaClock().time([self._held[name].replay], run.spec.iters, self._align)[0]
            return [replay_us / TURNS for replay_us in samples]

        run.agreed(f"capture {name}", capture)
        return run.agreed(f"time {name}", timed)

    def replay(self, name: str) -> None:
        """Do once more what was captured under this name, and wait for it."""
        import torch

        self._held[name].replay()
        torch.cuda.synchronize()


def captured(name: str, operations: Sequence[Operation]) -> torch.cuda.CUDAGraph:
    """`TURNS` turns of the operations as a CUDA graph. Raises `BackendError` with the reason when they cannot be."""
    import torch

    made, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        # Other threads of the process, a process group's say, may ask CUDA what they like meanwhile.
        with torch.cuda.graph(made, capture_error_mode="thread_local"):
            for _ in range(TURNS):
                for operation in operations:
                    operation()
    except (RuntimeError, ValueError) as error:
        # A capture that was broken off leaves its own stream behind as the current one.
        torch.cuda.set_stream(stream)
        raise BackendError(f"{name} cannot be captured into a CUDA graph: {first_cause(error)}") from error
    return made


def first_cause(error: BaseException) -> str:
    """The first line of what went wrong first: a capture's end complains once more of what broke it."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).partition("\n")[0] or type(error).__name__
