"""Triage: what has regressed is open until it is acknowledged, fixed or normal; what is acknowledged passes."""

import threading
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nights_of_records import run_night
from synthetic_records import CASE, PLATFORM, START

from regress_db.baselines import set_baseline
from regress_db.errors import NotFoundError, TriageError
from regress_db.history import History
from regress_db.nightverdict import SeriesVerdict, stored_verdict
from regress_db.triage import accept, acknowledge, decisions, regressions, withdraw
from regress_db.verdicts import Rules, judge_night
from regress_db.waivers import Acknowledgement, Slowing, Waiver, tolerance_for, tolerated, why_not

RULES = Rules(floor=0.1)
TODAY = datetime.now(UTC).date()
KEY = "combine"


@pytest.fixture
def nights(history, spool):
    """Measures and judges one night more at a level of combine; the first is the baseline."""
    count = 0

    def night(combine_us, **changes):
        nonlocal count
        name = f"night{count}"
        run_night(history, spool, name, combine_us=combine_us, started=START + timedelta(days=count), **changes)
        if count == 0:
            set_baseline(history, "main", night=name, who="ada", why="release")
        else:
            judge_night(history, name, baseline="main", rules=RULES)
        count += 1
        return name

    night(200.0)
    return night


def code(history, night, **day):
    return stored_verdict(history, night, **day).exit_code()


def states(history, **more):
    return [(one.phase, one.state, one.since, one.night, one.gone_in) for one in regressions(history, **more)]


# What passes, and until when


def test_an_acknowledged_regression_passes_until_it_gets_worse(history, nights):
    first = nights(260.0)
    assert code(history, first) == 1
    assert states(history) == [(KEY, "open", first, first, None)]

    (made,) = acknowledge(history, [CASE.key], who="ada", why="known, being worked on")
    assert (made.decision, made.phase, made.platform) == ("acknowledged", KEY, PLATFORM.key)
    assert made.effect == pytest.approx(0.3, abs=0.02)
    said = stored_verdict(history, first)
    (worst,) = [one for one in said.series if one.verdict == "regressed"]
    assert said.exit_code(strict=True) == 0
    assert worst.acknowledged == made.number
    assert worst.waiver == "acknowledged by ada, at +30.0 %: known, being worked on"
    assert worst.sentence.endswith(f"; {worst.waiver}.")
    assert "1 regressed (1 acknowledged)" in said.headline

    same = nights(262.0)
    assert code(history, same) == 0
    assert states(history) == [(KEY, "acknowledged", first, same, None)]

    worse = nights(320.0)
    said = stored_verdict(history, worse)
    assert said.exit_code() == 1
    assert "the acknowledgement by ada was of +30.0 %, and it has got worse" in said.series[0].warnings
    (now,) = regressions(history)
    assert (now.state, now.remark) == ("open", "the acknowledgement by ada was of +30.0 %, and it has got worse")
    assert code(history, same) == 0, "the night that was no worse still passes"

    acknowledge(history, [CASE.key], who="bob", why="that, too")
    assert code(history, worse) == 0
    assert regressions(history)[0].by == "bob"


def test_its_day_passes_and_it_fails_again(history, nights):
    night = nights(260.0)
    acknowledge(history, [CASE.key], who="ada", why="until the driver", until=TODAY)
    assert code(history, night) == 0
    assert code(history, night, today=TODAY) == 0
    tomorrow = TODAY + timedelta(days=1)
    assert code(history, night, today=tomorrow) == 1
    ended = f"the acknowledgement by ada ended on {TODAY}"
    assert ended in stored_verdict(history, night, today=tomorrow).series[0].warnings
    (now,) = regressions(history, now=datetime.now(UTC) + timedelta(days=1))
    assert (now.state, now.remark, now.by) == ("open", ended, None)


