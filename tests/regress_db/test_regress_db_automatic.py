"""The automatic baseline: each series' own past, since the last accepted change."""

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nights_of_records import planned_runs, run_night
from synthetic_records import CASE, START, ok_record

from harness import record as records
from regress_db.automatic import LEVEL_NIGHTS, Mark, NightOfSeries, choose
from regress_db.errors import NotFoundError, TriageError
from regress_db.ingest import collect
from regress_db.nightverdict import stored_verdict
from regress_db.selection import Selection
from regress_db.triage import accept, cases_of, decisions, moment_of, withdraw
from regress_db.verdicts import Rules, judge_night
from regress_db.wording import AUTO

RULES = Rules(floor=0.05)


def series(*levels_us, regressed=()):
    """A series by (nights, µs) levels, with a noise of about one per cent that is the same each time."""
    wobble = [0.004, -0.007, 0.011, -0.002, -0.012, 0.008, 0.001, -0.005, 0.013, -0.009]
    values = [us for count, us in levels_us for _ in range(count)]
    return [
        NightOfSeries(
            f"n{i}",
            START + timedelta(days=i),
            (i,),
            (value * (1 + wobble[i % len(wobble)]),),
            regressed_at=START + timedelta(days=i, hours=4) if i in regressed else None,
        )
        for i, value in enumerate(values)
    ]


def mark(day, words="accepted"):
    return Mark(START + timedelta(days=day), START + timedelta(days=day, hours=9), words)


# Pure


def test_a_steady_series_is_compared_with_its_last_nights():
    past = choose(series((50, 100.0)), [])
    assert past.level == tuple(range(50 - LEVEL_NIGHTS, 50))
    assert past.earlier == ()
    assert past.since == ""


def test_a_slowing_that_nobody_accepted_never_becomes_normal():
    past = choose(series((30, 100.0), (40, 120.0)), [])
    assert set(past.level) <= set(range(30))
    assert past.level


def test_a_slowing_that_was_repaired_leaves_the_nights_before_and_after():
    past = choose(series((30, 100.0), (12, 130.0), (12, 100.0)), [])
    assert set(past.level) & set(range(42, 54))
    assert not set(past.level) & set(range(31, 41))


def test_half_a_repair_is_not_normal_either():
    past = choose(series((30, 100.0), (15, 140.0), (15, 120.0)), [])
    assert set(past.level) <= set(range(30))


def test_what_got_faster_has_to_stay_so():
    past = choose(series((30, 100.0), (20, 80.0)), [])
    assert set(past.level) <= set(range(29, 50))
    assert past.since.startswith("since it got faster in night n")
    assert past.earlier


def test_a_person_s_mark_starts_a_new_level_and_keeps_the_spread():
    past = choose(series((30, 100.0), (3, 120.0)), [mark(30, "since 2026-10-31, accepted by ada: new feature")])
    assert past.level == (30, 31, 32)
    assert past.earlier == (tuple(range(30)),)
    assert past.since.endswith("accepted by ada: new feature")


def test_the_newest_of_several_marks_counts():
    past = choose(series((10, 100.0), (10, 120.0), (10, 150.0)), [mark(10), mark(20), mark(5)])
    assert past.level == tuple(range(20, 30))


def test_nights_that_were_said_to_be_regressed_are_no_level_even_before_the_step_is_seen():
    past = choose(series((20, 100.0), (2, 130.0), regressed={20, 21}), [])
    assert past.level == tuple(range(20))


def test_a_mark_in_the_future_and_an_empty_past_leave_nothing_to_compare_with():
    assert choose(series((5, 100.0)), [mark(9)]).level == ()
    assert choose([], []).level == ()


@given(
    st.lists(st.floats(50.0, 200.0), max_size=60),
    st.lists(st.integers(0, 60), max_size=3),
    st.sets(st.integers(0, 60), max_size=5),
)
def test_whatever_happened_no_run_is_counted_twice_and_none_is_invented(values, marks, regressed):
    nights = [
        NightOfSeries(
            f"n{i}",
            START + timedelta(days=i),
            (i,),
            (value,),
            START + timedelta(days=i, hours=4) if i in regressed else None,
        )
        for i, value in enumerate(values)
    ]
    past = choose(nights, [mark(day) for day in marks])
    told = [run for runs in (past.level, *past.earlier) for run in runs]
    assert len(told) == len(set(told))
    assert set(told) <= set(range(len(values)))
    assert len(past.level) <= LEVEL_NIGHTS
    assert all(run in marks for run in set(past.level) & regressed)
    assert min(past.level, default=0) >= max((day for day in marks if past.level), default=0)


# On a history


def nights_of(history, spool, latencies, *, first=0, judge=True):
    """One night a day with one run each; combine takes what `latencies` say."""
    for day, us in enumerate(latencies, start=first):
        name = f"night{day:03}"
        run_night(
            history,
            spool,
            name,
            planned_runs(name, repeats=1),
            started=START + timedelta(days=day),
            combine_us=us,
        )
        if judge:
            judge_night(history, name, baseline=AUTO, rules=RULES)


STEADY = [200.0, 201.0, 199.5, 200.5, 198.5, 201.5, 200.0, 199.0]


def combine(history, night):
    return next(one for one in stored_verdict(history, night).series if one.phase == "combine")


def test_the_first_nights_have_too_little_past_and_then_there_is_enough(history, spool):
    nights_of(history, spool, STEADY[:5])
    told = [combine(history, f"night{day:03}").verdict for day in range(5)]
    assert told[0] == "insufficient"
    assert "its own past has 0 runs of it" in combine(history, "night000").sentence
    assert told[-1] in ("unchanged", "inconclusive")
    assert combine(history, "night004").baseline_runs == 4


