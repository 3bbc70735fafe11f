"""From cases to jobs: which runs share a job, and in which order they are measured.

Pure. Called by `jobs.nightly` and `jobs.commands.run`. Cases that need the same world share a job, one process-group
start for all of them, as long as the job stays within its time. Repeats are spread over different jobs, hence different
processes and, on a cluster, allocations: the variation from run to run is what a baseline is made of, and repeats
inside one process would hide it. Next to read: `jobs.nightly`.
"""

from __future__ import annotations

import datetime
import math
import random
import secrets
from collections.abc import Callable, Sequence

import msgspec

from harness.case import Case
from harness.record import PlannedRun, new_run_id

START_S = 15.0
"""What a job is taken to need before its first case: the nodes' prolog, Python, the process group."""


class PackedJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Runs that one job measures, in this order. name: unique in its night, good as a folder's name."""

    name: str
    cluster: str
    repeat: int
    runs: tuple[PlannedRun, ...]

    @property
    def world(self) -> Case:
        """A case that has the job's world and device, as all its cases have."""
        return self.runs[0].case


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


def pack(
    runs: Sequence[PlannedRun],
    seed: int,
    *,
    cluster: str = "local",
    prefix: str = "",
    most_s: float = math.inf,
    expected_s: Callable[[Case], float] = lambda _: 0.0,
) -> list[PackedJob]:
    """Jobs for each repeat of each world and device, in order of repeat, worlds in order of size.

    The order of runs within a repeat is shuffled, so that no case is always measured after the same other one; equal
    `seed` and equal runs (ids aside) give an equal order. most_s: what a job may take, by `expected_s` of its cases and
    `START_S`; a single case that takes longer has a job of its own. prefix: of the jobs' names.
    """
    groups: dict[tuple[int, int, int, str], list[PlannedRun]] = {}
    for run in runs:
        groups.setdefault((run.repeat, run.case.ranks, run.case.nodes, run.case.device), []).append(run)
    jobs = []
    for (repeat, ranks, nodes, device), members in sorted(groups.items(), key=lambda group: group[0]):
        name = f"{prefix}repeat{repeat}-r{ranks}n{nodes}{'' if device == 'cpu' else f'-{device}'}"
        random.Random(f"{seed}/{name}").shuffle(members)
        pieces = _pieces(members, most_s, expected_s)
        for number, piece in enumerate(pieces, start=1):
            numbered = f"{name}-{number}" if len(pieces) > 1 else name
            jobs.append(PackedJob(name=numbered, cluster=cluster, repeat=repeat, runs=tuple(piece)))
    return jobs


def job_expected_s(job: PackedJob, expected_s: Callable[[Case], float]) -> float:
    """What the job is expected to take, from its start to its end."""
    return START_S + sum(expected_s(run.case) for run in job.runs)


def _pieces(runs: Sequence[PlannedRun], most_s: float, expected_s: Callable[[Case], float]) -> list[list[PlannedRun]]:
    """The runs in their order, cut where a job would take too long; pieces of about equal length."""
    total = sum(expected_s(run.case) for run in runs)
    room = most_s - START_S
    aim = room if room <= 0 or not math.isfinite(room) else total / max(1, math.ceil(total / room))
    pieces: list[list[PlannedRun]] = [[]]
    filled = 0.0
    for run in runs:
        took = expected_s(run.case)
        if pieces[-1] and (filled + took > room or filled >= aim):
            pieces.append([])
            filled = 0.0
        pieces[-1].append(run)
        filled += took
    return pieces
