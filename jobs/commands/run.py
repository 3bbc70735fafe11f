"""`epwatch run`: measure cases here and now."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from harness.job import DEFAULT_DEADLINE_S, DEFAULT_ITERS, DEFAULT_WARMUP, JobSpec
from harness.record import PhaseResult, PlannedRun, Record
from jobs.options import format_options, history_option, spool_option
from jobs.plan_sections import DEFAULT_JOBS
from jobs.progress import progress
from jobs.tables import Column, Format, number, show

if TYPE_CHECKING:
    from jobs.packing import PackedJob

EXIT_NO_RESULT = 3
T = TypeVar("T")


@dataclass(frozen=True)
class MeasuredPhase:
    """One line of the table: a phase of a run, or a run that gave none."""

    record: Record
    result: PhaseResult | None


def _figure(get: Callable[[PhaseResult], T]) -> Callable[[MeasuredPhase], T | None]:
    """What `get` finds in a phase; None for a run that gave none."""
    return lambda row: None if row.result is None else get(row.result)


def _latency(row: MeasuredPhase) -> str:
    """Average over ranks, with the fastest and the slowest rank."""
    if row.result is None:
        return ""
    stats = row.result.stats
    return f"{number(stats.latency_us)} [{number(stats.latency_min_us)}..{number(stats.latency_max_us)}]"


_P95_US = _figure(lambda result: result.stats.p95_us)
_PER_RANK_GBS = _figure(lambda result: result.traffic.per_rank_gbs[result.traffic.headline])
_AGGREGATE_GBS = _figure(lambda result: result.traffic.aggregate_gbs)

COLUMNS: list[Column[MeasuredPhase]] = [
    Column("case", lambda row: row.record.case.key, "case", long=True),
    Column("repeat", lambda row: row.record.repeat),
    Column("run_id", lambda row: row.record.run_id),
    Column("phase", _figure(lambda result: result.phase), "phase"),
    Column(
        "latency_us",
        _figure(lambda result: result.stats.latency_us),
        "latency µs [min..max]",
        _latency,
        right=True,
    ),
    Column("latency_min_us", _figure(lambda result: result.stats.latency_min_us)),
    Column("latency_max_us", _figure(lambda result: result.stats.latency_max_us)),
    Column("p95_us", _P95_US, "p95 µs", lambda row: number(_P95_US(row)), right=True),
    Column("per_rank_gbs", _PER_RANK_GBS, "GB/s per rank", lambda row: number(_PER_RANK_GBS(row), 3), right=True),
    Column("aggregate_gbs", _AGGREGATE_GBS, "GB/s all ranks", lambda row: number(_AGGREGATE_GBS(row), 3), right=True),
    Column("outcome", lambda row: row.record.outcome, "outcome"),
    Column("reason", lambda row: row.record.failure and row.record.failure.message),
]


@click.command()
@click.argument("keys", nargs=-1, metavar="[CASE]...")
@click.option("--suite", "suites", multiple=True, metavar="NAME", help="Measure this built-in suite; repeat for more.")
@click.option("--repeats", type=click.IntRange(1), default=1, show_default=True, help="Runs of each case.")
@click.option("--iters", type=click.IntRange(2), help=f"Timed iterations of a phase. [default: {DEFAULT_ITERS}]")
@click.option("--warmup", type=click.IntRange(0), help=f"Iterations thrown away before. [default: {DEFAULT_WARMUP}]")
@click.option(
    "--deadline",
    "deadline_s",
    type=click.FloatRange(0, min_open=True),
    default=DEFAULT_DEADLINE_S,
    show_default=True,
    metavar="SECONDS",
    help="For each job: all cases of one world and repeat.",
)
@click.option("--no-record", is_flag=True, help="Print the result and keep nothing.")
@history_option
@spool_option
@format_options
def run(
    keys: tuple[str, ...],
    suites: tuple[str, ...],
    repeats: int,
    iters: int | None,
    warmup: int | None,
    deadline_s: float,
    no_record: bool,
    db: str | None,
    spool: str | None,
    form: Format,
) -> int:
    """Measure each CASE here and now; without CASE and --suite, the suite cpu-quick.

    A CASE is a canonical key, such as ep_core/ll/cpu/r2n1/t128/h7168/k8/e256/bf16/exact/uniform@0/phased. The
    environment overrides MSCCLPP_EP_LL_* and MSCCLPP_EP_BENCH_* are honoured: they make another case. Exits 0 when
    every run gave a valid result, else 3.
    """
    from harness import overrides
    from jobs.busy import warn_if_busy
    from jobs.packing import pack, plan_runs
    from jobs.places import open_history, spool_folder
    from jobs.selection import chosen_cases
    from jobs.spool import bring_home

    named = chosen_cases(keys, suites)
    cases = list(dict.fromkeys(overrides.apply(case, os.environ) for case in named))
    if set_ := overrides.in_force(os.environ):
        print(f"by the environment: {', '.join(f'{k}={v}' for k, v in set_.items())}", file=sys.stderr)
    jobs = pack(plan_runs(cases, repeats, ""), seed=0)
    iters = overrides.iters(os.environ, DEFAULT_ITERS) if iters is None else iters
    warmup = overrides.warmup(os.environ, DEFAULT_WARMUP) if warmup is None else warmup

    warn_if_busy()
    with contextlib.ExitStack() as stack:
        history = None if no_record else stack.enter_context(open_history(db, create=True))
        place = stack.enter_context(_throw_away()) if no_record else spool_folder(spool)
        logs = place / "logs" if no_record else _new_folder(Path(DEFAULT_JOBS).absolute())
        try:
            records = _measure(jobs, place, logs, warmup, iters, deadline_s)
        finally:
            if history is not None:
                bring_home(history, place)

    order = {case: index for index, case in enumerate(cases)}
    records.sort(key=lambda record: (order[record.case], record.repeat))
    show([row for record in records for row in _rows(record)], COLUMNS, form)
    failed = [record for record in records if record.outcome != "ok"]
    for record in failed:
        print(f"epwatch: {record.case.key}: {record.outcome}: {_reason(record)}", file=sys.stderr)
    return EXIT_NO_RESULT if failed or len(records) < len(cases) * repeats else 0


def _rows(record: Record) -> list[MeasuredPhase]:
    """A line for each phase, or one for a run that gave none."""
    return [MeasuredPhase(record, result) for result in record.phases] or [MeasuredPhase(record, None)]


def _reason(record: Record) -> str:
    """Why a run gave no number, in words."""
    return record.failure.message if record.failure else "no reason is recorded"


@contextlib.contextmanager
def _throw_away() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="epwatch-run-") as folder:
        yield Path(folder)


def _new_folder(jobs_folder: Path) -> Path:
    """A folder of this command's own for the ranks' logs, beside the nights'."""
    from jobs.exclusive import make_folder
    from jobs.packing import new_night_id

    folder = jobs_folder / f"run-{new_night_id(datetime.datetime.now(datetime.UTC))}"
    make_folder(folder)
    return folder


