"""Beginning a night, taking one up that was left, and ending it: what `epwatch nightly` and `epwatch collect` share.

A night whose command was killed is unfinished: its folder says so. Whoever runs the plan again goes on with it, as long
as that makes sense: the plan and the code under test have not changed, and it is not too old. Where it makes none, the
old night is given up in so many words, with what it measured kept. Next to read: `jobs.nightly`.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from harness import environment
from harness.case import Case
from harness.errors import EpwatchError
from jobs import private_files
from jobs.cluster import Cluster, SubmitError
from jobs.exclusive import one_night
from jobs.night_folder import Finished, Manifest, NightFolder
from jobs.nightly import Night, enter
from jobs.packing import PackedJob, new_night_id, pack, plan_runs
from jobs.plan import Plan
from jobs.plan_clusters import ClusterSection
from jobs.spool import bring_home
from regress_db.wording import percent

if TYPE_CHECKING:
    from regress_db.history import History

Candidates = Callable[[str], Sequence[Case]]
"""Given a night's id, the cases of it that seem to have changed and are to be measured again."""


class NoNight(EpwatchError):
    """There is no night to go on with."""


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


@contextmanager
def night_of(
    plan: Plan, history: History, spool: Path, candidates: Candidates, *, new: bool = False, begin: bool = True
) -> Iterator[Night]:
    """The plan's night, to be driven: the one that was left unfinished, else a new one.

    new: give up an unfinished one. begin: whether there may be a new one. Raises `BusyError` while another process
    drives a night of the same jobs folder, `NoNight` where none is to be begun and there is none.
    """
    jobs_folder = jobs_folder_of(plan)
    with one_night(jobs_folder):
        left = unfinished(jobs_folder, plan.name)
        if left is not None:
            reason = "a new night was asked for" if new else _why_not_to_go_on(left, plan)
            if reason is None:
                print(f"epwatch: going on with night {left.name}, which was left unfinished", file=sys.stderr)
                yield _take_up(left, plan, history, spool, candidates)
                return
            give_up(left, plan, history, spool, reason)
            print(f"epwatch: night {left.name} is given up: {reason}; what it measured is kept", file=sys.stderr)
        if not begin:
            raise NoNight(
                f"plan {plan.name} has no unfinished night in {jobs_folder}: start one with `epwatch nightly`"
            )
        yield _begin(jobs_folder, plan, history, spool, candidates)


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
    """One look at the night and what follows from it; whether it is over, which is then written down.

    Raises `SubmitError`; a night of which nothing could be submitted is over then.
    """
    try:
        over = night.advance()
    except SubmitError as error:
        if not night.begun:
            end(night, history, str(error))
        raise
    if over:
        end(night, history)
    return over


def end(night: Night, history: History, given_up: str = "") -> None:
    """The night is over, in the history and in its folder."""
    from regress_db.nights import close_night

    close_night(history, night.name, datetime.now(UTC))
    night.folder.finish(Finished(at=environment.utc_now(), given_up=given_up))


def give_up(left: NightFolder, plan: Plan, history: History, spool: Path, reason: str) -> None:
    """End an unfinished night for good: its jobs are cancelled, what it measured is kept, the rest stays missing.

    spool: looked into as well as the night's own.
    """
    manifest = left.required_manifest
    own = left.plan(plan.path)
    night = Night(own, history, left, manifest, clusters_of(own), lambda _: [])
    enter(history, own, manifest)
    bring_home(history, spool)
    night.cancel()
    end(night, history, reason)


def _take_up(left: NightFolder, plan: Plan, history: History, spool: Path, candidates: Candidates) -> Night:
    manifest = left.required_manifest
    enter(history, plan, manifest)
    bring_home(history, spool)
    return Night(plan, history, left, manifest, clusters_of(plan, history), _again(plan, history, candidates))


def _begin(jobs_folder: Path, plan: Plan, history: History, spool: Path, candidates: Candidates) -> Night:
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
    folder = NightFolder.create(jobs_folder, plan, manifest)
    spool.mkdir(mode=0o700, parents=True, exist_ok=True)
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
    if left.plan(plan.path).source != plan.source:
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
