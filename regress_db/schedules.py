"""When nights are to happen, so that one that did not can be named.

A schedule says that a plan has a night at a time of each day. It is never edited, only retired and set anew: what was
expected since then is what counts. `expected_nights` is pure; `absent_nights` holds it against the nights there are.
Called by the command line and `regress_db.queries`; next to read: `regress_db.nights`.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, time, timedelta, tzinfo
from functools import cache
from itertools import pairwise

from sqlalchemy import ColumnElement, Connection, func, insert, select, update

from regress_db import lookup
from regress_db.errors import ScheduleError
from regress_db.history import History
from regress_db.schema import NIGHTS, SCHEDULES

GRACE = timedelta(hours=1)
"""How late a night may begin before it is said that it did not happen."""

EARLY = timedelta(minutes=10)
"""How much before its time a night may begin: the clocks of a cluster differ, and some schedulers are early."""

_DAY = timedelta(days=1)
_LIVE = SCHEDULES.c.retired_at.is_(None)
_AT = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")


@dataclass(frozen=True, slots=True)
class Schedule:
    """One schedule. at: "02:00". zone: IANA name, "" for the zone of the machine that asks. retired_*: None while it
    lives.
    """

    plan: str
    at: str
    zone: str
    set_by: str
    set_at: datetime
    retired_by: str | None = None
    retired_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class AbsentNight:
    """A night that did not happen. expected_at: UTC. local: the same by the schedule's clock, "2026-11-23 02:00"."""

    plan: str
    expected_at: datetime
    local: str

    @property
    def sentence(self) -> str:
        """What the report of the next night says."""
        return f"The night of {self.local} did not happen"


def set_schedule(
    history: History, plan: str, at: str, zone: str, who: str, *, when: datetime | None = None
) -> Schedule:
    """Say that the plan has a night at `at` ("02:00") of each day, by the clock of `zone`; retires the standing one.

    Where the standing one says the same it stays, and is returned: what was expected by it is not forgotten. Raises
    `ScheduleError` for a time or zone that is none, and where nobody sets it or it is of no plan.
    """
    if not plan.strip() or not who.strip():
        raise ScheduleError("say of which plan the schedule is, and who sets it")
    if not _AT.fullmatch(at):
        raise ScheduleError(f"{at!r} is no time of a day: write it as HH:MM, such as 02:00")
    _zone(zone)
    moment = when or datetime.now(UTC)
    with history.write() as connection:
        for standing in _schedules(connection, SCHEDULES.c.plan == plan, _LIVE):
            if (standing.at, standing.zone) == (at, zone):
                return standing
        _retire(connection, plan, who, moment)
        made = Schedule(plan, at, zone, set_by=who, set_at=moment)
        connection.execute(insert(SCHEDULES), asdict(made))
    return made


def retire_schedule(history: History, plan: str, who: str, *, when: datetime | None = None) -> bool:
    """Retire the plan's schedule; False where it has none. Raises `ScheduleError` where nobody retires it."""
    if not who.strip():
        raise ScheduleError("say who retires the schedule")
    with history.write() as connection:
        return _retire(connection, plan, who, when or datetime.now(UTC))


def list_schedules(history: History, *, retired: bool = False) -> list[Schedule]:
    """The live schedules by plan; with `retired`, the others too, newest first within a plan."""
    with history.read() as connection:
        return _schedules(connection) if retired else _schedules(connection, _LIVE)


def absent_nights(history: History, now: datetime, *, days: int = 30) -> list[AbsentNight]:
    """The nights of the last `days` days that were to happen and did not, newest first.

    A night happened where one of its plan started from `EARLY` before its time up to `EARLY` before the next one's.
    """
    with history.read() as connection:
        return load_absent(connection, now, days=days)


