"""Real Slurms for the tests: two that a session shares, and a factory for tests that break things.

`conftest.py` makes the fixtures known. A Slurm lives under /tmp, since sockets' paths are short, and goes with the
process that runs the tests, even if that is killed. Its nodes' names are the same in each; its ports are not.
"""

import contextlib
import os
import time

import pytest

from jobs.private_slurm import PrivateSlurm, SlurmSettings
from jobs.private_slurm.machine import ACCOUNTING_PACKAGES, SLURM_PACKAGES, missing_programs

SMALL = {"nodes": 2, "cpus": 2, "memory_mb": 4000, "bind_cpus": True}
POLL_S = 0.1

PREEMPTING = {
    "partitions": (
        "PartitionName=low Nodes=ALL Default=YES PriorityTier=1 State=UP",
        "PartitionName=high Nodes=ALL PriorityTier=10 State=UP",
    ),
    "extra_conf": ("PreemptType=preempt/partition_prio", "PreemptMode=REQUEUE"),
}
"""Settings with which a job in partition `high` takes the nodes of one in `low`."""


@contextlib.contextmanager
def started_slurm(**settings):
    """A Slurm with these settings. Missing programs are a failure in CI, and skip on a laptop."""
    missing = missing_programs(settings.get("accounting", False))
    if missing:
        why = f"not installed: {', '.join(missing)} (Debian: apt-get install {SLURM_PACKAGES} {ACCOUNTING_PACKAGES})"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    with PrivateSlurm(SlurmSettings(**settings)) as slurm:
        yield slurm


@pytest.fixture(scope="session")
def slurm():
    """Two nodes of two CPUs and two stand-in GPUs, with accounting. A test leaves it as it found it."""
    with started_slurm(**SMALL, gpus=2, accounting=True) as shared:
        yield shared


@pytest.fixture(scope="session")
def slurm_without_accounting():
    """Two nodes of two CPUs, where `sacct` fails. A test leaves it as it found it."""
    with started_slurm(**SMALL, gpus=0) as shared:
        yield shared


@pytest.fixture
def own_slurm():
    """A factory: `own_slurm(accounting=True)` is a Slurm of the test's own, to break; of two nodes unless told."""
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(started_slurm(**(SMALL | {"gpus": 0} | settings)))


def submit(slurm, *options, wrap="srun sleep 1000"):
    """Submit a job that runs the shell line `wrap`; returns its id. Its output goes into the Slurm's folder."""
    return slurm.run("sbatch", "--parsable", f"--output={slurm.folder}/job-%j.out", *options, f"--wrap={wrap}").strip()


def output_of(slurm, job):
    """What a job has printed so far."""
    path = slurm.folder / f"job-{job}.out"
    return path.read_text() if path.exists() else ""


def submit_and_see(slurm, *options, tasks=1, seconds=1000):
    """Submit a job that sleeps, and return its id once all its tasks run; the state RUNNING comes sooner."""
    job = submit(slurm, *options, wrap=f"srun sh -c 'echo here; sleep {seconds}'")
    give_up = time.monotonic() + 60
    while output_of(slurm, job).count("here") < tasks:
        assert time.monotonic() < give_up, f"job {job} is {job_state(slurm, job)} and printed {output_of(slurm, job)}"
        time.sleep(POLL_S)
    return job


def job_state(slurm, job):
    """A job's state, as squeue has it: also of jobs that have ended."""
    return slurm.run("squeue", "-h", "-t", "all", "-o", "%T", "-j", job).strip()


def wait_for_state(slurm, job, *states, deadline_s=60.0):
    """Wait until a job is in one of `states`; returns it."""
    give_up = time.monotonic() + deadline_s
    while (state := job_state(slurm, job)) not in states:
        assert time.monotonic() < give_up, f"job {job} is {state}, not {' or '.join(states)}"
        time.sleep(POLL_S)
    return state