def test_a_slow_night_is_red_and_stays_red_until_someone_accepts_it(history, spool):
    nights_of(history, spool, [*STEADY, 260.0, 259.0, 261.0])
    red = [combine(history, f"night{day:03}") for day in (8, 9, 10)]
    assert [one.verdict for one in red] == ["regressed"] * 3
    assert [one.baseline_runs for one in red] == [8, 8, 8]
    assert red[0].baseline_first
    (made,) = accept(
        history,
        [CASE.key],
        since=moment_of(history, "night008"),
        who="ada",
        why="checks every row now",
        phase="combine",
    )
    assert made.from_time == START + timedelta(days=8)
    nights_of(history, spool, [260.5, 259.5, 262.0], first=11)
    after = combine(history, "night013")
    assert after.verdict in ("unchanged", "inconclusive")
    assert "accepted by ada: checks every row now" in after.sentence
    assert after.baseline_runs == 5
    dispatch = next(one for one in stored_verdict(history, "night013").series if one.phase == "dispatch")
    assert dispatch.baseline_runs == 13


def test_what_is_accepted_later_says_nothing_of_an_earlier_night(history, spool):
    nights_of(history, spool, STEADY, judge=False)
    accept(history, [CASE.key], since=moment_of(history, "night006"), who="ada", why="new kernel")
    earlier = judge_night(history, "night005", baseline=AUTO, rules=RULES)
    assert {one.baseline_runs for one in earlier.series} == {5}
    assert {one.baseline_runs for one in judge_night(history, "night007", baseline=AUTO, rules=RULES).series} == {1}


def test_a_decision_can_be_withdrawn_and_both_stay_on_record(history, spool):
    nights_of(history, spool, [*STEADY[:4]], judge=False)
    (made,) = accept(history, [CASE.key], since=moment_of(history, "night002"), who="ada", why="new kernel")
    withdraw(history, made.number, who="bob", why="measured on the wrong machine")
    assert decisions(history) == []
    (kept,) = decisions(history, withdrawn=True)
    assert (kept.decided_by, kept.withdrawn_by, kept.reason) == ("ada", "bob", "new kernel")
    with pytest.raises(NotFoundError, match="no decision 1 stands"):
        withdraw(history, made.number, who="bob", why="again")
    judge_night(history, "night003", baseline=AUTO, rules=RULES)
    assert combine(history, "night003").baseline_runs == 3


def test_what_cannot_be_accepted_is_refused_and_nothing_is_written(history, spool):
    nights_of(history, spool, [200.0], judge=False)
    moment = moment_of(history, "latest")
    for wrong, error, says in (
        ({"cases": ["nope"]}, NotFoundError, "no case 'nope'"),
        ({"cases": [CASE.key, "nope"]}, NotFoundError, "no case 'nope'"),
        ({"cases": []}, TriageError, "no case matches"),
        ({"who": " "}, TriageError, "say who"),
        ({"why": ""}, TriageError, "say who accepts the change, and why"),
        ({"phase": "warp"}, TriageError, "'warp' is no phase"),
        ({"platform": "nope"}, NotFoundError, "no platform 'nope'"),
    ):
        given_ = {"cases": [CASE.key], "since": moment, "who": "ada", "why": "x"} | wrong
        with pytest.raises(error, match=says):
            accept(history, given_.pop("cases"), **given_)
    assert decisions(history, withdrawn=True) == []


def test_cases_and_moments_are_named_as_everywhere(history, spool):
    nights_of(history, spool, [200.0, 201.0], judge=False)
    assert cases_of(history, Selection.of("mode=ll")) == [CASE.key]
    assert cases_of(history, Selection.of("mode=ht")) == []
    assert moment_of(history, "latest") == START + timedelta(days=1)
    assert moment_of(history, "2026-10-05") == datetime.fromisoformat("2026-10-05T00:00:00+00:00")


def test_a_series_with_two_levels_says_how_often_it_was_at_which(history, spool):
    fast_and_slow = [200.0, 260.0, 201.0, 199.0, 261.0, 200.5, 199.5, 259.0, 200.0, 201.5, 260.5, 199.0, 200.0, 259.5]
    nights_of(history, spool, fast_and_slow, judge=False)
    nights_of(history, spool, [260.0], first=len(fast_and_slow))
    told = combine(history, f"night{len(fast_and_slow):03}")
    assert told.verdict == "inconclusive"
    (words,) = [warning for warning in told.warnings if "two levels" in warning]
    assert "1 of 1 were at the slow one, 5 of 14 before" in words
    assert "the slow level moved by" in words


def test_a_night_never_judges_itself_and_later_nights_are_no_past(history, spool):
    nights_of(history, spool, STEADY, judge=False)
    verdict = judge_night(history, "night004", baseline=AUTO, rules=RULES)
    assert {one.baseline_runs for one in verdict.series} == {4}
    assert judge_night(history, "night004", baseline=AUTO, rules=RULES).series == verdict.series


def test_runs_measured_by_hand_are_no_past(history, spool):
    nights_of(history, spool, STEADY[:3], judge=False)
    for seed in range(3):
        records.write(ok_record(seed=seed, started=START + timedelta(days=2, hours=seed + 1)), spool)
    collect(history, spool)
    nights_of(history, spool, STEADY[3:4], first=3)
    assert combine(history, "night003").baseline_runs == 3
