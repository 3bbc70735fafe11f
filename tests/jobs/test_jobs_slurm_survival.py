"""What a cluster does to a night's jobs, done to real ones: no run is lost, none counts twice, and it is said why."""

import getpass
import os
import signal
from pathlib import Path

import pytest
from slurm_fixtures import PREEMPTING, submit, wait_for_state
from slurm_survival import Scene, until

from jobs.envelope import read_envelope

pytestmark = pytest.mark.slow

TORCH_FIRST, HELD_FIRST = 10, 1
"""Seeds that put the plan's two cases of one rank, or of two, in that order."""
BOTH = ({"backend": "torch"}, {"backend": "held"})


@pytest.fixture
def scene(tmp_path, slurm_without_accounting):
    with Scene(tmp_path, slurm_without_accounting) as scene:
        yield scene


def of_two_ranks(*cases):
    return [case | {"ranks": 2} for case in cases]


def backends(attempt):
    return [run.case.backend for run in attempt.spec.runs]


def kill_rank(at):
    os.kill(at.pid, signal.SIGKILL)


def kill_who_looks_after_it(at):
    """The process that Slurm started for the rank."""
    stat = Path(f"/proc/{at.pid}/stat").read_text()
    os.kill(int(stat.rpartition(")")[2].split()[1]), signal.SIGKILL)


def test_a_rank_killed_once_costs_its_case_one_more_try_and_the_others_nothing(scene):
    scene.plan(*of_two_ranks(*BOTH), seed=HELD_FIRST)
    scene.fault("combine.1.hold")
    with scene.going() as command:
        at = scene.measuring(rank=1)
        scene.no_fault("combine.1.hold")
        kill_rank(at)
        out, err = command.communicate(timeout=120)
    assert command.returncode == 0, out + err
    first, second = scene.attempts()
    node = first.claim.hosts[1]
    assert (first.settled.cause, first.settled.strike) == ("killed", True)
    assert first.settled.words == f"rank 1 ({node}) was killed by signal 9 (SIGKILL)"
    assert (backends(first), backends(second)) == (["held", "torch"], ["torch", "held"])
    assert [read_envelope(one.folder / "envelope-1.json").attempt for one in (first, second)] == [1, 2]
    assert [row["outcome"] for row in scene.assert_accounted()] == ["ok", "ok"]


def test_a_rank_whose_keeper_is_killed_each_time_is_recorded_as_failed_and_named(scene):
    scene.plan(*of_two_ranks(*BOTH), seed=HELD_FIRST)
    scene.fault("combine.1.hold")
    with scene.going() as command:
        kill_who_looks_after_it(scene.measuring(1, rank=1))
        kill_who_looks_after_it(scene.measuring(2, rank=1))
        out, err = command.communicate(timeout=120)
    assert command.returncode == 3, out + err
    assert sorted(row["outcome"] for row in scene.assert_accounted()) == ["failed", "ok"]
    (failure,) = [one.failure for one in scene.records().values() if one.failure]
    node = scene.attempts()[1].claim.hosts[1]
    assert failure.message == f"rank 1 ({node}) was killed by signal 9 (SIGKILL), at 'check combine before'"
    assert (failure.kind, failure.rank, failure.step) == ("RankKilled", 1, "check combine before")
    assert f"{node}: task 1: Killed" in failure.log_tail


def test_a_rank_that_hangs_is_named_with_its_stack_and_one_that_is_slow_passes(scene):
    """The slow case's steps take longer than the heartbeat all together, none of them alone."""
    scene.plan({"ranks": 2}, {"ranks": 1}, deadline_s=3.0, heartbeat_s=16.0, iters=40, tries=1)
    for fault in ("combine.1.hold", "combine.0.slow", "dispatch.0.slow"):
        scene.fault(fault)
    done = scene.nightly()
    assert done.returncode == 3, done.stdout + done.stderr
    by_ranks = {one.case.ranks: one for one in scene.records().values()}
    assert by_ranks[1].outcome == "ok"
    hung = by_ranks[2]
    (attempt,) = scene.attempts("r2")
    assert hung.outcome == "hung"
    assert hung.failure.message.startswith(f"hung in combine on rank 1 ({attempt.claim.hosts[1]}): no rank has begun")
    assert "held_backend.py" in hung.failure.log_tail
    assert attempt.settled.cause == "hung"
    scene.assert_accounted()


