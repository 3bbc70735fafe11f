"""The protocol of one run, exactly as docs/metrics.md says: check, time, check again, reduce.

Every rank calls `run_one` for the same planned run; rank 0 gets the record. Each step is done by all ranks and then
agreed upon (`harness.steps`): when any rank failed, all of them stop this run, and the record names the rank that
failed first of all causes. A wrong answer keeps its check and loses its timings. Called by `harness.worker`; next to
read: `harness.steps`, `harness.protocols` and `harness.backends.base`.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from harness import backends, environment, gpus, nvml, routing, traffic
from harness.backends.base import Backend, Setup
from harness.case import PHASES, Case
from harness.checking import check
from harness.errors import BackendError, CaseError
from harness.inputs import make_inputs
from harness.job import JobSpec
from harness.placement import in_equal_blocks, in_words
from harness.protocols import PROTOCOLS
from harness.record import Check, Outcome, PhaseResult, PlannedRun, Record
from harness.stats import LEADING_DROPPED, summarise
from harness.steps import Run, RunFailed
from harness.timers import Timed
from harness.world import World

if TYPE_CHECKING:
    import torch.distributed as dist


def run_one(world: World, planned: PlannedRun, spec: JobSpec, on_step: Callable[[str], None]) -> Record | None:
    """Measure one planned run on the ranks of `world`. The record on rank 0, None on the others.

    on_step: told the name of each step as it begins. Raises only when the world itself is lost.
    """
    run = Run(world, planned, spec, on_step)
    started_at = environment.utc_now()
    _note_conditions(run, "before")
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
    run.notes += [one for one in world.gather(run.not_closed) if one]
    _give_memory_back(run)
    looks = _note_conditions(run, "after")
    if world.rank != 0:
        return None
    return Record(
        run_id=planned.run_id,
        case=planned.case,
        platform=environment.platform(
            spec.cluster, planned.case.device, world.nodes, world.cpus_per_node, world.gpus_of_first_node
        ),
        environment=environment.capture(os.environ, looks),
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
        conditions=run.conditions,
        notes=run.notes + environment.job_notes(os.environ),
        placement=list(world.placement),
        launcher=world.place.launcher,
        attempt=spec.attempt,
        scheduler_job=environment.scheduler_job(os.environ),
    )


def _give_memory_back(run: Run) -> None:
    """Have nothing of this run left for the next: libraries and ranks on the same GPU cannot use what torch keeps."""
    gc.collect()
    if run.case.device == "cuda":
        import torch

        # A GPU that a fault has left unusable refuses; that fault is in the record already.
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()


def _close(run: Run, backend: Backend) -> None:
    """Close a backend. That one rank's cannot be closed is noted; it takes neither the record nor later runs along."""
    try:
        backend.close()
    except Exception as error:
        traceback.print_exc()
        run.not_closed = f"rank {run.world.rank} could not close the backend: {str(error) or type(error).__name__}"


def _note_conditions(run: Run, when: str) -> list[gpus.Look]:
    """Note what the machine is doing, and the ranks' GPUs; a look at each of these, none for a case on CPU."""
    run.conditions |= environment.conditions(when)
    if run.case.device == "cpu":
        return []
    gpu_of_rank = run.world.gpu_of_rank
    looks = gpus.one_each(gpu_of_rank, run.world.gather(nvml.look(run.world.gpu)))
    run.conditions |= gpus.conditions(looks, when)
    run.notes += gpus.held_down_notes(looks, when)
    return looks


def _measure(run: Run) -> None:
    case, world = run.case, run.world
    run.agreed("validate", lambda: _validate(case, world, run.spec))
    held: list[Backend] = []
    with world.group() as group:

        def setup() -> None:
            held.append(backends.load(case.backend)())
            inputs = make_inputs(case, world.rank, world.device(case.device))
            held[0].setup(Setup(case=case, rank=world.rank, inputs=inputs, group=group, deadline_s=world.deadline_s))

        try:
            run.agreed("setup", setup)
            backend = held[0]
            run.notes += backend.notes() + (gpus.sharing_notes(world.gpu_of_rank) if case.device == "cuda" else [])
            rows = check(run, backend, "before")
            run.checks.append(Check(when="before", passed=True, rows=rows))
            timed = PROTOCOLS[case.device][case.protocol](run, backend, functools.partial(_barrier, group))
            rows = timed.rows + check(run, backend, "after")
            run.checks.append(Check(when="after", passed=True, rows=rows))
            run.phases += run.agreed("reduce", lambda: _reduce(run, backend, timed))[0]
            run.conditions |= timed.figures
        finally:
            for backend in held:
                _close(run, backend)


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
    if case.device == "cuda" and (reason := gpus.obstacle()) is not None:
        raise CaseError(f"device cuda cannot be used on {world.host_of_rank[world.rank]}: {reason}")
    if spec.iters <= LEADING_DROPPED or spec.warmup < 0:
        raise CaseError(f"iters is {spec.iters}, wanted at least {LEADING_DROPPED + 1}; warmup is {spec.warmup}")
    backend = backends.load(case.backend)
    for reason in (backend.availability(), backend.supports(case)):
        if reason is not None:
            raise BackendError(f"backend {case.backend!r} cannot run this case: {reason}")


def _reduce(run: Run, backend: Backend, timed: Timed) -> list[PhaseResult]:
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
