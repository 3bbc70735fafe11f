"""Nothing of a private Slurm survives: its end, its owner's, its supervisor's or any daemon's death by SIGKILL.

Each is tried while a job runs whose tasks hide as well as they can: no environment, a session of their own, no parent.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from epwatch_command import clean_environment
from slurm_fixtures import started_slurm, submit

from jobs.private_slurm import PrivateSlurm, SlurmError
from jobs.private_slurm.client import end_leftovers
from jobs.private_slurm.configuration import Places

OWNER = Path(__file__).parent / "private_slurm_owner.py"
DEADLINE_S = 60.0


def carrying(*texts):
    """Pids of processes that have one of the texts in their environment or their command line."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                seen = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if any(text.encode() in seen for text in texts):
                found.append(int(folder.name))
    return found


def until(true):
    give_up = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.05)


class Job:
    """A running job of two nodes, whose tasks can be known by what they sleep."""

    def __init__(self, slurm):
        self.sign = f"1000.{random.randrange(10**9)}"
        hidden = f"env -i setsid sleep {self.sign} & disown"
        submit(slurm, "-N2", wrap=f"srun -N2 bash -c '{hidden}; sleep {self.sign}'")
        until(lambda: len(self.tasks()) == 4)

    def tasks(self):
        """Pids of the sleeping processes themselves."""
        return [pid for pid in carrying(self.sign) if Path(f"/proc/{pid}/comm").read_text() == "sleep\n"]


@pytest.fixture
def owner(request):
    """A process with a Slurm, as a test session is one; the job that runs there."""
    with started_slurm(nodes=1):
        pass
    command = [sys.executable, OWNER, getattr(request, "param", "plain")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean_environment())
    said = json.loads(process.stdout.readline())
    slurm = PrivateSlurm.attach(Path(said["folder"]))
    yield process, said, slurm, Job(slurm)
    process.kill()
    process.wait()
    process.stdout.close()


def assert_nothing_survives(folder, job):
    until(lambda: not carrying(str(folder), job.sign))
    until(lambda: not Path(folder).exists())


@pytest.mark.parametrize("owner", ["plain", "accounting"], indirect=True)
def test_nothing_survives_its_owner(owner):
    process, said, _, job = owner
    process.kill()
    assert_nothing_survives(said["folder"], job)


@pytest.mark.parametrize("after_s", [0.1, 0.2, 0.4, 0.8, 1.6])
def test_nothing_survives_an_owner_that_dies_while_it_boots(after_s):
    with started_slurm(nodes=1, accounting=True):
        pass
    folder = Path(tempfile.mkdtemp(prefix="ep-", dir="/tmp"))
    process = subprocess.Popen([sys.executable, OWNER, "accounting", folder], env=clean_environment())
    time.sleep(after_s)
    process.kill()
    process.wait()
    until(lambda: not carrying(str(folder)) and not Places(folder).made())
    shutil.rmtree(folder)


@pytest.mark.parametrize("owner", ["plain", "accounting"], indirect=True)
def test_nothing_survives_its_supervisor(owner):
    _, said, slurm, job = owner
    os.kill(said["supervisor"], signal.SIGKILL)
    assert_nothing_survives(said["folder"], job)
    with pytest.raises(SlurmError, match="no Slurm is up"):
        slurm.status()


def test_nothing_survives_its_guard(owner):
    _, said, _, job = owner
    os.kill(said["guard"], signal.SIGKILL)
    assert_nothing_survives(said["folder"], job)


@pytest.mark.slow
def test_nothing_survives_a_stopped_supervisor(owner):
    """One that is stopped, not killed, cannot end anything itself."""
    _, said, _, job = owner
    os.kill(said["supervisor"], signal.SIGSTOP)
    os.kill(said["guard"], signal.SIGTERM)
    assert_nothing_survives(said["folder"], job)


def test_what_survives_both_is_found_and_ended(own_slurm):
    """Supervisor and guard killed at one blow: the job's steps live on until somebody comes by."""
    slurm = own_slurm()
    job = Job(slurm)
    status = slurm.status()
    for pid in (status.supervisor_pid, status.guard_pid):
        os.kill(pid, signal.SIGSTOP)
    for pid in (status.supervisor_pid, status.guard_pid):
        os.kill(pid, signal.SIGKILL)
    assert end_leftovers(slurm.folder) > 0
    assert carrying(str(slurm.folder), job.sign) == []


@pytest.mark.parametrize(
    "daemon",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("slurmctld", "slurmd-127.0.1.1")),
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ("munged", "mariadbd", "slurmdbd", "slurmd-127.0.1.2")
        ),
    ],
)
def test_nothing_survives_after_a_daemon_was_killed(daemon):
    with started_slurm(nodes=2, cpus=2, memory_mb=4000, gpus=0, accounting=True) as slurm:
        job = Job(slurm)
        killed = next(one.pid for one in slurm.status().daemons if one.name == daemon)
        os.kill(killed, signal.SIGKILL)
        until(lambda: not next(one for one in slurm.status().daemons if one.name == daemon).up)
        down = {one.name: one.ended for one in slurm.status().daemons if not one.up}
        assert down[daemon] == "was killed by SIGKILL"
    assert carrying(str(slurm.folder), job.sign) == []
    assert not slurm.folder.exists()


def test_nothing_is_left_of_a_killed_node(own_slurm):
    slurm = own_slurm()
    job = Job(slurm)
    slurm.kill_node("127.0.1.2")
    assert len(job.tasks()) == 2
    assert [daemon.name for daemon in slurm.status().daemons if not daemon.up] == ["slurmd-127.0.1.2"]
