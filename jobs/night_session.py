"""Beginning a night, taking one up that was left, and ending it: what `epwatch nightly` and `epwatch collect` share.

A night whose command was killed is unfinished: its folder says so. Whoever runs the plan again goes on with it, as long
as that makes sense: the plan and the code under test have not changed, and it is not too old. Where it makes none, the
old night is over, in so many words: measured in full by jobs that needed no command, or given up, with what it
measured kept. Either way it is judged. A night is finished when that is done and told: one that was measured and whose
command was killed before is judged by the next. Next to read: `jobs.nightly`.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from harness import environment
from harness.case import Case
from harness.errors import EpwatchError
from jobs import private_files
from jobs.cluster import Cluster, SubmitError
from jobs.exclusive import FolderError
from jobs.night_folder import Finished, Manifest, NightFolder
from jobs.night_jobs import load_jobs
from jobs.nightly import Night, enter
from jobs.packing import PackedJob, new_night_id, pack, plan_runs
from jobs.plan import Plan, PlanError
from jobs.plan_clusters import ClusterSection
from jobs.spool import bring_home
from regress_db.wording import percent

if TYPE_CHECKING:
    from regress_db.history import History

Candidates = Callable[[str], Sequence[Case]]
"""Given a night's id, the cases of it that seem to have changed and are to be measured again."""


class NoNight(EpwatchError):
    """There is no night to go on with."""


@dataclass(frozen=True)
class LeftNight:
    """A night that was left unfinished and is over now, to be judged and then written down as finished.

    given_up: why, where runs of it are missing for good; "" where it was measured in full.
    """

    folder: NightFolder
    given_up: str


def jobs_folder_of(plan: Plan) -> Path:
    """Where the plan's nights have their folders."""
    return Path(plan.plan.jobs).expanduser().absolute()


def clusters_of(plan: Plan, history: History | None = None) -> dict[str, Cluster]:
    """The plan's clusters, by name. history: where slow hosts are known from, for a plan that excludes them."""
    clusters: dict[str, Cluster] = {}
    for section in plan.clusters:
        if section.kind == "local":
            from jobs.local import LocalCluster

            clusters[section.name] = LocalCluster(jobs_folder_of(plan))
        else:
            from jobs.slurm import SlurmCluster

            clusters[section.name] = SlurmCluster(section, plan.measure.job_deadline_s, _slow_hosts(section, history))
    return clusters


def end_left(plan: Plan, history: History, spool: Path, *, new: bool = False) -> LeftNight | None:
    """End the night that was left unfinished, where it is not gone on with; None where there is none such.

    new: one is not gone on with. spool: looked into as well as the night's own. Whoever calls this, or what follows,
    holds the jobs folder (`jobs.exclusive.one_night`).
    """
    left = unfinished(jobs_folder_of(plan), plan.name)
    if left is None:
        return None
    reason = "a new night was asked for" if new else _why_not_to_go_on(left, plan)
    if reason is None:
        return None
    _stop(left, plan, history, spool)
    if _is_measured(left, history):
        print(f"epwatch: night {left.name} is over: {reason}; all of it was measured", file=sys.stderr)
        return LeftNight(left, "")
    print(f"epwatch: night {left.name} is given up: {reason}; what it measured is kept", file=sys.stderr)
    return LeftNight(left, reason)


def take_up(plan: Plan, history: History, spool: Path, candidates: Candidates) -> Night | None:
    """The night that was left unfinished, to be gone on with; None where there is none."""
    left = unfinished(jobs_folder_of(plan), plan.name)
    if left is None:
        return None
    print(f"epwatch: going on with night {left.name}, which was left unfinished", file=sys.stderr)
    manifest = left.required_manifest
    enter(history, plan, manifest)
    bring_home(history, spool)
    return Night(plan, history, left, manifest, clusters_of(plan, history), _again(plan, history, candidates))


