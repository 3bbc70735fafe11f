"""The oracle's turns in one run: before timing, on what timing left, and after it.

The oracle computes on the CPU, wherever the rows are: what a backend received is copied there, what its experts return
is copied back. Called by `harness.measure` and the timing protocols; next to read: `harness.oracle`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from harness import oracle

if TYPE_CHECKING:
    from harness.backends.base import Backend
    from harness.steps import Run


def check(
    run: Run,
    backend: Backend,
    when: str,
    *,
    dispatch: Callable[[], None] | None = None,
    combine: Callable[[], None] | None = None,
) -> int:
    """Poison, dispatch, compare, combine, compare; agreed upon at each step. Rows looked at, over all ranks.

    dispatch, combine: what to call in place of the backend's own.
    """

    def dispatched() -> int:
        for tensor in backend.scratch():
            oracle.poison(tensor)
        (dispatch or backend.dispatch)()
        return look_at_dispatch(run, backend)

    def combined() -> int:
        (combine or backend.combine)()
        return look_at_combine(run, backend)

    return sum(run.agreed(f"check dispatch {when}", dispatched)) + sum(run.agreed(f"check combine {when}", combined))


def look_at_dispatch(run: Run, backend: Backend) -> int:
    """Compare what the last dispatch left, and put the experts' outputs for it in place. Rows looked at."""
    received = backend.received()
    device, received = received.x.device, received.on_cpu()
    rows = oracle.check_dispatch(run.case, run.world.rank, received)
    backend.give(oracle.expert_output(run.case, run.world.rank, received).to(device))
    return rows


def look_at_combine(run: Run, backend: Backend) -> int:
    """Compare what the last combine left. Rows looked at."""
    return oracle.check_combine(run.case, run.world.rank, backend.combined().cpu())