def test_a_stopped_rank_whose_peer_waits_in_vain_is_what_hangs(scene):
    """Its peer gives up long before the heartbeat does, and ends with an error that is not the cause."""
    scene.plan({"ranks": 2}, deadline_s=2.0, heartbeat_s=100.0, tries=1)
    scene.fault("combine.1.hold")
    with scene.going() as command:
        os.kill(scene.measuring(rank=1).pid, signal.SIGSTOP)
        out, err = command.communicate(timeout=150)
    assert command.returncode == 3, out + err
    (record,) = scene.records().values()
    assert record.outcome == "hung"
    assert record.failure.message.startswith("hung in combine on rank 1 (127.0.1.")
    assert "rank 0 waited for it in vain" in record.failure.message
    scene.assert_accounted()


def test_who_cancels_a_running_job_means_it_and_is_named(tmp_path, slurm):
    with Scene(tmp_path, slurm) as scene:
        scene.plan({}, cluster={"jobs_at_once": 1}, repeats=2)
        scene.fault("combine.0.hold")
        with scene.going() as command:
            scene.measuring(name="repeat0")
            slurm.run("scancel", scene.attempt(name="repeat0").submitted.scheduler_id)
            scene.no_fault("combine.0.hold")
            out, err = command.communicate(timeout=120)
        assert command.returncode == 3, out + err
        assert [attempt.number for attempt in scene.attempts()] == [1, 1]
        cancelled, other = sorted(scene.records().values(), key=lambda one: one.repeat)
        assert (cancelled.outcome, other.outcome) == ("failed", "ok")
        assert cancelled.failure.kind == "Cancelled"
        assert f"the job was cancelled by {getpass.getuser()} (uid {os.geteuid()})" in cancelled.failure.message
        scene.assert_accounted()


def test_a_job_cancelled_while_it_waits_is_not_tried_again(scene):
    """Slurm forgets such an element of an array at once, and accounting never hears of it."""
    scene.plan({}, cluster={"jobs_at_once": 1}, repeats=3)
    scene.fault("combine.0.hold")
    with scene.going() as command:
        scene.measuring(name="repeat0")
        scene.slurm.run("scancel", scene.attempt(name="repeat1").submitted.scheduler_id)
        until(lambda: scene.attempts("repeat1")[0].settled, "its end to be noticed")
        scene.no_fault("combine.0.hold")
        out, err = command.communicate(timeout=120)
    assert command.returncode == 3, out + err
    assert [attempt.number for attempt in scene.attempts()] == [1, 1, 1]
    first, cancelled, last = sorted(scene.records().values(), key=lambda one: one.repeat)
    assert (first.outcome, cancelled.outcome, last.outcome) == ("ok", "failed", "ok")
    assert (cancelled.failure.kind, cancelled.failure.step) == ("Cancelled", "job")
    assert "cancelled while it waited" in cancelled.failure.message
    scene.assert_accounted()


