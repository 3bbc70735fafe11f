"""Packing: every run in exactly one job, worlds together, repeats apart, and no job longer than it may be."""

import math

from hypothesis import given
from hypothesis import strategies as st

from harness.case import Case
from jobs.packing import START_S, job_expected_s, pack, plan_runs

WORLDS = [(1, 1), (2, 1), (4, 1), (4, 2)]
cases = st.lists(
    st.builds(
        lambda world, tokens: Case(
            backend="torch", mode="ll", ranks=world[0], nodes=world[1], tokens=tokens, hidden=64, topk=2, experts=4
        ),
        st.sampled_from(WORLDS),
        st.integers(1, 60),
    ),
    min_size=1,
    max_size=25,
    unique_by=lambda case: case.key,
)


def took(case: Case) -> float:
    """Seconds that the case is expected to take: its tokens, for the sake of the test."""
    return float(case.tokens)


@given(cases, st.integers(1, 4), st.integers(0, 2**32), st.floats(20, 400))
def test_every_run_is_in_one_job_that_stays_within_its_time(cases, repeats, seed, most_s):
    runs = plan_runs(cases, repeats, "n")
    jobs = pack(runs, seed, most_s=most_s, expected_s=took)
    assert sorted(run.run_id for job in jobs for run in job.runs) == sorted(run.run_id for run in runs)
    assert len({job.name for job in jobs}) == len(jobs)
    for job in jobs:
        assert {(run.case.ranks, run.case.nodes, run.repeat) for run in job.runs} == {
            (job.world.ranks, job.world.nodes, job.repeat)
        }
        assert len(job.runs) == 1 or job_expected_s(job, took) <= most_s


@given(cases, st.integers(1, 3), st.integers(0, 2**32), st.floats(20, 400))
def test_the_order_follows_from_the_seed_whatever_the_ids(cases, repeats, seed, most_s):
    def order():
        jobs = pack(plan_runs(cases, repeats, "n"), seed, most_s=most_s, expected_s=took)
        return [(job.name, [run.case.key for run in job.runs]) for job in jobs]

    assert order() == order()


@given(cases, st.floats(20, 400))
def test_no_more_jobs_than_twice_what_the_time_asks_for(cases, most_s):
    jobs = pack(plan_runs(cases, 1, "n"), 0, most_s=most_s, expected_s=took)
    room = most_s - START_S
    for ranks, nodes in WORLDS:
        here = [job for job in jobs if (job.world.ranks, job.world.nodes) == (ranks, nodes)]
        total = sum(took(run.case) for job in here for run in job.runs)
        assert len(here) <= 2 * math.ceil(total / max(room, 1)) + 1


def test_without_a_limit_a_world_is_one_job_for_each_repeat():
    several = [Case(backend="torch", mode="ll", ranks=2, tokens=n, hidden=64, topk=2, experts=4) for n in range(1, 9)]
    jobs = pack(plan_runs(several, 3, "n"), 1, expected_s=took)
    assert [job.name for job in jobs] == ["repeat0-r2n1", "repeat1-r2n1", "repeat2-r2n1"]
