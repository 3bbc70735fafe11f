"""What one can ask of many runs: trends, lists of runs, nights. Answers are frozen dataclasses.

Read-only; no query touches the samples. Called by the command line, the gate and `regress_db.asking`. Next to read:
`regress_db.selection` (how runs are chosen), `regress_db.aggregation` (trends in groups), `regress_db.sides` (two sets
of runs side by side), `regress_db.details` (one run).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import Connection, func, select

from harness.case import PHASES, Phase
from regress_db import lookup
from regress_db.errors import NotFoundError
from regress_db.history import History
from regress_db.metrics import BANDWIDTH_METRIC
from regress_db.notes import notes_of_nights
from regress_db.schema import (
    CASES,
    ENVIRONMENTS,
    FAILURES,
    METRICS,
    NIGHTS,
    PLANNED,
    PLATFORMS,
    RUN_VALUES,
    RUNS,
)
from regress_db.selection import EVERYTHING, Selection

DEFAULT_METRIC = "latency_us"
_DIGEST_SHOWN = 12
_ROWS_AT_ONCE = 10_000
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class TrendPoint:
    """One value of one series. unit is in the metric's name; commit: of the code under test, "" where not known."""

    case: str
    platform: str
    phase: Phase
    metric: str
    started_at: datetime
    night: str
    run_id: str
    commit: str
    environment: str
    value: float


@dataclass(frozen=True, slots=True)
class RunLine:
    """One run in a list. Latencies in µs, averaged over ranks; bandwidths per rank in GB/s; None where absent."""

    run_id: str
    started_at: datetime
    night: str
    case: str
    platform: str
    outcome: str
    commit: str
    hosts: tuple[str, ...]
    dispatch_us: float | None
    combine_us: float | None
    dispatch_gbs: float | None
    combine_gbs: float | None
    failure: str


NightState = Literal["running", "done", "over", "did not happen"]


@dataclass(frozen=True, slots=True)
class NightLine:
    """One night in a list. missing: planned runs without a record; judged_at: None where it was not judged.

    state: `running` (opened and not finished), `done`, `over` (finished with runs missing: it was given up, cancelled
    or refused, or lost them), or `did not happen`; then night is "" and expected_at is when it was to begin.
    notes: those that stand of the night as a whole.
    """

    night: str
    plan: str
    started_at: datetime | None
    finished_at: datetime | None
    judged_at: datetime | None
    planned: int
    ok: int
    not_ok: int
    missing: int
    state: NightState = "done"
    expected_at: datetime | None = None
    notes: tuple[str, ...] = ()


def trend(
    history: History,
    selection: Selection = EVERYTHING,
    *,
    metric: str = DEFAULT_METRIC,
    phase: Phase | None = None,
) -> list[TrendPoint]:
    """Values of the metric, series by series (case, platform, phase), oldest first; `selection.limit` is per series.

    Raises `NotFoundError` for a metric that the history does not have, naming those it has.
    """
    series: dict[tuple[str, str, Phase], list[TrendPoint]] = defaultdict(list)
    one_of = dict[Any, Any]().setdefault  # equal texts as one object: a long trend repeats few of them
    with history.read() as connection:
        metrics = metric_numbers(connection, metric, phase)
        conditions = selection.conditions(connection)
        wanted = (
            select(
                CASES.c.key,
                PLATFORMS.c.key,
                RUN_VALUES.c.metric,
                RUNS.c.started_at,
                NIGHTS.c.name,
                RUNS.c.run_id,
                ENVIRONMENTS.c.commit,
                func.substr(ENVIRONMENTS.c.digest, 1, _DIGEST_SHOWN),
                RUN_VALUES.c.value,
            )
            .select_from(RUNS)
            .join(RUN_VALUES, RUN_VALUES.c.run == RUNS.c.id)
            .join(CASES, CASES.c.id == RUNS.c.case_id)
            .join(PLATFORMS, PLATFORMS.c.id == RUNS.c.platform_id)
            .join(ENVIRONMENTS, ENVIRONMENTS.c.id == RUNS.c.environment_id)
            .outerjoin(NIGHTS, NIGHTS.c.id == RUNS.c.night_id)
            .where(RUN_VALUES.c.metric.in_(metrics), *conditions)
            .order_by(RUNS.c.started_at, RUNS.c.id)
        )
        for rows in connection.execute(wanted).partitions(_ROWS_AT_ONCE):
            for case, platform, number, started_at, night, run_id, commit, digest, value in rows:
                series[case, platform, metrics[number]].append(
                    TrendPoint(
                        one_of(case, case),
                        one_of(platform, platform),
                        metrics[number],
                        metric,
                        started_at,
                        one_of(night, night) or "",
                        run_id,
                        one_of(commit, commit),
                        one_of(digest, digest),
                        value,
                    )
                )
    first = 0 if selection.limit is None else -selection.limit
    return [point for key in sorted(series, key=_in_order) for point in series[key][first:]]


