"""What the report of a night shows, gathered from the history into plain values. Called by `regress_db.report`."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select

from harness.case import Phase
from regress_db import lookup
from regress_db.automatic import pasts
from regress_db.baselines import Baseline, load_baselines
from regress_db.environments import Difference, differences, flatten
from regress_db.facts import facts_of_night
from regress_db.history import History
from regress_db.metrics import RUN_VALUE_METRIC
from regress_db.nightverdict import NO_NUMBER, NightVerdict, SeriesVerdict, stored_verdict
from regress_db.schedules import AbsentNight, load_absent_before
from regress_db.schema import (
    BASELINE_RUNS,
    BASELINES,
    CASES,
    ENVIRONMENTS,
    FAILURES,
    METRICS,
    NIGHTS,
    NODES,
    PLATFORMS,
    RUN_PHASES,
    RUN_RANKS,
    RUN_VALUES,
    RUNS,
)
from regress_db.wording import AUTO

PAST_NIGHTS = 60
"""How many nights of a series the report draws, this one included."""

TABLE = (
    ("latency_us", "latency, avg over ranks", "µs"),
    ("latency_min_us", "latency, fastest rank", "µs"),
    ("latency_max_us", "latency, slowest rank", "µs"),
    ("slowest_p50_us", "run value (judged)", "µs"),
    ("p50_us", "p50 of iterations", "µs"),
    ("p95_us", "p95 of iterations", "µs"),
    ("p99_us", "p99 of iterations", "µs"),
    ("skew", "skew, slowest / fastest rank", ""),
    ("bandwidth_gbs", "bandwidth per rank", "GB/s"),
    ("aggregate_gbs", "bandwidth, all ranks", "GB/s"),
)
"""The metrics a series' table has: name, words, unit."""

_WORDS_WANTED = tuple(name for name, _, _ in TABLE)


@dataclass(frozen=True, slots=True)
class RunPoint:
    """One run of a series: its value in µs, which run, on which hosts."""

    value_us: float
    run_id: str
    hosts: str


@dataclass(frozen=True, slots=True)
class NightPoint:
    """One night of a series: the values of its runs, in µs."""

    night: str
    started_at: datetime
    values_us: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class MetricLine:
    """One line of a series' table: medians over runs. change: relative, None where one side is absent."""

    words: str
    unit: str
    new: float | None
    base: float | None
    change: float | None


@dataclass(frozen=True, slots=True)
class SeriesView:
    """One series: what is said of it, its runs and the baseline's, its past nights (oldest first, this one last)."""

    verdict: SeriesVerdict
    new: tuple[RunPoint, ...]
    base: tuple[RunPoint, ...]
    past: tuple[NightPoint, ...]
    table: tuple[MetricLine, ...]
    headline: str


@dataclass(frozen=True, slots=True)
class CaseView:
    """One case on one platform, with its phases."""

    case: str
    platform: str
    series: tuple[SeriesView, ...]


@dataclass(frozen=True, slots=True)
class Trouble:
    """One planned run that gave no number. All but the first three are empty for one that is missing."""

    run_id: str
    case: str
    outcome: str
    hosts: str = ""
    step: str = ""
    kind: str = ""
    message: str = ""
    rank: int = -1
    log_tail: str = ""


@dataclass(frozen=True, slots=True)
class NightView:
    """A night, ready to be shown. environment: the one most runs had; others: how many runs had another.

    absent: the plan's nights that were to happen since the one before and did not, oldest first.
    """

    verdict: NightVerdict
    started_at: datetime | None
    finished_at: datetime | None
    baseline: Baseline | None
    cases: tuple[CaseView, ...]
    troubles: tuple[Trouble, ...]
    ok_runs: int
    hosts: tuple[str, ...]
    environment: Mapping[str, str]
    others: int
    changed: tuple[Difference, ...]
    within: tuple[Difference, ...]
    notes: tuple[str, ...]
    absent: tuple[AbsentNight, ...]


