"""The list of nights, newest first: what was planned, what came of it, what was said, and which did not happen."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime

import msgspec
from sqlalchemy import func, select

from regress_db import lookup
from regress_db.history import History
from regress_db.nightverdict import WORST_FIRST
from regress_db.queries import NightState
from regress_db.queries import nights as list_nights
from regress_db.schema import NIGHTS, VERDICTS
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


DEFAULT_LIMIT = 100
MOST = 5000


def gather(history: History, limit: int = DEFAULT_LIMIT, *, now: datetime | None = None) -> NightsView:
    """The newest nights. now: also those that were to happen by then and did not."""
    lines = list_nights(history, limit, now=now)
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    with history.read() as connection:
        names = {line.night for line in lines if line.judged_at is not None}
        numbers = {
            row.id: row.name
            for row in connection.execute(select(NIGHTS.c.id, NIGHTS.c.name).where(NIGHTS.c.judged_at.is_not(None)))
            if row.name in names
        }
        for piece in lookup.chunks(numbers):
            for night, verdict, count in connection.execute(
                select(VERDICTS.c.night_id, VERDICTS.c.verdict, func.count())
                .where(VERDICTS.c.night_id.in_(piece))
                .group_by(VERDICTS.c.night_id, VERDICTS.c.verdict)
            ):
                counts[numbers[night]][verdict] = count
    return NightsView(
        limit=limit,
        nights=[
            NightRow(
                **{name: getattr(line, name) for name in NightRow.__struct_fields__ if name != "counts"},
                counts={one: counts[line.night][one] for one in WORST_FIRST if one in counts[line.night]},
            )
            for line in lines
        ],
    )
