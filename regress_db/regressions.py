"""Every regression of the history and what has become of it: open, acknowledged, fixed or expected.

A regression is one series over the nights in which it was judged `regressed`, up to the first later night that proves
it gone. Called by `regress_db.triage`, the command line and the web page; next to read: `regress_db.acknowledged`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Literal

from sqlalchemy import Connection, Row, and_, exists, func, literal, select

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

_Proof = Row[*tuple[Any, ...]]
"""What was said of a series in the night that proves its regression gone."""

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
    found = [_regression(one, acknowledged, accepted, today) for one in episodes]
    found.sort(key=lambda one: (one.case, one.platform, PHASES.index(one.phase)))
    found.sort(key=lambda one: one.night_at or _BEFORE_ALL, reverse=True)
    return sorted(found, key=lambda one: STATES.index(one.state))


@dataclass(frozen=True, slots=True)
class _Episode:
    """first, last: rows of the verdicts. proof: that it is gone, None while there is none."""

    first: Row[*tuple[Any, ...]]
    last: Row[*tuple[Any, ...]]
    proof: _Proof | None


def _episodes(connection: Connection) -> list[_Episode]:
    """The verdicts `regressed`, put together where no night between them proves the regression gone."""
    rows = connection.execute(
        select(
            *(VERDICTS.c[name] for name in ("id", "case_id", "platform_id", "phase", "effect", "low", "high", "floor")),
            *(VERDICTS.c[name] for name in ("night_id", "noise_floor", "latency_us", "baseline_latency_us")),
            *(NIGHTS.c.name, NIGHTS.c.started_at, NIGHTS.c.baseline_id),
            CASES.c.key,
            PLATFORMS.c.key.label("platform"),
        )
        .join(NIGHTS, NIGHTS.c.id == VERDICTS.c.night_id)
        .join(CASES, CASES.c.id == VERDICTS.c.case_id)
        .join(PLATFORMS, PLATFORMS.c.id == VERDICTS.c.platform_id)
        .where(VERDICTS.c.verdict == "regressed")
    ).all()
    nights = select(NIGHTS.c.id).where(NIGHTS.c.started_at.is_not(None)).order_by(NIGHTS.c.started_at, NIGHTS.c.id)
    places = {number: place for place, number in enumerate(connection.execute(nights).scalars())}
    series: dict[tuple[int, int, str], list[Row[*tuple[Any, ...]]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: places.get(row.night_id, -1)):
        series[row.case_id, row.platform_id, row.phase].append(row)
    # Between two nights that follow one another nothing can be proved: one question for each chain of them.
    chains = [chain for of_series in series.values() for chain in _chains(of_series, places)]
    proofs = _proofs(connection, [chain[-1].id for chain in chains])
    found: list[_Episode] = []
    for chain in chains:
        first, last, proof = chain[0], chain[-1], proofs.get(chain[-1].id)
        before = found[-1] if found else None
        if before is not None and _night(proof) == _night(before.proof) and _series(before.last) == _series(first):
            first = found.pop().first
        found.append(_Episode(first, last, proof))
    return found


def _series(row: Row[*tuple[Any, ...]]) -> tuple[int, int, str]:
    return row.case_id, row.platform_id, row.phase


def _night(proof: _Proof | None) -> int | None:
    return None if proof is None else proof.night_id


def _chains(
    rows: Sequence[Row[*tuple[Any, ...]]], places: Mapping[int, int]
) -> Iterator[Sequence[Row[*tuple[Any, ...]]]]:
    """Rows of one series, oldest first, cut where there was another night between two of them."""
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or places.get(rows[end].night_id, -1) - places.get(rows[end - 1].night_id, -1) > 1:
            yield rows[start:end]
            start = end


def _proofs(connection: Connection, numbers: Sequence[int]) -> dict[int, _Proof]:
    """By the row number of a verdict, what was said in the first later night which proves it gone, where one does."""
    of_fix, night_of_fix = VERDICTS.alias(), NIGHTS.alias()
    proved = exists().where(
        of_fix.c.night_id == night_of_fix.c.id,
        of_fix.c.case_id == VERDICTS.c.case_id,
        of_fix.c.phase == VERDICTS.c.phase,
        of_fix.c.platform_id == VERDICTS.c.platform_id,
        of_fix.c.verdict.in_(FIXED),
    )
    # A join would let a database begin with all verdicts of the case. So it walks the nights in order from the
    # regression on, one probe of an index for each, and the first proof ends the walk.
    proof = (
        select(night_of_fix.c.id)
        .where(night_of_fix.c.started_at > func.coalesce(NIGHTS.c.started_at, literal(_BEFORE_ALL, UtcDateTime)))
        .where(proved.correlate(VERDICTS, night_of_fix))
        .order_by(night_of_fix.c.started_at)
        .limit(1)
        .correlate(VERDICTS, NIGHTS)
        .scalar_subquery()
    )
    found: dict[int, _Proof] = {}
    for piece in lookup.chunks(numbers):
        asked = (
            select(*(VERDICTS.c[name] for name in ("id", "case_id", "platform_id", "phase")), proof.label("gone"))
            .join(NIGHTS, NIGHTS.c.id == VERDICTS.c.night_id)
            .where(VERDICTS.c.id.in_(piece))
            .subquery()
        )
        for row in connection.execute(
            select(
                *(asked.c.id, of_fix.c.latency_us, night_of_fix.c.id.label("night_id")),
                *(night_of_fix.c.name, night_of_fix.c.started_at, night_of_fix.c.baseline_id),
                *(BASELINES.c.set_by, BASELINES.c.set_at, BASELINES.c.reason),
            )
            .join(night_of_fix, night_of_fix.c.id == asked.c.gone)
            .join(
                of_fix,
                and_(
                    of_fix.c.night_id == asked.c.gone,
                    of_fix.c.case_id == asked.c.case_id,
                    of_fix.c.phase == asked.c.phase,
                    of_fix.c.platform_id == asked.c.platform_id,
                ),
            )
            .outerjoin(BASELINES, BASELINES.c.id == night_of_fix.c.baseline_id)
        ):
            found[row.id] = row
    return found


def _regression(
    episode: _Episode,
    acknowledged: Sequence[Acknowledgement],
    accepted: Sequence[Row[*tuple[Any, ...]]],
    today: date,
) -> Regression:
    first, last, proof = episode.first, episode.last, episode.proof

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

    normal = next((one for one in reversed(accepted) if _makes_normal(one, last, proof)), None)
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


def _makes_normal(decision: Row[*tuple[Any, ...]], last: Row[*tuple[Any, ...]], proof: _Proof | None) -> bool:
    """Whether a person accepted the regression's level: after it was seen, and from no later than it went."""
    end = last.started_at if proof is None else proof.started_at
    return (
        decision.case_id == last.case_id
        and decision.phase in (None, last.phase)
        and decision.platform_id in (None, last.platform_id)
        and decision.decided_at >= (last.started_at or _BEFORE_ALL)
        and (end is None or decision.from_time <= end)
    )


def _in_new_baseline(last: Row[*tuple[Any, ...]], proof: _Proof) -> bool:
    """Whether the level stayed and the baseline moved: another was set, and the latency is nearer the slow level."""
    if proof.baseline_id in (None, last.baseline_id):
        return False
    if not (proof.latency_us and last.latency_us and last.baseline_latency_us):
        return False
    now, slow, fast = (math.log(us) for us in (proof.latency_us, last.latency_us, last.baseline_latency_us))
    return abs(now - slow) < abs(now - fast)
