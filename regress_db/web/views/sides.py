"""View 4: two runs, nights, commits or baselines side by side; and backends side by side on one case."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, select

from harness.case import PHASES, Phase
from regress_db import definitions, lookup
from regress_db.errors import NotFoundError
from regress_db.history import History
from regress_db.metrics import RUN_VALUE_METRIC
from regress_db.schema import CASES, METRICS, NIGHTS, RUN_VALUES, RUNS
from regress_db.selection import EVERYTHING, Selection
from regress_db.sides import ComparedSeries, Side, compare_runs, compare_sides, relative_change, side
from regress_db.web.views.asked import Pair, beside
from regress_db.web.views.shared import Answer, Fact, apart, facts, in_common, parts_of

SideKind = Literal["run", "night", "commit", "baseline"]


class SideName(msgspec.Struct, frozen=True, kw_only=True):
    """One side. name: a whole run id or commit, a night's id, a baseline's name; asked: as it was asked for."""

    side: SideKind
    name: str
    asked: str


class ComparedNumber(msgspec.Struct, frozen=True, kw_only=True):
    """One number of both sides. change: (second - first) / first, None where it has none.

    case, platform: "" where both sides are one run. first_runs, second_runs: how many runs the medians are of.
    """

    case: str
    platform: str
    parts: dict[str, str]
    phase: Phase
    metric: str
    words: str
    unit: str
    first: float | None
    second: float | None
    first_runs: int
    second_runs: int
    change: float | None


class CompareView(Answer, frozen=True, kw_only=True, tag="compare"):
    """Two sides. first, second: None while nothing was asked for. numbers: of two runs all their metrics; else the
    metric's medians, series by series, the largest increase first. differences: of two runs: case, platform, hosts and
    environment. common: the fields of the key that all rows share. nights: the newest, to choose from.
    """

    first: SideName | None
    second: SideName | None
    metric: str
    common: dict[str, str]
    numbers: list[ComparedNumber]
    differences: list[Fact]
    nights: list[str]


class BackendNumbers(msgspec.Struct, frozen=True, kw_only=True):
    """One phase of one case and platform: medians over the runs of its newest night (or of its newest day).

    latency_us: averaged over ranks; run_value_us: what verdicts compare; bandwidth_gbs: headline, per rank. change: of
    latency_us, relative to that of the case asked for, on the same platform; None where that has none.
    """

    case: str
    platform: str
    backend: str
    dtype: str
    phase: Phase
    latency_us: float | None
    latency_min_us: float | None
    latency_max_us: float | None
    run_value_us: float | None
    bandwidth_gbs: float | None
    aggregate_gbs: float | None
    change: float | None
    runs: int
    night: str
    started_at: datetime
    run_id: str


class BackendsView(Answer, frozen=True, kw_only=True, tag="backends"):
    """The case asked for ("" while none was) and those that differ from it in backend and dtype alone.

    parts: the fields of its key. numbers: platform by platform, dispatch before combine, the case asked for first, then
    the fastest. choices: cases that have another to stand beside.
    """

    case: str
    parts: dict[str, str]
    numbers: list[BackendNumbers]
    choices: list[str]


_NIGHTS_SHOWN = 60
_FREE = ("backend", "dtype")
_METRICS = ("latency_us", "latency_min_us", "latency_max_us", RUN_VALUE_METRIC, "bandwidth_gbs", "aggregate_gbs")


def compare(
    history: History,
    first: str,
    second: str,
    *,
    selection: Selection = EVERYTHING,
    metric: str = RUN_VALUE_METRIC,
    phase: Phase | None = None,
) -> CompareView:
    """Two sides, each named as for `epwatch compare`; none of them while either is "".

    Raises `NotFoundError` for a side that is unknown, or may be several, and for an unknown metric.
    """
    with history.read() as connection:
        newest = select(NIGHTS.c.name).order_by(*lookup.NEWEST_NIGHT_FIRST).limit(_NIGHTS_SHOWN)
        nights = list(connection.execute(newest).scalars())
    if not first or not second:
        return CompareView(first=None, second=None, metric=metric, common={}, numbers=[], differences=[], nights=nights)
    sides = side(history, first), side(history, second)
    numbers: list[ComparedNumber]
    if all(one.kind == "run" for one in sides):
        runs = compare_runs(history, sides[0].name, sides[1].name)
        common: dict[str, str] = {}
        differing = facts(runs.differences)
        numbers = [
            _of_runs(one.phase, one.metric, one.first, one.second) for one in runs.values if phase in (None, one.phase)
        ]
    else:
        found = compare_sides(history, *sides, selection, metric=metric, phase=phase)
        common = in_common({one.case for one in found.series})
        differing = []
        numbers = [_of_series(one, common) for one in found.series]
    return CompareView(
        first=_name(sides[0], first),
        second=_name(sides[1], second),
        metric=metric,
        common=common,
        numbers=numbers,
        differences=differing,
        nights=nights,
    )


def _name(one: Side, asked: str) -> SideName:
    return SideName(side=one.kind, name=one.name, asked=asked)


def _of_runs(phase: Phase, metric: str, first: float | None, second: float | None) -> ComparedNumber:
    meaning = definitions.of(metric)
    return ComparedNumber(
        case="",
        platform="",
        parts={},
        phase=phase,
        metric=metric,
        words=meaning.words,
        unit=meaning.unit,
        first=first,
        second=second,
        first_runs=int(first is not None),
        second_runs=int(second is not None),
        change=relative_change(first, second),
    )


def _of_series(one: ComparedSeries, common: dict[str, str]) -> ComparedNumber:
    meaning = definitions.of(one.metric)
    return ComparedNumber(
        case=one.case,
        platform=one.platform,
        parts=apart(one.case, common),
        phase=one.phase,
        metric=one.metric,
        words=meaning.words,
        unit=meaning.unit,
        first=one.first,
        second=one.second,
        first_runs=one.first_runs,
        second_runs=one.second_runs,
        change=one.change,
    )


def backends(history: History, case: str) -> BackendsView:
    """The case, and those that differ from it in backend and dtype alone. Raises `NotFoundError` for an unknown one."""
    with history.read() as connection:
        choices = _choices(connection)
        if not case:
            return BackendsView(case="", parts={}, numbers=[], choices=choices)
        pairs = beside(connection, case, _FREE)
        if not pairs:
            raise NotFoundError(f"the history has no run of a case {case!r}; `epwatch runs` lists the runs it has")
        found = [one for pair in pairs for one in _newest(connection, pair)]
    mine = {(one.platform, one.phase): one.latency_us for one in found if one.case == case}
    numbers = [
        msgspec.structs.replace(one, change=relative_change(mine.get((one.platform, one.phase)), one.latency_us))
        for one in found
    ]
    numbers.sort(
        key=lambda one: (
            one.platform,
            PHASES.index(one.phase),
            one.case != case,
            one.latency_us is None,
            one.latency_us or 0.0,
            one.case,
        )
    )
    return BackendsView(case=case, parts=parts_of(case), numbers=numbers, choices=choices)


def _choices(connection: Connection) -> list[str]:
    """Cases of which another differs in backend or dtype alone."""
    alike: dict[tuple[tuple[str, str], ...], list[str]] = defaultdict(list)
    for key in connection.execute(select(CASES.c.key).order_by(CASES.c.key)).scalars():
        alike[tuple((name, value) for name, value in parts_of(key).items() if name not in _FREE)].append(key)
    return sorted(key for shared, keys in alike.items() if shared and len(keys) > 1 for key in keys)


def _newest(connection: Connection, pair: Pair) -> list[BackendNumbers]:
    """Both phases over the ok runs of the pair's newest night, or of its newest day without one."""
    of_pair = (RUNS.c.case_id == pair.case_id, RUNS.c.platform_id == pair.platform_id, RUNS.c.outcome == "ok")
    newest_first = (
        select(RUNS.c.id, RUNS.c.run_id, RUNS.c.started_at, RUNS.c.night_id, NIGHTS.c.name)
        .outerjoin(NIGHTS, NIGHTS.c.id == RUNS.c.night_id)
        .where(*of_pair)
        .order_by(RUNS.c.started_at.desc(), RUNS.c.id.desc())
    )
    newest = connection.execute(newest_first.limit(1)).first()
    if newest is None:
        return []
    if newest.night_id is None:
        midnight = newest.started_at.replace(hour=0, minute=0, second=0, microsecond=0)
        together = newest_first.where(RUNS.c.night_id.is_(None), RUNS.c.started_at >= midnight)
    else:
        together = newest_first.where(RUNS.c.night_id == newest.night_id)
    runs = connection.execute(together).all()
    values = _medians(connection, [run.id for run in runs])
    parts = parts_of(pair.case)
    return [
        BackendNumbers(
            case=pair.case,
            platform=pair.platform,
            backend=parts.get("backend", ""),
            dtype=parts.get("dtype", ""),
            phase=phase,
            latency_us=values.get((phase, "latency_us")),
            latency_min_us=values.get((phase, "latency_min_us")),
            latency_max_us=values.get((phase, "latency_max_us")),
            run_value_us=values.get((phase, RUN_VALUE_METRIC)),
            bandwidth_gbs=values.get((phase, "bandwidth_gbs")),
            aggregate_gbs=values.get((phase, "aggregate_gbs")),
            change=None,
            runs=len(runs),
            night=newest.name or "",
            started_at=newest.started_at,
            run_id=newest.run_id,
        )
        for phase in PHASES
    ]


def _medians(connection: Connection, numbers: Collection[int]) -> dict[tuple[str, str], float]:
    held: dict[tuple[str, str], list[float]] = defaultdict(list)
    for piece in lookup.chunks(numbers):
        wanted: Sequence[Any] = connection.execute(
            select(METRICS.c.phase, METRICS.c.name, RUN_VALUES.c.value)
            .join(METRICS, METRICS.c.id == RUN_VALUES.c.metric)
            .where(RUN_VALUES.c.run.in_(piece), METRICS.c.name.in_(_METRICS))
        ).all()
        for phase, name, value in wanted:
            held[phase, name].append(value)
    return {key: statistics.median(values) for key, values in held.items()}
