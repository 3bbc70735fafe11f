"""What the tests of nights on a Slurm share: a plan's text, a folder to run it in, and what a night left there."""

import json
import shlex
import time
from pathlib import Path

from epwatch_command import epwatch

from harness import record
from jobs.night_folder import NightFolder

NIGHT_S = 170.0
"""More than a night of a few jobs takes on two cores that others use too."""

MEASURE = {"repeats": 1, "warmup": 1, "iters": 5, "deadline_s": 30.0, "heartbeat_s": 60.0, "job_deadline_s": 120.0}
SIZES = {"mode": "ll", "tokens": 4, "hidden": 64, "topk": 2, "experts": 4}


def plan_text(*cases, cluster=None, measure=None, plan=None):
    """A plan as TOML. cases: tables, each of small sizes unless it says otherwise; the others add to theirs here."""
    tables = [
        ("[plan]", {"name": "sl", "report": ""} | (plan or {})),
        ("[cluster]", {"kind": "slurm", "name": "private", "tasks_per_node": 2} | (cluster or {})),
        ("[measure]", MEASURE | (measure or {})),
        ("[baseline]", {"policy": "none"}),
        *(("[[cases]]", SIZES | one) for one in cases),
    ]
    return "".join(
        f"{head}\n" + "".join(f"{key} = {toml(value)}\n" for key, value in table.items()) for head, table in tables
    )


def toml(value):
    """A value as TOML has it; of strings, JSON's way is one of TOML's."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(one)}" for key, one in value.items()) + " }"
    return json.dumps(value)


class Place:
    """A folder in which a user runs a plan on a Slurm. variables: of the user's, besides those that lead to it."""

    def __init__(self, folder: Path, slurm, text: str, **variables: str) -> None:
        self.folder, self.slurm = folder, slurm
        self.variables = slurm.environment() | variables
        (folder / "plan.toml").write_text(text)

    def epwatch(self, *arguments, timeout_s=NIGHT_S, **variables):
        """Run a command with --db and --spool of this folder."""
        return epwatch(
            *arguments,
            cwd=self.folder,
            timeout_s=timeout_s,
            **(self.variables | {"EPWATCH_DB": "history.db", "EPWATCH_SPOOL": "spool"} | variables),
        )

    def json(self, *arguments):
        """What a command says as JSON."""
        done = self.epwatch(*arguments, "--json")
        assert done.returncode in (0, 1, 3), done.stderr
        return json.loads(done.stdout)

    def night(self, jobs=".epwatch/jobs"):
        """The newest night's folder."""
        return NightFolder.all(self.folder / jobs)[0]

    def records(self):
        """Every record that came home, in order of their start."""
        found = [record.read(path) for path in (self.folder / "spool" / record.INGESTED).glob("*.json")]
        return sorted(found, key=lambda one: one.started_at)

    def in_queue(self):
        """Jobs of this folder's newest night that wait or run."""
        names = self.slurm.run("squeue", "-h", "--array", "-o", "%j").split()
        return [name for name in names if self.night().name in name]


def settled(place, jobs=".epwatch/jobs"):
    """How every attempt of the newest night ended, by job and number."""
    night = place.night(jobs)
    return {
        (attempt.job.name, attempt.number): attempt.settled
        for job in night.required_manifest.jobs
        for attempt in night.attempts(job)
    }


def wait_until(holds, what, deadline_s=NIGHT_S, poll_s=0.5):
    """Wait until `holds()` gives something true; returns it."""
    give_up = time.monotonic() + deadline_s
    while not (found := holds()):
        assert time.monotonic() < give_up, f"not after {deadline_s:g} s: {what}"
        time.sleep(poll_s)
    return found


def quoted(path):
    """A path as the shell takes it."""
    return shlex.quote(str(path))
