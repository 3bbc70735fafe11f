"""A night on slow nodes: what they are known to do is no commit's fault, and a commit's fault is never theirs."""

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

UNDER_TEST = [msgspec.structs.replace(CASE, tokens=tokens) for tokens in (8, 16, 32, 64)]
CONTROLS = [msgspec.structs.replace(case, backend="torch") for case in UNDER_TEST]
USUAL = [f"n{number}" for number in range(1, 7)]
SLOW = "n7"
PAST = 14
RULES = Rules(floor=0.05)


class Nights:
    """Nights of four cases under test and four controls, two runs each, on the nodes that `places` says."""

    def __init__(self, history, spool):
        self.history, self.spool = history, spool
        self.chance = random.Random(5)
        self.count = 0

    def measure(self, places, slow=1.08, code=1.0, commit="a", controls=True):
        """One more night. places: node by case and repeat. code: what the commit does to what it runs."""
        name = f"night{self.count:03}"
        started = START + timedelta(days=self.count)
        runs = []
        for repeat in range(2):
            for index, case in enumerate([*UNDER_TEST, *CONTROLS] if controls else UNDER_TEST):
                under_test = case.backend == "ep_core"
                host = places(index, repeat)
                factor = (slow if host == SLOW else 1.0) * (code if under_test else 1.0)
                run = PlannedRun(run_id=new_run_id(), case=case, night=name, repeat=repeat)
                record = ok_record(
                    case=case,
                    run_id=run.run_id,
                    night=name,
                    repeat=repeat,
                    dispatch_us=100.0 * factor * self.chance.gauss(1, 0.01),
                    combine_us=200.0 * factor * self.chance.gauss(1, 0.01),
                    started=started + timedelta(minutes=index + 20 * repeat),
                    env=environment(commit=commit * 40),
                    hostname=host,
                    seed=self.chance.randrange(2**31),
                )
                records.write(record, self.spool)
                runs.append(run)
        open_night(self.history, name, "nightly", started, runs)
        collect(self.history, self.spool)
        self.count += 1
        return name

    def past(self, nodes, nights=PAST, **changes):
        for _ in range(nights):
            self.measure(lambda *_: self.chance.choice(nodes), **changes)

    def judge(self, night, **changes):
        return judge_night(self.history, night, baseline=AUTO, rules=RULES, **changes)


@pytest.fixture
def nights(history, spool):
    return Nights(history, spool)


def wholly_on(node):
    return lambda *_: node


@pytest.mark.parametrize(("commit", "controls"), [("a", True), ("b", True), ("b", False)])
def test_a_night_wholly_on_a_node_that_is_known_to_be_slow_is_not_blamed_on_the_commit(nights, commit, controls):
    nights.past([*USUAL, SLOW], controls=controls)
    verdict = nights.judge(nights.measure(wholly_on(SLOW), commit=commit, controls=controls))
    assert verdict.exit_code() == 0
    assert {one.cause for one in verdict.series} == {"node"}
    (finding,) = verdict.findings
    assert (finding.cause, finding.subject, finding.series) == ("node", SLOW, len(verdict.series))
    assert finding.low < 0.08 < finding.high
    told = verdict.series[0]
    assert f"ran on {SLOW}, which makes its runs" in told.sentence
    assert "slower" in told.sentence
    assert 0.05 < told.shared < 0.08
    assert stored_verdict(nights.history, verdict.night) == verdict


def test_a_slow_commit_on_a_slow_node_is_still_seen(nights):
    nights.past([*USUAL, SLOW])
    verdict = nights.judge(nights.measure(wholly_on(SLOW), code=1.2, commit="b"))
    assert verdict.exit_code() == 1
    regressed = [one for one in verdict.series if one.verdict == "regressed"]
    assert {one.case for one in regressed} == {case.key for case in UNDER_TEST}
    assert {one.cause for one in regressed} == {"code"}
    assert regressed[0].effect == pytest.approx(0.21, abs=0.04)
    assert f"ran on {SLOW}" in regressed[0].sentence
    assert {finding.cause for finding in verdict.findings} == {"code", "node"}


def test_where_the_baseline_ran_on_the_same_nodes_they_explain_nothing(nights):
    nights.past([SLOW, SLOW, SLOW, "n1"])
    quiet = nights.judge(nights.measure(wholly_on(SLOW), commit="b"))
    assert (quiet.exit_code(), quiet.findings) == (0, ())
    assert all(one.shared is None for one in quiet.series)
    verdict = nights.judge(nights.measure(wholly_on(SLOW), code=1.2, commit="c"))
    assert {one.cause for one in verdict.series if one.verdict == "regressed"} == {"code"}
    assert not any("ran on" in one.sentence for one in verdict.series)


def test_a_node_without_a_history_explains_nothing(nights):
    nights.past(USUAL, controls=False)
    verdict = nights.judge(nights.measure(wholly_on(SLOW), code=1.2, commit="b", controls=False))
    assert verdict.exit_code() == 1
    assert {finding.cause for finding in verdict.findings} == {"code"}
    assert not any("ran on" in one.sentence for one in verdict.series)


def test_a_node_that_was_repaired_explains_nothing_where_the_controls_show_it(nights):
    nights.past([*USUAL, SLOW])
    verdict = nights.judge(nights.measure(wholly_on(SLOW), slow=1.0, code=1.25, commit="b"))
    assert verdict.exit_code() == 1
    assert {one.cause for one in verdict.series if one.verdict == "regressed"} == {"code"}
    assert not any(one.shared for one in verdict.series)
    assert any(f"the runs of {SLOW} were" in remark for remark in verdict.remarks)


def test_a_commit_that_comes_with_a_new_node_is_never_taken_for_the_node(nights):
    nights.past(USUAL, controls=False)
    for _ in range(8):
        places = {0: SLOW, 1: SLOW}
        nights.measure(lambda index, _, places=places: places.get(index, "n1"), slow=1.2, controls=False)
    verdict = nights.judge(nights.measure(wholly_on(SLOW), code=1.2, slow=1.0, commit="b", controls=False))
    assert verdict.exit_code() == 1
    assert not any("ran on" in one.sentence for one in verdict.series)


def test_nodes_that_are_usual_after_a_baseline_on_a_slow_one_are_no_improvement(nights):
    nights.past([*USUAL, SLOW], nights=20)
    for _ in range(30):
        nights.measure(wholly_on(SLOW))
    verdict = nights.judge(nights.measure(wholly_on("n1")))
    assert not any(one.verdict == "regressed" for one in verdict.series)
