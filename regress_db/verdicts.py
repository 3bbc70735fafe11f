"""What is said of a night: one verdict for each case and phase, kept in the history, and the night's exit code.

`judge_night` gathers what was planned, what came back and what the baseline holds, lets a `Judge` compare them, and
stores the result; `judge_runs` does the same for any runs and stores nothing (the pytest gate). What gave no number is
never a pass: one failed or missing run of a case decides both of its phases.
Next to read: `regress_db.judge` (the comparison), `regress_db.report` (how a night is shown).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, get_args

from sqlalchemy import Connection, Table, delete, insert, select, update

from harness.case import PHASES, Case, Phase
from regress_db import lookup
from regress_db.errors import NotFoundError
from regress_db.facts import RunFacts, facts_of_night, facts_of_runs
from regress_db.history import History
from regress_db.judge import DEFAULT_JUDGE, Comparison, Judge, Judgement
from regress_db.metrics import BANDWIDTH_METRIC, RUN_VALUE_METRIC
from regress_db.schema import (
    BASELINE_RUNS,
    BASELINES,
    CASES,
    NIGHTS,
    PLATFORMS,
    VERDICTS,
)
from regress_db.wording import sentence_of

NoNumber = Literal["wrong", "hung", "failed", "missing"]
Verdict = Literal[Comparison, NoNumber]

WORST_FIRST: tuple[Verdict, ...] = (
    *("regressed", "wrong", "hung", "failed", "missing"),
    *("inconclusive", "insufficient", "improved", "unchanged"),
)
"""In the order of the exit codes: a regression first, then what has no valid result."""

NO_NUMBER: tuple[NoNumber, ...] = get_args(NoNumber)

Floor = float | Mapping[str, float] | Callable[[Case], float]
"""The smallest relative change worth a verdict: one for all, by case key (`""`: for the others), or a function."""

_DEFAULT_FLOOR = 0.05


@dataclass(frozen=True, slots=True)
class SeriesVerdict:
    """What is said of one case and phase on one platform.

    platform_key: "" where nothing of the case ran at all. effect, low, high, detectable, floor: relative changes of
    the run value (0.1: ten per cent slower), None where there is none. latency_us, baseline_latency_us: medians over
    runs of the latency averaged over ranks; bandwidth_gbs: the same of the headline bandwidth per rank, GB = 1e9
    bytes. new_runs, baseline_runs: ok runs that were compared. sentence: all of it in plain words.
    """

    case: str
    phase: Phase
    platform_key: str
    verdict: Verdict
    effect: float | None
    low: float | None
    high: float | None
    floor: float
    detectable: float | None
    p_value: float | None
    latency_us: float | None
    bandwidth_gbs: float | None
    baseline_latency_us: float | None
    new_runs: int
    baseline_runs: int
    sentence: str
    warnings: tuple[str, ...] = ()

    @property
    def badness(self) -> tuple[int, float]:
        """Sort key: worst verdict first, then the largest slowing."""
        return WORST_FIRST.index(self.verdict), -(self.effect or 0.0)


@dataclass(frozen=True, slots=True)
class NightVerdict:
    """What is said of a night; series are worst first. baseline: its name, None where none was used."""

    night: str
    plan: str
    baseline: str | None
    judge: str
    judged_at: datetime
    series: tuple[SeriesVerdict, ...]

    def exit_code(self, strict: bool = False) -> int:
        """1: something regressed; 3: something planned has no valid result; 4: something could not be decided, with
        `strict` only; 0: none of these. The first that holds, in this order.
        """
        return exit_code(self.series, strict)

    @property
    def headline(self) -> str:
        """The night in one sentence."""
        return headline(self.series)


def exit_code(series: Sequence[SeriesVerdict], strict: bool = False) -> int:
    """See `NightVerdict.exit_code`. No series at all is 3: a night without results is not a pass."""
    verdicts = {one.verdict for one in series}
    if "regressed" in verdicts:
        return 1
    if not series or verdicts.intersection(NO_NUMBER):
        return 3
    if strict and verdicts & {"inconclusive", "insufficient"}:
        return 4
    return 0


def headline(series: Sequence[SeriesVerdict]) -> str:
    """How many of what, worst first, in one sentence."""
    if not series:
        return "Nothing was planned and nothing ran."
    counts = {verdict: sum(one.verdict == verdict for one in series) for verdict in WORST_FIRST}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    return f"{len(series)} series: {told}."


def judge_night(
    history: History,
    night_id: str,
    *,
    baseline: str | None,
    floor: Floor = _DEFAULT_FLOOR,
    judge: Judge = DEFAULT_JUDGE,
    keep: bool = True,
) -> NightVerdict:
    """Judge every planned case of the night (and any other run of it).

    baseline: name of a live baseline; None: everything that ran is `insufficient`. A night's own runs are never their
    own baseline. keep: store the verdicts as those of the night, in place of earlier ones. Raises `NotFoundError` for
    an unknown night or baseline.
    """
    with history.write() if keep else history.read() as connection:
        night = lookup.night(connection, night_id)
        base = None if baseline is None else lookup.live_baseline(connection, baseline)
        facts = facts_of_night(connection, night.id)
        series = _judge(connection, facts, None if base is None else base.id, baseline, floor, judge)
        judged_at = datetime.now(UTC)
        if keep:
            _store(connection, night.id, series, None if base is None else base.id, judge.name, judged_at)
    return NightVerdict(night.name, night.plan, baseline, judge.name, judged_at, series)


def judge_runs(
    history: History,
    run_ids: Sequence[str],
    *,
    baseline: str,
    floor: Floor = _DEFAULT_FLOOR,
    judge: Judge = DEFAULT_JUDGE,
) -> tuple[SeriesVerdict, ...]:
    """Judge these runs (whole ids) against a baseline, worst first; nothing is stored. A run id the history does not
    have is a `NotFoundError`: `judge_night` knows what was planned, this does not.
    """
    with history.read() as connection:
        base = lookup.live_baseline(connection, baseline)
        numbers = [lookup.run(connection, run_id)[0] for run_id in run_ids]
        return _judge(connection, facts_of_runs(connection, numbers), base.id, baseline, floor, judge)


def stored_verdict(history: History, night_id: str) -> NightVerdict:
    """The verdicts that stand for a night. Raises `NotFoundError` where it is unknown or was never judged."""
    with history.read() as connection:
        night = lookup.night(connection, night_id)
        if night.judged_at is None:
            raise NotFoundError(f"night {night.name} has not been judged yet")
        baseline = connection.execute(select(BASELINES.c.name).where(BASELINES.c.id == night.baseline_id)).scalar()
        rows = connection.execute(
            select(*VERDICTS.c, CASES.c.key, PLATFORMS.c.key.label("platform"))
            .join(CASES, CASES.c.id == VERDICTS.c.case_id)
            .outerjoin(PLATFORMS, PLATFORMS.c.id == VERDICTS.c.platform_id)
            .where(VERDICTS.c.night_id == night.id)
            .order_by(VERDICTS.c.id)
        ).all()
    series = tuple(
        SeriesVerdict(
            case=row.key,
            phase=row.phase,
            platform_key=row.platform or "",
            warnings=tuple(row.warnings),
            **{name: getattr(row, name) for name in _STORED},
        )
        for row in rows
    )
    return NightVerdict(night.name, night.plan, baseline, night.judge, night.judged_at, series)


_STORED = (
    *("verdict", "effect", "low", "high", "floor", "detectable", "p_value", "latency_us", "bandwidth_gbs"),
    *("baseline_latency_us", "new_runs", "baseline_runs", "sentence"),
)


def _store(
    connection: Connection,
    night: int,
    series: Sequence[SeriesVerdict],
    baseline: int | None,
    judge: str,
    judged_at: datetime,
) -> None:
    connection.execute(delete(VERDICTS).where(VERDICTS.c.night_id == night))
    cases = _numbers(connection, CASES, {one.case for one in series})
    platforms = _numbers(connection, PLATFORMS, {one.platform_key for one in series})
    rows = [
        {
            "night_id": night,
            "case_id": cases[one.case],
            "platform_id": platforms.get(one.platform_key),
            "phase": one.phase,
            "warnings": list(one.warnings),
            **{name: getattr(one, name) for name in _STORED},
        }
        for one in series
    ]
    if rows:
        connection.execute(insert(VERDICTS), rows)
    connection.execute(
        update(NIGHTS).where(NIGHTS.c.id == night).values(judged_at=judged_at, judge=judge, baseline_id=baseline)
    )


def _numbers(connection: Connection, table: Table, keys: set[str]) -> dict[str, int]:
    return {
        key: number
        for key in keys
        for number in connection.execute(select(table.c.id).where(table.c.key == key)).scalars()
    }


def _judge(
    connection: Connection,
    facts: Sequence[RunFacts],
    baseline_id: int | None,
    baseline: str | None,
    floor: Floor,
    judge: Judge,
) -> tuple[SeriesVerdict, ...]:
    own = {one.number for one in facts}
    members: dict[tuple[str, str], list[RunFacts]] = {}
    if baseline_id is not None:
        of_baseline = select(BASELINE_RUNS.c.run).where(BASELINE_RUNS.c.baseline_id == baseline_id)
        numbers = connection.execute(of_baseline).scalars()
        for member in facts_of_runs(connection, sorted(number for number in numbers if number not in own)):
            members.setdefault((member.case, member.platform), []).append(member)
    series = [
        _judge_series(
            case, platform, phase, runs, members.get((case, platform), ()), baseline, _floor_of(floor, case), judge
        )
        for (case, platform), runs in _groups(facts).items()
        for phase in PHASES
    ]
    return tuple(sorted(series, key=lambda one: (*one.badness, one.case, PHASES.index(one.phase), one.platform_key)))


def _groups(facts: Sequence[RunFacts]) -> dict[tuple[str, str], list[RunFacts]]:
    """Runs by case and platform.

    A run without a number counts against its platform's group; where that has no ok run (the record may have been
    written by whoever found the job dead), against every group of its case on that cluster; a missing run, of which
    nothing is known, against every group of its case.
    """
    groups: dict[tuple[str, str], list[RunFacts]] = {}
    for one in facts:
        if one.outcome == "ok":
            groups.setdefault((one.case, one.platform), []).append(one)
    clusters = {key: runs[0].cluster for key, runs in groups.items()}
    for one in facts:
        if one.outcome == "ok":
            continue
        home = (one.case, one.platform)
        homes = [home]
        if home not in clusters:
            alike = [key for key in clusters if key[0] == one.case and one.cluster in ("", clusters[key])]
            homes = alike or homes
        for key in homes:
            groups.setdefault(key, []).append(one)
    return groups


def _floor_of(floor: Floor, case: str) -> float:
    if isinstance(floor, Mapping):
        return floor.get(case, floor.get("", _DEFAULT_FLOOR))
    if callable(floor):
        return floor(Case.parse(case))
    return floor


def _judge_series(
    case: str,
    platform: str,
    phase: Phase,
    runs: Sequence[RunFacts],
    members: Sequence[RunFacts],
    baseline: str | None,
    floor: float,
    judge: Judge,
) -> SeriesVerdict:
    new = [run.values for run in runs if (phase, RUN_VALUE_METRIC) in run.values]
    old = [member.values for member in members if (phase, RUN_VALUE_METRIC) in member.values]
    judgement = Judgement("insufficient", None, None, None, None, None, "none")
    if new:
        of_new, of_old = ([values[phase, RUN_VALUE_METRIC] for values in group] for group in (new, old))
        judgement = judge.judge(of_new, of_old, floor)
    bad = [run for run in runs if run.outcome != "ok"]
    silent = sum(run.outcome == "ok" and (phase, RUN_VALUE_METRIC) not in run.values for run in runs)
    verdict: Verdict = judgement.verdict
    if bad or silent:
        verdict = next((kind for kind in NO_NUMBER if any(run.outcome == kind for run in bad)), "missing")
    alike = [run for run in bad if run.outcome == verdict]
    latency_us = _median(new, phase, "latency_us")
    baseline_latency_us = _median(old, phase, "latency_us")
    return SeriesVerdict(
        case=case,
        phase=phase,
        platform_key=platform,
        verdict=verdict,
        effect=judgement.effect,
        low=judgement.low,
        high=judgement.high,
        floor=floor,
        detectable=judgement.detectable,
        p_value=judgement.p_value,
        latency_us=latency_us,
        bandwidth_gbs=_median(new, phase, BANDWIDTH_METRIC),
        baseline_latency_us=baseline_latency_us,
        new_runs=len(new),
        baseline_runs=len(old),
        sentence=sentence_of(
            case=case,
            phase=phase,
            verdict=verdict,
            judgement=judgement,
            floor=floor,
            latency_us=latency_us,
            baseline_latency_us=baseline_latency_us,
            new_runs=len(new),
            baseline_runs=len(old),
            planned_runs=len(runs),
            bad_runs=len(alike) + silent * (verdict == "missing"),
            baseline=baseline,
            reason=next((run.why for run in alike if run.why), ""),
        ),
        warnings=judgement.warnings,
    )


def _median(group: Sequence[Mapping[tuple[str, str], float]], phase: str, metric: str) -> float | None:
    values = [values[phase, metric] for values in group if (phase, metric) in values]
    return statistics.median(values) if values else None
