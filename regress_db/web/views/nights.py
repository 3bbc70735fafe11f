"""The list of nights, newest first: what was planned, what came of it, what was said, and which did not happen."""

from __future__ import annotations

from datetime import datetime

import msgspec

from regress_db.queries import NightState
from regress_db.web.views.shared import Answer


class NightRow(msgspec.Struct, frozen=True, kw_only=True):
    """One night. night: "" for one that did not happen; then expected_at says when it was to begin.

    missing: planned runs without a record. counts: series by verdict, worst first, empty where it was not judged.
    """

    night: str
    plan: str
    state: NightState
    started_at: datetime | None
    finished_at: datetime | None
    judged_at: datetime | None
    expected_at: datetime | None
    planned: int
    ok: int
    not_ok: int
    missing: int
    counts: dict[str, int]


class NightsView(Answer, frozen=True, kw_only=True, tag="nights"):
    """The newest nights, at most `limit`."""

    limit: int
    nights: list[NightRow]
