"""Ranks that fail in a Slurm job, where sacct answers nobody: each end is known, and the rank at fault is blamed."""

import pytest
from slurm_backends import install
from slurm_nights import Place, plan_text, settled

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def place(slurm_without_accounting, tmp_path_factory):
    """A folder in which a night has been whose cases, but for one, take their job down with them."""
    folder = tmp_path_factory.mktemp("faults")
    text = plan_text(
        {"backend": ["torch", "raises-on-rank-2", "escapes-on-rank-2", "leaves-on-rank-2"], "ranks": 4},
        {"backend": "killed-on-rank-1", "ranks": 2},
        measure={"tries": 1, "seed": 3},
    )
    plugins = install(tmp_path_factory.mktemp("plugins"))
    there = Place(folder, slurm_without_accounting, text, PYTHONPATH=str(plugins))
    there.ended = there.epwatch("nightly", "plan.toml")
    return there


@pytest.fixture(scope="module")
def failures(place):
    """Backend to what its record says, of the runs that gave no number."""
    return {one.case.backend: one for one in place.records() if one.outcome != "ok"}


def test_the_night_ends_and_says_that_something_has_no_result(place):
    assert place.ended.returncode == 3, place.ended.stdout + place.ended.stderr
    assert "Traceback" not in place.ended.stderr
    assert place.in_queue() == []
    assert place.night().finished.given_up == ""


def test_every_run_has_one_outcome_and_the_good_case_a_number(place, failures):
    found = place.records()
    assert sorted(one.run_id for one in found) == sorted(run.run_id for run in place.night().required_manifest.runs)
    assert {one.case.backend for one in found if one.outcome == "ok"} == {"torch"}
    assert {one.outcome for one in failures.values()} == {"failed"}


@pytest.mark.parametrize(
    ("backend", "rank", "kind", "words"),
    [
        ("raises-on-rank-2", 2, "RuntimeError", "out of send slots"),
        ("escapes-on-rank-2", 2, "_Unpicklable", "the link is down"),
        ("leaves-on-rank-2", 2, "SystemExit", "left with exit code 0"),
        ("killed-on-rank-1", 1, "RankKilled", "was killed by signal 9 (SIGKILL)"),
    ],
)
def test_the_rank_that_failed_speaks(place, failures, backend, rank, kind, words):
    failure = failures[backend].failure
    assert (failure.rank, failure.kind) == (rank, kind), failure
    assert words in failure.message
    assert failure.step == "check dispatch before"
    if kind != "RankKilled":
        assert "slurm_backends.py" in failure.log_tail
    assert any(words in line and backend in line for line in place.ended.stdout.splitlines())


def test_records_of_the_dead_say_where_they_ran(place, failures):
    for one in failures.values():
        assert {rank.hostname for rank in one.placement} <= set(place.slurm.node_names)
        assert len(one.placement) == one.case.ranks
        assert one.scheduler_job.startswith("Slurm job ")
        assert one.launcher == "srun"
    assert len({rank.hostname for rank in failures["leaves-on-rank-2"].placement}) == 2


def test_each_dead_job_was_settled_by_its_ranks_words(place):
    causes = [one.cause for one in settled(place).values()]
    assert causes.count("killed") == 1
    assert causes.count("failed") == 2
    assert set(causes) <= {"killed", "failed", "done"}
    assert max(number for _, number in settled(place)) <= 3
