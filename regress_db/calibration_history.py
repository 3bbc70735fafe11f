"""The settled history of a plan: what calibration shuffles. Runs by series and night, parted where something changed,
freed of what a night or a node did to many series at once.

Called by `regress_db.calibration` alone. One pass over the runs, whatever the number of series.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select

from harness.case import Case
from regress_db.method.attribution import Context, RunShift, SeriesShift, shared_shifts
from regress_db.method.changepoints import segments
from regress_db.method.shuffles import NightValues, Settled
from regress_db.metrics import RUN_VALUE_METRIC
from regress_db.schema import (
    CASES,
    METRICS,
    NIGHTS,
    NODES,
    PLANNED,
    PLATFORMS,
    RUN_RANKS,
    RUN_VALUES,
    RUNS,
    TRIAGE,
)

Floor = float | Mapping[str, float] | Callable[[Case], float]

DEFAULT_FLOOR = 0.1

_LEAST_RUNS = 3

_MAD_TO_SIGMA = 1.4826

SeriesKey = tuple[str, str, str]
"""Case, platform, phase."""


@dataclass(frozen=True, slots=True)
class Night:
    """A night of the plan. number: its place, the oldest 0."""

    number: int
    name: str
    started_at: datetime


@dataclass(frozen=True, slots=True)
class Run:
    """One ok run of one series, on the night of this number. planned: for every night; False for re-runs and checks."""

    run: int
    night: int
    value_us: float
    allocation: str
    hosts: tuple[str, ...]
    planned: bool


@dataclass(frozen=True, slots=True)
class PlanHistory:
    """The newest nights of a plan, its ok runs by series (oldest night first), and when accepted levels begin.

    marks: for a case, platform and phase (None: all of them).
    """

    nights: tuple[Night, ...]
    runs: Mapping[SeriesKey, Sequence[Run]]
    marks: tuple[tuple[tuple[str, str | None, str | None], datetime], ...]


def read(connection: Connection, plan: str, newest: int) -> PlanHistory:
    """The plan's newest nights, at most so many; none where the history does not know the plan."""
    rows = connection.execute(
        select(NIGHTS.c.id, NIGHTS.c.name, NIGHTS.c.started_at)
        .where(NIGHTS.c.plan == plan, NIGHTS.c.started_at.is_not(None))
        .order_by(NIGHTS.c.started_at.desc(), NIGHTS.c.id.desc())
        .limit(newest)
    ).all()
    nights = {row.id: Night(place, row.name, row.started_at) for place, row in enumerate(reversed(rows))}
    return PlanHistory(tuple(nights.values()), _runs(connection, nights), _marks(connection))


@dataclass(frozen=True, slots=True)
class SettledHistory:
    """What can be judged again. pairs: of nights with several runs of a series, as `night_share` takes them."""

    series: tuple[Settled, ...]
    pairs: tuple[tuple[float, float], ...]


def settled(past: PlanHistory, floor: Floor, controls: Sequence[str]) -> SettledHistory:
    """Every series with its settled stretches; nights and nodes that moved many series are taken out first.

    floor: smallest relative change worth a verdict, by case. controls: backends that do not run the code under test.
    """
    starts = {one.number: one.started_at for one in past.nights}
    parted = {key: _stretches(runs, _cuts(key, past.marks), starts) for key, runs in past.runs.items()}
    removed = _removed(parted, past.nights, controls)
    series: list[Settled] = []
    pairs: list[tuple[float, float]] = []
    for key, stretches in parted.items():
        freed = [
            [(night, [_freed(run, removed.get((key, run.run), 0.0)) for run in mine]) for night, mine in _by_night(one)]
            for one in stretches
        ]
        series.append(
            Settled(
                key=key,
                platform=key[1],
                floor=_floor_of(floor, key[0]),
                stretches=tuple(
                    tuple(NightValues(night, tuple(run.value_us for run in _planned(mine))) for night, mine in nights)
                    for nights in freed
                ),
            )
        )
        for nights in freed:
            pairs += _pairs([mine for _, mine in nights])
    return SettledHistory(tuple(series), tuple(pairs))


def _freed(run: Run, change: float) -> Run:
    return replace(run, value_us=run.value_us * math.exp(-change)) if change else run


def _planned(runs: Iterable[Run]) -> list[Run]:
    return [run for run in runs if run.planned]


def _pairs(nights: Sequence[Sequence[Run]]) -> list[tuple[float, float]]:
    """Of each night with several runs, the first and the mean of the others, in standard deviations from the centre."""
    centre, sd = _level([run for mine in nights for run in mine])
    if sd <= 0:
        return []
    deviates = [[(math.log(run.value_us) - centre) / sd for run in mine] for mine in nights if len(mine) > 1]
    return [(first, statistics.fmean(others)) for first, *others in deviates]


def _level(runs: Sequence[Run]) -> tuple[float, float]:
    """Centre and standard deviation of the planned runs, log scale. The latter is robust, but never half of the plain
    one: a series in two modes has no small spread.
    """
    logs = [math.log(run.value_us) for run in _planned(runs)]
    centre = statistics.median(logs)
    robust = _MAD_TO_SIGMA * statistics.median(abs(one - centre) for one in logs)
    return centre, max(statistics.pstdev(logs) / 2, robust)


def _floor_of(floor: Floor, case: str) -> float:
    if isinstance(floor, Mapping):
        return floor.get(case, floor.get("", DEFAULT_FLOOR))
    return floor(Case.parse(case)) if callable(floor) else floor


def _by_night(runs: Sequence[Run]) -> list[tuple[int, list[Run]]]:
    return [(night, list(of_night)) for night, of_night in itertools.groupby(runs, key=lambda run: run.night)]


