"""Ranks started by other launchers than our own: they meet, measure, and leave without a word."""

import os
import subprocess
import sys

import msgspec
import pytest
from small_jobs import EP_CORE_LL, TORCH_LL, records, spec_of

from harness import job, record
from harness.errors import RecordError
from harness.launch import run_job

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "OMPI_", "PMI", "SLURM_", "TORCHELASTIC_")


def start(spec_path, variables):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_VARIABLES)}
    return subprocess.Popen(
        [sys.executable, "-m", "harness.worker", str(spec_path)],
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
        assert made[0].notes == [f"Slurm job {os.getpid()}"]


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
    assert outcome.timed_out
    assert outcome.filled_in == []
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
