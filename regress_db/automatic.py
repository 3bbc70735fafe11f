"""The automatic baseline: each series' own past, since the last accepted change.

A series is followed night by night. A mark that a person set (`regress_db.triage`) starts a new level. So does a change
for the better: what got faster has to stay so. A slowing that nobody accepted does not: the runs after it are left out,
so that the series stays red until it is repaired, accepted or waived, and never becomes normal by growing old. What
lies before the level lends its spread, not its value. Called by `regress_db.verdicts`.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row, select

from regress_db.metrics import RUN_VALUE_METRIC
from regress_db.schema import CASES, METRICS, NIGHTS, PLANNED, PLATFORMS, RUN_VALUES, RUNS, TRIAGE, VERDICTS

if TYPE_CHECKING:
    from regress_db.method.changepoints import ChangePoint

WINDOW_NIGHTS = 100
"""How far back a series is followed."""

LEVEL_NIGHTS = 30
"""How many nights of the present level are compared with: enough to know it, few enough to follow a slow drift."""

SeriesKey = tuple[str, str, str]
"""Case, platform, phase."""


@dataclass(frozen=True, slots=True)
class Past:
    """Row numbers of the runs of one series: of its present level, and of each level before, oldest first.

    since: why the level starts where it does, in words, "" where it is the whole window.
    """

    level: tuple[int, ...]
    earlier: tuple[tuple[int, ...], ...]
    since: str


@dataclass(frozen=True, slots=True)
class NightOfSeries:
    """One night of one series: row numbers and values of its ok runs.

    regressed_at: when it was said to have regressed, None where it was not. Such a night is no level, unless a person
    accepted it afterwards.
    """

    name: str
    started_at: datetime
    runs: tuple[int, ...]
    values_us: tuple[float, ...]
    regressed_at: datetime | None = None

    @property
    def median_us(self) -> float:
        """What stands for the night."""
        return statistics.median(self.values_us)


@dataclass(frozen=True, slots=True)
class Mark:
    """A level that a person accepted: from when on, when that was decided, and why, in words."""

    since: datetime
    decided_at: datetime
    words: str


def pasts(connection: Connection, night: Row[Any], series: Collection[tuple[str, str]]) -> dict[SeriesKey, Past]:
    """The past of every phase of these (case, platform), seen from `night` (a row of `nights`), which is no part of it.

    Marks of a later level say nothing of this night. Only runs of nights count: what someone measured by hand was not
    measured under the plan's conditions.
    """
    nights = _nights_before(connection, night)
    followed = _follow(connection, nights, series)
    marks = [
        (scope, mark)
        for scope, mark in _marks(connection)
        if night.started_at is None or mark.since <= night.started_at
    ]
    return {
        key: choose(of_series, [mark for scope, mark in marks if _applies(scope, key)])
        for key, of_series in followed.items()
    }


def choose(nights: Sequence[NightOfSeries], marks: Sequence[Mark]) -> Past:
    """The present level of a series and the levels before it. Pure.

    nights: oldest first. The newest mark starts the level; within it, steps to the better start it anew, and what
    follows a step to the worse is left out until the series is back at its level.
    """
    from regress_db.method.changepoints import detect

    mark = max(marks, key=lambda one: one.since, default=None)
    begin = 0 if mark is None else sum(one.started_at < mark.since for one in nights)
    usable = [
        one
        for one in nights[begin:]
        if one.regressed_at is None or (mark is not None and one.regressed_at <= mark.decided_at)
    ]
    steps = [step for step in detect([one.median_us for one in usable]) if step.kind == "step"] if usable else []
    level, earlier, improved = _walk(usable, steps)
    since = "" if mark is None else mark.words
    if improved is not None:
        since = f"since it got faster in night {improved}"
    before = _runs(nights[:begin])
    return Past(
        level=_runs(level[-LEVEL_NIGHTS:]),
        earlier=tuple(runs for runs in (before, *(_runs(segment) for segment in earlier)) if runs),
        since=since,
    )


def _walk(
    nights: Sequence[NightOfSeries], steps: Sequence[ChangePoint]
) -> tuple[list[NightOfSeries], list[Sequence[NightOfSeries]], str | None]:
    """The nights of the present level, the segments that are not, and the night whose improvement began the level."""
    bounds = [0, *(step.index for step in steps), len(nights)]
    segments = [nights[start:end] for start, end in itertools.pairwise(bounds) if end > start]
    level: list[NightOfSeries] = list(segments[0]) if segments else []
    others: list[Sequence[NightOfSeries]] = []
    improved: str | None = None
    for segment in segments[1:]:
        change = math.log(_centre(segment) / _centre(level))
        if abs(change) <= _noise(level):
            level += segment
        elif change < 0:
            others.append(level)
            level, improved = list(segment), segment[0].name
        else:
            others.append(segment)
    return level, others, improved


def _centre(nights: Iterable[NightOfSeries]) -> float:
    return statistics.median(one.median_us for one in nights)


def _noise(nights: Sequence[NightOfSeries]) -> float:
    """How far segments of one level may lie apart: two scaled MADs of its nights, on the log scale."""
    logs = [math.log(one.median_us) for one in nights]
    centre = statistics.median(logs)
    return 2 * 1.4826 * statistics.median(abs(value - centre) for value in logs)


def _runs(nights: Iterable[NightOfSeries]) -> tuple[int, ...]:
    return tuple(run for one in nights for run in one.runs)


def _nights_before(connection: Connection, night: Row[Any]) -> dict[int, tuple[str, datetime]]:
    """Row number to name and start, of the last nights that started before this one."""
    before = (
        select(NIGHTS.c.id, NIGHTS.c.name, NIGHTS.c.started_at)
        .where(NIGHTS.c.started_at.is_not(None), NIGHTS.c.id != night.id)
        .order_by(NIGHTS.c.started_at.desc(), NIGHTS.c.id.desc())
        .limit(WINDOW_NIGHTS)
    )
    if night.started_at is not None:
        before = before.where(NIGHTS.c.started_at <= night.started_at)
    return {row.id: (row.name, row.started_at) for row in connection.execute(before)}


def _follow(
    connection: Connection, nights: Mapping[int, tuple[str, datetime]], series: Collection[tuple[str, str]]
) -> dict[SeriesKey, list[NightOfSeries]]:
    """Each series through these nights, oldest first. One pass over the runs, whatever the number of series."""
    cases = {row.id: row.key for row in connection.execute(select(CASES.c.id, CASES.c.key))}
    platforms = {row.id: row.key for row in connection.execute(select(PLATFORMS.c.id, PLATFORMS.c.key))}
    phases = {
        row.id: row.phase
        for row in connection.execute(select(METRICS.c.id, METRICS.c.phase).where(METRICS.c.name == RUN_VALUE_METRIC))
    }
    wanted = set(series)
    case_ids = {number for number, key in cases.items() if any(key == case for case, _ in wanted)}
    rows = connection.execute(
        select(RUNS.c.night_id, RUNS.c.id, RUNS.c.case_id, RUNS.c.platform_id, RUN_VALUES.c.metric, RUN_VALUES.c.value)
        .join(RUN_VALUES, RUN_VALUES.c.run == RUNS.c.id)
        .where(
            RUNS.c.night_id.in_(nights),
            RUNS.c.outcome == "ok",
            RUN_VALUES.c.metric.in_(phases),
            RUNS.c.run_id.not_in(select(PLANNED.c.run_id).where(PLANNED.c.purpose == "aa")),
        )
        .order_by(RUNS.c.id)
    )
    found: dict[SeriesKey, dict[int, tuple[list[int], list[float]]]] = defaultdict(dict)
    for night, run, case, platform, metric, value in rows:
        if case not in case_ids or (cases[case], platforms[platform]) not in wanted:
            continue
        of_night = found[cases[case], platforms[platform], phases[metric]].setdefault(night, ([], []))
        of_night[0].append(run)
        of_night[1].append(value)
    bad = {
        (row.night_id, cases[row.case_id], platforms.get(row.platform_id, ""), row.phase): row.judged_at
        for row in connection.execute(
            select(
                VERDICTS.c.night_id, VERDICTS.c.case_id, VERDICTS.c.platform_id, VERDICTS.c.phase, NIGHTS.c.judged_at
            )
            .join(NIGHTS, NIGHTS.c.id == VERDICTS.c.night_id)
            .where(VERDICTS.c.night_id.in_(nights), VERDICTS.c.verdict == "regressed")
        )
    }
    in_order = sorted(nights, key=lambda number: (nights[number][1], number))
    return {
        key: [
            NightOfSeries(
                *nights[number],
                runs=tuple(of_series[number][0]),
                values_us=tuple(of_series[number][1]),
                regressed_at=bad.get((number, *key)),
            )
            for number in in_order
            if number in of_series
        ]
        for key, of_series in found.items()
    }


def _marks(connection: Connection) -> list[tuple[tuple[str, str | None, str | None], Mark]]:
    """Every mark that stands, with the case, platform and phase it is for (None: all)."""
    rows = connection.execute(
        select(CASES.c.key, PLATFORMS.c.key.label("platform"), TRIAGE.c.phase, *TRIAGE.c)
        .join(CASES, CASES.c.id == TRIAGE.c.case_id)
        .outerjoin(PLATFORMS, PLATFORMS.c.id == TRIAGE.c.platform_id)
        .where(TRIAGE.c.decision == "accepted", TRIAGE.c.withdrawn_at.is_(None))
    )
    return [
        (
            (row.key, row.platform, row.phase),
            Mark(
                row.from_time,
                row.decided_at,
                f"since {row.from_time:%Y-%m-%d}, accepted by {row.decided_by}: {row.reason}",
            ),
        )
        for row in rows
    ]


def _applies(scope: tuple[str, str | None, str | None], key: SeriesKey) -> bool:
    return scope[0] == key[0] and scope[1] in (None, key[1]) and scope[2] in (None, key[2])
