"""What people decide about a series: that a new level is the normal one, or that a regression is known; who and why.

A decision is never edited, only withdrawn; both stay in the history. Called by the command line and the web page; next
to read: `regress_db.automatic`, which starts a series' baseline at the newest level that was accepted,
`regress_db.acknowledged`, by which an acknowledged regression passes, `regress_db.regressions` (what is to decide).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Literal

from sqlalchemy import ColumnElement, insert, select, update

from harness.case import PHASES, Phase
from regress_db import lookup
from regress_db.acknowledged import ACKNOWLEDGED
from regress_db.errors import NotFoundError, TriageError
from regress_db.filters import parse_moment
from regress_db.history import History
from regress_db.regressions import ACCEPTED, Regression, regressions, regressions_in
from regress_db.schema import CASES, NIGHTS, PLATFORMS, RUNS, TRIAGE
from regress_db.selection import Selection

__all__ = [
    "Decision",
    "Regression",
    "accept",
    "acknowledge",
    "acknowledge_series",
    "cases_of",
    "decisions",
    "moment_of",
    "regressions",
    "series_of",
    "withdraw",
]

Kind = Literal["accepted", "acknowledged"]

_COMMANDS: dict[Kind | None, str] = {"accepted": "accept --list", "acknowledged": "ack --list", None: "triage"}


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision. platform, phase: None for all of them. withdrawn_*: None while it stands.

    from_time: from when on the accepted level is normal; of an acknowledgement, the start of the regression. effect,
    until: the relative change that an acknowledgement lets pass, and the last day (UTC) it holds; None: none.
    """

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
    effect: float | None = None
    until: date | None = None


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
    platform, `TriageError` for no case, no who or no why.
    """
    _refuse_unsigned(who, why, "accepts the change")
    if not cases:
        raise TriageError("say which cases have changed for good: no case matches")
    _refuse_unknown(phase)
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
    return [one for one in decisions(history, kind=ACCEPTED) if one.number in set(numbers)]


def acknowledge(
    history: History,
    cases: Sequence[str],
    *,
    who: str,
    why: str,
    until: date | None = None,
    phase: Phase | None = None,
    platform: str | None = None,
    when: datetime | None = None,
) -> list[Decision]:
    """Let the regressions that are open in these cases (whole keys) pass; see `acknowledge_series`.

    platform: only this one. Raises `NotFoundError` for an unknown case, too.
    """
    with history.read() as connection:
        known = set(connection.execute(select(CASES.c.key)).scalars())
        platforms = list(connection.execute(select(PLATFORMS.c.key)).scalars())
    for key in cases:
        if key not in known:
            raise NotFoundError(f"the history has no case {key!r}")
    if platform is not None and platform not in platforms:
        raise NotFoundError(f"the history has no platform {platform!r}")
    series = [(key, one) for key in cases for one in platforms if platform in (None, one)]
    return acknowledge_series(history, series, who=who, why=why, until=until, phase=phase, when=when)


def acknowledge_series(
    history: History,
    series: Collection[tuple[str, str]],
    *,
    who: str,
    why: str,
    until: date | None = None,
    phase: Phase | None = None,
    when: datetime | None = None,
) -> list[Decision]:
    """Let the regressions of these (case, platform) that are not fixed pass, as large as they are now; the decisions
    made, one for each.

    until: the last day (UTC) on which they pass; None: until they are fixed. Those that are acknowledged already get
    one more decision, and may pass by either. Raises `TriageError` for no who, no why, a day that is past, and where no
    regression is open or acknowledged.
    """
    _refuse_unsigned(who, why, "acknowledges the regression")
    _refuse_unknown(phase)
    moment = when or datetime.now(UTC)
    today = moment.astimezone(UTC).date()
    if until is not None and until < today:
        raise TriageError(f"{until:%Y-%m-%d} is past: the last day is to be {today:%Y-%m-%d} (today, UTC) or later")
    with history.write() as connection:
        found = [
            one
            for one in regressions_in(connection, today)
            if one.state in ("open", "acknowledged")
            and (one.case, one.platform) in series
            and phase in (None, one.phase)
        ]
        if not found:
            raise TriageError("nothing that was chosen has an open regression: `epwatch triage` lists those there are")
        cases = {row.key: row.id for row in connection.execute(select(CASES.c.id, CASES.c.key))}
        platforms = {row.key: row.id for row in connection.execute(select(PLATFORMS.c.id, PLATFORMS.c.key))}
        numbers = {
            connection.execute(
                insert(TRIAGE).returning(TRIAGE.c.id),
                {
                    "case_id": cases[one.case],
                    "platform_id": platforms[one.platform],
                    "phase": one.phase,
                    "decision": ACKNOWLEDGED,
                    "from_time": one.since_at or moment,
                    "decided_by": who,
                    "decided_at": moment,
                    "reason": why,
                    "effect": one.effect,
                    "until": until,
                },
            ).scalar_one()
            for one in found
        }
    return [one for one in decisions(history, kind=ACKNOWLEDGED) if one.number in numbers]


def _refuse_unsigned(who: str, why: str, does: str) -> None:
    if not who.strip() or not why.strip():
        raise TriageError(f"say who {does}, and why")


def _refuse_unknown(phase: str | None) -> None:
    if phase is not None and phase not in PHASES:
        raise TriageError(f"{phase!r} is no phase: there are {' and '.join(PHASES)}")


def cases_of(history: History, selection: Selection) -> list[str]:
    """The keys of the cases that have a run in the selection."""
    return sorted({case for case, _ in series_of(history, selection)})


def series_of(history: History, selection: Selection) -> list[tuple[str, str]]:
    """The (case, platform) that have a run in the selection."""
    with history.read() as connection:
        wanted = select(RUNS.c.case_id, RUNS.c.platform_id).where(*selection.conditions(connection)).distinct()
        cases = {row.id: row.key for row in connection.execute(select(CASES.c.id, CASES.c.key))}
        platforms = {row.id: row.key for row in connection.execute(select(PLATFORMS.c.id, PLATFORMS.c.key))}
        return sorted((cases[case], platforms[platform]) for case, platform in connection.execute(wanted))


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


def withdraw(
    history: History, number: int, *, who: str, why: str, kind: Kind | None = None, when: datetime | None = None
) -> None:
    """Take a decision (of this kind) back; it stays in the history.

    Raises `NotFoundError` for one that is not there or was withdrawn, `TriageError` for no who or no why.
    """
    _refuse_unsigned(who, why, "withdraws the decision")
    with history.write() as connection:
        done = connection.execute(
            update(TRIAGE)
            .where(TRIAGE.c.id == number, TRIAGE.c.withdrawn_at.is_(None), *_of_kind(kind))
            .values(withdrawn_by=who, withdrawn_at=when or datetime.now(UTC), withdrawn_reason=why)
        )
        if not done.rowcount:
            raise NotFoundError(f"no decision {number} stands; `epwatch {_COMMANDS[kind]}` shows those that do")


def decisions(history: History, *, withdrawn: bool = False, kind: Kind | None = None) -> list[Decision]:
    """The decisions (of this kind) that stand, newest first; with `withdrawn`, the others too."""
    wanted = (
        select(*TRIAGE.c, CASES.c.key, PLATFORMS.c.key.label("platform"))
        .join(CASES, CASES.c.id == TRIAGE.c.case_id)
        .outerjoin(PLATFORMS, PLATFORMS.c.id == TRIAGE.c.platform_id)
        .where(*_of_kind(kind))
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
            effect=row.effect,
            until=row.until,
        )
        for row in rows
    ]


def _of_kind(kind: Kind | None) -> list[ColumnElement[bool]]:
    return [] if kind is None else [TRIAGE.c.decision == kind]