@pytest.mark.parametrize("accounting", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_preempted_job_goes_on_with_what_has_no_record(tmp_path, own_slurm, accounting):
    slurm = own_slurm(nodes=1, accounting=accounting, **PREEMPTING)
    with Scene(tmp_path, slurm) as scene:
        scene.plan(*BOTH, cluster={"partition": "low"}, seed=TORCH_FIRST, tries=1)
        scene.fault("combine.0.hold")
        with scene.going() as command:
            scene.measuring()
            other = submit(slurm, "--partition=high", "--exclusive", wrap="sleep 4")
            wait_for_state(slurm, other, "RUNNING")
            scene.no_fault("combine.0.hold")
            out, err = command.communicate(timeout=120)
        assert command.returncode == 0, out + err
        first, second = scene.attempts()
        assert (first.settled.cause, first.settled.strike) == ("preempted", False)
        assert (backends(first), backends(second)) == (["torch", "held"], ["held"])
        assert [row["outcome"] for row in scene.assert_accounted()] == ["ok", "ok"]


def test_a_job_whose_node_dies_goes_on_elsewhere(tmp_path, own_slurm):
    slurm = own_slurm(nodes=3)
    with Scene(tmp_path, slurm) as scene:
        scene.plan(*of_two_ranks(*BOTH), cluster={"tasks_per_node": 1}, seed=TORCH_FIRST, tries=1)
        scene.fault("combine.0.hold")
        with scene.going() as command:
            scene.measuring()
            (first,) = scene.attempts()
            _, dead = first.claim.hosts
            slurm.kill_node(dead)
            second = scene.attempt(2)
            asked = slurm.run("scontrol", "show", "job", second.submitted.scheduler_id)
            scene.no_fault("combine.0.hold")
            out, err = command.communicate(timeout=120)
        assert command.returncode == 0, out + err
        assert (first.settled.cause, first.settled.bad_hosts, first.settled.strike) == ("node", [dead], False)
        assert f"({dead})" in first.settled.words
        assert f"ExcNodeList={dead}\n" in asked
        assert dead not in second.claim.hosts
        assert (backends(first), backends(second)) == (["torch", "held"], ["held"])
        assert [row["outcome"] for row in scene.assert_accounted()] == ["ok", "ok"]


def test_a_job_that_needs_every_node_waits_until_the_dead_one_is_back(tmp_path, own_slurm):
    slurm = own_slurm(nodes=2)
    with Scene(tmp_path, slurm) as scene:
        scene.plan(*of_two_ranks(*BOTH), cluster={"tasks_per_node": 1}, seed=TORCH_FIRST, tries=1)
        scene.fault("combine.0.hold")
        with scene.going() as command:
            scene.measuring()
            _, dead = scene.attempts()[0].claim.hosts
            slurm.kill_node(dead)
            scene.attempt(2)
            scene.no_fault("combine.0.hold")
            slurm.start_node(dead)
            out, err = command.communicate(timeout=120)
        assert command.returncode == 0, out + err
        assert [row["outcome"] for row in scene.assert_accounted()] == ["ok", "ok"]


def test_a_job_told_that_its_time_is_nearly_up_begins_no_further_case(scene):
    """Of a job of one minute Slurm may say so from the first second on: a case is measured all the same."""
    scene.plan({"tokens": [4, 8]}, cluster={"time_limit_min": 1}, job_deadline_s=60.0, tries=1)
    scene.fault("combine.0.hold")
    with scene.going() as command:
        scene.measuring()
        (first,) = scene.attempts()
        until(lambda: (first.logs / "no-more").exists(), "Slurm's notice")
        scene.no_fault("combine.0.hold")
        out, err = command.communicate(timeout=120)
    assert command.returncode == 0, out + err
    first, second = scene.attempts()
    assert (first.settled.cause, first.settled.strike) == ("done", False)
    assert second.spec.runs == first.spec.runs[1:]
    assert [row["outcome"] for row in scene.assert_accounted()] == ["ok", "ok"]


@pytest.mark.timeout(300)
def test_a_job_that_slurm_ends_at_its_time_limit_costs_its_case_a_try(scene):
    scene.plan(*BOTH, cluster={"time_limit_min": 1}, job_deadline_s=60.0, tries=1, seed=HELD_FIRST)
    scene.fault("combine.0.hold")
    with scene.going() as command:
        scene.measuring()
        out, err = command.communicate(timeout=240)
    assert command.returncode == 3, out + err
    assert sorted(row["outcome"] for row in scene.assert_accounted()) in (["failed", "ok"], ["hung", "ok"])
    first, second = scene.attempts()
    assert first.settled.cause in ("time limit", "hung")
    assert backends(second) == ["torch"]


def test_a_job_that_waits_too_long_is_given_up_and_it_is_said_what_it_waited_for(scene):
    slurm = scene.slurm
    blocker = submit(slurm, "--exclusive", "-N2", wrap="sleep 1000")
    wait_for_state(slurm, blocker, "RUNNING")
    try:
        scene.plan({}, cluster={"queue_deadline_min": 0.05})
        done = scene.nightly()
    finally:
        slurm.run("scancel", blocker)
    assert done.returncode == 3, done.stdout + done.stderr
    (row,) = scene.assert_accounted()
    assert row["outcome"] == "failed"
    assert row["failure"].startswith("it waited in the queue for 0.05 minutes: ")
    assert "waits for nodes to become free (Resources)" in row["failure"]
    slurm.wait_idle(60)
