"""What a night says when Slurm, or the plan, or the machine, does not let it begin; and why jobs wait, in words."""

import shutil
import subprocess
import sys

import pytest
from epwatch_command import clean_environment, sentence
from slurm_fixtures import submit
from slurm_nights import Place, plan_text, wait_until

pytestmark = pytest.mark.timeout(300)


def small(**cluster):
    """A plan of one small case, in one job of two ranks on one host."""
    jobs = {"jobs": cluster.pop("jobs")} if "jobs" in cluster else {}
    return plan_text({"backend": "torch", "ranks": 2}, cluster=cluster, plan=jobs)


def refused(there):
    """The sentence of a night that was refused, and that is over: nothing is left in the queue, and none unfinished."""
    done = there.epwatch("nightly", "plan.toml")
    said = sentence(done)
    assert done.stderr.strip().splitlines() == [said]
    assert there.night().finished.given_up == said.removeprefix("epwatch: ")
    assert there.slurm.run("squeue", "-h").strip() == ""
    seen = there.json("nightly", "status", "plan.toml")
    assert (seen["done"], [one["state"] for one in seen["jobs"]]) == (0, ["missing"])
    (night,) = there.json("nights")
    assert (night["planned"], night["missing"], night["finished_at"] is not None) == (1, 1, True)
    return said


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        ({"partition": "nope"}, "invalid partition specified: nope"),
        ({"constraint": "h100"}, "Invalid feature specification"),
        ({"gpus_per_node": 3}, "Requested node configuration is not available"),
        ({"nodelist": ["elsewhere"]}, "Invalid node name specified"),
        ({"reservation": "maintenance"}, "Requested reservation is invalid"),
    ],
)
def test_what_slurm_refuses_is_said_in_its_words(slurm, tmp_path, cluster, words):
    said = refused(Place(tmp_path, slurm, small(**cluster)))
    assert said.startswith("epwatch: Slurm refuses the job: ")
    assert words in said


def test_a_time_limit_above_the_partitions(own_slurm, tmp_path):
    slurm = own_slurm(partitions=("PartitionName=short Nodes=ALL Default=YES MaxTime=10 State=UP",))
    said = refused(Place(tmp_path, slurm, small(time_limit_min=11)))
    assert "Requested time limit is invalid" in said


@pytest.mark.parametrize("absent", ["sbatch", "srun"])
def test_a_command_of_slurms_that_is_missing_is_named(slurm, tmp_path, absent):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in {"sbatch", "srun", "squeue", "sacct", "scancel", "git"} - {absent}:
        (programs / name).symlink_to(shutil.which(name))
    there = Place(tmp_path, slurm, small(), PATH=str(programs))
    assert refused(there) == f"epwatch: there is no {absent} here: run epwatch where Slurm's commands are"


def test_a_slurm_that_is_not_configured(slurm, tmp_path):
    conf = tmp_path / "slurm.conf"
    conf.write_text("# nothing\n")
    there = Place(tmp_path, slurm, small(), SLURM_CONF=str(conf))
    done = there.epwatch("nightly", "plan.toml")
    assert "ClusterName needs to be specified" in sentence(done)
    assert there.night().finished is not None


def test_a_refused_night_is_followed_by_a_new_one(slurm, tmp_path):
    there = Place(tmp_path, slurm, small(partition="nope"))
    first = there.epwatch("nightly", "plan.toml")
    second = there.epwatch("nightly", "plan.toml")
    assert (first.returncode, second.returncode) == (2, 2)
    assert "going on" not in second.stderr
    assert len(there.json("nights")) == 2


def test_what_no_node_holds_is_a_failed_run_and_the_rest_is_measured(own_slurm, tmp_path):
    worlds = plan_text({"backend": "torch", "ranks": [1, 2]}, cluster={"tasks_per_node": 1})
    there = Place(tmp_path, own_slurm(nodes=1), worlds)
    done = there.epwatch("nightly", "plan.toml")
    assert done.returncode == 3, done.stderr
    small, large = sorted(there.records(), key=lambda one: one.case.ranks)
    assert (small.outcome, large.outcome, large.failure.kind) == ("ok", "failed", "Refused")
    assert large.failure.message.startswith("Slurm refuses the job: ")
    assert large.failure.message in done.stdout
    assert there.night().finished.given_up == ""
    assert [one["state"] for one in there.json("nightly", "status", "plan.toml")["jobs"]] == ["done", "failed"]


