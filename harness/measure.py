"""The protocol of one run, exactly as docs/metrics.md says: check, time, check again, reduce.

Every rank calls `run_one` for the same planned run; rank 0 gets the record. Each step is done by all ranks and then
agreed upon: when any rank failed, all of them stop this run, and the record names the rank that failed first of all
causes. A wrong answer keeps its check and loses its timings. Called by `harness.worker`; next to read: `harness.oracle`
and `harness.backends.base`.
"""

from __future__ import annotations

import functools
import gc
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeVar

from harness import backends, environment, oracle, routing, traffic
from harness.backends.base import Backend, Setup
from harness.case import PHASES, Case, Phase
from harness.errors import BackendError, CaseError, WrongAnswer
from harness.inputs import make_inputs
from harness.job import DEVICES, JobSpec
from harness.placement import in_equal_blocks, in_words
from harness.progress import WAITS
from harness.record import Check, Failure, Outcome, PhaseResult, PlannedRun, Record
from harness.stats import summarise
from harness.world import World

if TYPE_CHECKING:
    import torch.distributed as dist

T = TypeVar("T")
Samples = list[float]

LEADING_DROPPED = 1
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
class _Run:
    """One run in progress on one rank: what has been found so far."""

    world: World
    planned: PlannedRun
    spec: JobSpec
    on_step: Callable[[str], None]
    checks: list[Check] = field(default_factory=list)
    phases: list[PhaseResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def case(self) -> Case:
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


def run_one(world: World, planned: PlannedRun, spec: JobSpec, on_step: Callable[[str], None]) -> Record | None:
    """Measure one planned run on the ranks of `world`. The record on rank 0, None on the others.

    on_step: told the name of each step as it begins. Raises only when the world itself is lost.
    """
    run = _Run(world, planned, spec, on_step)
    started_at, before = environment.utc_now(), environment.conditions("before")
    outcome: Outcome = "ok"
    failure = None
    try:
        _measure(run)
    except RunFailed as failed:
        outcome, failure = failed.outcome, failed.failure
        run.phases.clear()
        if outcome == "wrong":
            when: Literal["before", "after"] = "after" if failure.step.endswith("after") else "before"
            run.checks.append(Check(when=when, passed=False, rows=0, detail=f"rank {failure.rank}: {failure.message}"))
    gc.collect()
    if world.rank != 0:
        return None
    return Record(
        run_id=planned.run_id,
        case=planned.case,
        platform=environment.platform(spec.cluster, planned.case.device, world.nodes, world.cpus_per_node),
        environment=environment.capture(os.environ),
        nodes=environment.nodes(world.host_of_rank),
        started_at=started_at,
        ended_at=environment.utc_now(),
        warmup=spec.warmup,
        iters=spec.iters,
        outcome=outcome,
        checks=run.checks,
        phases=run.phases,
        night=planned.night,
        repeat=planned.repeat,
        failure=failure,
        conditions=before | environment.conditions("after"),
        notes=run.notes + environment.job_notes(os.environ),
        placement=list(world.placement),
        launcher=world.place.launcher,
        attempt=spec.attempt,
        scheduler_job=environment.scheduler_job(os.environ),
    )


def _measure(run: _Run) -> None:
    case, world = run.case, run.world
    run.agreed("validate", lambda: _validate(case, world, run.spec))
    held: list[Backend] = []
    with world.group() as group:

        def setup() -> None:
            held.append(backends.load(case.backend)())
            inputs = make_inputs(case, world.rank)
            held[0].setup(Setup(case=case, rank=world.rank, inputs=inputs, group=group, deadline_s=world.deadline_s))

        try:
            run.agreed("setup", setup)
            backend = held[0]
            run.notes += backend.notes()
            rows = _check(run, backend, "before")
            run.checks.append(Check(when="before", passed=True, rows=rows))
            timed = TIMERS[case.protocol](run, backend, functools.partial(_barrier, group))
            rows = timed.rows + _check(run, backend, "after")
            run.checks.append(Check(when="after", passed=True, rows=rows))
            run.phases += run.agreed("reduce", lambda: _reduce(run, backend, timed))[0]
        finally:
            for backend in held:
                backend.close()


def _barrier(group: dist.ProcessGroup) -> None:
    import torch.distributed as dist

    dist.barrier(group=group)


def _validate(case: Case, world: World, spec: JobSpec) -> None:
    """Everything that can be known to be impossible before anything is allocated."""
    case.validate()
    if case.ranks != world.size or case.nodes != world.nodes:
        raise CaseError(
            f"the case wants {case.ranks} ranks on {case.nodes} nodes, the world has {world.size} on {world.nodes}: "
            f"{in_words(world.host_of_rank, world.domain_of_rank)}"
        )
    if not in_equal_blocks(world.domain_of_rank):
        raise CaseError(
            f"the {world.size} ranks are not spread evenly over the {world.nodes} nodes, each node's ranks next to "
            f"each other: the nodes of ranks 0 to {world.size - 1} are {', '.join(world.host_of_rank)}"
        )
    if case.routing not in routing.GENERATORS:
        raise CaseError(f"routing {case.routing!r} is unknown; known are {', '.join(routing.GENERATORS)}")
    if case.device not in DEVICES:
        raise CaseError(f"device {case.device!r} cannot be timed by this version, only {', '.join(DEVICES)}")
    if case.protocol not in TIMERS:
        raise CaseError(f"protocol {case.protocol!r} needs a GPU; on device cpu there are {', '.join(TIMERS)}")
    if spec.iters <= LEADING_DROPPED or spec.warmup < 0:
        raise CaseError(f"iters is {spec.iters}, wanted at least {LEADING_DROPPED + 1}; warmup is {spec.warmup}")
    backend = backends.load(case.backend)
    for reason in (backend.availability(), backend.supports(case)):
        if reason is not None:
            raise BackendError(f"backend {case.backend!r} cannot run this case: {reason}")


def _check(run: _Run, backend: Backend, when: str) -> int:
    """Poison, dispatch, compare, combine, compare; agreed upon at each step. Rows looked at, over all ranks."""

    def dispatch() -> int:
        for tensor in backend.scratch():
            oracle.poison(tensor)
        backend.dispatch()
        return _look_at_dispatch(run, backend)

    def combine() -> int:
        backend.combine()
        return oracle.check_combine(run.case, run.world.rank, backend.combined())

    return sum(run.agreed(f"check dispatch {when}", dispatch)) + sum(run.agreed(f"check combine {when}", combine))


def _look_at_dispatch(run: _Run, backend: Backend) -> int:
    """Compare what the last dispatch left, and put the experts' outputs for it in place."""
    received = backend.received()
    rows = oracle.check_dispatch(run.case, run.world.rank, received)
    backend.give(oracle.expert_output(run.case, run.world.rank, received))
    return rows


@dataclass(frozen=True)
class _Timed:
    """What a timer found: samples_us [ranks][iterations] of each phase; rows of timed outputs that were checked."""

    samples_us: dict[Phase, list[Samples]]
    rows: int


def _clocked(operations: Sequence[Callable[[], None]], count: int, align: Callable[[], None]) -> list[Samples]:
    """Per operation the time of each of `count` calls, µs. The operations take turns, back to back.

    All ranks are aligned before the first call; the garbage collector is off throughout.
    """
    spent_ns = [[0] * count for _ in operations]
    turns = list(zip(operations, spent_ns, strict=True))
    clock = time.perf_counter_ns
    gc.collect()
    gc.disable()
    try:
        align()
        for iteration in range(count):
            for operation, spent in turns:
                start = clock()
                operation()
                spent[iteration] = clock() - start
    finally:
        gc.enable()
    return [[nanoseconds / 1e3 for nanoseconds in spent] for spent in spent_ns]


def _warm_up(run: _Run, backend: Backend) -> None:
    for _ in range(run.spec.warmup):
        backend.dispatch()
        backend.combine()


def _phased(run: _Run, backend: Backend, align: Callable[[], None]) -> _Timed:
    """Warm-up in pairs; N dispatches back to back; N combines on what the last dispatch left.

    What the last of each left is compared too, outside of the clock: a wrong result under load is a wrong result.
    """
    iters, rank = run.spec.iters, run.world.rank
    run.agreed("warm-up", lambda: _warm_up(run, backend))
    dispatch = run.agreed("time dispatch", lambda: _clocked([backend.dispatch], iters, align)[0])
    rows = sum(run.agreed("check timed dispatch after", lambda: _look_at_dispatch(run, backend)))
    combine = run.agreed("time combine", lambda: _clocked([backend.combine], iters, align)[0])
    compared = run.agreed("check timed combine after", lambda: oracle.check_combine(run.case, rank, backend.combined()))
    return _Timed({"dispatch": dispatch, "combine": combine}, rows + sum(compared))


def _paired(run: _Run, backend: Backend, align: Callable[[], None]) -> _Timed:
    """Warm-up in pairs; N pairs of dispatch and combine, each operation timed, no barrier inside."""
    run.agreed("warm-up", lambda: _warm_up(run, backend))
    pairs = run.agreed("time pairs", lambda: _clocked([backend.dispatch, backend.combine], run.spec.iters, align))
    rows = sum(run.agreed("check timed dispatch after", lambda: _look_at_dispatch(run, backend)))
    return _Timed({phase: [rank[at] for rank in pairs] for at, phase in enumerate(PHASES)}, rows)


TIMERS: MappingProxyType[str, Callable[[_Run, Backend, Callable[[], None]], _Timed]] = MappingProxyType(
    {"phased": _phased, "paired": _paired}
)
"""Timing protocols that a CPU can run."""


def _reduce(run: _Run, backend: Backend, timed: _Timed) -> list[PhaseResult]:
    """Statistics, bytes and bandwidth of each phase; on rank 0, nothing elsewhere."""
    if run.world.rank != 0:
        return []
    case = run.case
    logical = traffic.logical_bytes(case, routing.all_selections(case))
    wire = backend.wire_bytes()
    results = []
    for phase in PHASES:
        stats = summarise(timed.samples_us[phase], LEADING_DROPPED)
        results.append(
            PhaseResult(
                phase=phase,
                samples_us=timed.samples_us[phase],
                leading_dropped=LEADING_DROPPED,
                stats=stats,
                traffic=traffic.traffic(
                    case, phase, logical[phase], stats.latency_us, None if wire is None else wire[phase]
                ),
            )
        )
    return results
