"""View 1: a night as a grid of cases by phases, worst first; what did not run and why; what is new, what recovered.

Verdicts are those that were stored when the night was judged. Next to read: `nightruns`, what is told of its runs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, func, select
from sqlalchemy import Row as Record

from harness.case import PHASES, Case, Phase
from regress_db import lookup
from regress_db.errors import NotFoundError
from regress_db.filters import Filter
from regress_db.history import History
from regress_db.nightverdict import NO_NUMBER, WORST_FIRST, Cause, NightVerdict, SeriesVerdict, Verdict, stored_verdict
from regress_db.schedules import load_absent_before
from regress_db.schema import BASELINE_RUNS, BASELINES, CASES, NIGHTS, PLATFORMS, VERDICTS
from regress_db.web.views.asked import accepted, filters_of
from regress_db.web.views.nightruns import Trouble, runs_of_night
from regress_db.web.views.people import Acknowledged, acknowledged_on, notes_of
from regress_db.web.views.shared import Answer, Fact, NoteLine, apart, in_common
from regress_db.wording import AUTO, SIGNS

Tone = Literal["bad", "open", "good"]
News = Literal["new", "recovered", "first", ""]

NEWS: tuple[News, ...] = ("new", "recovered", "first")


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One series on the night; numbers as in `regress_db.nightverdict.SeriesVerdict`, changes relative (0.1: 10 %).

    sign: of the verdict, so that no reader depends on colour. before: the verdict of the judged night before, None
    where that had none of it. news: `new` (bad now, not before), `recovered` (bad before, not now), `first` (not judged
    the night before), or "". acknowledged: by whom, why and until when in words, "" where nobody did.
    """

    phase: Phase
    verdict: Verdict
    sign: str
    effect: float | None
    low: float | None
    high: float | None
    floor: float
    noise_floor: float | None
    detectable: float | None
    latency_us: float | None
    bandwidth_gbs: float | None
    baseline_latency_us: float | None
    new_runs: int
    confirmations: int
    baseline_runs: int
    runs_needed: int | None
    cause: Cause | None
    finding: int | None
    waiver: str
    acknowledged: str
    warnings: list[str]
    sentence: str
    before: Verdict | None
    news: News


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One case on one platform. parts: the fields of its key that tell it from the other rows (all fields are
    `parts` and `NightView.common` together). platform: "" where nothing of it ran. worst: the worst of its cells, which
    are in the order dispatch, combine; a phase may be absent.
    """

    case: str
    platform: str
    parts: dict[str, str]
    worst: Verdict
    cells: list[Cell]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What moved together, as one thing to look at; changes are relative. series: how many it covers."""

    number: int
    cause: Cause
    subject: str
    effect: float | None
    low: float | None
    high: float | None
    series: int
    sentence: str


class BaselineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The named baseline that a night was judged against: who set it, when, why."""

    name: str
    runs: int
    set_by: str
    set_at: datetime
    reason: str
    retired_at: datetime | None


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """What the address asks for; an empty list asks for everything. cases: patterns and filters on the key's fields and
    the platform, as `epwatch trend` takes them.
    """

    cases: list[str] = []
    verdicts: list[Verdict] = []
    phases: list[Phase] = []
    news: list[News] = []


class NightView(Answer, frozen=True, kw_only=True, tag="night"):
    """A night, worst first. rows: those that are chosen by the address; hidden: how many cells are not. choices:
    what rows can be chosen by: the values of each field on which they differ, and of `platform`. counts, new,
    recovered: of all.

    words: the night in one sentence, for someone who reads nothing else; headline: how many of what. tone: the colour
    of it. judged_against: in words. plan: "" where unknown. previous, next: ids of the judged nights before and after,
    "" for none; compared_to: the night that `before` and `news` of cells speak of, "" for none. common: the fields of
    the key that all rows share. counts: series by verdict, worst first. environment: the one that most runs had, flat;
    others: how many runs had another; within: where theirs differ from it; changed: where it differs from the
    baseline's. run_notes: what runs said of themselves. absent: sentences on nights that did not happen before this
    one. command: what repeats the night, "" where not known.
    """

    night: str
    plan: str
    words: str
    headline: str
    tone: Tone
    exit_code: int
    started_at: datetime | None
    finished_at: datetime | None
    duration_s: float | None
    judged_at: datetime
    judge: str
    level: float | None
    judged_against: str
    baseline: BaselineFacts | None
    aa_series: int | None
    aa_alarms: int | None
    remarks: list[str]
    counts: dict[str, int]
    findings: list[Finding]
    common: dict[str, str]
    rows: list[Row]
    chosen: Chosen
    choices: dict[str, list[str]]
    hidden: int
    new: int
    recovered: int
    troubles: list[Trouble]
    ok_runs: int
    hosts: list[str]
    environment: dict[str, str]
    others: int
    changed: list[Fact]
    within: list[Fact]
    run_notes: list[str]
    absent: list[str]
    notes: list[NoteLine]
    previous: str
    next: str
    compared_to: str
    command: str = ""


EVERYTHING = Chosen()


def gather(history: History, night_id: str, chosen: Chosen = EVERYTHING, *, command: str = "") -> NightView:
    """The night with this id, `latest` for the newest judged one.

    Raises `NotFoundError` for a night that is unknown or was not judged, `FilterError` for what cannot be chosen by.
    """
    filters = filters_of(chosen.cases)
    with history.read() as connection:
        name = newest_judged(connection) if night_id == lookup.LATEST else night_id
    verdict = stored_verdict(history, name)
    with history.read() as connection:
        night = lookup.night(connection, verdict.night)
        previous, following = (_neighbour(connection, night, later) for later in (False, True))
        before = _verdicts(connection, previous.id) if previous else {}
        baseline = _baseline(connection, night.baseline_id)
        absent = load_absent_before(connection, night.plan, night.started_at)
        runs = runs_of_night(connection, night)
    known = acknowledged_on(history, verdict.judged_at)
    cells = [(one, _cell(one, previous is not None, before, known)) for one in verdict.series]
    shown = [(one, cell) for one, cell in cells if _is_chosen(one, cell, chosen, filters)]
    common = in_common({one.case for one in verdict.series})
    return NightView(
        night=verdict.night,
        plan=verdict.plan or "",
        words=words(verdict),
        headline=verdict.headline,
        tone=tone(verdict),
        exit_code=verdict.exit_code(),
        started_at=night.started_at,
        finished_at=night.finished_at,
        duration_s=_duration_s(night.started_at, night.finished_at),
        judged_at=verdict.judged_at,
        judge=verdict.judge,
        level=verdict.level,
        judged_against=_judged_against(verdict.baseline, baseline),
        baseline=baseline,
        aa_series=verdict.aa_series,
        aa_alarms=verdict.aa_alarms,
        remarks=list(verdict.remarks),
        counts=counts(one.verdict for one in verdict.series),
        findings=[Finding(**{name: getattr(one, name) for name in _FINDING}) for one in verdict.findings],
        common=common,
        rows=_rows(shown, common),
        chosen=chosen,
        choices=_choices({one.case for one in verdict.series}, {one.platform_key for one in verdict.series}, common),
        hidden=len(cells) - len(shown),
        new=sum(cell.news == "new" for _, cell in cells),
        recovered=sum(cell.news == "recovered" for _, cell in cells),
        troubles=runs.troubles,
        ok_runs=runs.ok_runs,
        hosts=runs.hosts,
        environment=runs.environment,
        others=runs.others,
        changed=runs.changed,
        within=runs.within,
        run_notes=runs.notes,
        absent=[one.sentence for one in absent],
        notes=notes_of(history, night=verdict.night),
        previous=previous.name if previous else "",
        next=following.name if following else "",
        compared_to=previous.name if previous else "",
        command=command,
    )


def words(verdict: NightVerdict) -> str:
    """The night in one sentence, for someone who reads nothing else."""
    series = verdict.series
    slower = sum(one.verdict == "regressed" for one in series)
    silent = sum(one.verdict in NO_NUMBER for one in series)
    undecided = sum(one.verdict in _UNDECIDED for one in series)
    if not series:
        return "Nothing was planned and nothing ran."
    said = [f"{slower} of {len(series)} series got slower"] if slower else []
    if silent:
        said.append(f"{silent} of {len(series)} series {'has' if silent == 1 else 'have'} no valid result")
    if not said:
        said.append("No series got slower")
        if undecided:
            said.append(f"{undecided} of {len(series)} could not be decided")
    return "; ".join(said) + "."


def tone(verdict: NightVerdict) -> Tone:
    """`bad`, `open` or `good`: the colour of the headline."""
    if verdict.exit_code():
        return "bad"
    return "open" if any(one.verdict in _UNDECIDED for one in verdict.series) else "good"


def counts(verdicts: Iterable[str]) -> dict[str, int]:
    """How many of each verdict there is, worst first."""
    found = Counter(verdicts)
    return {verdict: found[verdict] for verdict in WORST_FIRST if found[verdict]}


_UNDECIDED = frozenset({"inconclusive", "insufficient"})
_BAD = frozenset({"regressed", *NO_NUMBER})
_COPIED = (
    *("effect", "low", "high", "floor", "noise_floor", "detectable", "latency_us", "bandwidth_gbs"),
    *("baseline_latency_us", "new_runs", "confirmations", "baseline_runs", "runs_needed", "cause", "finding", "waiver"),
    "sentence",
)

_FINDING = Finding.__struct_fields__

_Key = tuple[str, str, str]
"""Case, platform and phase."""


def _is_chosen(one: SeriesVerdict, cell: Cell, chosen: Chosen, filters: Sequence[Filter]) -> bool:
    if chosen.verdicts and one.verdict not in chosen.verdicts:
        return False
    if chosen.phases and one.phase not in chosen.phases:
        return False
    if chosen.news and cell.news not in chosen.news:
        return False
    return accepted(filters, one.case, one.platform_key)


def newest_judged(connection: Connection) -> str:
    """The id of the newest night that was judged. Raises `NotFoundError` where there is none yet."""
    newest = select(NIGHTS.c.name).where(NIGHTS.c.judged_at.is_not(None)).order_by(*lookup.NEWEST_NIGHT_FIRST).limit(1)
    found = connection.execute(newest).scalar()
    if found is None:
        raise NotFoundError("no night of this history has been judged yet: `epwatch nightly` measures and judges one")
    return str(found)


def _neighbour(connection: Connection, night: Record[Any], later: bool) -> Record[int, str] | None:
    """Number and name of the next judged night of the plan before or after this one."""
    if night.started_at is None:
        return None
    start = NIGHTS.c.started_at
    beyond = start > night.started_at if later else start < night.started_at
    return connection.execute(
        select(NIGHTS.c.id, NIGHTS.c.name)
        .where(NIGHTS.c.plan == night.plan, NIGHTS.c.judged_at.is_not(None), beyond)
        .order_by(start.asc() if later else start.desc(), NIGHTS.c.id)
        .limit(1)
    ).first()


def _verdicts(connection: Connection, night: int) -> dict[_Key, Verdict]:
    rows = connection.execute(
        select(CASES.c.key, PLATFORMS.c.key.label("platform"), VERDICTS.c.phase, VERDICTS.c.verdict)
        .join(CASES, CASES.c.id == VERDICTS.c.case_id)
        .outerjoin(PLATFORMS, PLATFORMS.c.id == VERDICTS.c.platform_id)
        .where(VERDICTS.c.night_id == night)
    )
    return {(row.key, row.platform or "", row.phase): row.verdict for row in rows}


def _baseline(connection: Connection, number: int | None) -> BaselineFacts | None:
    if number is None:
        return None
    row = connection.execute(select(*BASELINES.c).where(BASELINES.c.id == number)).one()
    runs = connection.execute(select(func.count()).where(BASELINE_RUNS.c.baseline_id == number)).scalar_one()
    return BaselineFacts(
        name=row.name,
        runs=runs,
        set_by=row.set_by,
        set_at=row.set_at,
        reason=row.reason,
        retired_at=row.retired_at,
    )


def _judged_against(name: str | None, baseline: BaselineFacts | None) -> str:
    if baseline is not None:
        retired = " (retired since)" if baseline.retired_at else ""
        return (
            f"baseline {baseline.name}, {baseline.runs} runs, set by {baseline.set_by} on "
            f"{baseline.set_at:%Y-%m-%d %H:%M} UTC: {baseline.reason}{retired}"
        )
    if name == AUTO:
        return "each series' own past, since its last accepted change"
    return "nothing: no baseline was named"


def _cell(one: SeriesVerdict, after_another: bool, before: Mapping[_Key, Verdict], known: Acknowledged) -> Cell:
    key = (one.case, one.platform_key, one.phase)
    earlier = before.get(key)
    return Cell(
        phase=one.phase,
        verdict=one.verdict,
        sign=SIGNS[one.verdict],
        acknowledged=known.words(*key) if one.passes_as == "acknowledged" else "",
        warnings=list(one.warnings),
        before=earlier,
        news=_news(one.verdict, earlier) if after_another else "",
        **{name: getattr(one, name) for name in _COPIED},
    )


def _news(verdict: Verdict, before: Verdict | None) -> News:
    if before is None:
        return "first"
    if (verdict in _BAD) == (before in _BAD):
        return ""
    return "new" if verdict in _BAD else "recovered"


def badness(cell: Cell) -> tuple[int, bool, float]:
    """Sort key: as of the verdict that the cell shows."""
    return WORST_FIRST.index(cell.verdict), bool(cell.waiver), -(cell.effect or 0.0)


def _rows(shown: Sequence[tuple[SeriesVerdict, Cell]], common: Mapping[str, str]) -> list[Row]:
    of_case: dict[tuple[str, str], list[tuple[SeriesVerdict, Cell]]] = defaultdict(list)
    for one, cell in sorted(shown, key=lambda pair: pair[0].badness):
        of_case[one.case, one.platform_key].append((one, cell))
    return [
        Row(
            case=case,
            platform=platform,
            parts=apart(case, common),
            worst=pairs[0][0].verdict,
            cells=sorted((cell for _, cell in pairs), key=lambda cell: PHASES.index(cell.phase)),
        )
        for (case, platform), pairs in of_case.items()
    ]


def _choices(cases: Iterable[str], platforms: Iterable[str], common: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {name: set() for name in Case.__struct_fields__ if name not in common}
    for key in cases:
        for name, value in apart(key, common).items():
            found[name].add(value)
    found["platform"] = {platform for platform in platforms if platform}
    return {
        name: sorted(values, key=lambda value: (len(value), value) if value.isdigit() else (0, value))
        for name, values in found.items()
        if len(values) > 1
    }


def _duration_s(started_at: datetime | None, finished_at: datetime | None) -> float | None:
    if started_at is None or finished_at is None or finished_at < started_at:
        return None
    return (finished_at - started_at).total_seconds()
