"""What one can ask the history: trends, runs, one run, two runs, nights. Answers are frozen dataclasses, ready for a
table, JSON or CSV.

Read-only. No query of values touches the samples; `samples_of` alone does. Called by the command line, the gate and
notebooks; next to read: `regress_db.selection` (how runs are chosen), `regress_db.details` (one run).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, select

from harness.case import PHASES, Phase
from regress_db import lookup, samples
from regress_db.details import RunDetail, hosts_of, load_detail
from regress_db.environments import Difference, differences
from regress_db.errors import NotFoundError
from regress_db.history import History
from regress_db.metrics import BANDWIDTH_METRIC
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
    SAMPLES,
)
from regress_db.selection import EVERYTHING, Selection

DEFAULT_METRIC = "latency_us"
_DIGEST_SHOWN = 12
_ROWS_AT_ONCE = 10_000


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


@dataclass(frozen=True, slots=True)
class ComparedValue:
    """One metric of two runs. change: (second - first) / first, None where it has none."""

    phase: Phase
    metric: str
    first: float | None
    second: float | None
    change: float | None


@dataclass(frozen=True, slots=True)
class RunComparison:
    """Two runs side by side: values, and where case, platform, hosts and environment differ."""

    first: RunDetail
    second: RunDetail
    values: tuple[ComparedValue, ...]
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed iteration on one rank, in µs. counted: whether the statistics are of it; the first one is left out."""

    phase: Phase
    rank: int
    iteration: int
    latency_us: float
    counted: bool


@dataclass(frozen=True, slots=True)
class NightLine:
    """One night in a list. missing: planned runs without a record; judged_at: None where it was not judged."""

    night: str
    plan: str
    started_at: datetime | None
    finished_at: datetime | None
    judged_at: datetime | None
    planned: int
    ok: int
    not_ok: int
    missing: int


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
        hosts = hosts_of(connection, numbers)
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


def show(history: History, run: str) -> RunDetail:
    """Everything about the run whose id starts with `run` (or the `latest`). `NotFoundError` for none or several."""
    with history.read() as connection:
        return load_detail(connection, lookup.run(connection, run)[0])


def samples_of(history: History, run: str) -> dict[Phase, list[list[float]]]:
    """The samples of a run, in µs, [ranks][iterations] by phase; exact to float32."""
    with history.read() as connection:
        number, _ = lookup.run(connection, run)
        rows = connection.execute(select(SAMPLES.c.phase, SAMPLES.c.packed).where(SAMPLES.c.run == number)).all()
    return {row.phase: samples.unpack(row.packed) for row in rows}


def sample_lines(history: History, run: str) -> list[Sample]:
    """The samples of a run, one a row: phase by phase, rank by rank, in order."""
    detail = show(history, run)
    dropped = {phase.phase: phase.leading_dropped for phase in detail.phases}
    return [
        Sample(phase, rank, iteration, latency_us, iteration >= dropped[phase])
        for phase, of_phase in samples_of(history, detail.run_id).items()
        for rank, of_rank in enumerate(of_phase)
        for iteration, latency_us in enumerate(of_rank)
    ]


def compare(history: History, first: str, second: str) -> RunComparison:
    """Two runs side by side; each is named as in `show`."""
    with history.read() as connection:
        one, other = (load_detail(connection, lookup.run(connection, run)[0]) for run in (first, second))
    values = [
        ComparedValue(phase, metric, before, after, relative_change(before, after))
        for phase, metric, before, after in _paired(one, other)
    ]
    return RunComparison(one, other, tuple(values), tuple(differences(_facts(one), _facts(other))))


def nights(history: History, limit: int | None = None) -> list[NightLine]:
    """The nights, newest first."""
    with history.read() as connection:
        rows = connection.execute(select(*NIGHTS.c).order_by(*lookup.NEWEST_NIGHT_FIRST).limit(limit)).all()
        shown = [row.id for row in rows]
        outcomes: dict[int, dict[str, int]] = defaultdict(dict)
        planned: dict[int, tuple[int, int]] = {}
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
            )
        )
    return lines


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


def _paired(one: RunDetail, other: RunDetail) -> list[tuple[Phase, str, float | None, float | None]]:
    """Every metric of either run, with its value in each."""
    of_one = {(detail.phase, name): value for detail in one.phases for name, value in detail.values.items()}
    of_other = {(detail.phase, name): value for detail in other.phases for name, value in detail.values.items()}
    keys = dict.fromkeys([*of_one, *of_other])
    return [(phase, name, of_one.get((phase, name)), of_other.get((phase, name))) for phase, name in keys]


def relative_change(before: float | None, after: float | None) -> float | None:
    """(after - before) / before, None where it has none."""
    return None if before is None or after is None or before == 0 else (after - before) / before


def _facts(run: RunDetail) -> Mapping[str, Any]:
    """What of a run may explain a difference in its values."""
    return {
        "case": run.case,
        "platform": run.platform,
        "hosts": ", ".join(run.ranks_on),
        "outcome": run.outcome,
        "iters": str(run.iters),
        "warmup": str(run.warmup),
        **run.environment,
    }
