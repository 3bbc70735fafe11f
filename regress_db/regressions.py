"""Every regression of the history and what has become of it: open, acknowledged, fixed or expected.

A regression is one series over the nights in which it was judged `regressed`, up to the first later night that proves
it gone. Called by `regress_db.triage`, the command line and the web page; next to read: `regress_db.acknowledged`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Literal

from sqlalchemy import Connection, Row, func, literal, select

from harness.case import PHASES, Phase
from regress_db import lookup
from regress_db.acknowledged import FIXED, standing
from regress_db.history import History
from regress_db.schema import BASELINES, CASES, NIGHTS, PLATFORMS, TRIAGE, VERDICTS, UtcDateTime
from regress_db.waivers import Acknowledgement, Slowing, tolerance_for, why_not

State = Literal["open", "acknowledged", "expected", "fixed"]

STATES: tuple[State, ...] = ("open", "acknowledged", "expected", "fixed")
"""In the order in which they are told: what asks for something first."""

ACCEPTED: Literal["accepted"] = "accepted"

_Gone = dict[tuple[int, int, int, str], Row[*tuple[Any, ...]]]
"""What was said in the nights that prove regressions gone, by row numbers of night, case and platform, and phase."""

_BEFORE_ALL = datetime(1, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Regression:
    """One regression.

    night: the last in which it was judged regressed; since: the first. effect, low, high: relative changes as of
    `night`. by, at, until, why, number: of the decision that makes it acknowledged or expected, None where there is
    none (an expected one without a number is in a baseline that was set since). until: the last day (UTC) an
    acknowledgement holds, None where it has none. gone_in: the first later night that proves it fixed or normal.
    remark: why an acknowledgement that there was does not hold any more, "" where there was none. since_at, night_at:
    when those nights started, None where nobody opened them.
    """

    case: str
    platform: str
    phase: Phase
    state: State
    night: str
    since: str
    effect: float | None
    low: float | None
    high: float | None
    by: str | None
    at: datetime | None
    until: date | None
    why: str | None
    number: int | None
    gone_in: str | None = None
    remark: str = ""
    since_at: datetime | None = None
    night_at: datetime | None = None


def regressions(history: History, *, now: datetime | None = None, limit: int | None = None) -> list[Regression]:
    """All regressions: the open ones, the acknowledged, the expected and the fixed, each kind's newest night first.

    now: aware, whose day (UTC) says which acknowledgements still hold; default the present. limit: how many at most.
    """
    with history.read() as connection:
        return regressions_in(connection, (now or datetime.now(UTC)).astimezone(UTC).date())[:limit]


def regressions_in(connection: Connection, today: date) -> list[Regression]:
    """See `regressions`."""
    episodes = _episodes(connection)
    acknowledged = standing(connection)
    accepted = connection.execute(
        select(*TRIAGE.c).where(TRIAGE.c.decision == ACCEPTED, TRIAGE.c.withdrawn_at.is_(None)).order_by(TRIAGE.c.id)
    ).all()
    gone = _gone(connection, episodes)
    found = [_regression(one, acknowledged, accepted, gone, today) for one in episodes]
    found.sort(key=lambda one: (one.case, one.platform, PHASES.index(one.phase)))
    found.sort(key=lambda one: one.night_at or _BEFORE_ALL, reverse=True)
    return sorted(found, key=lambda one: STATES.index(one.state))


@dataclass(frozen=True, slots=True)
class _Episode:
    """first, last: rows of the verdicts. gone: row number of the night that proves it gone, None while none does."""

    first: Row[*tuple[Any, ...]]
    last: Row[*tuple[Any, ...]]
    gone: int | None


def _episodes(connection: Connection) -> list[_Episode]:
    """The verdicts `regressed`, put together where no night between them proves the regression gone."""
    of_fix, night_of_fix = VERDICTS.alias(), NIGHTS.alias()
    # Nights are walked in order from the regression on, so that the first proof ends the search.
    proof = (
        select(night_of_fix.c.id)
        .join(of_fix, of_fix.c.night_id == night_of_fix.c.id)
        .where(
            night_of_fix.c.started_at > func.coalesce(NIGHTS.c.started_at, literal(_BEFORE_ALL, UtcDateTime)),
            of_fix.c.case_id == VERDICTS.c.case_id,
            of_fix.c.phase == VERDICTS.c.phase,
            of_fix.c.platform_id == VERDICTS.c.platform_id,
            of_fix.c.verdict.in_(FIXED),
        )
        .order_by(night_of_fix.c.started_at)
        .limit(1)
        .correlate(VERDICTS, NIGHTS)
        .scalar_subquery()
    )
    rows = connection.execute(
        select(
            *(VERDICTS.c[name] for name in ("case_id", "platform_id", "phase", "effect", "low", "high", "floor")),
            *(VERDICTS.c[name] for name in ("noise_floor", "latency_us", "baseline_latency_us")),
            *(NIGHTS.c.name, NIGHTS.c.started_at, NIGHTS.c.baseline_id),
            CASES.c.key,
            PLATFORMS.c.key.label("platform"),
            proof.label("gone"),
        )
        .join(NIGHTS, NIGHTS.c.id == VERDICTS.c.night_id)
        .join(CASES, CASES.c.id == VERDICTS.c.case_id)
        .join(PLATFORMS, PLATFORMS.c.id == VERDICTS.c.platform_id)
        .where(VERDICTS.c.verdict == "regressed")
    ).all()
    together: dict[tuple[int, int, str, int | None], list[Row[*tuple[Any, ...]]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.started_at or _BEFORE_ALL):
        together[row.case_id, row.platform_id, row.phase, row.gone].append(row)
    return [_Episode(of_one[0], of_one[-1], key[3]) for key, of_one in together.items()]


def _gone(
    connection: Connection, episodes: Sequence[_Episode]
) -> dict[tuple[int, int, int, str], Row[*tuple[Any, ...]]]:
    """What was said in the nights that prove regressions gone, by night, case, platform and phase."""
    wanted = {(one.gone, one.last.case_id, one.last.platform_id, one.last.phase) for one in episodes if one.gone}
    found: _Gone = {}
    for nights in lookup.chunks(sorted({key[0] for key in wanted if key[0] is not None})):
        for row in connection.execute(
            select(
                *(VERDICTS.c[name] for name in ("night_id", "case_id", "platform_id", "phase", "latency_us")),
                *(NIGHTS.c.name, NIGHTS.c.started_at, NIGHTS.c.baseline_id),
                *(BASELINES.c.set_by, BASELINES.c.set_at, BASELINES.c.reason),
            )
            .join(NIGHTS, NIGHTS.c.id == VERDICTS.c.night_id)
            .outerjoin(BASELINES, BASELINES.c.id == NIGHTS.c.baseline_id)
            .where(VERDICTS.c.night_id.in_(nights), VERDICTS.c.verdict.in_(FIXED))
        ):
            key = (row.night_id, row.case_id, row.platform_id, row.phase)
            if key in wanted:
                found[key] = row
    return found


def _regression(
    episode: _Episode,
    acknowledged: Sequence[Acknowledgement],
    accepted: Sequence[Row[*tuple[Any, ...]]],
    gone: _Gone,
    today: date,
) -> Regression:
    first, last = episode.first, episode.last
    proof = None if episode.gone is None else gone[episode.gone, last.case_id, last.platform_id, last.phase]

    def said(state: State, remark: str = "", **decision: Any) -> Regression:
        return Regression(
            case=last.key,
            platform=last.platform,
            phase=last.phase,
            state=state,
            night=last.name,
            since=first.name,
            effect=last.effect,
            low=last.low,
            high=last.high,
            gone_in=None if proof is None else proof.name,
            remark=remark,
            since_at=first.started_at,
            night_at=last.started_at,
            **dict.fromkeys(("by", "at", "until", "why", "number")) | decision,
        )

    normal = next((one for one in reversed(accepted) if _makes_normal(one, episode, proof)), None)
    if normal is not None:
        return said("expected", by=normal.decided_by, at=normal.decided_at, why=normal.reason, number=normal.id)
    if proof is not None:
        if _in_new_baseline(last, proof):
            return said("expected", by=proof.set_by, at=proof.set_at, why=proof.reason)
        return said("fixed")
    slowing = Slowing.of(last.key, last.phase, last.platform, last)
    if slowing is None:
        return said("open")
    covering = tolerance_for(acknowledged, slowing, today)
    if covering is None:
        return said("open", why_not(acknowledged, slowing, today))
    return said(
        "acknowledged", by=covering.who, at=covering.at, until=covering.until, why=covering.why, number=covering.number
    )


def _makes_normal(decision: Row[*tuple[Any, ...]], episode: _Episode, proof: Row[*tuple[Any, ...]] | None) -> bool:
    """Whether a person accepted the regression's level: after it was seen, and from no later than it went."""
    last = episode.last
    end = last.started_at if proof is None else proof.started_at
    return (
        decision.case_id == last.case_id
        and decision.phase in (None, last.phase)
        and decision.platform_id in (None, last.platform_id)
        and decision.decided_at >= (last.started_at or _BEFORE_ALL)
        and (end is None or decision.from_time <= end)
    )


def _in_new_baseline(last: Row[*tuple[Any, ...]], proof: Row[*tuple[Any, ...]]) -> bool:
    """Whether the level stayed and the baseline moved: another was set, and the latency is nearer the slow level."""
    if proof.baseline_id in (None, last.baseline_id):
        return False
    if not (proof.latency_us and last.latency_us and last.baseline_latency_us):
        return False
    now, slow, fast = (math.log(us) for us in (proof.latency_us, last.latency_us, last.baseline_latency_us))
    return abs(now - slow) < abs(now - fast)
