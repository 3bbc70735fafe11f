"""View 1: a night as a grid of cases by phases, worst first; what did not run and why; what is new, what recovered."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from harness.case import Phase
from regress_db.nightverdict import Cause, Verdict
from regress_db.web.views.shared import Answer, Fact, NoteLine

Tone = Literal["bad", "open", "good"]
News = Literal["new", "recovered", "first", ""]


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


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """One planned run that gave no number. All but the first four are empty for one that is missing."""

    run_id: str
    case: str
    outcome: Verdict
    sign: str
    hosts: list[str] = []
    step: str = ""
    failure: str = ""
    message: str = ""
    rank: int = -1
    log_tail: str = ""


class BaselineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The named baseline that a night was judged against: who set it, when, why."""

    name: str
    runs: int
    set_by: str
    set_at: datetime
    reason: str
    retired_at: datetime | None


class NightView(Answer, frozen=True, kw_only=True, tag="night"):
    """A night. Everything is there, worst first; what is asked for by filters is chosen by the page.

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