def gather(history: History, night_id: str) -> NightView:
    """Everything the report shows. Raises `NotFoundError` for a night that is unknown or was not judged."""
    verdict = stored_verdict(history, night_id)
    with history.read() as connection:
        night = lookup.night(connection, night_id)
        facts = facts_of_night(connection, night.id)
        new = [one.number for one in facts if one.number is not None]
        of_baseline = select(BASELINE_RUNS.c.run).where(BASELINE_RUNS.c.baseline_id == night.baseline_id)
        level: dict[tuple[str, str, str], set[int]] = {}
        if night.against == AUTO:
            found = pasts(connection, night, {(fact.case, fact.platform) for fact in facts})
            level = {key: set(past.level) for key, past in found.items()}
            members = sorted(set().union(*level.values()))
        else:
            members = list(connection.execute(of_baseline).scalars())
        base = [number for number in members if number not in set(new)]
        baselines = [] if night.baseline_id is None else load_baselines(connection, BASELINES.c.id == night.baseline_id)
        hosts = _hosts(connection, [*new, *base])
        values = _values(connection, [*new, *base])
        past = _past(connection, night.id)
        headlines = _headlines(connection, new)
        environments = _environments(connection, new)
        before = _environments(connection, base)
        absent = load_absent_before(connection, night.plan, night.started_at)
        notes = connection.execute(select(RUNS.c.notes).where(RUNS.c.night_id == night.id)).scalars()
        failures = {
            row.run: row
            for piece in lookup.chunks(new)
            for row in connection.execute(select(*FAILURES.c).where(FAILURES.c.run.in_(piece)))
        }
    runs_of: dict[tuple[str, str], list[_Run]] = defaultdict(list)
    for run in values:
        runs_of[run.case, run.platform].append(run)
    own = set(new)
    views: dict[tuple[str, str], list[SeriesView]] = defaultdict(list)
    for one in verdict.series:
        runs = runs_of[one.case, one.platform_key]
        views[one.case, one.platform_key].append(
            _series_view(
                one,
                [run for run in runs if run.number in own],
                [
                    run
                    for run in runs
                    if run.number not in own
                    and (night.against != AUTO or run.number in level.get((run.case, run.platform, one.phase), ()))
                ],
                hosts,
                past.get((one.case, one.platform_key, one.phase), {}),
                headlines.get((one.case, one.phase), ""),
            )
        )
    troubles = []
    for fact in facts:
        if fact.outcome in NO_NUMBER:
            why = failures.get(fact.number or 0)
            told = () if why is None else (why.step, why.kind, why.message, why.rank, why.log_tail)
            where = hosts.get(fact.number or 0, "")
            troubles.append(Trouble(fact.run_id, fact.case, fact.outcome, where, *told))
    usual = environments.most_common(1)[0][0] if environments else ()
    usual_before = before.most_common(1)[0][0] if before else ()
    rare = [environment for environment, _ in environments.most_common()[1:]]
    return NightView(
        verdict=verdict,
        started_at=night.started_at,
        finished_at=night.finished_at,
        baseline=baselines[0] if baselines else None,
        cases=tuple(
            CaseView(case, platform, tuple(sorted(series, key=lambda view: view.verdict.badness)))
            for (case, platform), series in views.items()
        ),
        troubles=tuple(sorted(troubles, key=lambda trouble: (NO_NUMBER.index(trouble.outcome), trouble.case))),
        ok_runs=sum(fact.outcome == "ok" for fact in facts),
        hosts=tuple(sorted({host for number in new for host in hosts.get(number, "").split(", ") if host})),
        environment=dict(usual),
        others=sum(environments.values()) - environments[usual] if environments else 0,
        changed=tuple(differences(dict(usual_before), dict(usual))) if usual_before else (),
        within=tuple(one for environment in rare for one in differences(dict(usual), dict(environment))),
        notes=tuple(sorted({note for of_run in notes for note in of_run})),
        absent=absent,
    )


_Flat = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Run:
    number: int
    run_id: str
    case: str
    platform: str
    values: dict[tuple[str, str], float]


def _series_view(
    verdict: SeriesVerdict,
    new: Sequence[_Run],
    base: Sequence[_Run],
    hosts: Mapping[int, str],
    past: Mapping[tuple[datetime, str], Sequence[float]],
    headline: str,
) -> SeriesView:
    phase = verdict.phase
    lines = []
    for name, words, unit in TABLE:
        after, before = (_median(run.values.get((phase, name)) for run in runs) for runs in (new, base))
        change = None if after is None or before is None or before == 0 else after / before - 1
        if after is not None or before is not None:
            lines.append(MetricLine(words, unit, after, before, change))
    return SeriesView(
        verdict=verdict,
        new=_points(new, phase, hosts),
        base=_points(base, phase, hosts),
        past=tuple(NightPoint(night, moment, tuple(values)) for (moment, night), values in sorted(past.items())),
        table=tuple(lines),
        headline=headline,
    )


def _points(runs: Sequence[_Run], phase: Phase, hosts: Mapping[int, str]) -> tuple[RunPoint, ...]:
    key = (phase, RUN_VALUE_METRIC)
    return tuple(RunPoint(run.values[key], run.run_id, hosts.get(run.number, "")) for run in runs if key in run.values)


