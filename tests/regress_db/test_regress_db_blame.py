"""Whose fault a slow night is: the code's, a node's, the environment's, or the night's, told from a whole history."""

import random
from datetime import timedelta

import msgspec
import pytest
from synthetic_records import CASE, START, environment, ok_record

from harness import record as records
from harness.record import PlannedRun, new_run_id
from regress_db.ingest import collect
from regress_db.nights import open_night
from regress_db.nightverdict import stored_verdict
from regress_db.verdicts import Rules, judge_night
from regress_db.wording import AUTO

UNDER_TEST = [msgspec.structs.replace(CASE, tokens=tokens) for tokens in (8, 16, 32, 64, 128, 256)]
CONTROLS = [msgspec.structs.replace(case, backend="torch") for case in UNDER_TEST]
RULES = Rules(floor=0.05)
PAST = 10


class Nights:
    """Nights of twelve cases, one run each, on two hosts in turn, with a noise of one per cent."""

    def __init__(self, history, spool):
        self.history, self.spool = history, spool
        self.chance = random.Random(3)
        self.count = 0

    def measure(self, slower=lambda case, host: 1.0, env=None, repeats=1, purpose=None):
        """One more night. slower: factor on both phases."""
        name = f"night{self.count:03}"
        started = START + timedelta(days=self.count)
        runs, kinds = [], purpose or {}
        for repeat in range(repeats):
            for index, case in enumerate([*UNDER_TEST, *CONTROLS]):
                run = PlannedRun(run_id=new_run_id(), case=case, night=name, repeat=repeat)
                host = f"gpu{(index + repeat + self.count) % 2:02}"
                factor = slower(case, host)
                noise = [factor * self.chance.gauss(1, 0.01) for _ in range(2)]
                record = ok_record(
                    case=case,
                    run_id=run.run_id,
                    night=name,
                    repeat=repeat,
                    dispatch_us=100.0 * noise[0],
                    combine_us=200.0 * noise[1],
                    started=started + timedelta(minutes=index + 20 * repeat),
                    env=env or environment(),
                    hostname=host,
                    seed=self.chance.randrange(2**31),
                )
                records.write(record, self.spool)
                runs.append(run)
        open_night(self.history, name, "nightly", started, runs, lambda run: kinds.get(run.repeat, "planned"))
        collect(self.history, self.spool)
        self.count += 1
        return name

    def judge(self, night, **changes):
        return judge_night(self.history, night, baseline=AUTO, rules=RULES, **changes)


@pytest.fixture
def nights(history, spool):
    """Ten quiet nights."""
    made = Nights(history, spool)
    for _ in range(PAST):
        made.measure()
    return made


def under_test(factor):
    return lambda case, host: factor if case.backend == "ep_core" else 1.0


def test_a_quiet_night_blames_nobody(nights):
    verdict = nights.judge(nights.measure(env=environment(commit="b" * 40)))
    assert verdict.findings == ()
    assert verdict.exit_code() == 0
    assert len(verdict.series) == 24


def test_a_slow_night_that_slows_the_controls_too_is_not_the_commit(nights):
    verdict = nights.judge(nights.measure(lambda *_: 1.15, env=environment(commit="b" * 40)))
    (finding,) = verdict.findings
    assert finding.cause == "night"
    assert finding.effect == pytest.approx(0.15, abs=0.02)
    assert finding.series == 24
    assert verdict.exit_code() == 0
    told = verdict.series[0]
    assert told.shared == pytest.approx(0.15, abs=0.03)
    assert "in common with others taken out" in told.sentence


def test_a_commit_that_slows_everything_under_test_is_one_finding_and_is_never_taken_out(nights):
    verdict = nights.judge(nights.measure(under_test(1.12), env=environment(commit="b" * 40)))
    assert verdict.exit_code() == 1
    regressed = [one for one in verdict.series if one.verdict == "regressed"]
    assert {one.case for one in regressed} == {case.key for case in UNDER_TEST}
    assert {one.cause for one in regressed} == {"code"}
    slowed = [finding for finding in verdict.findings if finding.cause == "code"]
    assert 1 <= len(slowed) <= 2
    assert sum(finding.series for finding in slowed) == len(regressed)
    assert "aaaaaaa" in slowed[0].subject
    assert "bbbbbbb" in slowed[0].subject
    assert stored_verdict(nights.history, verdict.night) == verdict


