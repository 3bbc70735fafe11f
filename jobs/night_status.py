"""A night as it stands, looked at from outside: nothing is driven, changed or locked.

Called by `epwatch nightly status`; `jobs.nightly` is who drives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.cluster import Cluster
from jobs.night_folder import NightFolder
from jobs.night_jobs import JobView, load_jobs, view
from jobs.plan import Plan
from jobs.spool import find_records

_OVER = frozenset({"done", "failed"})


@dataclass(frozen=True)
class NightView:
    """A night as a person sees it. state: `unfinished`, `finished`, or why it is over. done: runs with a record."""

    state: str
    done: int
    total: int
    jobs: tuple[JobView, ...]


def look_at(folder: NightFolder, plan: Plan, clusters: Mapping[str, Cluster], spool: Path) -> NightView:
    """The night's jobs, with what their clusters say of those in flight; of a night that is over none is.

    spool: where records may lie besides the night's own spool. Raises `FolderError` for another version's.
    """
    manifest = folder.required_manifest
    jobs = load_jobs(folder, manifest)
    finished = folder.finished
    for section in () if finished is not None else plan.clusters:
        flying = {
            attempt: job
            for job in jobs
            if job.packed.cluster == section.name and (attempt := job.in_flight) and attempt.submitted
        }
        for attempt, found in clusters[section.name].look(list(flying)).items():
            flying[attempt].state = found
    there = {run_id for place in {spool, Path(manifest.spool)} for run_id in find_records(manifest.runs, place)}
    views = tuple(view(job, there) for job in jobs)
    if finished is not None:
        views = tuple(one if one.state in _OVER else replace(one, state="missing") for one in views)
    state = "unfinished" if finished is None else "finished"
    if finished is not None and finished.given_up:
        state = f"over ({finished.given_up})"
    return NightView(state, sum(one.done for one in views), sum(one.total for one in views), views)
