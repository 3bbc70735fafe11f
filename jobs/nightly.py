"""A night: a plan's runs, measured job by job, brought home into the history.

Called by `jobs.commands.nightly`. The night is written into the history before its first job, with every run it plans,
so that whatever happens afterwards a run without a result can be named. Next to read: `jobs.judging`.
"""

from __future__ import annotations

import datetime
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from harness.case import Case
from harness.job import JobSpec
from harness.record import PlannedRun
from jobs import work
from jobs.aftermath import record_what_is_missing
from jobs.cluster import Cluster, SubmittedJob
from jobs.exclusive import make_folder, one_night
from jobs.local import LocalCluster
from jobs.packing import PackedJob, new_night_id, pack, plan_runs
from jobs.plan import Plan
from jobs.progress import Update
from jobs.spool import bring_home, find_records

if TYPE_CHECKING:
    from regress_db.history import History

MANIFEST_FILE = "night.json"
PLAN_FILE = "plan.toml"
_POLL_S = 0.2

CLUSTERS: dict[str, Callable[[Path], Cluster]] = {"local": LocalCluster}
"""Kind of cluster, as a plan names it, to what runs jobs there."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a night set out to do; kept beside its jobs as night.json. seed: of the order of cases within jobs."""

    night: str
    plan: str
    plan_path: str
    seed: int
    started_at: str
    jobs: tuple[PackedJob, ...]


Candidates = Callable[[str], Sequence[Case]]
"""Given a night's id, the cases of it that seem to have changed and are to be measured again."""


def measure_night(plan: Plan, history: History, spool: Path, update: Update, candidates: Candidates) -> Manifest:
    """Run every job of the plan, one at a time, and ingest what it gave. Returns what was planned.

    Then the cases that `candidates` names are measured again, in jobs of their own, as often as the plan's
    confirmations allow and while there are any: what was chance does not come back.
    A job that dies leaves failed records for the runs it owed. On KeyboardInterrupt the running job is ended, what was
    measured is ingested, the rest stays missing, and the exception goes on. Raises `BusyError` when another night has
    the jobs folder.
    """
    from regress_db.facts import CONFIRMATION
    from regress_db.nights import close_night, open_night

    jobs_folder = Path(plan.plan.jobs).absolute()
    with one_night(jobs_folder):
        now = datetime.datetime.now(datetime.UTC)
        manifest = _plan_night(plan, now)
        folder = jobs_folder / manifest.night
        _lay_out(folder, plan, manifest)
        cluster = CLUSTERS[plan.cluster.kind](jobs_folder)
        runs = [run for job in manifest.jobs for run in job.runs]
        open_night(history, manifest.night, plan.name, now, runs, _purpose(plan))
        done = 0

        def run_all(jobs: Sequence[PackedJob]) -> None:
            nonlocal done
            for job in jobs:
                _run_job(cluster, _spec(plan, job, folder, spool), folder / job.name, spool, done, update)
                # Between jobs and never during one: ingestion is work for the machine that is being measured.
                bring_home(history, spool)
                done += len(job.runs)

        try:
            run_all(manifest.jobs)
            for time_again in range(plan.verdict.confirmations):
                again = candidates(manifest.night)
                if not again:
                    break
                jobs = _jobs_again(plan, manifest, again, time_again)
                manifest = msgspec.structs.replace(manifest, jobs=(*manifest.jobs, *jobs))
                _write_manifest(folder, manifest)
                more = [run for job in jobs for run in job.runs]
                open_night(history, manifest.night, plan.name, now, more, lambda _: CONFIRMATION)
                _make_folders(folder, jobs)
                run_all(jobs)
            update(done, "measured")
        except KeyboardInterrupt as interrupt:
            raise type(interrupt)(f"night {manifest.night} keeps what it has measured, the rest is missing") from None
        finally:
            bring_home(history, spool)
            close_night(history, manifest.night, datetime.datetime.now(datetime.UTC))
    return manifest


def _plan_night(plan: Plan, now: datetime.datetime) -> Manifest:
    """Ids, the order of cases, and the packing into jobs."""
    night = new_night_id(now)
    seed = secrets.randbelow(2**32) if plan.measure.seed is None else plan.measure.seed
    runs = plan_runs([planned.case for planned in plan.cases], plan.runs_of_a_case, night)
    return Manifest(
        night=night,
        plan=plan.name,
        plan_path=plan.path,
        seed=seed,
        started_at=now.isoformat(timespec="seconds"),
        jobs=tuple(pack(runs, seed)),
    )


def _lay_out(folder: Path, plan: Plan, manifest: Manifest) -> None:
    """Make the night's folder and its jobs' folders, new and for this user alone."""
    folder.mkdir(mode=0o700)
    (folder / PLAN_FILE).write_text(plan.source, encoding="utf-8")
    _write_manifest(folder, manifest)
    _make_folders(folder, manifest.jobs)


def _make_folders(folder: Path, jobs: Sequence[PackedJob]) -> None:
    for job in jobs:
        (folder / job.name).mkdir(mode=0o700)


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    partial = folder / f".{MANIFEST_FILE}.partial"
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
    partial.replace(folder / MANIFEST_FILE)


def _purpose(plan: Plan) -> Callable[[PlannedRun], str]:
    """Of each run of the night. The halves of an A/A check take turns, so that what drifts touches both alike."""
    from regress_db.facts import AA, PLANNED_RUN

    return lambda run: AA if plan.measure.aa and run.repeat % 2 else PLANNED_RUN


def _jobs_again(plan: Plan, manifest: Manifest, cases: Sequence[Case], time_again: int) -> list[PackedJob]:
    """The jobs of one confirmation."""
    count = plan.runs_of_a_confirmation
    first = plan.runs_of_a_case + time_again * count
    return pack(plan_runs(cases, count, manifest.night, first=first), manifest.seed)


def _spec(plan: Plan, job: PackedJob, folder: Path, spool: Path) -> JobSpec:
    """What the job is told."""
    return JobSpec(
        runs=list(job.runs),
        spool=str(spool.absolute()),
        log_folder=str(folder / job.name / "logs"),
        cluster=plan.cluster.name,
        warmup=plan.measure.warmup,
        iters=plan.measure.iters,
        deadline_s=plan.measure.job_deadline_s,
        op_deadline_s=plan.measure.deadline_s,
    )


def _run_job(cluster: Cluster, spec: JobSpec, folder: Path, spool: Path, done: int, update: Update) -> None:
    """Submit one job, wait for its end, and write a failed record for each run it owes."""
    make_folder(spool)
    what = f"{folder.name}, {len(spec.runs)} cases"
    update(done, what)
    submitted = cluster.submit(folder, spec)
    with _stopped(submitted):
        while not submitted.finished():
            time.sleep(_POLL_S)
            arrived = len(find_records(spec.runs, spool))
            update(done + arrived, what)
    record_what_is_missing(spec, spool, work.read_envelope(folder), submitted.log_tail())


@contextmanager
def _stopped(submitted: SubmittedJob) -> Iterator[None]:
    """Whatever ends the block, nothing of the job outlives it."""
    try:
        yield
    finally:
        submitted.stop()
