"""Ranks started by other launchers than our own: they meet, measure, and leave without a word."""

import os
import subprocess
import sys

import msgspec
import pytest
from small_jobs import EP_CORE_LL, TORCH_LL, but, records, spec_of

from harness import job, rank_end, record
from harness.errors import RecordError
from harness.launch import run_job

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "OMPI_", "PMI", "SLURM_", "TORCHELASTIC_")


def start(spec_path, variables, cpu=None):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_VARIABLES)}
    bound = [] if cpu is None else ["taskset", "--cpu-list", str(cpu)]
    return subprocess.Popen(
        [*bound, sys.executable, "-m", "harness.worker", str(spec_path)],
        env=clean | {"OMP_NUM_THREADS": "1"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def as_srun(rank):
    return {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0",
        "SLURM_STEP_TASKS_PER_NODE": "2",
    }


def as_mpirun(rank):
    return {
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_LOCAL_RANK": str(rank),
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        "PMIX_NAMESPACE": f"prterun-test-{os.getpid()}@1",
    }


def as_srun_on_two_nodes(rank):
    """Two nodes of a Slurm on one machine, two ranks each, in the second task of a job array."""
    node, local = divmod(rank, 2)
    return as_srun(rank) | {
        "SLURM_ARRAY_JOB_ID": "123",
        "SLURM_ARRAY_TASK_ID": "4",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_LOCALID": str(local),
        "SLURM_NODEID": str(node),
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
        "SLURM_STEP_NODELIST": "127.0.1.[1-2]",
        "SLURMD_NODENAME": f"127.0.1.{node + 1}",
    }


def test_two_slurm_nodes_of_one_machine_are_one_node_and_the_record_says_who_ran_where(tmp_path):
    four = but(EP_CORE_LL, ranks=4)
    spec = spec_of(tmp_path, [four, but(four, nodes=2), but(four, backend="torch")], attempt=2)
    (tmp_path / "log").mkdir()
    job.save(spec, tmp_path / "job.json")
    cpus = sorted(os.sched_getaffinity(0))
    cpu_of = [cpus[rank % len(cpus)] for rank in range(4)]
    ranks = [start(tmp_path / "job.json", as_srun_on_two_nodes(rank), cpu_of[rank]) for rank in range(4)]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * 4, said
    shared, apart, other = records(spec)
    assert [shared.outcome, apart.outcome, other.outcome] == ["ok", "failed", "ok"]
    assert apart.failure.message == (
        "the case wants 4 ranks on 2 nodes, the world has 4 on 1: 127.0.1.1 and 127.0.1.2 share memory"
    )
    assert [one.rank for one in shared.placement] == [0, 1, 2, 3]
    assert [one.hostname for one in shared.placement] == ["127.0.1.1"] * 2 + ["127.0.1.2"] * 2
    assert [one.cpus for one in shared.placement] == [str(cpu) for cpu in cpu_of]
    assert {one.hostname: one.ranks for one in shared.nodes} == {"127.0.1.1": [0, 1], "127.0.1.2": [2, 3]}
    assert shared.platform.devices_per_node == len(set(cpu_of))
    assert (shared.launcher, shared.attempt, shared.scheduler_job) == ("srun", 2, "Slurm job 123_4")
    ends = rank_end.read_all(tmp_path / "log", 4)
    assert [(end.outcome, end.host) for end in ends] == [("done", one.hostname) for one in shared.placement]


def test_a_second_attempt_measures_only_what_the_first_did_not(tmp_path):
    first = spec_of(tmp_path, [TORCH_LL, TORCH_LL, TORCH_LL])
    (tmp_path / "log").mkdir()
    job.save(msgspec.structs.replace(first, runs=first.runs[:2]), tmp_path / "first.json")
    job.save(msgspec.structs.replace(first, attempt=2), tmp_path / "second.json")
    spool, ingested = tmp_path / "spool", tmp_path / "spool" / record.INGESTED

    def measure(name):
        ranks = [start(tmp_path / name, as_srun(rank)) for rank in range(2)]
        said = [rank.communicate(timeout=120)[0] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0], said

    measure("first.json")
    ingested.mkdir()
    in_history, waiting = (spool / f"{run.run_id}.json" for run in first.runs[:2])
    in_history.rename(ingested / in_history.name)
    before = waiting.read_bytes()
    measure("second.json")
    assert not in_history.exists()
    assert waiting.read_bytes() == before
    assert [record.read(record.recorded(spool, run.run_id)).attempt for run in first.runs] == [1, 1, 2]


@pytest.mark.parametrize("launcher", [as_srun, as_mpirun])
def test_ranks_of_another_launcher_meet_measure_and_leave_quietly(tmp_path, launcher):
    spec = spec_of(tmp_path, [EP_CORE_LL, TORCH_LL])
    (tmp_path / "log").mkdir()
    job.save(spec, tmp_path / "job.json")
    ranks = [start(tmp_path / "job.json", launcher(rank)) for rank in range(2)]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert said == ["", ""]
    made = records(spec)
    assert [one.outcome for one in made] == ["ok", "ok"]
    if launcher is as_srun:
        assert made[0].notes == [made[0].scheduler_job] == [f"Slurm job {os.getpid()}"]


def test_missing_rank_variables_are_one_sentence(tmp_path):
    job.save(spec_of(tmp_path, [TORCH_LL]), tmp_path / "job.json")
    rank = start(tmp_path / "job.json", {"RANK": "0"})
    said = rank.communicate(timeout=60)[0]
    assert rank.returncode == 1
    assert (
        said.strip()
        == "WorldError: WORLD_SIZE is not set: start the ranks with `epwatch run`, torchrun, mpirun or srun"
    )


def test_a_spool_that_takes_no_records_ends_the_job_with_its_name(tmp_path):
    (tmp_path / "spool").write_text("in the way")
    spec = spec_of(tmp_path, [TORCH_LL])
    with pytest.raises(RecordError, match=f"cannot write the record {tmp_path}/spool"):
        run_job(spec)


def test_a_record_that_is_there_is_left_alone(tmp_path):
    """Rank 0 can be killed after the record and before it has said so; then the record stands."""
    first = spec_of(tmp_path / "first", [TORCH_LL])
    run_job(first)
    made = records(first)[0]
    broken = msgspec.structs.replace(spec_of(tmp_path / "second", [TORCH_LL], deadline_s=0.2), runs=first.runs)
    record.write(made, tmp_path / "second" / "spool")
    outcome = run_job(broken)
    assert outcome.exit_code != 0
    assert outcome.recorded == [made.run_id]
    assert record.read(tmp_path / "second" / "spool" / f"{made.run_id}.json") == made


@pytest.mark.slow
def test_peers_that_never_come_are_one_sentence(tmp_path):
    job.save(spec_of(tmp_path, [TORCH_LL], op_deadline_s=0.5), tmp_path / "job.json")
    (tmp_path / "log").mkdir()
    rank = start(tmp_path / "job.json", as_srun(0))
    said = rank.communicate(timeout=120)[0]
    assert rank.returncode == 1
    assert said.startswith("WorldError: rank 0 of 2 could not join its peers at 127.0.0.1:")
    assert said.count("\n") == 1
