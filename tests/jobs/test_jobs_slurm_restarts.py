"""Whoever drives a night, or keeps the queue, dies and comes back: the night goes on, nothing of it is done twice."""

import json
import os
import random
import signal
import time
from contextlib import contextmanager

import pytest
from slurm_survival import PLACES, Scene, kill, until

from harness import record

pytestmark = pytest.mark.slow

SBATCH = """\
#!/bin/bash
if [ {when} = before ]; then touch {folder}/waits; until [ -e {folder}/go ]; do sleep 0.05; done; fi
said=$({real} "$@"); code=$?
if [ {when} = after ]; then touch {folder}/waits; until [ -e {folder}/go ]; do sleep 0.05; done; fi
touch {folder}/over; echo "$said"; exit $code
"""


@pytest.fixture
def scene(tmp_path, slurm_without_accounting):
    with Scene(tmp_path, slurm_without_accounting) as scene:
        yield scene


class Sbatch:
    """An sbatch that waits before or after it does its work, until told to go on: first in PATH of who is given it."""

    def __init__(self, scene, when):
        self._folder = scene.folder / "sbatch"
        self._folder.mkdir()
        path = scene.slurm.environment()["PATH"]
        program = self._folder / "sbatch"
        program.write_text(SBATCH.format(when=when, folder=self._folder, real="/usr/bin/sbatch"))
        program.chmod(0o700)
        self.environment = {"PATH": f"{self._folder}:{path}"}

    def is_at(self, place):
        return (self._folder / place).exists()

    def go(self):
        (self._folder / "go").touch()
        until(lambda: self.is_at("over"), "sbatch's end")