def load_absent(connection: Connection, now: datetime, *, days: int = 30) -> list[AbsentNight]:
    """`absent_nights`, within a transaction. Raises `ScheduleError` for a zone that this machine does not know."""
    schedules = _schedules(connection, _LIVE)
    earliest = now - days * _DAY
    started: dict[str, list[datetime]] = defaultdict(list)
    if schedules:
        rows = connection.execute(
            select(NIGHTS.c.plan, NIGHTS.c.started_at)
            .where(NIGHTS.c.started_at >= earliest - EARLY, NIGHTS.c.plan.in_([one.plan for one in schedules]))
            .order_by(NIGHTS.c.started_at)
        )
        for plan, moment in rows:
            started[plan].append(moment)
    absent = []
    for one in schedules:
        zone = _zone(one.zone)
        expected = expected_nights(time.fromisoformat(one.at), zone, max(one.set_at, earliest), now + 2 * _DAY)
        for moment in without_a_start(expected, started[one.plan], now):
            local = f"{moment.astimezone(zone):%Y-%m-%d %H:%M}"
            absent.append(AbsentNight(one.plan, moment, f"{local} {one.zone}".rstrip()))
    return sorted(absent, key=lambda night: (night.expected_at, night.plan), reverse=True)


def absent_before(history: History, night_id: str) -> tuple[AbsentNight, ...]:
    """The nights of the same plan that were to happen between the one before this one and this one and did not, oldest
    first. Raises `NotFoundError` for an unknown night.
    """
    with history.read() as connection:
        night = lookup.night(connection, night_id)
        return load_absent_before(connection, night.plan, night.started_at)


def load_absent_before(connection: Connection, plan: str, started_at: datetime | None) -> tuple[AbsentNight, ...]:
    """`absent_before`, within a transaction, of a plan's night that started then."""
    if started_at is None:
        return ()
    before = connection.execute(
        select(func.max(NIGHTS.c.started_at)).where(NIGHTS.c.plan == plan, NIGHTS.c.started_at < started_at)
    ).scalar()
    return tuple(
        one
        for one in reversed(load_absent(connection, started_at))
        if one.plan == plan and (before is None or one.expected_at > before)
    )


def expected_nights(at: time, zone: tzinfo | None, first: datetime, last: datetime) -> list[datetime]:
    """The instants from `first` to `last` at which it is `at` in `zone` (None: this machine's), one a day, in UTC.

    A time that a day has twice counts the first time. One that a day does not have is as much later as its clock was
    set on; where that is the next day's instant (a zone that left out a day), it is one instant, not two.
    """
    day, until = first.astimezone(UTC).date() - 2 * _DAY, last.astimezone(UTC).date() + 2 * _DAY
    found = set()
    while day <= until:
        # `timestamp` moves a time that is not there to after the gap in this machine's zone too; `astimezone` does not.
        moment = datetime.fromtimestamp(datetime.combine(day, at, tzinfo=zone).timestamp(), UTC)
        if first <= moment <= last:
            found.add(moment)
        day += _DAY
    return sorted(found)


def without_a_start(expected: list[datetime], started: list[datetime], now: datetime) -> list[datetime]:
    """Those of the expected instants, but for the last, that are past their grace and have no start. All in order."""
    absent = []
    for moment, following in pairwise(expected):
        first = bisect_left(started, moment - EARLY)
        happened = first < len(started) and started[first] < following - EARLY
        if not happened and moment + GRACE <= now:
            absent.append(moment)
    return absent


def _retire(connection: Connection, plan: str, who: str, moment: datetime) -> bool:
    retired = connection.execute(
        update(SCHEDULES).where(SCHEDULES.c.plan == plan, _LIVE).values(retired_by=who, retired_at=moment)
    )
    return retired.rowcount > 0


def _schedules(connection: Connection, *which: ColumnElement[bool]) -> list[Schedule]:
    columns = [SCHEDULES.c[one.name] for one in fields(Schedule)]
    wanted = select(*columns).where(*which).order_by(SCHEDULES.c.plan, SCHEDULES.c.id.desc())
    return [Schedule(*row) for row in connection.execute(wanted)]


@cache
def _zone(name: str) -> tzinfo | None:
    """The zone by its IANA name, None (this machine's own) for ""."""
    if not name:
        return None
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ScheduleError(
            f"{name!r} is no time zone that this machine knows: use an IANA name such as Europe/Berlin or UTC"
        ) from None