def newest(jobs_folder: Path, plan_name: str) -> NightFolder:
    """The newest night of the plan. Raises `NoNight` where there is none."""
    for night in NightFolder.all(jobs_folder):
        manifest = night.manifest
        if manifest is not None and manifest.plan == plan_name:
            return night
    raise NoNight(f"there is no night of plan {plan_name} in {jobs_folder}: start one with `epwatch nightly`")


def unfinished(jobs_folder: Path, plan_name: str) -> NightFolder | None:
    """The newest night of the plan, where it is not finished. Raises `UntrustedFolder` for one others could alter."""
    try:
        night = newest(jobs_folder, plan_name)
    except NoNight:
        return None
    private_files.require_trusted(night.folder)
    return night if night.finished is None else None


def advance_once(night: Night, history: History) -> bool:
    """One look at the night and what follows from it; whether it is over, to be judged and then to `finish`.

    Raises `SubmitError`; a night of which nothing could be submitted is given up then.
    """
    try:
        over = night.advance()
    except SubmitError as error:
        if not night.begun:
            end(night.folder, history, str(error))
        raise
    if over:
        _close(night.folder, history)
    return over


def end(night: NightFolder, history: History, given_up: str) -> None:
    """The night is over without a verdict. given_up: why."""
    _close(night, history)
    finish(night, given_up)


def finish(night: NightFolder, given_up: str = "") -> None:
    """Nothing more is to be done for the night: no command looks at it again. given_up: why runs of it are missing."""
    night.finish(Finished(at=environment.utc_now(), given_up=given_up))


def give_up(left: NightFolder, plan: Plan, history: History, spool: Path, reason: str) -> None:
    """End an unfinished night for good: its jobs are cancelled, what it measured is kept, the rest stays missing.

    spool: looked into as well as the night's own.
    """
    _stop(left, plan, history, spool)
    finish(left, reason)


def own_plan(left: NightFolder, plan: Plan) -> Plan:
    """The plan as it was when the night began; `plan`, which it is now, where this epwatch does not understand that."""
    try:
        return left.plan(plan.path)
    except PlanError as error:
        print(
            f"epwatch: {error}; the jobs of night {left.name} are looked for on the clusters of {plan.path} instead",
            file=sys.stderr,
        )
        return plan


def _stop(left: NightFolder, plan: Plan, history: History, spool: Path) -> None:
    """Cancel the jobs of an unfinished night, and bring home what it measured."""
    manifest = left.required_manifest
    own = own_plan(left, plan)
    clusters = clusters_of(own)
    enter(history, own, manifest)
    bring_home(history, spool)
    Night(own, history, left, manifest, clusters, lambda _: []).cancel()
    for job in load_jobs(left, manifest):
        flying = job.in_flight
        if flying is not None and flying.submitted is not None and job.packed.cluster not in clusters:
            print(
                f"epwatch: job {flying.submitted.scheduler_id} of night {left.name} could not be cancelled: it is on "
                f"cluster {job.packed.cluster}, which {plan.path} has no longer; cancel it there",
                file=sys.stderr,
            )
    _close(left, history)


def _close(night: NightFolder, history: History) -> None:
    """Note in the history that the night measures no more."""
    from regress_db.nights import close_night

    close_night(history, night.name, datetime.now(UTC))


def _is_measured(left: NightFolder, history: History) -> bool:
    """Whether every run of the night has a record in the history, or was given up."""
    from regress_db.nights import recorded_runs

    recorded = recorded_runs(history, left.name)
    return not any(job.owed(recorded) for job in load_jobs(left, left.required_manifest))