def _measure(
    jobs: list[PackedJob], spool: Path, logs: Path, warmup: int, iters: int, deadline_s: float
) -> list[Record]:
    """Measure job by job in this process; the records in the spool, as far as there are any."""
    from harness import record as records
    from harness.launch import run_job
    from harness.supervise import JobEvent
    from jobs.exclusive import MEASURING_LOCK, make_folder, measuring
    from jobs.spool import find_records

    jobs_folder = Path(DEFAULT_JOBS).absolute()
    make_folder(jobs_folder)
    found: dict[str, Path] = {}
    done: set[str] = set()
    runs: list[PlannedRun] = [run for job in jobs for run in job.runs]
    with progress(len(runs), "measuring") as update, measuring(jobs_folder / MEASURING_LOCK, wait_s=deadline_s):
        keys = {run.run_id: run.case.key for run in runs}

        def on_event(event: JobEvent) -> None:
            if event.run_id in keys and event.kind == "step":
                update(len(done), keys[event.run_id])
            elif event.kind == "record":
                done.add(event.run_id)

        for job in jobs:
            spec = JobSpec(
                runs=list(job.runs),
                spool=str(spool),
                log_folder=str(logs / job.name),
                warmup=warmup,
                iters=iters,
                deadline_s=deadline_s,
            )
            run_job(spec, on_event=on_event)
            found |= find_records(job.runs, spool)
        update(len(done), "done")
    return [records.read(path) for path in found.values()]
