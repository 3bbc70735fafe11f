"""What is said of a night, as values, and how they are kept: one verdict for each case and phase, the findings, the
exit code.

Made by `regress_db.verdicts`; read by the command line, the gate and the report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Any, Literal, get_args

from sqlalchemy import Connection, Row, Table, delete, insert, select, update

from harness.case import PHASES, Phase
from regress_db import lookup
from regress_db.acknowledged import standing
from regress_db.errors import NotFoundError
from regress_db.history import History
from regress_db.schema import CASES, FINDINGS, NIGHTS, PLATFORMS, VERDICTS
from regress_db.waivers import tolerated

Comparison = Literal["regressed", "improved", "unchanged", "inconclusive", "insufficient"]
NoNumber = Literal["wrong", "hung", "failed", "missing"]
Verdict = Literal[Comparison, NoNumber]
Cause = Literal["code", "night", "node", "environment"]

WORST_FIRST: tuple[Verdict, ...] = (
    *("regressed", "wrong", "hung", "failed", "missing"),
    *("inconclusive", "insufficient", "improved", "unchanged"),
)
"""In the order of the exit codes: a regression first, then what has no valid result."""

NO_NUMBER: tuple[NoNumber, ...] = get_args(NoNumber)


@dataclass(frozen=True, slots=True)
class SeriesVerdict:
    """What is said of one case and phase on one platform.

    platform_key: "" where nothing of the case ran at all. effect, low, high, floor, noise_floor, detectable, shared:
    relative changes of the run value (0.1: ten per cent slower), None where there is none. latency_us,
    baseline_latency_us: medians over runs of the latency averaged over ranks; bandwidth_gbs: the same of the headline
    bandwidth per rank, GB = 1e9 bytes. new_runs, baseline_runs: ok runs that were compared; confirmations: how many of
    the new ones are re-runs. baseline_first, baseline_last: ids of the oldest and newest run compared with. cause,
    finding: whom it is put down to, and the number of the finding it belongs to. shared: what it had in common with
    many others and what was taken out. noise_floor: the smallest change its noise supports. detectable: what would
    have been seen four times in five. runs_needed: how many new runs more would see the floor, None where no number
    would.
    waiver: why a regression does not fail the night, "" where nothing lets it pass. acknowledged: the number of the
    decision that lets it pass, None where it is a waiver or nothing; not kept. candidate: worth a re-run before it
    is believed; not kept. sentence: all of it in plain words.
    """

    case: str
    phase: Phase
    platform_key: str
    verdict: Verdict
    effect: float | None
    low: float | None
    high: float | None
    floor: float
    noise_floor: float | None
    detectable: float | None
    runs_needed: int | None
    p_value: float | None
    shared: float | None
    latency_us: float | None
    bandwidth_gbs: float | None
    baseline_latency_us: float | None
    new_runs: int
    confirmations: int
    baseline_runs: int
    baseline_first: str | None
    baseline_last: str | None
    sentence: str
    cause: Cause | None = None
    finding: int | None = None
    waiver: str = ""
    warnings: tuple[str, ...] = ()
    acknowledged: int | None = None
    candidate: bool = field(default=False, compare=False)

    @property
    def passes_as(self) -> Literal["", "waived", "acknowledged"]:
        """What lets a regression pass, in a word; "" where nothing does."""
        if not self.waiver:
            return ""
        return "waived" if self.acknowledged is None else "acknowledged"

    @property
    def badness(self) -> tuple[int, bool, float]:
        """Sort key: worst verdict first, what is waived after what is not, then the largest slowing."""
        return WORST_FIRST.index(self.verdict), bool(self.waiver), -(self.effect or 0.0)


@dataclass(frozen=True, slots=True)
class NightFinding:
    """What moved together, as one thing to look at. effect, low, high: relative, None where it has none.

    subject: what the cause names: a host, an environment's change, a range of commits. series: how many it covers.
    """

    number: int
    cause: Cause
    subject: str
    effect: float | None
    low: float | None
    high: float | None
    series: int
    sentence: str


@dataclass(frozen=True, slots=True)
class NightVerdict:
    """What is said of a night; series are worst first.

    baseline: its name, `auto` for each series' own past, None where none was used. level: the false discovery rate.
    aa_series, aa_alarms: of the standing A/A check, None where the plan has none. remarks: what could not be told of
    the night as a whole, such as a slow night from slow code where nothing ran that does not depend on it.
    """

    night: str
    plan: str
    baseline: str | None
    judge: str
    judged_at: datetime
    series: tuple[SeriesVerdict, ...]
    findings: tuple[NightFinding, ...] = ()
    level: float | None = None
    aa_series: int | None = None
    aa_alarms: int | None = None
    remarks: tuple[str, ...] = ()

    def exit_code(self, strict: bool = False) -> int:
        """1: something regressed; 3: something planned has no valid result; 4: something could not be decided, with
        `strict` only; 0: none of these. The first that holds, in this order. A waived or acknowledged regression
        is none.
        """
        return exit_code(self.series, strict)

    @property
    def headline(self) -> str:
        """The night in one sentence."""
        return headline(self.series)


def exit_code(series: Sequence[SeriesVerdict], strict: bool = False) -> int:
    """See `NightVerdict.exit_code`. No series at all is 3: a night without results is not a pass."""
    verdicts = {one.verdict for one in series if not one.waiver}
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
    passes = Counter(one.passes_as for one in series if one.passes_as)
    passing = ", ".join(f"{count} {how}" for how, count in sorted(passes.items(), reverse=True))
    counts = Counter(one.verdict for one in series)
    told = (
        f"{counts[verdict]} {verdict}{f' ({passing})' if passing and verdict == 'regressed' else ''}"
        for verdict in WORST_FIRST
        if counts[verdict]
    )
    return f"{len(series)} series: {', '.join(told)}."


def worst_first(series: Iterable[SeriesVerdict]) -> tuple[SeriesVerdict, ...]:
    """In the order in which a night is told."""
    return tuple(sorted(series, key=lambda one: (*one.badness, one.case, PHASES.index(one.phase), one.platform_key)))


def with_acknowledged(
    connection: Connection, verdict: NightVerdict, started_at: datetime | None, today: date | None = None
) -> NightVerdict:
    """The verdict on the night that started then, with the regressions marked that people acknowledged.

    They are no part of what is kept: one that is withdrawn, or whose day has passed, lets nothing pass from then on.
    today: UTC, default the present day.
    """
    if all(one.verdict != "regressed" for one in verdict.series):
        return verdict
    known = standing(connection, started_at)
    day = today or datetime.now(UTC).date()
    return replace(verdict, series=worst_first(tolerated(one, known, day) for one in verdict.series))


def stored_verdict(history: History, night_id: str, *, today: date | None = None) -> NightVerdict:
    """The verdicts that stand for a night, with what is acknowledged on the day `today` (UTC; default the present).

    Raises `NotFoundError` where the night is unknown or was never judged.
    """
    with history.read() as connection:
        night = lookup.night(connection, night_id)
        if night.judged_at is None:
            raise NotFoundError(f"night {night.name} has not been judged yet")
        rows = connection.execute(
            select(*VERDICTS.c, CASES.c.key, PLATFORMS.c.key.label("platform"))
            .join(CASES, CASES.c.id == VERDICTS.c.case_id)
            .outerjoin(PLATFORMS, PLATFORMS.c.id == VERDICTS.c.platform_id)
            .where(VERDICTS.c.night_id == night.id)
            .order_by(VERDICTS.c.id)
        ).all()
        found = connection.execute(
            select(*FINDINGS.c).where(FINDINGS.c.night_id == night.id).order_by(FINDINGS.c.number)
        ).all()
        verdict = NightVerdict(
            night=night.name,
            plan=night.plan,
            baseline=night.against,
            judge=night.judge,
            judged_at=night.judged_at,
            series=tuple(map(_series_of, rows)),
            findings=tuple(NightFinding(**{name: getattr(row, name) for name in _FINDING}) for row in found),
            level=night.level,
            aa_series=night.aa_series,
            aa_alarms=night.aa_alarms,
            remarks=tuple(night.remarks or ()),
        )
        return with_acknowledged(connection, verdict, night.started_at, today)


def _series_of(row: Row[*tuple[Any, ...]]) -> SeriesVerdict:
    return SeriesVerdict(
        case=row.key,
        phase=row.phase,
        platform_key=row.platform or "",
        warnings=tuple(row.warnings),
        waiver=row.waiver or "",
        **{name: getattr(row, name) for name in _STORED},
    )


_STORED = (
    *("verdict", "effect", "low", "high", "floor", "noise_floor", "detectable", "runs_needed", "p_value", "shared"),
    *("latency_us", "bandwidth_gbs", "baseline_latency_us", "new_runs", "confirmations", "baseline_runs"),
    *("baseline_first", "baseline_last", "sentence", "cause", "finding"),
)
_FINDING = ("number", "cause", "subject", "effect", "low", "high", "series", "sentence")


def store(connection: Connection, night: int, said: NightVerdict, baseline: int | None) -> None:
    """Make `said` the verdicts that stand for the night with this row number, in place of earlier ones.

    baseline: row number of the baseline, None where it was none or each series' own past.
    """
    connection.execute(delete(VERDICTS).where(VERDICTS.c.night_id == night))
    connection.execute(delete(FINDINGS).where(FINDINGS.c.night_id == night))
    cases = _numbers(connection, CASES, {one.case for one in said.series})
    platforms = _numbers(connection, PLATFORMS, {one.platform_key for one in said.series})
    rows = [
        {
            "night_id": night,
            "case_id": cases[one.case],
            "platform_id": platforms.get(one.platform_key),
            "phase": one.phase,
            "warnings": list(one.warnings),
            "waiver": one.waiver or None,
            **{name: getattr(one, name) for name in _STORED},
        }
        for one in said.series
    ]
    if rows:
        connection.execute(insert(VERDICTS), rows)
    if said.findings:
        connection.execute(
            insert(FINDINGS),
            [{"night_id": night, **{name: getattr(one, name) for name in _FINDING}} for one in said.findings],
        )
    connection.execute(
        update(NIGHTS)
        .where(NIGHTS.c.id == night)
        .values(
            judged_at=said.judged_at,
            judge=said.judge,
            baseline_id=baseline,
            against=said.baseline,
            level=said.level,
            aa_series=said.aa_series,
            aa_alarms=said.aa_alarms,
            remarks=list(said.remarks),
        )
    )


def _numbers(connection: Connection, table: Table, keys: set[str]) -> dict[str, int]:
    return {row.key: row.id for row in connection.execute(select(table.c.key, table.c.id)) if row.key in keys}