def begin(plan: Plan, history: History, spool: Path, candidates: Candidates) -> Night:
    """A new night. Raises `FolderError` for a spool that cannot be made."""
    clusters = clusters_of(plan, history)
    now = datetime.now(UTC)
    night = new_night_id(now)
    seed = secrets.randbelow(2**32) if plan.measure.seed is None else plan.measure.seed
    manifest = Manifest(
        night=night,
        plan=plan.name,
        plan_path=plan.path,
        seed=seed,
        started_at=now.isoformat(timespec="seconds"),
        code=environment.tested_code(),
        spool=str(spool),
        rounds=0,
        jobs=tuple(planned_jobs(plan, night, seed, expectations(plan, history))),
    )
    try:
        spool.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise FolderError(
            f"cannot make the spool {spool}: {error.strerror or error}; name another with --spool"
        ) from None
    folder = NightFolder.create(jobs_folder_of(plan), plan, manifest)
    enter(history, plan, manifest)
    return Night(plan, history, folder, manifest, clusters, _again(plan, history, candidates))


Expectations = Mapping[str, Callable[[Case], float]]
"""Cluster name to the seconds that a case is expected to take there."""


def expectations(plan: Plan, history: History | None) -> Expectations:
    """What the plan's cases took before, and where they have no past, what the plan takes them to need."""

    def on(cluster: str) -> Callable[[Case], float]:
        known: dict[str, float] = {}
        if history is not None:
            from regress_db.durations import usual_durations_s

            known = usual_durations_s(history, [planned.case for planned in plan.cases], cluster)
        return lambda case: known.get(case.key, plan.measure.case_s)

    return {section.name: on(section.name) for section in plan.clusters}


def planned_jobs(
    plan: Plan,
    night: str,
    seed: int,
    expected_s: Expectations,
    cases: Sequence[Case] | None = None,
    *,
    repeats: int | None = None,
    first: int = 0,
) -> list[PackedJob]:
    """The jobs of a night, cluster by cluster: all cases and repeats, or `repeats` of these from `first`."""
    jobs: list[PackedJob] = []
    several = len(plan.clusters) > 1
    for section in plan.clusters:
        here = [one.case for one in plan.cases if section.name in one.clusters and (cases is None or one.case in cases)]
        jobs += pack(
            plan_runs(here, plan.runs_of_a_case if repeats is None else repeats, night, first=first),
            seed,
            cluster=section.name,
            prefix=f"{section.name}-" if several else "",
            most_s=plan.measure.job_s,
            expected_s=expected_s[section.name],
        )
    return jobs


def _again(plan: Plan, history: History, candidates: Candidates) -> Callable[[Manifest], Sequence[PackedJob]]:
    """What to measure once more, as often as the plan's confirmations allow."""

    def again(manifest: Manifest) -> Sequence[PackedJob]:
        if manifest.rounds >= plan.verdict.confirmations:
            return []
        cases = candidates(manifest.night)
        count = plan.runs_of_a_confirmation
        return planned_jobs(
            plan,
            manifest.night,
            manifest.seed,
            expectations(plan, history),
            cases,
            repeats=count,
            first=plan.runs_of_a_case + manifest.rounds * count,
        )

    return again


def _why_not_to_go_on(left: NightFolder, plan: Plan) -> str | None:
    """Why an unfinished night is not gone on with, None where it is."""
    manifest = left.required_manifest
    age = datetime.now(UTC) - datetime.fromisoformat(manifest.started_at)
    if age > timedelta(hours=plan.plan.resume_within_h):
        return (
            f"it began {age.total_seconds() / 3600:.1f} hours ago, and resume_within_h is {plan.plan.resume_within_h:g}"
        )
    if left.plan_source != plan.source:
        return "the plan has changed since"
    if manifest.code != environment.tested_code():
        return "the code under test has changed since"
    return None


def _slow_hosts(section: ClusterSection, history: History | None) -> tuple[str, ...]:
    """Hosts that the plan wants left out as slow, by the history as it is now; which they are is said on stderr."""
    if section.exclude_slow is None or history is None:
        return ()
    from regress_db.nodes import slow_nodes

    slow = slow_nodes(history, section.name, section.exclude_slow)
    if slow:
        told = ", ".join(f"{one.hostname} ({percent(one.effect or 0.0)})" for one in slow)
        print(f"epwatch: left out as slow on cluster {section.name}: {told}", file=sys.stderr)
    return tuple(one.hostname for one in slow)
