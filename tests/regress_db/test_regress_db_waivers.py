"""Waivers: a known slowing does not fail the night until its day has come, and is never hidden."""

from datetime import UTC, date, datetime, timedelta

import pytest
from nights_of_records import run_night
from synthetic_records import CASE

from regress_db.baselines import set_baseline
from regress_db.nightverdict import stored_verdict
from regress_db.verdicts import Rules, judge_night
from regress_db.waivers import Slowing, Waiver, tolerance_for, why_not

TODAY = datetime.now(UTC).date()
SLOWING = Slowing(CASE.key, "combine", "any", effect=0.3, low=0.28, floor=0.1)


def waiver(**changes):
    return Waiver(
        **{
            "case": "ep_core/ll/*",
            "phase": "combine",
            "platform": "*",
            "up_to": 0.4,
            "until": TODAY + timedelta(days=7),
            "who": "ada",
            "why": "driver 580.2",
        }
        | changes
    )


@pytest.fixture
def slower(history, spool):
    """A baseline, and a night in which combine takes 1.3 times as long."""
    run_night(history, spool, "first")
    set_baseline(history, "main", night="first", who="ada", why="release")
    run_night(history, spool, "second", combine_us=260.0)
    return history


def judged(history, *waivers):
    return judge_night(history, "second", baseline="main", rules=Rules(floor=0.1, waivers=waivers))


def test_a_waived_regression_is_still_called_one_but_does_not_fail_the_night(slower):
    verdict = judged(slower, waiver())
    (worst, *_) = verdict.series
    assert worst.verdict == "regressed"
    assert worst.waiver.startswith("waived until ")
    assert worst.waiver in worst.sentence
    assert verdict.exit_code(strict=True) == 0
    assert "1 regressed (1 waived)" in verdict.headline
    assert stored_verdict(slower, "second") == verdict


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"until": TODAY - timedelta(days=1)}, f"the waiver by ada ended on {TODAY - timedelta(days=1)}"),
        ({"up_to": 0.2}, "the waiver by ada covers up to 20 %"),
        ({"phase": "dispatch"}, None),
        ({"case": "torch/*"}, None),
        ({"platform": "elsewhere*"}, None),
    ],
)
def test_a_waiver_that_has_ended_or_is_of_something_else_waives_nothing(slower, changes, says):
    verdict = judged(slower, waiver(**changes))
    assert verdict.exit_code() == 1
    assert verdict.series[0].waiver == ""
    assert (says in verdict.series[0].warnings) if says else not any("waiver" in w for w in verdict.series[0].warnings)


def test_of_several_waivers_the_one_that_ends_last_counts():
    long, short = waiver(until=date(2030, 1, 1)), waiver(until=date(2029, 1, 1))
    asked = (SLOWING, date(2028, 1, 1))
    assert tolerance_for([short, long, short], *asked) is long
    assert why_not([], *asked) == ""


def test_a_waiver_holds_through_its_last_day():
    one = waiver(until=date(2026, 12, 31))
    assert tolerance_for([one], SLOWING, date(2026, 12, 31)) is one
    assert tolerance_for([one], SLOWING, date(2027, 1, 1)) is None