def rewrite(path, **changes):
    """Change fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_killed_after_sbatch_had_the_jobs_the_next_command_finds_them(scene):
    scene.plan({}, repeats=2)
    sbatch = Sbatch(scene, "after")
    with scene.going(**sbatch.environment) as command:
        until(lambda: sbatch.is_at("waits"), "sbatch")
        kill(command)
        sbatch.go()
    assert [attempt.submitted for attempt in scene.attempts()] == [None, None]
    done = scene.nightly()
    assert done.returncode == 0, done.stderr
    assert "going on with night" in done.stderr
    assert [attempt.number for attempt in scene.attempts()] == [1, 1]
    assert [row["outcome"] for row in scene.assert_accounted()] == ["ok", "ok"]


def test_killed_before_sbatch_was_through_its_job_ends_without_measuring(scene):
    """It waits a minute for submitit to tell it what to do."""
    scene.plan({}, heartbeat_s=100.0)
    scene.fault("combine.0.hold")
    sbatch = Sbatch(scene, "before")
    with scene.going(**sbatch.environment) as command:
        until(lambda: sbatch.is_at("waits"), "sbatch")
        kill(command)
        with scene.going() as command:
            scene.measuring(2)
            sbatch.go()
            first, second = scene.attempts()
            until(lambda: len(scene.queue()) == 1, "the end of the job that came too late")
            scene.no_fault("combine.0.hold")
            out, err = command.communicate(timeout=120)
    assert command.returncode == 0, out + err
    assert (first.settled.cause, second.settled.cause) == ("lost", "done")
    assert not first.logs.exists()
    assert [row["outcome"] for row in scene.assert_accounted()] == ["ok"]


def files_of(scene):
    """How many files the night has made so far."""
    folders = (scene.folder / ".epwatch", scene.folder / "spool")
    return sum(len(files) for folder in folders for _, _, files in os.walk(folder))


@contextmanager
def killed_at_random(scene, chance):
    """`epwatch nightly`, killed once it or its jobs have made a few files more, or after a while; or at its end."""
    before = files_of(scene)
    with scene.going() as command:
        more = chance.choice((1, 2, 3, 5, 8, 12, 20))
        give_up = time.monotonic() + chance.uniform(1.0, 12.0)
        while command.poll() is None and files_of(scene) < before + more and time.monotonic() < give_up:
            time.sleep(0.001)
        kill(command)
        yield command


def survives_random_kills(scene, seed, kills):
    chance = random.Random(seed)
    for _ in range(kills):
        with killed_at_random(scene, chance) as command:
            if command.returncode == 0:
                break
    else:
        done = scene.nightly()
        assert done.returncode == 0, done.stdout + done.stderr
    assert {row["outcome"] for row in scene.assert_accounted()} == {"ok"}
    nights = scene.nights
    assert all(night.finished.given_up == "" for night in nights)
    # One more where the last command was killed between the night's end and its own.
    assert len(nights) <= 2


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in (2, 3, 4))])
def test_a_night_whose_command_is_killed_again_and_again_measures_each_run_once(scene, seed):
    scene.plan({"backend": "torch"}, repeats=2)
    survives_random_kills(scene, seed, kills=5)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_night_on_this_machine_does_so_too_whose_jobs_die_with_it(tmp_path, seed):
    """Five times in a row without a record it would be given up."""
    with Scene(tmp_path) as scene:
        scene.plan({"backend": "torch"}, repeats=2)
        survives_random_kills(scene, seed, kills=4)


def test_ctrl_c_leaves_the_jobs_running_and_cancel_ends_them(scene):
    scene.plan({})
    scene.fault("combine.0.hold")
    with scene.going() as command:
        scene.measuring()
        os.killpg(command.pid, signal.SIGINT)
        out, err = command.communicate(timeout=60)
    assert (command.returncode, out) == (130, "")
    assert "go on in the queue: run the plan again to go on with it" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert ["RUNNING" in line for line in scene.queue()] == [True]
    done = scene.epwatch("nightly", "cancel", "plan.toml", *PLACES)
    assert done.returncode == 0, done.stderr
    assert "is cancelled; what it measured is kept" in done.stdout
    assert scene.night.finished.given_up == "cancelled"
    assert scene.assert_accounted() == []


def test_ctrl_c_and_the_same_command_again_go_on_with_the_same_jobs(scene):
    scene.plan({})
    scene.fault("combine.0.hold")
    with scene.going() as command:
        scene.measuring()
        os.killpg(command.pid, signal.SIGINT)
        command.communicate(timeout=60)
    scene.no_fault("combine.0.hold")
    done = scene.nightly()
    assert done.returncode == 0, done.stderr
    assert [attempt.number for attempt in scene.attempts()] == [1]
    assert [row["outcome"] for row in scene.assert_accounted()] == ["ok"]


def test_an_old_night_that_makes_no_sense_any_more_is_given_up_in_so_many_words(scene):
    """Its plan, its code or the time have gone on: each time its jobs are cancelled, and a new night begins."""
    scene.plan({})
    scene.fault("combine.0.hold")
    assert scene.nightly("--no-wait").returncode == 0
    scene.measuring()
    old = scene.night

    def given_up(*arguments):
        nonlocal old
        done = scene.nightly(*arguments)
        assert done.returncode == 0, done.stderr
        (words,) = [line for line in done.stderr.splitlines() if "is given up" in line]
        assert old.name in words
        assert not [line for line in scene.queue() if old.name in line and "COMPLETING" not in line]
        old = scene.night
        return words

    scene.plan({}, iters=21)
    assert "is given up: the plan has changed since; what it measured is kept" in given_up("--no-wait")
    rewrite(old.folder / "night.json", code={"commit": "another"})
    assert "the code under test has changed since" in given_up("--no-wait")
    rewrite(old.folder / "night.json", started_at="2026-01-01T00:00:00+00:00")
    assert "hours ago, and resume_within_h is 12" in given_up("--no-wait")
    scene.no_fault("combine.0.hold")
    assert "a new night was asked for" in given_up("--new")
    assert [row["outcome"] for row in scene.assert_accounted()] == ["ok"]


def test_clocks_that_jump_and_strange_files_change_nothing(scene):
    """One job has begun in a queue's time long gone, one waits since a time to come; a record came only by half."""
    scene.plan({}, cluster={"jobs_at_once": 1}, repeats=2)
    scene.fault("combine.0.hold")
    with scene.going() as command:
        scene.measuring(name="repeat0")
        kill(command)
    begun, waits = scene.attempts()
    rewrite(begun.folder / "submitted.json", at="2000-01-01T00:00:00.000Z")
    rewrite(waits.folder / "submitted.json", at="2100-01-01T00:00:00.000Z")
    half = scene.folder / "spool" / f".{begun.spec.runs[0].run_id}.1.partial"
    half.write_bytes(b'{"run_id": "')
    scene.no_fault("combine.0.hold")
    done = scene.nightly()
    assert done.returncode == 0, done.stderr
    assert [attempt.number for attempt in scene.attempts()] == [1, 1]
    assert [row["outcome"] for row in scene.assert_accounted()] == ["ok", "ok"]
    assert half.exists()


