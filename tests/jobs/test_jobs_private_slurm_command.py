"""`epwatch slurm` as a user meets it: up, status, down, in the foreground, and what it says when it cannot."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from epwatch_command import clean_environment, epwatch, sentence
from slurm_fixtures import started_slurm, submit_and_see

from jobs.private_slurm import PrivateSlurm, SlurmError, SlurmSettings


@pytest.fixture
def home():
    """A folder of a short path; whatever Slurm is up in its usual place goes at the end."""
    with started_slurm(nodes=1):
        pass
    folder = Path(tempfile.mkdtemp(prefix="ep-", dir="/tmp"))
    yield folder
    epwatch("slurm", "down", cwd=folder)
    shutil.rmtree(folder)


def succeeded(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_newcomer_gets_a_queue(home):
    said = succeeded(epwatch("slurm", "up", "--memory", "2000", cwd=home))
    conf = home / ".epwatch" / "slurm" / "slurm.conf"
    assert "A Slurm of 1 node is up in" in said
    assert f"export SLURM_CONF={conf}" in said
    assert "sacct fails" in said
    environment = clean_environment(SLURM_CONF=str(conf))
    ran = subprocess.run(["srun", "echo", "here"], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == "here\n"
    shown = succeeded(epwatch("slurm", "status", cwd=home))
    assert "slurmd-127.0.1.1" in shown
    assert "idle" in shown
    assert "jobs: 1 completed" in shown

    refused = sentence(epwatch("slurm", "up", cwd=home))
    assert refused.endswith("`epwatch slurm status` shows it, `epwatch slurm down` ends it")
    assert "is up already" in refused

    assert "has ended" in succeeded(epwatch("slurm", "down", cwd=home))
    assert sentence(epwatch("slurm", "down", cwd=home)).endswith("`epwatch slurm up` starts one")
    assert sentence(epwatch("slurm", "status", cwd=home)).endswith("`epwatch slurm up` starts one")
    assert not conf.exists()
    succeeded(epwatch("slurm", "up", cwd=home))


def test_programs_get_json(home):
    arguments = ("--nodes", "2", "--cpus", "1", "--memory", "1000", "--gpus", "2", "--accounting")
    up = json.loads(succeeded(epwatch("slurm", "up", *arguments, "--json", cwd=home)))
    assert up["accounting"] is True
    assert up["stand_in_gpus"] is True
    assert up["nodes"] == [
        {"name": f"127.0.1.{number}", "state": "idle", "cpus": 1, "memory_mb": 1000, "gpus": 2} for number in (1, 2)
    ]
    killed = next(daemon["pid"] for daemon in up["daemons"] if daemon["name"] == "slurmctld")
    os.kill(killed, signal.SIGKILL)
    status = json.loads(succeeded(epwatch("slurm", "status", "--json", cwd=home)))
    assert {daemon["name"]: daemon["ended"] for daemon in status["daemons"]}["slurmctld"] == "was killed by SIGKILL"
    assert status["jobs"] is None
    assert {node["state"] for node in status["nodes"]} == {"unknown"}
    assert "stand-ins" in succeeded(epwatch("slurm", "status", cwd=home))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_foreground_it_ends_with_the_command(home, number):
    command = [sys.executable, "-m", "jobs", "slurm", "up", "--foreground", "--memory", "1000"]
    with subprocess.Popen(command, cwd=home, env=clean_environment(), stdout=subprocess.PIPE, text=True) as shown:
        assert shown.stdout.readline().startswith("A Slurm of 1 node is up")
        shown.send_signal(number)
        assert shown.wait(60) == 0
    assert "no Slurm is up" in sentence(epwatch("slurm", "status", cwd=home))


def test_the_foreground_ends_when_another_command_ends_it(home):
    command = [sys.executable, "-m", "jobs", "slurm", "up", "--foreground", "--memory", "1000"]
    with subprocess.Popen(command, cwd=home, env=clean_environment(), stdout=subprocess.PIPE, text=True) as shown:
        assert shown.stdout.readline().startswith("A Slurm of 1 node is up")
        succeeded(epwatch("slurm", "down", cwd=home))
        assert shown.wait(60) == 0


def test_down_ends_what_a_killed_supervisor_left(home):
    up = json.loads(succeeded(epwatch("slurm", "up", "--memory", "1000", "--json", cwd=home)))
    slurm = PrivateSlurm.attach(Path(up["folder"]))
    submit_and_see(slurm)
    status = slurm.status()
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in (status.supervisor_pid, status.guard_pid):
            os.kill(pid, number)
    said = succeeded(epwatch("slurm", "down", cwd=home))
    assert said.startswith("ended ")
    assert "no Slurm is up" in sentence(epwatch("slurm", "down", cwd=home))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--nodes", "0"], "ask for 1 to 250"),
        (["--cpus", "0"], "a node cannot have cpus = 0"),
        (["--folder", "/proc/slurm"], "cannot make the folder /proc/slurm"),
        (["--folder", "/tmp/" + "a" * 90], "with more than 65 the paths of Slurm's sockets get longer"),
        (["--folder", "/tmp/a b"], "has characters in its path"),
        (["--folder", "."], "holds other things than a Slurm"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(home, arguments, named):
    (home / "notes").write_text("mine")
    assert named in sentence(epwatch("slurm", "up", *arguments, cwd=home))
    assert (home / "notes").read_text() == "mine"


def test_missing_programs_are_named_with_their_packages(home):
    said = sentence(epwatch("slurm", "up", cwd=home, PATH="/nowhere"))
    assert "not installed here: sbatch, srun, scontrol, sinfo, squeue;" in said
    assert said.endswith("apt-get install --no-install-recommends slurmctld slurmd slurm-client munge")


def test_daemons_need_not_be_on_the_path(home):
    succeeded(epwatch("slurm", "up", cwd=home, PATH="/usr/bin:/bin"))


def test_a_daemon_that_ends_has_the_last_word():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        for line, words in (
            (f"SlurmctldPort={port}", r"slurmctld ended with exit code 1 before it answered: .*Address already in use"),
            ("Nonsense=1", r"slurmctld ended with exit code 1 before it answered: .*unrecognized key: Nonsense"),
            (
                "TaskPlugin=task/nope",
                r"slurmd-127.0.1.1 ended with exit code 1 before all nodes were idle: .*nope",
            ),
        ):
            slurm = PrivateSlurm(SlurmSettings(cpus=1, gpus=0, extra_conf=(line,)))
            with pytest.raises(SlurmError, match=words):
                slurm.start()
            assert not slurm.folder.exists()
