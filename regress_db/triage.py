"""What people decide about a series: that a new level is the normal one, from when on, who says so and why.

A decision is never edited, only withdrawn; both stay in the history. Called by the command line; next to read:
`regress_db.automatic`, which starts a series' baseline at the newest decision that stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import insert, select, update

from harness.case import PHASES, Phase
from regress_db import lookup
from regress_db.errors import BaselineError, NotFoundError
from regress_db.filters import parse_moment
from regress_db.history import History
from regress_db.schema import CASES, NIGHTS, PLATFORMS, RUNS, TRIAGE
from regress_db.selection import Selection

ACCEPTED = "accepted"


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision. platform, phase: None for all of them. withdrawn_*: None while it stands."""

    number: int
    case: str
    platform: str | None
    phase: Phase | None
    decision: str
    from_time: datetime
    decided_by: str
    decided_at: datetime
    reason: str
    withdrawn_by: str | None
    withdrawn_at: datetime | None
    withdrawn_reason: str | None


def accept(
    history: History,
    cases: Sequence[str],
    *,
    since: datetime,
    who: str,
    why: str,
    phase: Phase | None = None,
    platform: str | None = None,
    when: datetime | None = None,
) -> list[Decision]:
    """Make the level of these cases (whole keys) from `since` on the normal one; the decisions made, one a case.

    since: aware. phase, platform: only this one. All or nothing: raises `NotFoundError` for an unknown case or
    platform, `BaselineError` for no case, no who or no why.
    """
    if not who.strip() or not why.strip():
        raise BaselineError("say who accepts the change, and why")
    if not cases:
        raise BaselineError("say which cases have changed for good: no case matches")
    if phase is not None and phase not in PHASES:
        raise BaselineError(f"{phase!r} is no phase: there are {' and '.join(PHASES)}")
    moment = when or datetime.now(UTC)
    with history.write() as connection:
        platform_id = None
        if platform is not None:
            platform_id = connection.execute(select(PLATFORMS.c.id).where(PLATFORMS.c.key == platform)).scalar()
            if platform_id is None:
                raise NotFoundError(f"the history has no platform {platform!r}")
        numbers = []
        for key in dict.fromkeys(cases):
            case_id = connection.execute(select(CASES.c.id).where(CASES.c.key == key)).scalar()
            if case_id is None:
                raise NotFoundError(f"the history has no case {key!r}")
            numbers.append(
                connection.execute(
                    insert(TRIAGE).returning(TRIAGE.c.id),
                    {
                        "case_id": case_id,
                        "platform_id": platform_id,
                        "phase": phase,
                        "decision": ACCEPTED,
                        "from_time": since,
                        "decided_by": who,
                        "decided_at": moment,
                        "reason": why,
                    },
                ).scalar_one()
            )
    return [one for one in decisions(history) if one.number in set(numbers)]


def cases_of(history: History, selection: Selection) -> list[str]:
    """The keys of the cases that have a run in the selection."""
    with history.read() as connection:
        wanted = select(RUNS.c.case_id).where(*selection.conditions(connection)).distinct()
        return list(
            connection.execute(select(CASES.c.key).where(CASES.c.id.in_(wanted)).order_by(CASES.c.key)).scalars()
        )


def moment_of(history: History, text: str) -> datetime:
    """The moment that `text` names: the start of the night with this id (or of the `latest`), or a time.

    Raises `FilterError` for what is neither, `NotFoundError` for a night that never started.
    """
    with history.read() as connection:
        known = connection.execute(select(NIGHTS.c.id).where(NIGHTS.c.name == text)).first()
        if known is None and text != lookup.LATEST:
            return parse_moment(text)
        night = lookup.night(connection, text)
        first = select(RUNS.c.started_at).where(RUNS.c.night_id == night.id).order_by(RUNS.c.started_at).limit(1)
        start: datetime | None = night.started_at or connection.execute(first).scalar()
    if start is None:
        raise NotFoundError(f"night {night.name} has neither a start nor a run: name a time")
    return start


def withdraw(history: History, number: int, *, who: str, why: str, when: datetime | None = None) -> None:
    """Take a decision back; it stays in the history. `NotFoundError` for one that is not there or was withdrawn."""
    if not who.strip() or not why.strip():
        raise BaselineError("say who withdraws the decision, and why")
    with history.write() as connection:
        done = connection.execute(
            update(TRIAGE)
            .where(TRIAGE.c.id == number, TRIAGE.c.withdrawn_at.is_(None))
            .values(withdrawn_by=who, withdrawn_at=when or datetime.now(UTC), withdrawn_reason=why)
        )
        if not done.rowcount:
            raise NotFoundError(f"no decision {number} stands; `epwatch accept --list` shows those that do")


def decisions(history: History, *, withdrawn: bool = False) -> list[Decision]:
    """The decisions that stand, newest first; with `withdrawn`, the others too."""
    wanted = (
        select(*TRIAGE.c, CASES.c.key, PLATFORMS.c.key.label("platform"))
        .join(CASES, CASES.c.id == TRIAGE.c.case_id)
        .outerjoin(PLATFORMS, PLATFORMS.c.id == TRIAGE.c.platform_id)
        .order_by(TRIAGE.c.decided_at.desc(), TRIAGE.c.id.desc())
    )
    if not withdrawn:
        wanted = wanted.where(TRIAGE.c.withdrawn_at.is_(None))
    with history.read() as connection:
        rows = connection.execute(wanted).all()
    return [
        Decision(
            number=row.id,
            case=row.key,
            platform=row.platform,
            phase=row.phase,
            decision=row.decision,
            from_time=row.from_time,
            decided_by=row.decided_by,
            decided_at=row.decided_at,
            reason=row.reason,
            withdrawn_by=row.withdrawn_by,
            withdrawn_at=row.withdrawn_at,
            withdrawn_reason=row.withdrawn_reason,
        )
        for row in rows
    ]
