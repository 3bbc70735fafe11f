"""What a site allows, and who else is about: too many jobs, waits for the night's own jobs, other collectors, a cluster
that refuses while another one works, an environment that hides jobs.
"""

import os
import shutil
import signal

import pytest
from slurm_survival import PLACES, Scene, until


@pytest.fixture
def scene(tmp_path, slurm_without_accounting):
    with Scene(tmp_path, slurm_without_accounting) as scene:
        yield scene


@pytest.mark.slow
def test_a_site_that_allows_short_arrays_alone_gets_shorter_ones(tmp_path, own_slurm):
    with Scene(tmp_path, own_slurm(nodes=1, extra_conf=("MaxArraySize=3",))) as scene:
        scene.plan({"backend": "torch"}, repeats=4)
        done = scene.nightly(timeout_s=170)
        assert done.returncode == 0, done.stdout + done.stderr
        assert [row["outcome"] for row in scene.assert_accounted()] == ["ok"] * 4
        submitted = [one.submitted.scheduler_id for one in scene.attempts() if one.submitted]
        assert len(submitted) == 4


@pytest.mark.slow
def test_a_wait_for_the_nights_own_jobs_is_no_wait_in_the_queue(scene):
    """Also not for a command that finds the job in the queue for longer than the deadline."""
    scene.plan({}, cluster={"jobs_at_once": 1, "queue_deadline_min": 0.1}, repeats=2)
    scene.fault("combine.0.hold")
    with scene.going() as command:
        scene.measuring(name="repeat0")
        with pytest.raises(AssertionError, match="waited"):
            until(lambda: scene.attempts("repeat1")[0].settled, "an end of what waits", limit_s=12)
        scene.no_fault("combine.0.hold")
        out, err = command.communicate(timeout=120)
    assert command.returncode == 0, out + err
    assert [attempt.number for attempt in scene.attempts()] == [1, 1]
    assert [row["outcome"] for row in scene.assert_accounted()] == ["ok", "ok"]


def test_a_record_that_somebody_else_collected_is_not_measured_again(scene):
    scene.plan({})
    scene.fault("combine.0.hold")
    with scene.going() as command:
        scene.measuring()
        os.kill(command.pid, signal.SIGSTOP)
        scene.no_fault("combine.0.hold")
        (attempt,) = scene.attempts()
        until(lambda: (attempt.folder / "envelope-0.json").exists(), "the job's end")
        assert scene.epwatch("collect", *PLACES).returncode == 0
        os.kill(command.pid, signal.SIGCONT)
        out, err = command.communicate(timeout=60)
    assert command.returncode == 0, out + err
    assert [one.number for one in scene.attempts()] == [1]
    assert [row["outcome"] for row in scene.assert_accounted()] == ["ok"]


def test_variables_that_filter_what_slurm_shows_hide_no_job(scene):
    scene.plan({"backend": "torch"})
    done = scene.nightly(SQUEUE_PARTITION="none", SQUEUE_STATES="SUSPENDED", SQUEUE_NAMES="none", SLURM_CLUSTERS="none")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [one.number for one in scene.attempts()] == [1]
    assert [row["outcome"] for row in scene.assert_accounted()] == ["ok"]


def test_a_machine_without_squeue_does_not_wait_for_ever(scene):
    scene.plan({"backend": "torch"})
    assert scene.nightly("--no-wait").returncode == 0
    programs = scene.folder / "bin"
    programs.mkdir()
    (programs / "git").symlink_to(shutil.which("git"))
    done = scene.nightly(PATH=str(programs))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "epwatch: there is no squeue here: run epwatch where Slurm's commands are"
    assert scene.nightly().returncode == 0
    assert [row["outcome"] for row in scene.assert_accounted()] == ["ok"]


@pytest.mark.parametrize("first", ["closed", "open"])
def test_a_cluster_that_refuses_does_not_keep_another_from_its_jobs(scene, first):
    closed = '[[cluster]]\nkind = "slurm"\nname = "closed"\npartition = "nope"\n'
    open_ = '[[cluster]]\nkind = "slurm"\nname = "open"\n'
    clusters = closed + open_ if first == "closed" else open_ + closed
    scene.plan({"backend": "torch"})
    plan = scene.folder / "plan.toml"
    before, _, rest = plan.read_text().partition("[cluster]")
    plan.write_text(before + clusters + rest[rest.index("[measure]") :])
    done = scene.nightly()
    assert done.returncode == 3, done.stdout + done.stderr
    rows = scene.assert_accounted()
    assert sorted((row["platform"].partition("/")[0], row["outcome"]) for row in rows) == [
        ("closed", "failed"),
        ("open", "ok"),
    ]
    assert "invalid partition specified: nope" in done.stdout
