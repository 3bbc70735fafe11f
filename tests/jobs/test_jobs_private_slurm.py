"""A private Slurm runs jobs as any Slurm does: binding, GPUs, accounting, preemption, lost nodes, stopped daemons."""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from epwatch_command import clean_environment
from slurm_fixtures import PREEMPTING, job_state, started_slurm, submit, submit_and_see, wait_for_state

from jobs.private_slurm import SlurmError


def until(true, deadline_s=60.0):
    give_up = time.monotonic() + deadline_s
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.1)


def test_runs_tasks_on_all_nodes_whose_names_resolve(slurm_without_accounting):
    slurm = slurm_without_accounting
    said = slurm.run("srun", "-N2", "-n4", "bash", "-c", "echo $SLURMD_NODENAME; getent ahosts $SLURMD_NODENAME >&2")
    assert sorted(said.split()) == ["127.0.1.1"] * 2 + ["127.0.1.2"] * 2
    assert slurm.node_names == ("127.0.1.1", "127.0.1.2")


def test_binds_each_task_to_its_cpu(slurm_without_accounting):
    said = slurm_without_accounting.run(
        "srun", "-N1", "-n2", "python3", "-c", "import os; print(sorted(os.sched_getaffinity(0)))"
    )
    assert sorted(said.splitlines()) == ["[0]", "[1]"]


def test_hands_out_gpus(slurm):
    show = ("bash", "-c", "echo $CUDA_VISIBLE_DEVICES")
    assert slurm.run("srun", "-N2", "--gres=gpu:2", *show).split() == ["0,1", "0,1"]
    assert sorted(slurm.run("srun", "-n2", "--gpus-per-task=1", *show).split()) == ["0", "1"]
    with pytest.raises(SlurmError, match="Requested node configuration is not available"):
        slurm.run("srun", "--gres=gpu:3", *show)


def test_a_job_sees_the_machines_gpus_that_its_node_has():
    with started_slurm(nodes=1):
        pass
    folder = Path(tempfile.mkdtemp(prefix="ep-", dir="/tmp"))
    program = Path(__file__).parent / "private_slurm_with_gpus.py"
    said = subprocess.run(
        [sys.executable, program, folder], env=clean_environment(), capture_output=True, text=True, check=True
    )
    shutil.rmtree(folder)
    seen = {}
    for line in said.stdout.splitlines():
        if " 127.0.1." in line:
            what, node, *gpus = line.split()
            seen.setdefault((what, node), set()).add(" ".join(gpus))
    assert seen == {
        ("two", "127.0.1.1"): {"0,1"},
        ("two", "127.0.1.2"): {"2,3"},
        ("one", "127.0.1.1"): {"0", "1"},
        ("one", "127.0.1.2"): {"2", "3"},
        ("none", "127.0.1.1"): {""},
        ("none", "127.0.1.2"): {""},
        ("batch", "127.0.1.2"): {"2,3"},
        ("step", "127.0.1.2"): {"2"},
    }


def test_accounting_remembers_jobs(slurm):
    job = submit(slurm, wrap="exit 3")

    def remembered():
        return slurm.run("sacct", "-n", "-P", "-X", "-o", "State,ExitCode", "-j", job).strip()

    until(lambda: remembered() == "FAILED|3:0")


def test_without_accounting_sacct_fails(slurm_without_accounting):
    with pytest.raises(SlurmError, match="accounting storage is disabled"):
        slurm_without_accounting.run("sacct")


def test_a_job_of_higher_priority_preempts(own_slurm):
    slurm = own_slurm(**PREEMPTING)
    requeued = submit(slurm, "-N1", "-n2", "--partition=low")
    given_up = submit(slurm, "-N1", "-n2", "--partition=low", "--no-requeue")
    for job in (requeued, given_up):
        wait_for_state(slurm, job, "RUNNING")
    submit(slurm, "-N2", "-n4", "--partition=high", wrap="srun true")
    wait_for_state(slurm, given_up, "PREEMPTED")
    wait_for_state(slurm, requeued, "PENDING")
    wait_for_state(slurm, requeued, "RUNNING")


def test_a_lost_node_ends_its_jobs(own_slurm):
    slurm = own_slurm()
    lost = submit_and_see(slurm, "-N2", "--no-requeue", tasks=2)
    slurm.kill_node("127.0.1.2")
    assert wait_for_state(slurm, lost, "NODE_FAIL") == "NODE_FAIL"
    elsewhere = submit(slurm, "-N1", "--exclude=127.0.1.2", wrap="srun true")
    wait_for_state(slurm, elsewhere, "COMPLETED")
    slurm.start_node("127.0.1.2")
    slurm.wait_idle()
    wait_for_state(slurm, submit(slurm, "-N2", wrap="srun true"), "COMPLETED")


@pytest.mark.parametrize("hard", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_jobs_live_through_the_controllers_restart(own_slurm, hard):
    slurm = own_slurm()
    job = submit_and_see(slurm, seconds=12)
    # A controller that is killed before it has saved the job's start forgets it.
    time.sleep(6 if hard else 0)
    slurm.stop_controller(hard=hard)
    with pytest.raises(SlurmError, match="squeue"):
        job_state(slurm, job)
    slurm.start_controller()
    wait_for_state(slurm, job, "COMPLETED")


def test_accounting_can_be_away_for_a_while(own_slurm):
    slurm = own_slurm(nodes=1, accounting=True)
    slurm.stop_accounting()
    with pytest.raises(SlurmError, match="sacct"):
        slurm.run("sacct")
    job = submit(slurm, wrap="true")
    wait_for_state(slurm, job, "COMPLETED")
    slurm.start_accounting()
    until(lambda: "COMPLETED" in slurm.run("sacct", "-n", "-P", "-X", "-o", "State", "-j", job))


def test_what_cannot_be_done_is_said(own_slurm):
    slurm = own_slurm()
    for impossible, sentence in (
        (lambda: slurm.kill_node("n7"), "there is no node n7: the nodes are 127.0.1.1, 127.0.1.2"),
        (lambda: slurm.start_node("127.0.1.1"), "slurmd-127.0.1.1 is up already"),
        (slurm.start_controller, "slurmctld is up already"),
        (slurm.start_accounting, "this Slurm was started without accounting: start another with it"),
    ):
        with pytest.raises(SlurmError, match=sentence):
            impossible()