def test_a_slow_commit_in_a_slow_night_is_still_seen(nights):
    verdict = nights.judge(
        nights.measure(
            lambda case, host: 1.10 * (1.15 if case.backend == "ep_core" else 1.0), env=environment(commit="b" * 40)
        )
    )
    assert verdict.exit_code() == 1
    assert {finding.cause for finding in verdict.findings} == {"night", "code"}
    worst = verdict.series[0]
    assert worst.effect == pytest.approx(0.15, abs=0.04)


def test_with_no_controls_a_slowdown_by_a_commit_is_never_explained_away(nights):
    night = nights.measure(under_test(1.12), env=environment(commit="b" * 40))
    rules = Rules(floor=0.05, controls=())
    verdict = judge_night(nights.history, night, baseline=AUTO, rules=rules)
    assert verdict.exit_code() == 1
    assert verdict.findings
    assert stored_verdict(nights.history, night).remarks == verdict.remarks


def test_what_changed_in_the_environment_is_named(nights):
    verdict = nights.judge(nights.measure(lambda *_: 1.2, env=environment(torch="2.14.0")))
    (finding,) = verdict.findings
    assert finding.cause == "environment"
    assert finding.subject == "torch 2.13.0 to 2.14.0"
    assert verdict.exit_code() == 0


def test_one_slow_node_is_named_and_what_ran_on_it_is_not_blamed_on_the_commit(nights):
    verdict = nights.judge(
        nights.measure(lambda case, host: 1.2 if host == "gpu01" else 1.0, env=environment(commit="b" * 40), repeats=2)
    )
    (finding,) = verdict.findings
    assert (finding.cause, finding.subject) == ("node", "gpu01")
    assert finding.effect == pytest.approx(0.2, abs=0.03)
    assert verdict.exit_code() == 0


def test_one_slow_case_is_one_finding_of_two_series_at_most(nights):
    verdict = nights.judge(
        nights.measure(lambda case, host: 1.3 if case == UNDER_TEST[2] else 1.0, env=environment(commit="b" * 40))
    )
    assert {one.case for one in verdict.series if one.verdict == "regressed"} == {UNDER_TEST[2].key}
    assert {finding.cause for finding in verdict.findings} == {"code"}


def test_the_halves_of_an_a_a_night_are_compared_with_each_other_and_the_second_judges_nothing(nights):
    purpose = {1: "aa", 3: "aa", 5: "aa"}
    verdict = nights.judge(nights.measure(repeats=6, purpose=purpose))
    assert (verdict.aa_series, verdict.aa_alarms) == (24, 0)
    assert {one.new_runs for one in verdict.series} == {3}
    assert stored_verdict(nights.history, verdict.night) == verdict
    after = nights.judge(nights.measure())
    assert after.aa_series is None
    assert {one.baseline_runs for one in after.series} == {PAST + 3}


def test_a_candidate_is_what_looks_slower_and_its_re_runs_are_counted(nights):
    def slow(case, host):
        return 1.3 if case == UNDER_TEST[0] else 1.0

    night = nights.measure(slow)
    looked = nights.judge(night, keep=False)
    assert {one.case for one in looked.series if one.candidate} >= {UNDER_TEST[0].key}
    again = nights.measure(slow, repeats=3, purpose={1: "confirmation", 2: "confirmation"})
    told = next(one for one in nights.judge(again).series if one.case == UNDER_TEST[0].key)
    assert (told.new_runs, told.confirmations, told.verdict) == (3, 2, "regressed")
    assert "3 runs, 2 of them re-runs against" in told.sentence