def test_a_jobs_folder_that_others_can_write_to_is_refused(slurm, tmp_path):
    there = Place(tmp_path, slurm, small(jobs="shared"))
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    said = sentence(there.epwatch("nightly", "plan.toml"))
    assert f"{folder} can be written by others" in said
    assert f"chmod go-w {folder}" in said
    assert list(folder.glob("*/night.json")) == []


def test_a_night_whose_folder_others_could_write_to_is_not_gone_on_with(slurm, tmp_path):
    there = Place(tmp_path, slurm, small(nodelist=[slurm.node_names[0]]))
    submitted(there)
    there.night().folder.chmod(0o770)
    assert "can be written by others" in sentence(there.epwatch("collect", "plan.toml"))
    there.night().folder.chmod(0o700)
    assert there.epwatch("nightly", "cancel", "plan.toml").returncode == 0
    wait_until(lambda: not there.in_queue(), "the job has ended")


def submitted(there):
    done = there.epwatch("nightly", "plan.toml", "--no-wait")
    assert done.returncode == 0, done.stderr
    assert "is submitted: `epwatch nightly status plan.toml` shows it" in done.stdout


def why(there):
    """What status says of the one job that waits."""
    (job,) = there.json("nightly", "status", "plan.toml")["jobs"]
    assert job["state"] == "pending"
    return job["words"]


@pytest.fixture
def waiting(slurm, tmp_path):
    """A night on both nodes that was submitted and left while the nodes were taken; cancelled at the end."""
    holder = submit(slurm, "-N2", "--exclusive")
    there = Place(tmp_path, slurm, plan_text({"backend": "torch", "ranks": 4}))
    try:
        submitted(there)
        yield there
        assert there.epwatch("nightly", "cancel", "plan.toml").returncode == 0
        assert there.in_queue() == []
    finally:
        slurm.run("scancel", "--full", holder)
        slurm.wait_idle()


def test_a_job_waits_for_nodes(waiting):
    wait_until(lambda: "waits for nodes to become free (Resources)" in why(waiting), "it waits for nodes")
    collected = waiting.epwatch("collect", "plan.toml")
    assert collected.returncode == 0
    assert "goes on: 0 of 1 runs done" in collected.stdout


def test_a_job_waits_for_a_drained_node(waiting):
    node = waiting.slurm.node_names[1]
    waiting.slurm.run("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    try:
        wait_until(lambda: "nodes it could use are" in why(waiting), "it waits for a drained node")
        assert why(waiting).startswith(("nodes it could use are down, drained", "nodes it could use are not available"))
    finally:
        waiting.slurm.run("scontrol", "update", f"NodeName={node}", "State=RESUME")


def test_a_job_waits_because_it_is_held(waiting):
    (job,) = waiting.json("nightly", "status", "plan.toml")["jobs"]
    waiting.slurm.run("scontrol", "hold", job["scheduler_id"])
    held = ("is held by its user: scontrol release (JobHeldUser)", "is held by an administrator (JobHeldAdmin)")
    wait_until(lambda: why(waiting) in held, "it is held", deadline_s=30)


def test_a_cancelled_night_is_over_for_every_command(waiting):
    assert waiting.epwatch("nightly", "cancel", "plan.toml").returncode == 0
    seen = waiting.json("nightly", "status", "plan.toml")
    assert seen["state"] == "over (cancelled)"
    assert [one["state"] for one in seen["jobs"]] == ["missing"]
    assert "has no unfinished night" in waiting.epwatch("collect", "plan.toml").stderr
    submitted(waiting)


@pytest.mark.slow
def test_a_controller_that_is_down_is_waited_for(own_slurm, tmp_path):
    slurm = own_slurm(nodes=1)
    there = Place(tmp_path, slurm, small())
    slurm.stop_controller()
    said = tmp_path / "said.txt"
    command = [sys.executable, "-m", "jobs", "nightly", "plan.toml", "--no-wait"]
    environment = clean_environment(**slurm.environment(), EPWATCH_DB="history.db", EPWATCH_SPOOL="spool")
    with said.open("w") as log, subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=log) as night:
        try:
            wait_until(lambda: "it is tried again" in said.read_text(), "the command says that it waits")
            assert night.poll() is None
            slurm.start_controller()
            assert night.wait(120) == 0
        finally:
            night.kill()
    assert "Unable to contact slurm controller" in said.read_text()
    assert len(there.in_queue()) == 1
    assert there.epwatch("nightly", "cancel", "plan.toml").returncode == 0
