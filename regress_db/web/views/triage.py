"""View 6: triage: regressions that are open, acknowledged, fixed or expected, what people decided and noted."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from harness.case import Phase
from regress_db.web.views.shared import Answer, NoteLine

State = Literal["open", "acknowledged", "fixed", "expected"]


class RegressionLine(msgspec.Struct, frozen=True, kw_only=True):
    """One regression. night: the newest that said so; since: when it began, as far as known. effect, low, high:
    relative. by, at, until, why: of the decision, "" and None where there is none; number: the decision's.
    """

    state: State
    case: str
    parts: dict[str, str]
    platform: str
    phase: Phase
    night: str
    since: datetime | None
    effect: float | None
    low: float | None
    high: float | None
    by: str
    at: datetime | None
    until: datetime | None
    why: str
    number: int | None


class DecisionLine(msgspec.Struct, frozen=True, kw_only=True):
    """One decision that stands. platform, phase: "" for all of them."""

    number: int
    decision: str
    case: str
    platform: str
    phase: str
    from_time: datetime
    until: datetime | None
    by: str
    at: datetime
    why: str


class TriageView(Answer, frozen=True, kw_only=True, tag="triage"):
    """Regressions: open first, then acknowledged, expected, fixed; the newest first within each.

    common: the fields of the key that all rows share. may_write: whether this page takes acknowledgements.
    """

    regressions: list[RegressionLine]
    counts: dict[str, int]
    common: dict[str, str]
    decisions: list[DecisionLine]
    notes: list[NoteLine]
    may_write: bool