def test_judging_anew_says_the_same_as_what_is_stored(history, nights):
    night = nights(260.0)
    acknowledge(history, [CASE.key], who="ada", why="known")
    again = judge_night(history, night, baseline="main", rules=RULES)
    assert again.exit_code() == 0
    assert stored_verdict(history, night) == again
    (made,) = decisions(history)
    withdraw(history, made.number, who="ada", why="it matters after all")
    assert code(history, night) == 1


def test_a_regression_that_comes_back_after_it_was_fixed_is_another_one(history, nights):
    first = nights(260.0)
    acknowledge(history, [CASE.key], who="ada", why="known")
    fixed = nights(200.0)
    assert states(history) == [(KEY, "fixed", first, first, fixed)]
    again = nights(260.0)
    assert code(history, again) == 1
    assert code(history, first) == 0
    assert states(history) == [(KEY, "open", again, again, None), (KEY, "fixed", first, first, fixed)]
    assert [one.state for one in regressions(history, limit=1)] == ["open"]


def test_a_night_that_could_not_tell_fixes_nothing(history, nights):
    first = nights(260.0)
    acknowledge(history, [CASE.key], who="ada", why="known")
    nights(200.0, bad={2: "failed"})
    last = nights(260.0)
    assert states(history) == [(KEY, "acknowledged", first, last, None)]


def test_only_the_phase_and_the_platform_that_were_named_are_acknowledged(history, nights):
    night = nights(260.0, dispatch_us=140.0)
    acknowledge(history, [CASE.key], who="ada", why="known", phase="dispatch")
    assert code(history, night) == 1
    assert {(phase, state) for phase, state, *_ in states(history)} == {
        ("combine", "open"),
        ("dispatch", "acknowledged"),
    }
    acknowledge(history, [CASE.key], who="ada", why="known", platform=PLATFORM.key, phase="combine")
    assert code(history, night) == 0


def test_a_waiver_in_the_plan_s_file_goes_first(history, nights):
    night = nights(260.0)
    acknowledge(history, [CASE.key], who="ada", why="known")
    waiver = Waiver("*", None, "*", 0.5, TODAY, "bob", "in the file")
    said = judge_night(history, night, baseline="main", rules=Rules(floor=0.1, waivers=(waiver,)))
    assert said.series[0].waiver.startswith("waived until")
    assert said.series[0].acknowledged is None
    assert stored_verdict(history, night) == said


# Normal


def test_an_accepted_level_is_expected(history, nights):
    night = nights(260.0)
    (made,) = accept(history, [CASE.key], since=START + timedelta(days=1), who="ada", why="checks every row now")
    (one,) = regressions(history)
    assert (one.state, one.by, one.why, one.number) == ("expected", "ada", "checks every row now", made.number)
    assert one.night == night
    withdraw(history, made.number, who="ada", why="no", kind="accepted")
    assert regressions(history)[0].state == "open"


def test_what_a_new_baseline_holds_is_expected_and_not_fixed(history, nights):
    first = nights(260.0)
    set_baseline(history, "main", night=first, who="bob", why="new compiler", replace=True)
    after = nights(260.0)
    (one,) = regressions(history)
    assert (one.state, one.by, one.why, one.number, one.gone_in) == ("expected", "bob", "new compiler", None, after)


# Refused


def test_what_cannot_be_acknowledged_is_refused_and_nothing_is_written(history, nights):
    nights(200.0)
    good = {"cases": [CASE.key], "who": "ada", "why": "known"}
    for wrong, kind, says in [
        ({}, TriageError, "has an open regression"),
        ({"cases": []}, TriageError, "has an open regression"),
        ({"cases": ["no/such/case"]}, NotFoundError, "no case 'no/such/case'"),
        ({"platform": "moon"}, NotFoundError, "no platform 'moon'"),
        ({"phase": "warp"}, TriageError, "'warp' is no phase"),
        ({"who": " "}, TriageError, "say who acknowledges the regression, and why"),
        ({"why": ""}, TriageError, "say who acknowledges the regression, and why"),
        ({"until": TODAY - timedelta(days=1)}, TriageError, "is past: the last day is to be"),
    ]:
        asked = good | wrong
        with pytest.raises(kind, match=says):
            acknowledge(history, asked.pop("cases"), **asked)
    assert decisions(history, withdrawn=True) == []