def _cuts(key: SeriesKey, marks: Sequence[tuple[tuple[str, str | None, str | None], datetime]]) -> list[datetime]:
    """When accepted levels of this series begin."""
    return [
        since
        for (case, platform, phase), since in marks
        if case == key[0] and platform in (None, key[1]) and phase in (None, key[2])
    ]


def _stretches(runs: Sequence[Run], cuts: Sequence[datetime], starts: Mapping[int, datetime]) -> list[list[Run]]:
    """The runs parted at accepted changes, and where the nights' medians say that something changed. A night without a
    planned run is left out.
    """
    levels: dict[int, list[list[Run]]] = defaultdict(list)
    for night, mine in _by_night(runs):
        if _planned(mine):
            levels[sum(cut <= starts[night] for cut in cuts)].append(mine)
    found = []
    for nights in levels.values():
        medians = [statistics.median(run.value_us for run in _planned(mine)) for mine in nights]
        for start, end in segments(medians):
            found.append([run for mine in nights[start:end] for run in mine])
    return found


def _removed(
    parted: Mapping[SeriesKey, Sequence[Sequence[Run]]], nights: Sequence[Night], controls: Sequence[str]
) -> dict[tuple[SeriesKey, int], float]:
    """What each night and node did to its runs (log change by series and run), as judging that night takes it out.

    No commit is known to be the same as another, so that a night is judged by the controls.
    """
    of_night: dict[int, list[tuple[SeriesKey, SeriesShift, list[Run]]]] = defaultdict(list)
    for key, stretches in parted.items():
        case = Case.parse(key[0])
        family = f"{case.backend} {case.mode} {key[2]}"
        for stretch in stretches:
            if len(_planned(stretch)) < _LEAST_RUNS:
                continue
            centre, sd = _level(stretch)
            for number, mine in _by_night(stretch):
                shift = SeriesShift(
                    series=key,
                    under_test=case.backend not in controls,
                    label=family,
                    runs=tuple(
                        RunShift(math.log(run.value_us) - centre, run.hosts, run.allocation, str(run.run))
                        for run in mine
                    ),
                    sd=sd,
                    stratum=f"{family} on {case.ranks} ranks",
                    baseline_runs=len(_planned(stretch)),
                )
                of_night[number].append((key, shift, mine))
    found: dict[tuple[SeriesKey, int], float] = {}
    for night in nights:
        there = of_night[night.number]
        shared = shared_shifts([shift for _, shift, _ in there], Context("", "", (), "", night.name))
        for key, _, mine in there:
            for run, change in zip(mine, shared.removed_runs[key], strict=True):
                if change:
                    found[key, run.run] = change
    return found


def _runs(connection: Connection, nights: Mapping[int, Night]) -> dict[SeriesKey, list[Run]]:
    """Every ok run of these nights by series, oldest night first, planned runs of a night first."""
    cases, platforms, hosts = (
        {row.id: row.name for row in connection.execute(select(table.c.id, column.label("name")))}
        for table, column in ((CASES, CASES.c.key), (PLATFORMS, PLATFORMS.c.key), (NODES, NODES.c.hostname))
    )
    phases = {
        row.id: row.phase
        for row in connection.execute(select(METRICS.c.id, METRICS.c.phase).where(METRICS.c.name == RUN_VALUE_METRIC))
    }
    of_nights = RUNS.c.night_id.in_(list(nights))
    where: dict[int, set[str]] = defaultdict(set)
    ranks = select(RUN_RANKS.c.run, RUN_RANKS.c.node_id).join(RUNS, RUNS.c.id == RUN_RANKS.c.run)
    for run, node in connection.execute(ranks.where(of_nights).distinct()):
        where[run].add(hosts[node])
    extra = select(PLANNED.c.run_id).where(PLANNED.c.purpose != "planned", PLANNED.c.night_id.in_(list(nights)))
    unplanned = set(connection.execute(extra).scalars())
    rows: Any = connection.execute(
        select(
            RUNS.c.id,
            RUNS.c.run_id,
            RUNS.c.night_id,
            RUNS.c.case_id,
            RUNS.c.platform_id,
            RUNS.c.repeat,
            RUN_VALUES.c.metric,
            RUN_VALUES.c.value,
        )
        .join(RUN_VALUES, RUN_VALUES.c.run == RUNS.c.id)
        .where(of_nights, RUNS.c.outcome == "ok", RUN_VALUES.c.metric.in_(phases))
    )
    found: dict[SeriesKey, list[Run]] = defaultdict(list)
    for run, run_id, night, case, platform, repeat, metric, value in rows:
        planned = run_id not in unplanned
        found[cases[case], platforms[platform], phases[metric]].append(
            Run(run, nights[night].number, value, f"repeat {repeat}", tuple(sorted(where[run])), planned)
        )
    for runs in found.values():
        runs.sort(key=lambda one: (one.night, not one.planned, one.run))
    return dict(sorted(found.items()))


def _marks(connection: Connection) -> tuple[tuple[tuple[str, str | None, str | None], datetime], ...]:
    rows = connection.execute(
        select(CASES.c.key, PLATFORMS.c.key.label("platform"), TRIAGE.c.phase, TRIAGE.c.from_time)
        .join(CASES, CASES.c.id == TRIAGE.c.case_id)
        .outerjoin(PLATFORMS, PLATFORMS.c.id == TRIAGE.c.platform_id)
        .where(TRIAGE.c.decision == "accepted", TRIAGE.c.withdrawn_at.is_(None))
    )
    return tuple(((row.key, row.platform, row.phase), row.from_time) for row in rows)
