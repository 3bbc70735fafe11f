"""Nights on a real Slurm, driven as a user drives them, and what must be true of them after anything has happened.

`Scene` is a folder with a plan and the Slurm that it is for. What is broken in it is up to the test;
`assert_accounted` is what every history of a night has to end in.
"""

import contextlib
import getpass
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import held_backend
from epwatch_command import clean_environment, epwatch

from harness import progress, record
from jobs.night_folder import NightFolder

POLL_S = 0.05
DEADLINE_S = 90.0

PLAN = """\
[plan]
name = "survival"
report = ""
[cluster]
kind = "{kind}"
{cluster}
[measure]
{measure}
[baseline]
policy = "none"
{cases}
"""
MEASURE = {
    "repeats": 1,
    "warmup": 1,
    "iters": 20,
    "deadline_s": 20.0,
    "heartbeat_s": 60.0,
    "job_deadline_s": 120.0,
}
CASE = {"backend": "held", "mode": "ll", "ranks": 1, "tokens": 4, "hidden": 64, "topk": 2, "experts": 4}
PLACES = ("--db", "history.db", "--spool", "spool")


def until(true, what, limit_s=DEADLINE_S):
    """Wait for what becomes true; returns it."""
    give_up = time.monotonic() + limit_s
    while not (found := true()):
        assert time.monotonic() < give_up, f"waited {limit_s} s for {what}"
        time.sleep(POLL_S)
    return found


def toml(values):
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items())


class Scene:
    """A folder with a plan, and the Slurm it is for; without one the plan is for this machine."""

    def __init__(self, folder, slurm=None):
        self.folder, self.slurm = folder, slurm
        self._plugins, self._faults = folder / "plugins", folder / "faults"
        self._plugins.mkdir()
        self._faults.mkdir()
        held_backend.install(self._plugins)
        path = os.pathsep.join([str(self._plugins), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = {"PYTHONPATH": path, held_backend.FAULTS: str(self._faults)}
        if slurm is not None:
            self.environment |= slurm.environment()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """A test that failed leaves nothing to the next."""
        if self.slurm is not None:
            self.slurm.run("scancel", f"--user={getpass.getuser()}")
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def fault(self, name):
        """Have the backend `held` do what `held_backend` says of a file so named."""
        (self._faults / name).touch()

    def no_fault(self, name):
        """Have it do so no longer."""
        (self._faults / name).unlink(missing_ok=True)

    def plan(self, *cases, cluster=None, **measure):
        """Write the plan: its cases as they differ from `CASE`, what its cluster adds, how it measures."""
        kind = "local" if self.slurm is None else "slurm"
        of_cluster = {} if self.slurm is None else {"name": "throw", "queue_deadline_min": 5.0}
        text = PLAN.format(
            kind=kind,
            cluster=toml(of_cluster | (cluster or {})),
            measure=toml(MEASURE | measure),
            cases="".join(f"[[cases]]\n{toml(CASE | case)}\n" for case in cases or ({},)),
        )
        (self.folder / "plan.toml").write_text(text)

    def epwatch(self, *arguments, timeout_s=150.0, **environment):
        """A command run to its end."""
        return epwatch(*arguments, cwd=self.folder, timeout_s=timeout_s, **(self.environment | environment))

    def nightly(self, *arguments, **more):
        """`epwatch nightly` run to its end."""
        return self.epwatch("nightly", "plan.toml", *PLACES, *arguments, **more)

    @contextlib.contextmanager
    def going(self, *arguments, **environment):
        """`epwatch nightly` in the background, with a process group of its own, which goes with the block."""
        with subprocess.Popen(
            [sys.executable, "-m", "jobs", "nightly", "plan.toml", *PLACES, *arguments],
            cwd=self.folder,
            env=clean_environment(**(self.environment | environment)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    @property
    def nights(self):
        """The nights' folders, newest first."""
        jobs = self.folder / ".epwatch" / "jobs"
        return NightFolder.all(jobs) if jobs.is_dir() else []

    @property
    def night(self):
        """The newest night's folder."""
        return self.nights[0]

    def attempts(self, name=""):
        """Every attempt of the newest night at jobs whose names hold `name`, job by job, oldest first."""
        if not self.nights:
            return []
        jobs = [job for job in self.night.manifest.jobs if name in job.name]
        return [attempt for job in jobs for attempt in self.night.attempts(job)]

    def attempt(self, number=1, name="", limit_s=DEADLINE_S):
        """The attempt of that number at the one job so called, once it is submitted."""

        def there():
            return [one for one in self.attempts(name) if one.number == number and one.submitted]

        (found,) = until(there, f"attempt {number}", limit_s)
        return found

    def measuring(self, number=1, name="", step="check combine before", rank=0, backend="held"):
        """Wait until a rank of the attempt is at a step of a case of that backend; what it said of it."""
        attempt = self.attempt(number, name)
        runs = {run.run_id for run in attempt.spec.runs if run.case.backend == backend}

        def at_it():
            steps = progress.read(attempt.logs, rank)
            return steps[-1] if steps and steps[-1].step == step and steps[-1].run_id in runs else None

        return until(at_it, f"rank {rank} at {step!r}")

    def records(self):
        """What the history's runs were recorded as, by run id."""
        files = (self.folder / "spool" / record.INGESTED).glob("*.json")
        return {file.stem: record.read(file) for file in files}

    def rows(self):
        """The history's runs, as `epwatch runs` gives them."""
        done = self.epwatch("runs", "--db", "history.db", "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def outcomes(self):
        """The outcomes in the history, sorted."""
        return sorted(row["outcome"] for row in self.rows())

    def queue(self):
        """Jobs of ours that Slurm still has: waiting, running, or just ending."""
        return self.slurm.run("squeue", "-h", "-t", "PD,R,CF,CG,S", "-o", "%i %T %j").splitlines()

    def processes(self):
        """Processes of this scene's jobs, those of the commands too."""
        sign, found = str(self.folder).encode(), []
        for process in Path("/proc").iterdir():
            if process.name.isdigit() and int(process.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if sign in (process / "cmdline").read_bytes() or sign in (process / "environ").read_bytes():
                        found.append(int(process.name))
        return found

    def assert_accounted(self):
        """Each planned run has exactly one row; nothing is in quarantine, nothing lies about, nothing runs; the rows.

        Nights that were given up may miss runs.
        """
        rows = self.rows()
        ids = [row["run_id"] for row in rows]
        assert len(ids) == len(set(ids))
        planned = {run.run_id for night in self.nights for run in night.manifest.runs}
        required = {
            run.run_id
            for night in self.nights
            if not (night.finished and night.finished.given_up)
            for run in night.manifest.runs
        }
        assert required <= set(ids) <= planned
        assert not list((self.folder / "spool" / "quarantine").glob("*"))
        assert not list((self.folder / "spool").glob("*.json"))
        assert all(night.finished for night in self.nights)
        if self.slurm is not None:
            names = [f"epwatch-{night.name}" for night in self.nights]
            until(lambda: not [line for line in self.queue() if any(name in line for name in names)], "an empty queue")
        until(lambda: not self.processes(), "the end of the night's processes")
        return rows


def kill(process):
    """SIGKILL for a command alone, whatever it has started."""
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()