def test_a_decision_is_withdrawn_as_what_it_is(history, nights):
    nights(260.0)
    (made,) = acknowledge(history, [CASE.key], who="ada", why="known")
    with pytest.raises(NotFoundError, match="accept --list"):
        withdraw(history, made.number, who="ada", why="wrong kind", kind="accepted")
    assert decisions(history, kind="accepted") == []
    assert [one.number for one in decisions(history, kind="acknowledged")] == [made.number]


def test_two_who_acknowledge_at_once_both_stand(history, nights):
    night = nights(260.0)
    where = history.where if history.path else history._engine.url.render_as_string(hide_password=False)
    made, errors = [], []

    def decide(who):
        try:
            with History.open(where) as own:
                made.extend(acknowledge(own, [CASE.key], who=who, why="known"))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=decide, args=(who,)) for who in ("ada", "bob")]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert errors == []
    assert len({one.number for one in made}) == 2
    assert {one.decided_by for one in decisions(history)} == {"ada", "bob"}
    assert code(history, night) == 0


# The rule

changes = st.floats(-0.5, 20.0)
floors = st.floats(0.0, 2.0)


def acknowledgement(effect, until=None):
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return Acknowledgement(1, CASE.key, KEY, PLATFORM.key, effect, until, "ada", at, "known")


def slowing(effect, low, floor):
    return Slowing(CASE.key, KEY, PLATFORM.key, effect, low, floor)


@given(changes, changes, floors)
def test_what_was_acknowledged_itself_always_passes(effect, below, floor):
    assert not acknowledgement(effect).is_worse(slowing(effect, min(effect, below), floor))


@given(changes, changes, changes, floors, floors)
def test_a_slower_interval_is_never_better_and_a_larger_floor_never_stricter(effect, low, higher, floor, wider):
    one = acknowledgement(effect)
    low, higher = sorted((low, higher))
    floor, wider = sorted((floor, wider))
    if one.is_worse(slowing(low, low, wider)):
        assert one.is_worse(slowing(higher, higher, floor))


@given(changes, floors, st.floats(0.001, 5.0))
def test_beyond_the_floor_above_what_was_acknowledged_it_is_worse(effect, floor, beyond):
    edge = (1 + effect) * (1 + floor)
    assert acknowledgement(effect).is_worse(slowing(effect, edge * (1 + beyond) - 1, floor))
    assert not acknowledgement(effect).is_worse(slowing(effect, edge / (1 + beyond) - 1, floor))


@given(st.dates(), st.dates())
def test_a_day_holds_to_its_end(until, today):
    found = tolerance_for([acknowledgement(0.3, until)], slowing(0.3, 0.2, 0.1), today)
    assert (found is not None) == (today <= until)
    assert bool(why_not([acknowledgement(0.3, until)], slowing(0.3, 0.2, 0.1), today)) == (today > until)


@given(st.sampled_from(["improved", "unchanged", "inconclusive", "insufficient", "failed", "missing"]))
def test_only_what_regressed_is_tolerated(verdict):
    names = "noise_floor detectable runs_needed p_value shared latency_us bandwidth_gbs baseline_latency_us"
    said = SeriesVerdict(
        case=CASE.key,
        phase=KEY,
        platform_key=PLATFORM.key,
        verdict=verdict,
        effect=0.3,
        low=0.2,
        high=0.4,
        floor=0.1,
        new_runs=5,
        confirmations=0,
        baseline_runs=5,
        sentence="It is so.",
        **dict.fromkeys([*names.split(), "baseline_first", "baseline_last"]),
    )
    assert tolerated(said, [acknowledgement(0.3)], date(2026, 1, 1)) is said
