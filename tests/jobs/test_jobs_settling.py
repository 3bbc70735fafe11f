"""What the end of an attempt means: whatever a cluster does to a job, every run gets an end, and only its own faults
count against it.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.diagnosis import OUT_OF_TIME, Diagnosis
from jobs.cluster import JobState
from jobs.settling import MOST_IN_VAIN, Ending, settle

AT = "2026-11-24T02:00:00Z"
TRIES = 2


def diagnosed(outcome="failed", kind="RankKilled", message="rank 1 was killed by signal 9 (SIGKILL)"):
    return Diagnosis(outcome=outcome, kind=kind, message=message, rank=1, log_tail="tail")


def ended(cause, *, owed=("a", "b"), measured=0, at_run="", diagnosis=None, words="so it ended", past=()):
    state = JobState("ended", words, cause, ("n1",))
    return settle(Ending(state, tuple(owed), measured, at_run, diagnosis), list(past), TRIES, AT)


def test_a_job_that_measured_all_is_done():
    settled = ended("done", owed=(), measured=2)
    assert (settled.cause, settled.given_up, settled.strike) == ("done", [], False)


def test_a_run_that_takes_its_job_down_twice_is_given_up_and_no_other():
    first = ended("failed", at_run="a", diagnosis=diagnosed())
    assert (first.cause, first.at_fault, first.strike, first.given_up) == ("killed", "a", True, [])
    assert first.words == "rank 1 was killed by signal 9 (SIGKILL)"
    second = ended("failed", at_run="a", diagnosis=diagnosed(), past=[first])
    assert second.given_up == ["a"]


def test_strikes_are_each_runs_own():
    first = ended("failed", at_run="a", diagnosis=diagnosed())
    second = ended("failed", at_run="b", diagnosis=diagnosed(), past=[first])
    assert second.given_up == []


@pytest.mark.parametrize("cause", ["node", "preempted"])
def test_what_the_cluster_did_counts_against_no_run(cause):
    past = []
    for _ in range(MOST_IN_VAIN - 1):
        past.append(ended(cause, at_run="a", past=past))
        assert (past[-1].strike, past[-1].given_up) == (False, [])
    last = ended(cause, at_run="a", past=past)
    assert last.given_up == ["a", "b"]
    assert f"attempt {MOST_IN_VAIN} in a row without a result" in last.words


def test_a_time_limit_counts_only_where_nothing_was_measured():
    assert not ended("time limit", at_run="b", owed=("b",), measured=1).strike
    assert ended("time limit", at_run="a").strike


def test_ranks_that_got_on_until_the_jobs_deadline_are_slow_and_not_hung():
    slow = diagnosed("failed", OUT_OF_TIME, "out of time: the job was killed at its deadline of 600 s")
    settled = ended("failed", at_run="b", owed=("b",), measured=1, diagnosis=slow)
    assert (settled.cause, settled.strike, settled.words) == ("time limit", False, slow.message)
    alone = ended("failed", at_run="a", diagnosis=slow)
    assert (alone.cause, alone.strike) == ("time limit", True)


def test_slurms_own_words_of_a_time_limit_stand():
    settled = ended("time limit", at_run="a", diagnosis=diagnosed())
    assert (settled.cause, settled.words) == ("time limit", "so it ended")


def test_many_runs_that_crash_take_none_with_them_that_would_not():
    owed, past = [f"bad{number}" for number in range(6)] + ["good0", "good1"], []
    while owed[0].startswith("bad"):
        past.append(ended("failed", owed=owed, at_run=owed[0], diagnosis=diagnosed(), past=past))
        struck = {one.at_fault for one in past if one.strike}
        owed = sorted((run for run in owed if run not in past[-1].given_up), key=lambda run: run in struck)
    assert {run for one in past for run in one.given_up} <= {f"bad{number}" for number in range(6)}
    assert owed[:2] == ["good0", "good1"]


def test_hung_is_an_end_of_its_own():
    settled = ended("failed", at_run="a", diagnosis=diagnosed("hung", "DeadlineExceeded", "hung in combine on rank 1"))
    assert (settled.cause, settled.strike, settled.words) == ("hung", True, "hung in combine on rank 1")


def test_a_cancelled_job_is_meant():
    assert ended("cancelled", at_run="a").given_up == ["a", "b"]
    assert ended("queue").given_up == ["a", "b"]


def test_a_job_that_never_gets_to_its_first_run_is_given_up_after_its_tries():
    first = ended("failed", diagnosis=diagnosed(kind="WorldError", message="rank 0 failed: no port"))
    assert first.given_up == []
    second = ended("failed", diagnosis=diagnosed(kind="WorldError"), past=[first])
    assert second.given_up == ["a", "b"]


def test_what_was_never_submitted_is_simply_submitted_again():
    past = []
    for _ in range(20):
        past.append(ended("lost", past=past))
    assert all(one.given_up == [] for one in past)


causes = st.sampled_from(["done", "failed", "killed", "node", "preempted", "time limit", "memory", "gone"])


@given(st.data(), st.integers(1, 6), st.integers(1, 3))
def test_whatever_happens_every_run_is_measured_or_given_up_in_the_end(data, count, tries):
    """An adversary decides how each attempt ends, how far it comes, and what it dies of."""
    owed = [f"run{number}" for number in range(count)]
    outcomes: dict[str, str] = {}
    past: list = []
    for _ in range(count * (tries + MOST_IN_VAIN) + MOST_IN_VAIN):
        if not owed:
            break
        measured = data.draw(st.integers(0, len(owed)))
        for run in owed[:measured]:
            outcomes[run] = "measured"
        rest = owed[measured:]
        cause = "done" if not rest else data.draw(causes)
        at_run = rest[0] if rest and data.draw(st.booleans()) else ""
        found = diagnosed() if at_run and data.draw(st.booleans()) else None
        ending = Ending(JobState("ended", "it ended", cause), tuple(rest), measured, at_run, found)
        settled = settle(ending, past, tries, AT)
        past.append(settled)
        for run in settled.given_up:
            assert run in rest
            assert run not in outcomes
            outcomes[run] = "given up"
        struck = {one.at_fault for one in past if one.strike}
        owed = sorted((run for run in rest if run not in outcomes), key=lambda run: run in struck)
    assert owed == []
    assert len(outcomes) == count
