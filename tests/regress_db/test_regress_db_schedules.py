"""Nights that were to happen: when, whatever clocks do meanwhile, and which of them did not."""

import time as clock
from datetime import UTC, datetime, time, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from harness.case import Case
from harness.record import PlannedRun
from regress_db.errors import HistoryError, ScheduleError
from regress_db.nights import close_night, open_night
from regress_db.queries import nights
from regress_db.schedules import (
    EARLY,
    GRACE,
    AbsentNight,
    absent_nights,
    expected_nights,
    list_schedules,
    retire_schedule,
    set_schedule,
    without_a_start,
)
from regress_db.schema import SCHEDULES

ZONES = [
    "UTC",
    "Asia/Kolkata",
    "Europe/Berlin",
    "America/New_York",
    "America/Sao_Paulo",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
    "Pacific/Apia",
]
"""With no change of clocks; of an hour, by night and at midnight; of half an hour; at Ramadan; of a whole day."""

DAY = timedelta(days=1)
times = st.builds(time, st.integers(0, 23), st.integers(0, 59))
starts = st.datetimes(datetime(2011, 1, 1), datetime(2026, 12, 31), timezones=st.just(UTC))


def exists(day, at, zone):
    """Whether the day has this time on this zone's clocks."""
    local = datetime.combine(day, at, tzinfo=zone)
    return local.astimezone(UTC).astimezone(zone).replace(tzinfo=None) == local.replace(tzinfo=None)


@given(st.sampled_from(ZONES).map(ZoneInfo), times, starts, st.integers(1, 400))
def test_a_night_is_expected_once_on_each_day_whatever_the_clocks_do(zone, at, first, days):
    found = expected_nights(at, zone, first, first + days * DAY)
    assert all(moment.tzinfo is UTC and first <= moment <= first + days * DAY for moment in found)
    assert all(timedelta(hours=20) < late - early < timedelta(hours=28) for early, late in pairwise(found))
    assert abs(len(found) - days) <= 1
    local = [moment.astimezone(zone) for moment in found]
    for moment in local:
        assert moment.time() == at or not exists(moment.date(), at, zone)
        assert moment.fold == 0
    of_day = [moment.date() for moment in local]
    inside = [first.date() + offset * DAY for offset in range(3, days - 2)]
    assert all(of_day.count(day) == 1 for day in inside if exists(day, at, zone))


@pytest.mark.parametrize(
    ("zone", "at", "around", "expected"),
    [
        ("Europe/Berlin", "02:30", "2026-03-29", ["03-28 01:30", "03-29 01:30", "03-30 00:30"]),
        ("Europe/Berlin", "02:30", "2026-10-25", ["10-24 00:30", "10-25 00:30", "10-26 01:30"]),
        ("America/New_York", "02:00", "2026-03-08", ["03-07 07:00", "03-08 07:00", "03-09 06:00"]),
        ("Pacific/Apia", "02:00", "2011-12-30", ["12-29 12:00", "12-30 12:00", "12-31 12:00"]),
    ],
)
def test_days_on_which_clocks_change(zone, at, around, expected):
    middle = datetime.fromisoformat(f"{around}T06:00+00:00")
    found = expected_nights(time.fromisoformat(at), ZoneInfo(zone), middle - 2 * DAY, middle + 2 * DAY)
    said = [f"{moment:%m-%d %H:%M}" for moment in found]
    assert any(said[start : start + 3] == expected for start in range(len(said))), said


@pytest.mark.parametrize("zone", ["America/New_York", "Australia/Lord_Howe"])
def test_no_zone_is_the_zone_of_this_machine(monkeypatch, zone):
    monkeypatch.setenv("TZ", zone)
    clock.tzset()
    try:
        span = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 12, 31, tzinfo=UTC)
        assert expected_nights(time(2, 15), None, *span) == expected_nights(time(2, 15), ZoneInfo(zone), *span)
    finally:
        monkeypatch.undo()
        clock.tzset()


minutes = st.integers(0, int((DAY - timedelta(minutes=1)) / timedelta(minutes=1)))


@given(starts, st.lists(st.lists(minutes, max_size=2), min_size=2, max_size=12), st.floats(0, 13))
def test_a_night_is_absent_when_none_started_from_a_little_before_it_to_a_little_before_the_next(first, begun, seen):
    expected = [first + day * DAY for day in range(len(begun))]
    started = sorted(
        moment - EARLY + timedelta(minutes=after)
        for moment, of_day in zip(expected, begun, strict=True)
        for after in of_day
    )
    now = first + seen * DAY
    assert without_a_start(expected, started, now) == [
        moment for moment, of_day in zip(expected[:-1], begun[:-1], strict=True) if not of_day and moment + GRACE <= now
    ]


SET = datetime(2026, 11, 20, 9, 0, tzinfo=UTC)


def night(history, name, started, plan="nightly"):
    open_night(history, name, plan, started, [])
    close_night(history, name, started + timedelta(minutes=9))


