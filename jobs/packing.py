"""From cases to jobs: which runs share a job, and in which order they are measured.

Pure. Called by `jobs.nightly` and `jobs.commands.run`. Cases that need the same world share a job, one process-group
start for all of them. Repeats are spread over different jobs, hence different processes: the variation from run to run
is what a baseline is made of, and repeats inside one process would hide it. Next to read: `jobs.nightly`.
"""

from __future__ import annotations

import datetime
import random
import secrets
from collections.abc import Sequence

import msgspec

from harness.case import Case
from harness.record import PlannedRun, new_run_id


class PackedJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Runs that one job measures, in this order. name: unique in its night, good as a folder's name."""

    name: str
    repeat: int
    runs: tuple[PlannedRun, ...]


def new_night_id(now: datetime.datetime) -> str:
    """An id for a night: the UTC second and six random hex digits, `20261122T020000Z-3fa91c`; sorts by time."""
    return f"{now.astimezone(datetime.UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def plan_runs(cases: Sequence[Case], repeats: int, night: str, first: int = 0) -> list[PlannedRun]:
    """Every run that is to be, each with a new id: `repeats` of each case, repeat by repeat, counted from `first`."""
    return [
        PlannedRun(run_id=new_run_id(), case=case, night=night, repeat=repeat)
        for repeat in range(first, first + repeats)
        for case in cases
    ]


def pack(runs: Sequence[PlannedRun], seed: int) -> list[PackedJob]:
    """One job for each repeat of each world, in order of repeat, worlds in order of size.

    The order of runs within a job is shuffled, so that no case is always measured after the same other one; equal
    `seed` and equal runs (ids aside) give an equal order.
    """
    groups: dict[tuple[int, int, int], list[PlannedRun]] = {}
    for run in runs:
        groups.setdefault((run.repeat, run.case.ranks, run.case.nodes), []).append(run)
    jobs = []
    for (repeat, ranks, nodes), members in sorted(groups.items(), key=lambda group: group[0]):
        name = f"repeat{repeat}-r{ranks}n{nodes}"
        random.Random(f"{seed}/{name}").shuffle(members)
        jobs.append(PackedJob(name=name, repeat=repeat, runs=tuple(members)))
    return jobs
