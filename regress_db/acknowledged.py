"""The regressions that people acknowledged and that are not fixed since, as tolerances. Called by
`regress_db.nightverdict` and `regress_db.regressions`; next to read: `regress_db.waivers` (what they let pass),
`regress_db.triage` (how they come about).
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from sqlalchemy import Connection, and_, exists, select

from regress_db.schema import CASES, NIGHTS, PLATFORMS, TRIAGE, VERDICTS
from regress_db.waivers import Acknowledgement

ACKNOWLEDGED: Literal["acknowledged"] = "acknowledged"

FIXED: tuple[str, ...] = ("unchanged", "improved")
"""The verdicts that end a regression: those that prove that it is gone, not those that could not tell."""


def standing(connection: Connection, started_at: datetime | None = None) -> list[Acknowledgement]:
    """Those that are not withdrawn and that concern a night which started then (None: the present).

    These are of a regression that began by then and was not fixed in a night between. Whether the last day of one has
    passed is for the reader to see.
    """
    later = NIGHTS.c.started_at > TRIAGE.c.from_time
    begun = []
    if started_at is not None:
        later = and_(later, NIGHTS.c.started_at < started_at)
        begun = [TRIAGE.c.from_time <= started_at]
    fixed = (
        exists()
        .where(later, VERDICTS.c.night_id == NIGHTS.c.id, VERDICTS.c.verdict.in_(FIXED))
        .where(VERDICTS.c.case_id == TRIAGE.c.case_id, VERDICTS.c.phase == TRIAGE.c.phase)
        .where(VERDICTS.c.platform_id == TRIAGE.c.platform_id)
    )
    rows = connection.execute(
        select(*TRIAGE.c, CASES.c.key, PLATFORMS.c.key.label("platform"))
        .join(CASES, CASES.c.id == TRIAGE.c.case_id)
        .join(PLATFORMS, PLATFORMS.c.id == TRIAGE.c.platform_id)
        .where(TRIAGE.c.decision == ACKNOWLEDGED, TRIAGE.c.withdrawn_at.is_(None), *begun, ~fixed)
        .order_by(TRIAGE.c.decided_at.desc(), TRIAGE.c.id.desc())
    )
    return [
        Acknowledgement(
            number=row.id,
            case=row.key,
            phase=row.phase,
            platform=row.platform,
            effect=row.effect,
            until=row.until,
            who=row.decided_by,
            at=row.decided_at,
            why=row.reason,
        )
        for row in rows
    ]
