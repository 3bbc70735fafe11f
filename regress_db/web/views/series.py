"""View 2: series through time, one or several overlaid, with the baseline's band, change points, verdicts, notes and
changes of the environment. The structs; next to read: `serieslines`, which fills them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from harness.case import Phase
from regress_db.web.views.shared import Answer, Fact, NoteLine, SeriesName

PointsBy = Literal["run", "night", "commit"]


class Points(msgspec.Struct, frozen=True, kw_only=True):
    """The points of one line as columns of equal length, oldest first: a plot takes them as they are.

    at: start of the (first) run, seconds since 1970. value: of the run, or the median over the runs of the night or
    commit, in the metric's unit. low, high: the interval drawn: of one run, its fastest and slowest rank where the
    metric is a latency over ranks, else the value itself; of several, the lowest and highest of them. runs: how many
    the point is of. run_id: of the (newest) run. night, commit: "" where there is none or not known. verdict, effect:
    of the judged night the run belongs to ("" and None where it was not judged). environment: its digest's head.
    """

    at: list[float]
    value: list[float]
    low: list[float]
    high: list[float]
    runs: list[int]
    run_id: list[str]
    night: list[str]
    commit: list[str]
    environment: list[str]
    verdict: list[str]
    effect: list[float | None]


class Band(msgspec.Struct, frozen=True, kw_only=True):
    """The baseline of the newest judged night: the median of its runs in the metric's unit, and the floor around it.

    from_at, to_at: starts of its first and last run, seconds since 1970. words: which baseline it is.
    """

    value: float
    low: float
    high: float
    from_at: float
    to_at: float
    runs: int
    words: str


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A change point of the run value. Times are seconds since 1970; earliest_at, latest_at: it lies between them with
    95 %. before, after: medians of the line's points on its two sides, in the metric's unit. effect, low, high:
    relative change of the run value with its interval. cause: what is left to blame. sentence: all of it in words.
    """

    step: Literal["step", "drift", "transient"]
    at: float
    earliest_at: float
    latest_at: float
    before: float | None
    after: float | None
    effect: float
    low: float
    high: float
    p_value: float
    cause: str
    run_before: str
    run_after: str
    commit_before: str
    commit_after: str
    differences: list[Fact]
    sentence: str


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the plot. label: what tells it from the other lines, short. asked: the place in the address (`s=`).

    metric: several lines of one series may be of several metrics (fastest, average and slowest rank, or percentiles).
    """

    case: str
    platform: str
    phase: Phase
    metric: str
    label: str
    asked: int
    points: Points
    band: Band | None
    changes: list[Change]


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """A change of the environment between two runs of a line: from at on (seconds since 1970). line: its place."""

    at: float
    line: int
    run_id: str
    facts: list[Fact]
    words: str


class MetricChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A metric that can be asked for: its name in the address, what it is in words, its unit ("" for a ratio)."""

    name: str
    words: str
    unit: str


class SeriesView(Answer, frozen=True, kw_only=True, tag="series"):
    """Series through time. metric: as asked: a metric's name, or `ranks` (fastest, average, slowest) or `percentiles`.

    unit: of all values; lower_is_better: of the metric. asked: the series in the address, in order. common: the fields
    of the key that all lines share. metrics: what may be asked for. choices: every series there is, where none was
    asked for, or else those that differ from the first in backend, dtype or ranks alone: to overlay. unknown: sentences
    on what was asked for and is not there.
    """

    metric: str
    words: str
    unit: str
    lower_is_better: bool
    by: PointsBy
    log: bool
    since: datetime | None
    until: datetime | None
    asked: list[SeriesName]
    common: dict[str, str]
    lines: list[Line]
    marks: list[Mark]
    notes: list[NoteLine]
    metrics: list[MetricChoice]
    choices: list[SeriesName]
    unknown: list[str]