def test_a_schedule_is_set_retired_and_set_anew(history):
    assert list_schedules(history) == []
    first = set_schedule(history, "nightly", "02:00", "Europe/Berlin", "ann", when=SET)
    assert set_schedule(history, "nightly", "02:00", "Europe/Berlin", "bob", when=SET + DAY) == first
    assert list_schedules(history) == [first]
    second = set_schedule(history, "nightly", "03:30", "", "bob", when=SET + DAY)
    other = set_schedule(history, "weekly", "03:30", "UTC", "bob", when=SET)
    assert list_schedules(history) == [second, other]
    old = list_schedules(history, retired=True)[1]
    assert (old.at, old.set_by, old.retired_by, old.retired_at) == ("02:00", "ann", "bob", SET + DAY)
    assert retire_schedule(history, "nightly", "eve")
    assert not retire_schedule(history, "nightly", "eve")
    assert list_schedules(history) == [other]
    assert [one.plan for one in list_schedules(history, retired=True)] == ["nightly", "nightly", "weekly"]


def test_the_database_keeps_a_second_live_schedule_of_a_plan_out(history):
    set_schedule(history, "nightly", "02:00", "", "ann", when=SET)
    row = {"plan": "nightly", "at": "03:00", "zone": "", "set_by": "bob", "set_at": SET}
    with pytest.raises((IntegrityError, HistoryError)), history.write() as connection:
        connection.execute(insert(SCHEDULES), row)
    retire_schedule(history, "nightly", "bob")
    with history.write() as connection:
        connection.execute(insert(SCHEDULES), row)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("nightly", "2:00", "", "ann"), "'2:00' is no time of a day: write it as HH:MM"),
        (("nightly", "24:00", "", "ann"), "no time of a day"),
        (("nightly", "02:00", "Berlin", "ann"), "'Berlin' is no time zone that this machine knows"),
        (("nightly", "02:00", "../../etc/passwd", "ann"), "no time zone"),
        (("nightly", "02:00", "", " "), "who sets it"),
        (("", "02:00", "", "ann"), "of which plan"),
    ],
)
def test_what_is_no_schedule_is_refused_in_a_sentence(sqlite_history, asked, words):
    with pytest.raises(ScheduleError, match=words) as caught:
        set_schedule(sqlite_history, *asked)
    assert "\n" not in str(caught.value)
    assert list_schedules(sqlite_history) == []


def test_nights_that_did_not_happen_are_named_newest_first_and_only_since_the_schedule(history):
    set_schedule(history, "nightly", "02:00", "Europe/Berlin", "ann", when=SET)
    night(history, "a", datetime(2026, 11, 21, 0, 55, tzinfo=UTC))
    night(history, "b", datetime(2026, 11, 23, 14, 0, tzinfo=UTC))
    night(history, "c", datetime(2026, 11, 24, 1, 0, tzinfo=UTC), plan="another")
    now = datetime(2026, 11, 25, 1, 59, tzinfo=UTC)
    assert absent_nights(history, now) == [
        AbsentNight("nightly", datetime(2026, 11, 24, 1, 0, tzinfo=UTC), "2026-11-24 02:00 Europe/Berlin"),
        AbsentNight("nightly", datetime(2026, 11, 22, 1, 0, tzinfo=UTC), "2026-11-22 02:00 Europe/Berlin"),
    ]
    assert absent_nights(history, now + timedelta(minutes=1))[0].expected_at == datetime(2026, 11, 25, 1, tzinfo=UTC)
    assert len(absent_nights(history, now, days=2)) == 1
    assert len(absent_nights(history, now + 60 * DAY + timedelta(minutes=1))) == 30
    retire_schedule(history, "nightly", "ann")
    assert absent_nights(history, now) == []


def test_the_list_of_nights_has_them_in_their_places(history):
    set_schedule(history, "nightly", "02:00", "UTC", "ann", when=SET)
    night(history, "a", datetime(2026, 11, 21, 2, 0, tzinfo=UTC))
    open_night(history, "b", "nightly", datetime(2026, 11, 23, 2, 0, tzinfo=UTC), [])
    now = datetime(2026, 11, 24, 4, 0, tzinfo=UTC)
    absent = [datetime(2026, 11, day, 2, 0, tzinfo=UTC) for day in (24, 22)]
    lines = nights(history, now=now)
    assert [(line.night, line.state, line.expected_at) for line in lines] == [
        ("", "did not happen", absent[0]),
        ("b", "running", None),
        ("", "did not happen", absent[1]),
        ("a", "done", None),
    ]
    case = Case(backend="torch", mode="ll", ranks=1, tokens=1, hidden=8, topk=1, experts=1)
    open_night(history, "b", "nightly", now, [PlannedRun(run_id="0" * 32, case=case, night="b", repeat=0)])
    assert nights(history)[0].state == "running"
    close_night(history, "b", now)
    assert (nights(history)[0].state, nights(history)[0].missing) == ("over", 1)
    assert [line.night for line in nights(history, 2, now=now)] == ["", "b"]
    assert [line.night for line in nights(history)] == ["b", "a"]
