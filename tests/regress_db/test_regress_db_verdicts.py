"""Nights, baselines and verdicts: what is said of what came back, and of what did not."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from nights_of_records import planned_runs, run_night
from synthetic_records import CASE, PLATFORM, START, failed_record, ok_record

from harness import record as records
from harness.case import Case
from regress_db.baselines import list_baselines, retire_baseline, set_baseline, show_baseline
from regress_db.errors import BaselineError, HistoryError, NotFoundError
from regress_db.ingest import collect
from regress_db.nights import close_night, open_night
from regress_db.nightverdict import exit_code, headline, stored_verdict
from regress_db.queries import nights
from regress_db.verdicts import Rules, judge_night, judge_runs

OTHER = Case(backend="torch", mode="ll", ranks=2, tokens=32, hidden=256, topk=4, experts=8)
WHO = {"who": "ada", "why": "release 1.0"}


def by_phase(verdict):
    return {one.phase: one for one in verdict.series}


@pytest.fixture
def based(history, spool):
    """A history with one clean night that is the baseline `main`."""
    run_night(history, spool, "first")
    set_baseline(history, "main", night="first", **WHO)
    return history


# Nights


def test_a_night_is_entered_once_however_often_it_is_opened(history):
    planned = planned_runs("n")
    for part in (planned[:2], planned, planned):
        open_night(history, "n", "nightly", START, part)
    (line,) = nights(history)
    assert (line.planned, line.missing, line.ok, line.not_ok) == (5, 5, 0, 0)
    with pytest.raises(HistoryError, match="with plan 'nightly', not 'other'"):
        open_night(history, "n", "other", START, planned)


def test_a_night_whose_records_arrive_first_is_completed_when_it_is_opened(history, spool):
    planned = planned_runs("n", repeats=1)
    records.write(ok_record(run_id=planned[0].run_id, night="n"), spool)
    collect(history, spool)
    open_night(history, "n", "nightly", START, planned)
    (line,) = nights(history)
    assert (line.plan, line.started_at, line.ok, line.missing) == ("nightly", START, 1, 0)


def test_a_night_that_was_never_opened_cannot_be_closed_or_judged(based):
    for ask in (close_night, stored_verdict):
        with pytest.raises(NotFoundError, match="no night 'nope'; the newest are first"):
            ask(based, "nope")
    with pytest.raises(NotFoundError, match="no night 'nope'"):
        judge_night(based, "nope", baseline="main")
    with pytest.raises(NotFoundError, match="has not been judged"):
        stored_verdict(based, "first")


# Verdicts


def test_a_night_like_the_baseline_is_unchanged_and_exits_0(based, spool):
    run_night(based, spool, "second")
    verdict = judge_night(based, "second", baseline="main", rules=Rules(floor=0.1))
    assert {one.verdict for one in verdict.series} == {"unchanged"}
    assert verdict.exit_code(strict=True) == 0
    assert verdict.headline == "2 series: 2 unchanged."
    combine = by_phase(verdict)["combine"]
    assert combine.new_runs == combine.baseline_runs == 5
    assert combine.latency_us == pytest.approx(200, rel=0.01)
    assert combine.bandwidth_gbs == pytest.approx(1e6 / 200 / 1e3, rel=0.01)
    assert "would most likely have been seen" in combine.sentence


def test_a_slower_combine_is_named_and_nothing_else(based, spool):
    run_night(based, spool, "second", combine_us=260.0)
    verdict = judge_night(based, "second", baseline="main", rules=Rules(floor=0.1))
    assert {phase: one.verdict for phase, one in by_phase(verdict).items()} == {
        "combine": "regressed",
        "dispatch": "unchanged",
    }
    assert verdict.series[0].phase == "combine"
    assert verdict.series[0].effect == pytest.approx(0.3, abs=0.02)
    assert verdict.exit_code() == 1
    sentence = verdict.series[0].sentence
    assert sentence.startswith(f"combine of {CASE.key} got slower:")
    for part in ("+30", "5 runs against 5 of baseline 'main'", "counts is 10 %"):
        assert part in sentence


def test_a_faster_night_improves_and_never_fails(based, spool):
    run_night(based, spool, "second", dispatch_us=50.0, combine_us=100.0)
    verdict = judge_night(based, "second", baseline="main", rules=Rules(floor=0.1))
    assert {one.verdict for one in verdict.series} == {"improved"}
    assert verdict.exit_code(strict=True) == 0


@pytest.mark.parametrize("outcome", ["failed", "wrong", "hung", "missing"])
def test_one_run_without_a_number_among_five_decides_both_phases(based, spool, outcome):
    run_night(based, spool, "second", bad={2: outcome})
    verdict = judge_night(based, "second", baseline="main", rules=Rules(floor=0.1))
    assert {one.verdict for one in verdict.series} == {outcome}
    assert verdict.exit_code() == 3
    assert all("1 of its 5 runs" in one.sentence for one in verdict.series)
    assert all(one.new_runs == 4 for one in verdict.series)
    if outcome != "missing":
        assert all(f"it {outcome}" in one.sentence for one in verdict.series)


def test_a_failed_half_of_an_a_a_night_is_no_pass_either(based, spool):
    run_night(based, spool, "second", bad={3: "failed"}, purpose={1: "aa", 3: "aa"})
    verdict = judge_night(based, "second", baseline="main")
    assert {one.verdict for one in verdict.series} == {"failed"}
    assert {one.new_runs for one in verdict.series} == {3}
    assert verdict.exit_code() == 3


def test_a_series_that_failed_is_in_no_finding_whatever_its_other_runs_say(based, spool):
    run_night(based, spool, "second", bad={0: "failed"}, combine_us=400.0)
    verdict = judge_night(based, "second", baseline="main")
    assert {one.verdict for one in verdict.series} == {"failed"}
    assert verdict.findings == ()


def test_the_worst_of_several_failures_is_the_verdict(based, spool):
    run_night(based, spool, "second", bad={0: "missing", 1: "failed", 2: "hung", 3: "wrong"})
    assert {one.verdict for one in judge_night(based, "second", baseline="main").series} == {"wrong"}


def test_a_night_of_which_nothing_came_back_is_missing(based, spool):
    run_night(based, spool, "second", bad=dict.fromkeys(range(5), "missing"))
    verdict = judge_night(based, "second", baseline="main")
    assert {(one.verdict, one.platform_key, one.latency_us) for one in verdict.series} == {("missing", "", None)}
    assert verdict.exit_code() == 3
    assert stored_verdict(based, "second") == verdict


def test_a_regression_outranks_a_failure_in_the_exit_code(based, spool):
    run_night(
        based,
        spool,
        "second",
        [*planned_runs("second"), *planned_runs("second", OTHER)],
        bad={7: "failed"},
        combine_us=300.0,
    )
    verdict = judge_night(based, "second", baseline="main", rules=Rules(floor=0.1))
    assert {one.verdict for one in verdict.series} == {"failed", "regressed", "unchanged"}
    assert [one.verdict for one in verdict.series] == ["regressed", "failed", "failed", "unchanged"]
    assert verdict.exit_code() == 1


def test_a_night_with_nothing_planned_is_no_pass(history):
    open_night(history, "n", "nightly", START, [])
    verdict = judge_night(history, "n", baseline=None)
    assert verdict.series == ()
    assert verdict.exit_code() == 3
    assert verdict.headline == "Nothing was planned and nothing ran."


def test_without_a_baseline_nothing_can_be_said(history, spool):
    run_night(history, spool, "first")
    verdict = judge_night(history, "first", baseline=None)
    assert {one.verdict for one in verdict.series} == {"insufficient"}
    assert "there is no baseline" in verdict.series[0].sentence
    assert (verdict.exit_code(), verdict.exit_code(strict=True)) == (0, 4)


def test_a_night_is_never_its_own_baseline(based):
    verdict = judge_night(based, "first", baseline="main")
    assert {one.verdict for one in verdict.series} == {"insufficient"}


def test_a_case_the_baseline_does_not_hold_is_insufficient(based, spool):
    run_night(based, spool, "second", planned_runs("second", OTHER))
    verdict = judge_night(based, "second", baseline="main")
    assert {one.verdict for one in verdict.series} == {"insufficient"}
    assert "has 0 runs of it" in verdict.series[0].sentence


def test_platforms_are_never_mixed(based, spool):
    elsewhere = msgspec.structs.replace(PLATFORM, device_model="Another CPU")
    planned = planned_runs("second")
    run_night(based, spool, "second", planned[:4], platform=elsewhere)
    open_night(based, "second", "nightly", START, planned)
    verdict = judge_night(based, "second", baseline="main")
    assert {(one.platform_key, one.verdict, one.baseline_runs) for one in verdict.series} == {
        (elsewhere.key, "missing", 0)
    }


def test_a_failure_recorded_by_another_process_still_counts_against_the_case(based, spool):
    """Whoever finds a job dead may describe the machine otherwise than the ranks did."""
    planned = planned_runs("second")
    run_night(based, spool, "second", planned, bad={4: "missing"})
    found_dead = msgspec.structs.replace(PLATFORM, devices_per_node=1)
    records.write(failed_record("hung", run_id=planned[4].run_id, night="second", platform=found_dead), spool)
    collect(based, spool)
    verdict = judge_night(based, "second", baseline="main")
    assert [(one.verdict, one.platform_key) for one in verdict.series] == [("hung", PLATFORM.key)] * 2


def test_an_unplanned_run_of_the_night_is_judged_too(based, spool):
    run_night(based, spool, "second")
    records.write(failed_record("failed", "boom", night="second", case=OTHER), spool)
    collect(based, spool)
    assert judge_night(based, "second", baseline="main").exit_code() == 3


def test_each_case_may_have_its_own_floor(based, spool):
    run_night(based, spool, "second", combine_us=260.0)
    for floor, wanted in (
        ({CASE.key: 0.5}, "unchanged"),
        ({"": 0.5}, "unchanged"),
        ({"another": 0.5, "": 0.1}, "regressed"),
        (lambda case: 0.5 if case.mode == "ll" else 0.1, "unchanged"),
    ):
        found = by_phase(judge_night(based, "second", baseline="main", rules=Rules(floor=floor)))["combine"]
        assert found.verdict == wanted


def test_judging_again_replaces_what_was_said(based, spool):
    run_night(based, spool, "second", combine_us=260.0)
    judge_night(based, "second", baseline="main", rules=Rules(floor=0.1))
    again = judge_night(based, "second", baseline="main", rules=Rules(floor=0.9))
    assert stored_verdict(based, "second") == again
    assert len(stored_verdict(based, "latest").series) == 2


def test_a_verdict_asked_for_with_other_floors_can_leave_the_standing_one_alone(based, spool):
    run_night(based, spool, "second")
    standing = judge_night(based, "second", baseline="main", rules=Rules(floor=0.05))
    asked = judge_night(based, "second", baseline="main", rules=Rules(floor=0.5), keep=False)
    assert {one.floor for one in asked.series} == {0.5}
    assert stored_verdict(based, "second") == standing


def test_any_runs_can_be_judged_without_keeping_it(based, spool):
    planned = run_night(based, spool, "second", combine_us=260.0)
    found = judge_runs(based, [one.run_id for one in planned], baseline="main", rules=Rules(floor=0.1))
    assert [one.verdict for one in found] == ["regressed", "unchanged"]
    one_run = judge_runs(based, [planned[0].run_id], baseline="main", rules=Rules(floor=0.1))
    assert (one_run[0].verdict, one_run[0].new_runs) == ("regressed", 1)
    with pytest.raises(NotFoundError):
        judge_runs(based, ["f" * 32], baseline="main")
    with pytest.raises(NotFoundError, match="has not been judged"):
        stored_verdict(based, "second")


def test_the_order_of_exit_codes():
    assert exit_code(()) == 3
    assert headline(()) == "Nothing was planned and nothing ran."


# Baselines


def test_a_baseline_says_who_when_why_and_which_runs(history, spool):
    planned = run_night(history, spool, "first", bad={4: "failed"})
    made = set_baseline(history, "main", night="first", **WHO)
    assert show_baseline(history, "main") == made
    assert (made.set_by, made.reason, made.runs) == ("ada", "release 1.0", 4)
    assert made.series[0].run_ids == tuple(one.run_id for one in planned[:4])
    assert made.retired_at is None
    assert datetime.now(UTC) - made.set_at < timedelta(minutes=5)


def test_a_baseline_can_be_a_list_of_runs_by_the_heads_of_their_ids(history, spool):
    planned = run_night(history, spool, "first")
    made = set_baseline(history, "main", runs=[one.run_id[:20] for one in planned[:3]], **WHO)
    assert made.runs == 3


def test_a_baseline_can_be_the_latest_runs_of_each_series(history, spool):
    run_night(history, spool, "first", [*planned_runs("first"), *planned_runs("first", OTHER, 2)])
    made = set_baseline(history, "main", latest=3, **WHO)
    assert {series.case: len(series.run_ids) for series in made.series} == {CASE.key: 3, OTHER.key: 2}


def test_a_failed_run_cannot_be_a_baseline(history, spool):
    planned = run_night(history, spool, "first", bad={0: "failed"})
    with pytest.raises(BaselineError, match="is failed: only runs that are ok"):
        set_baseline(history, "main", runs=[planned[0].run_id], **WHO)


def test_a_night_without_a_good_run_cannot_be_a_baseline(history, spool):
    run_night(history, spool, "first", bad=dict.fromkeys(range(5), "hung"))
    with pytest.raises(BaselineError, match="no run that is ok"):
        set_baseline(history, "main", night="first", **WHO)


@pytest.mark.parametrize(
    "wrong",
    [
        {"who": " "},
        {"why": ""},
        {"name": "a name"},
        {"name": ""},
        {"night": None},
        {"latest": 3},
        {"night": None, "latest": 0},
        {"night": None, "runs": []},
    ],
)
def test_a_baseline_that_is_not_fully_said_is_refused(based, wrong):
    with pytest.raises(BaselineError):
        set_baseline(based, **{"name": "other", "night": "first", **WHO, **wrong})
    assert [one.name for one in list_baselines(based)] == ["main"]


def test_a_live_name_is_taken_until_it_is_retired_or_replaced(based, spool):
    with pytest.raises(BaselineError, match="already"):
        set_baseline(based, "main", night="first", **WHO)
    run_night(based, spool, "second")
    set_baseline(based, "main", night="second", who="bob", why="new compiler", replace=True)
    live, old = list_baselines(based, retired=True)
    assert (live.set_by, live.retired_at) == ("bob", None)
    assert (old.set_by, old.retired_by, old.retired_reason) == ("ada", "bob", "replaced: new compiler")
    retire_baseline(based, "main", who="eve", why="wrong machine")
    assert list_baselines(based) == []
    with pytest.raises(NotFoundError, match="no baseline 'main'; none has been set"):
        show_baseline(based, "main")
    with pytest.raises(NotFoundError):
        retire_baseline(based, "main", who="eve", why="again")
    with pytest.raises(NotFoundError):
        judge_night(based, "second", baseline="main")
    set_baseline(based, "main", night="first", **WHO)


def test_verdicts_outlive_the_baseline_they_were_given_by(based, spool):
    run_night(based, spool, "second")
    verdict = judge_night(based, "second", baseline="main")
    retire_baseline(based, "main", who="eve", why="old")
    assert stored_verdict(based, "second") == verdict