def runs(history: History, selection: Selection = EVERYTHING) -> list[RunLine]:
    """The runs, newest first, at most `selection.limit`."""
    with history.read() as connection:
        rows = connection.execute(
            select(
                RUNS.c.id,
                RUNS.c.run_id,
                RUNS.c.started_at,
                NIGHTS.c.name.label("night"),
                CASES.c.key,
                PLATFORMS.c.key.label("platform"),
                RUNS.c.outcome,
                ENVIRONMENTS.c.commit,
                FAILURES.c.message,
            )
            .join(CASES, CASES.c.id == RUNS.c.case_id)
            .join(PLATFORMS, PLATFORMS.c.id == RUNS.c.platform_id)
            .join(ENVIRONMENTS, ENVIRONMENTS.c.id == RUNS.c.environment_id)
            .outerjoin(NIGHTS, NIGHTS.c.id == RUNS.c.night_id)
            .outerjoin(FAILURES, FAILURES.c.run == RUNS.c.id)
            .where(*selection.conditions(connection))
            .order_by(RUNS.c.started_at.desc(), RUNS.c.id.desc())
            .limit(selection.limit)
        ).all()
        numbers = [row.id for row in rows]
        values = _values(connection, numbers, (DEFAULT_METRIC, BANDWIDTH_METRIC))
        hosts = lookup.hosts_of(connection, numbers)
    return [
        RunLine(
            run_id=row.run_id,
            started_at=row.started_at,
            night=row.night or "",
            case=row.key,
            platform=row.platform,
            outcome=row.outcome,
            commit=row.commit,
            hosts=tuple(sorted(hosts[row.id])),
            dispatch_us=values[row.id].get(("dispatch", DEFAULT_METRIC)),
            combine_us=values[row.id].get(("combine", DEFAULT_METRIC)),
            dispatch_gbs=values[row.id].get(("dispatch", BANDWIDTH_METRIC)),
            combine_gbs=values[row.id].get(("combine", BANDWIDTH_METRIC)),
            failure=row.message or "",
        )
        for row in rows
    ]


def nights(history: History, limit: int | None = None, *, now: datetime | None = None) -> list[NightLine]:
    """The nights, newest first. With `now`, those among them that were to happen by then and did not."""
    with history.read() as connection:
        absent = [] if now is None else _absent(connection, now)
        rows = connection.execute(select(*NIGHTS.c).order_by(*lookup.NEWEST_NIGHT_FIRST).limit(limit)).all()
        shown = [row.id for row in rows]
        outcomes: dict[int, dict[str, int]] = defaultdict(dict)
        planned: dict[int, tuple[int, int]] = {}
        noted = notes_of_nights(connection)
        for piece in lookup.chunks(shown):
            for night, outcome, count in connection.execute(
                select(RUNS.c.night_id, RUNS.c.outcome, func.count())
                .where(RUNS.c.night_id.in_(piece))
                .group_by(RUNS.c.night_id, RUNS.c.outcome)
            ):
                outcomes[night][outcome] = count
            for night, count, there in connection.execute(
                select(PLANNED.c.night_id, func.count(), func.count(RUNS.c.id))
                .outerjoin(RUNS, RUNS.c.run_id == PLANNED.c.run_id)
                .where(PLANNED.c.night_id.in_(piece))
                .group_by(PLANNED.c.night_id)
            ):
                planned[night] = count, there
    lines = []
    for row in rows:
        count, there = planned.get(row.id, (0, 0))
        of_night = outcomes[row.id]
        lines.append(
            NightLine(
                night=row.name,
                plan=row.plan,
                started_at=row.started_at,
                finished_at=row.finished_at,
                judged_at=row.judged_at,
                planned=count,
                ok=of_night.get("ok", 0),
                not_ok=sum(of_night.values()) - of_night.get("ok", 0),
                missing=count - there,
                state=_state(row.started_at, row.finished_at, count - there),
                notes=noted.get(row.name, ()),
            )
        )
    if absent:
        lines = sorted([*lines, *absent], key=lambda line: line.started_at or line.expected_at or _NEVER, reverse=True)
    return lines[:limit]


def _state(started_at: datetime | None, finished_at: datetime | None, missing: int) -> NightState:
    if started_at is not None and finished_at is None:
        return "running"
    return "over" if missing else "done"


def _absent(connection: Connection, now: datetime) -> list[NightLine]:
    from regress_db.schedules import load_absent

    return [
        NightLine("", one.plan, None, None, None, 0, 0, 0, 0, "did not happen", one.expected_at)
        for one in load_absent(connection, now)
    ]


def _in_order(series: tuple[str, str, Phase]) -> tuple[str, str, int]:
    """Dispatch before combine, as they happen."""
    case, platform, phase = series
    return case, platform, PHASES.index(phase)


def metric_numbers(connection: Connection, metric: str, phase: Phase | None = None) -> dict[int, Phase]:
    """The phase by the number of each metric of this name; none where the history is empty.

    Raises `NotFoundError` for a metric that the history does not have, naming those it has.
    """
    rows = connection.execute(select(METRICS.c.id, METRICS.c.phase).where(METRICS.c.name == metric)).all()
    if not rows and connection.execute(select(METRICS.c.id).limit(1)).first() is not None:
        names = connection.execute(select(METRICS.c.name).distinct().order_by(METRICS.c.name)).scalars()
        raise NotFoundError(f"the history has no metric {metric!r}; it has {', '.join(names)}")
    return {row.id: row.phase for row in rows if phase in (None, row.phase)}


def _values(
    connection: Connection, numbers: Sequence[int], metrics: Sequence[str]
) -> dict[int, dict[tuple[str, str], float]]:
    found: dict[int, dict[tuple[str, str], float]] = {number: {} for number in numbers}
    for piece in lookup.chunks(numbers):
        for run, phase, name, value in connection.execute(
            select(RUN_VALUES.c.run, METRICS.c.phase, METRICS.c.name, RUN_VALUES.c.value)
            .join(METRICS, METRICS.c.id == RUN_VALUES.c.metric)
            .where(RUN_VALUES.c.run.in_(piece), METRICS.c.name.in_(metrics))
        ):
            found[run][phase, name] = value
    return found
