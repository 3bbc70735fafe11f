"""The steps of one run: each is done by all ranks, and then agreed upon.

When any rank failed, all of them stop this run, and the failure that is told is the root of the others. Called by
`harness.measure` and by everything that it makes a run of; next to read: `harness.checking`, then `harness.protocols`.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from harness.case import Case
from harness.errors import WrongAnswer
from harness.job import JobSpec
from harness.progress import WAITS
from harness.record import Check, Failure, Outcome, PhaseResult, PlannedRun
from harness.world import World

if TYPE_CHECKING:
    from harness.backends.base import Backend

T = TypeVar("T")

LOG_TAIL_LINES = 20


class RunFailed(Exception):
    """A step failed on some rank; raised alike on all of them. `failure` is the root cause."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure

    @property
    def outcome(self) -> Outcome:
        """`wrong` for a wrong answer, `hung` where a deadline passed and nothing else went wrong, else `failed`."""
        if self.failure.kind == WrongAnswer.__name__:
            return "wrong"
        return "hung" if _is_timeout(self.failure) else "failed"


def _is_timeout(failure: Failure) -> bool:
    text = failure.message.lower()
    return "timeout" in failure.kind.lower() or "timed out" in text or "timeout" in text


def root_cause(failures: list[Failure]) -> Failure:
    """The failure that explains the others: a wrong answer, else what is no timeout, else the first by rank."""
    wrong = [failure for failure in failures if failure.kind == WrongAnswer.__name__]
    active = [failure for failure in failures if not _is_timeout(failure)]
    return (wrong or active or failures)[0]


@dataclass
class Run:
    """One run in progress on one rank: what has been found so far.

    on_step: told the name of each step as it begins. conditions: of the machine, and figures beside the phases'.
    not_closed: why this rank could not close its backend, "" where it could.
    """

    world: World
    planned: PlannedRun
    spec: JobSpec
    on_step: Callable[[str], None]
    checks: list[Check] = field(default_factory=list)
    phases: list[PhaseResult] = field(default_factory=list)
    conditions: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    not_closed: str = ""

    @property
    def case(self) -> Case:
        """What is measured."""
        return self.planned.case

    def agreed(self, step: str, action: Callable[[], T]) -> list[T]:
        """Do the step on this rank, hear from all; every rank's result, or `RunFailed` on every rank."""
        self.on_step(step)
        failure, result = None, None
        try:
            result = action()
        except Exception as error:
            traceback.print_exc()
            failure = Failure(
                step=step,
                kind=type(error).__name__,
                message=str(error) or type(error).__name__,
                rank=self.world.rank,
                log_tail="\n".join(traceback.format_exc().splitlines()[-LOG_TAIL_LINES:]),
            )
        self.on_step(step + WAITS)
        heard = self.world.gather((failure, result))
        failures = [theirs for theirs, _ in heard if theirs is not None]
        if failures:
            raise RunFailed(root_cause(failures))
        return [value for _, value in heard]  # type: ignore[misc]


def warm_up(run: Run, backend: Backend) -> None:
    """Pairs of dispatch and combine that are thrown away, as many as the job says."""

    def pairs() -> None:
        for _ in range(run.spec.warmup):
            backend.dispatch()
            backend.combine()

    run.agreed("warm-up", pairs)
