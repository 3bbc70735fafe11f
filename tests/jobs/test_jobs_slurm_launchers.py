"""Ranks started by torchrun on each node, or by mpirun: the same records as by srun, and the same word on who died."""

import pytest
from slurm_backends import install
from slurm_nights import Place, plan_text, settled

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", params=["torchrun", "mpirun"])
def place(request, slurm_without_accounting, tmp_path_factory):
    """A folder in which a night has been: two nodes of two ranks, and on one node a case that kills a rank."""
    folder = tmp_path_factory.mktemp(request.param)
    text = plan_text(
        {"backend": "ep_core", "ranks": 4},
        {"backend": ["torch", "killed-on-rank-1"], "ranks": 2},
        cluster={"launcher": request.param, "environment": {"GLOO_PLAIN": "plain"}},
        measure={"tries": 1},
    )
    plugins = install(tmp_path_factory.mktemp("plugins"))
    there = Place(folder, slurm_without_accounting, text, PYTHONPATH=str(plugins))
    there.launcher = request.param
    there.ended = there.epwatch("nightly", "plan.toml")
    return there


@pytest.fixture(scope="module")
def records(place):
    return {one.case.backend: one for one in place.records()}


def test_the_night_ends_with_what_died_named(place, records):
    assert place.ended.returncode == 3, place.ended.stderr
    assert "Traceback" not in place.ended.stderr
    assert {name: one.outcome for name, one in records.items()} == {
        "ep_core": "ok",
        "torch": "ok",
        "killed-on-rank-1": "failed",
    }
    assert place.in_queue() == []


def test_records_say_what_started_their_ranks_and_where(place, records):
    assert {one.launcher.removesuffix(" (Open MPI)") for one in records.values()} == {place.launcher}
    hosts = [rank.hostname for rank in records["ep_core"].placement]
    assert hosts == [host for host in sorted(place.slurm.node_names) for _ in range(2)]
    assert len({rank.hostname for rank in records["torch"].placement}) == 1
    for one in records.values():
        assert one.scheduler_job.startswith("Slurm job ")
        assert one.environment.variables["GLOO_PLAIN"] == "plain"


def test_a_killed_rank_is_named(place, records):
    failure = records["killed-on-rank-1"].failure
    assert (failure.rank, failure.kind) == (1, "RankKilled"), failure
    where = records["killed-on-rank-1"].placement[1].hostname
    assert failure.message == f"rank 1 ({where}) was killed by signal 9 (SIGKILL), at 'check dispatch before'"
    assert failure.message in place.ended.stdout
    assert "killed" in {one.cause for one in settled(place).values()}