def _median(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def _values(connection: Connection, numbers: Sequence[int]) -> list[_Run]:
    runs: dict[int, _Run] = {}
    for piece in lookup.chunks(numbers):
        for row in connection.execute(
            select(RUNS.c.id, RUNS.c.run_id, CASES.c.key, PLATFORMS.c.key.label("platform"))
            .join(CASES, CASES.c.id == RUNS.c.case_id)
            .join(PLATFORMS, PLATFORMS.c.id == RUNS.c.platform_id)
            .where(RUNS.c.id.in_(piece))
        ):
            runs[row.id] = _Run(row.id, row.run_id, row.key, row.platform, {})
        for run, phase, name, value in connection.execute(
            select(RUN_VALUES.c.run, METRICS.c.phase, METRICS.c.name, RUN_VALUES.c.value)
            .join(METRICS, METRICS.c.id == RUN_VALUES.c.metric)
            .where(RUN_VALUES.c.run.in_(piece), METRICS.c.name.in_(_WORDS_WANTED))
        ):
            runs[run].values[phase, name] = value
    return list(runs.values())


def _hosts(connection: Connection, numbers: Sequence[int]) -> dict[int, str]:
    found: dict[int, set[str]] = defaultdict(set)
    for piece in lookup.chunks(numbers):
        for run, hostname in connection.execute(
            select(RUN_RANKS.c.run, NODES.c.hostname)
            .join(NODES, NODES.c.id == RUN_RANKS.c.node_id)
            .where(RUN_RANKS.c.run.in_(piece))
            .distinct()
        ):
            found[run].add(hostname)
    return {run: ", ".join(sorted(names)) for run, names in found.items()}


def _past(connection: Connection, night: int) -> dict[tuple[str, str, str], dict[tuple[datetime, str], list[float]]]:
    """Run values of the last nights up to this one, by case, platform and phase, then by night."""
    started = select(NIGHTS.c.started_at).where(NIGHTS.c.id == night).scalar_subquery()
    nights = (
        select(NIGHTS.c.id)
        .where(NIGHTS.c.started_at <= started)
        .order_by(NIGHTS.c.started_at.desc(), NIGHTS.c.id.desc())
        .limit(PAST_NIGHTS)
        .subquery()
    )
    found: dict[tuple[str, str, str], dict[tuple[datetime, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for case, platform, phase, moment, name, value in connection.execute(
        select(
            CASES.c.key,
            PLATFORMS.c.key.label("platform"),
            METRICS.c.phase,
            NIGHTS.c.started_at,
            NIGHTS.c.name,
            RUN_VALUES.c.value,
        )
        .select_from(nights)
        .join(NIGHTS, NIGHTS.c.id == nights.c.id)
        .join(RUNS, RUNS.c.night_id == NIGHTS.c.id)
        .join(RUN_VALUES, RUN_VALUES.c.run == RUNS.c.id)
        .join(METRICS, METRICS.c.id == RUN_VALUES.c.metric)
        .join(CASES, CASES.c.id == RUNS.c.case_id)
        .join(PLATFORMS, PLATFORMS.c.id == RUNS.c.platform_id)
        .where(METRICS.c.name == RUN_VALUE_METRIC)
    ):
        if moment is not None:
            found[case, platform, phase][moment, name].append(value)
    return found


def _headlines(connection: Connection, numbers: Sequence[int]) -> dict[tuple[str, str], str]:
    """Which byte count the bandwidth is of, by case and phase."""
    found: dict[tuple[str, str], str] = {}
    for piece in lookup.chunks(numbers):
        for key, phase, headline in connection.execute(
            select(CASES.c.key, RUN_PHASES.c.phase, RUN_PHASES.c.headline)
            .join(RUNS, RUNS.c.id == RUN_PHASES.c.run)
            .join(CASES, CASES.c.id == RUNS.c.case_id)
            .where(RUN_PHASES.c.run.in_(piece))
            .distinct()
        ):
            found[key, phase] = headline
    return found


def _environments(connection: Connection, numbers: Sequence[int]) -> Counter[_Flat]:
    """How many runs had which environment, each flat and in order."""
    found: Counter[_Flat] = Counter()
    contents: dict[int, _Flat] = {}
    for piece in lookup.chunks(numbers):
        for (number,) in connection.execute(select(RUNS.c.environment_id).where(RUNS.c.id.in_(piece))):
            if number not in contents:
                content = connection.execute(select(ENVIRONMENTS.c.content).where(ENVIRONMENTS.c.id == number))
                contents[number] = tuple(sorted(flatten(content.scalar_one()).items()))
            found[contents[number]] += 1
    return found
