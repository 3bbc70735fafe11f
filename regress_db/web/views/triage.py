"""View 6: triage: regressions that are open, acknowledged, fixed or expected, what people decided and noted."""

from __future__ import annotations

from datetime import date, datetime

import msgspec

from harness.case import Phase
from regress_db.history import History
from regress_db.regressions import STATES, State
from regress_db.triage import Regression, decisions, regressions
from regress_db.web.views.people import notes_of
from regress_db.web.views.shared import Answer, NoteLine, apart, in_common


class RegressionLine(msgspec.Struct, frozen=True, kw_only=True):
    """One regression. night: the newest that said so; since: the first; since_at: when that started. effect, low,
    high: relative. by, at, until, why: of the decision, "" and None where there is none; number: the decision's.
    remark: why an acknowledgement that there was does not hold any more, "" where there was none.
    """

    state: State
    case: str
    parts: dict[str, str]
    platform: str
    phase: Phase
    night: str
    since: str
    since_at: datetime | None
    effect: float | None
    low: float | None
    high: float | None
    by: str
    at: datetime | None
    until: date | None
    why: str
    number: int | None
    remark: str


class DecisionLine(msgspec.Struct, frozen=True, kw_only=True):
    """One decision that stands. platform, phase: "" for all of them."""

    number: int
    decision: str
    case: str
    platform: str
    phase: str
    from_time: datetime
    until: date | None
    by: str
    at: datetime
    why: str


class TriageView(Answer, frozen=True, kw_only=True, tag="triage"):
    """Regressions: open first, then acknowledged, expected, fixed; the newest first within each.

    counts: of all, however many are listed. common: the fields of the key that all rows share. may_write: whether this
    page takes acknowledgements.
    """

    regressions: list[RegressionLine]
    counts: dict[str, int]
    common: dict[str, str]
    decisions: list[DecisionLine]
    notes: list[NoteLine]
    may_write: bool


MOST_REGRESSIONS = 500
MOST_NOTES = 200


def gather(history: History, *, may_write: bool = False) -> TriageView:
    """What there is to triage, and what people said."""
    found = regressions(history)
    shown = found[:MOST_REGRESSIONS]
    common = in_common({one.case for one in shown})
    return TriageView(
        regressions=[_line(one, common) for one in shown],
        counts={state: sum(one.state == state for one in found) for state in STATES},
        common=common,
        decisions=[
            DecisionLine(
                number=one.number,
                decision=one.decision,
                case=one.case,
                platform=one.platform or "",
                phase=one.phase or "",
                from_time=one.from_time,
                until=one.until,
                by=one.decided_by,
                at=one.decided_at,
                why=one.reason,
            )
            for one in decisions(history)
        ],
        notes=notes_of(history)[-MOST_NOTES:],
        may_write=may_write,
    )


def _line(one: Regression, common: dict[str, str]) -> RegressionLine:
    return RegressionLine(
        state=one.state,
        case=one.case,
        parts=apart(one.case, common),
        platform=one.platform,
        phase=one.phase,
        night=one.night,
        since=one.since,
        since_at=one.since_at,
        effect=one.effect,
        low=one.low,
        high=one.high,
        by=one.by or "",
        at=one.at,
        until=one.until,
        why=one.why or "",
        number=one.number,
        remark=one.remark,
    )