def test_a_spool_that_takes_no_record_costs_a_try_and_a_late_record_no_row(scene):
    scene.plan({})
    scene.fault("combine.0.hold")
    spool, away = scene.folder / "spool", scene.folder / "away"
    with scene.going() as command:
        scene.measuring()
        spool.rename(away)
        spool.write_text("no folder")
        scene.no_fault("combine.0.hold")
        until(lambda: scene.attempts()[0].settled, "the first attempt's end")
        spool.unlink()
        away.rename(spool)
        out, err = command.communicate(timeout=120)
    assert command.returncode == 0, out + err
    assert "cannot write the record" in scene.attempts()[0].settled.words
    (row,) = scene.assert_accounted()
    assert row["outcome"] == "ok"
    (there,) = (spool / record.INGESTED).glob("*.json")
    late = spool / there.name
    late.write_bytes(there.read_bytes())
    assert scene.epwatch("collect", *PLACES).returncode == 0
    rewrite(there, started_at="2026-01-01T00:00:00.000Z")
    late.write_bytes(there.read_bytes())
    assert scene.epwatch("collect", *PLACES).returncode == 3
    (reason,) = (spool / "quarantine").glob("*.reason")
    assert "is in the history already, with other content" in reason.read_text()
    assert scene.rows() == [row]


def away(scene, *, hard, meanwhile):
    """A night of which one job runs and one waits while the controller is away; what its command printed."""
    scene.plan({}, repeats=2, heartbeat_s=100.0)
    scene.fault("combine.0.hold")
    with scene.going() as command:
        scene.measuring(name="repeat0")
        # slurmctld writes its state down every few seconds: what it knew less than that before SIGKILL is lost.
        time.sleep(8 if hard else 0)
        scene.slurm.stop_controller(hard=hard)
        meanwhile(command)
        scene.slurm.start_controller()
        scene.no_fault("combine.0.hold")
        out, err = command.communicate(timeout=200)
    assert command.returncode == 0, out + err
    assert [attempt.number for attempt in scene.attempts()] == [1, 1]
    assert [row["outcome"] for row in scene.assert_accounted()] == ["ok", "ok"]


@pytest.mark.parametrize("hard", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_controller_that_is_away_for_a_while_ends_no_job(tmp_path, own_slurm, hard):
    """What Slurm's commands say then is taken for nothing."""

    def looks_a_few_times(command):
        time.sleep(5)
        assert command.poll() is None

    with Scene(tmp_path, own_slurm(nodes=1)) as scene:
        away(scene, hard=hard, meanwhile=looks_a_few_times)


def test_a_job_that_ends_while_the_controller_is_away_has_ended(tmp_path, own_slurm):
    """Slurm's daemon of the node tells the controller a minute later, and keeps the node until then."""
    with Scene(tmp_path, own_slurm(nodes=1)) as scene:

        def it_ends(command):
            scene.no_fault("combine.0.hold")
            first = scene.attempts("repeat0")[0]
            until(lambda: (first.folder / "envelope-0.json").exists(), "the end of the first job")
            time.sleep(5)
            assert command.poll() is None

        away(scene, hard=False, meanwhile=it_ends)


def test_a_controller_killed_just_after_it_took_the_jobs(tmp_path, own_slurm):
    """It knows nothing of them when it comes back, while their processes may still run."""
    slurm = own_slurm(nodes=2)
    with Scene(tmp_path, slurm) as scene:
        scene.plan({"backend": "torch"}, repeats=2, tries=3)
        with scene.going() as command:
            scene.attempt(name="repeat1")
            slurm.stop_controller(hard=True)
            slurm.start_controller()
            out, err = command.communicate(timeout=170)
        assert command.returncode == 0, out + err
        assert [row["outcome"] for row in scene.assert_accounted()] == ["ok", "ok"]


def test_a_night_that_finds_no_controller_waits_for_it(tmp_path, own_slurm):
    slurm = own_slurm(nodes=1)
    with Scene(tmp_path, slurm) as scene:
        scene.plan({"backend": "torch"})
        slurm.stop_controller()
        with scene.going() as command:
            until(lambda: scene.attempts() and scene.attempts()[0].claim, "the first refusal")
            assert command.poll() is None
            slurm.start_controller()
            out, err = command.communicate(timeout=120)
        assert command.returncode == 0, out + err
        assert [row["outcome"] for row in scene.assert_accounted()] == ["ok"]


def test_a_night_is_not_cancelled_while_slurm_cannot_be_told(tmp_path, own_slurm):
    slurm = own_slurm(nodes=1)
    with Scene(tmp_path, slurm) as scene:
        scene.plan({})
        scene.fault("combine.0.hold")
        assert scene.nightly("--no-wait").returncode == 0
        scene.measuring()
        slurm.stop_controller()
        refused = scene.epwatch("nightly", "cancel", "plan.toml", *PLACES)
        assert refused.returncode == 2
        assert "Unable to contact slurm controller" in refused.stderr.splitlines()[-1]
        assert scene.night.finished is None
        slurm.start_controller()
        assert scene.epwatch("nightly", "cancel", "plan.toml", *PLACES).returncode == 0
        assert scene.assert_accounted() == []
