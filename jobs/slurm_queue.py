"""Asking Slurm how jobs are: one command for all of them, however many there are, and never taken for an answer when it
gave none.

squeue knows those that wait and run, and for a while those that ended; sacct knows how every one ended, where the site
lets users ask it, which is found out by asking. A job that neither knows has ended. Called by `jobs.slurm`.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.errors import EpwatchError
from harness.placement import members
from jobs.slurm_words import cause_of

_COMMAND_DEADLINE_S = 60.0
_GONE_GRACE_S = 5.0
_GONE_GRACE_ACCOUNTED_S = 30.0
"""How long neither may know a job before it is taken for gone; sacct lags."""
_TOLD_GRACE_S = 10.0
"""How long sacct may take to say how a job ended (who cancelled it, with which exit code) of which squeue says that."""
_MOST_SACCT_FAILURES = 3
_MOST_LISTED = 200
_FILTERS = ("SLURM_", "SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_")
_NO_CONTROLLER = re.compile(
    r"unable to contact|connect(?:ion)? (?:failure|refused|timed)|socket timed out", re.IGNORECASE
)


class SlurmSilent(EpwatchError):
    """Slurm gave no answer: its controller is down or out of reach. Nothing follows about any job."""


class SlurmMissing(EpwatchError):
    """A command of Slurm's is not on this machine, so that nothing can ever be asked from here."""


@dataclass(frozen=True)
class Entry:
    """A job as Slurm has it. state: Slurm's word, `GONE` where it has none. nodes: compressed, as Slurm writes them."""

    state: str
    reason: str = ""
    nodes: str = ""
    exit_code: str = ""


def elements(job: str) -> list[str]:
    """The jobs that a line of squeue or sacct is about, `123` or `123_4`; none where it is about a step.

    sacct has those of an array that never began in one line, `123_[0-2,7%2]`, and only newer ones can be told not to.
    """
    if re.fullmatch(r"\d+(_\d+)?", job):
        return [job]
    several = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", job)
    return [f"{several[1]}_{index}" for index in sorted(members(several[2]))] if several else []


def _listed(ids: Sequence[str]) -> str:
    """The jobs for an option; of many the arrays that they are elements of, since an option may only be so long."""
    return ",".join(ids if len(ids) <= _MOST_LISTED else dict.fromkeys(job.partition("_")[0] for job in ids))


def _askers_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Without what would have Slurm's commands ask another cluster, or hide jobs from us."""
    return {name: value for name, value in environ.items() if name == "SLURM_CONF" or not name.startswith(_FILTERS)}


class SlurmQueue:
    """Slurm, as far as it can be asked. commands: how many were issued so far."""

    def __init__(self) -> None:
        self.commands = 0
        self._sacct_failures = 0
        self._accounting: bool | None = None
        self._not_told_since: dict[str, float] = {}
        self._ended: dict[str, Entry] = {}

    @property
    def accounting(self) -> bool:
        """Whether sacct answers, as far as is known."""
        return self._accounting is not False

    def look(self, ids: Iterable[str]) -> dict[str, Entry]:
        """The jobs by id (`123`, or `123_4` of an array). One that is in neither list for a moment is left out.

        Raises `SlurmSilent`.
        """
        wanted = list(ids)
        found = {job: self._ended[job] for job in wanted if job in self._ended}
        open_ = [job for job in wanted if job not in found]
        if not open_:
            return found
        queued = self._squeue(open_)
        over = [job for job in open_ if job not in queued or cause_of(queued[job].state)]
        told = self._sacct(over) if over else {}
        for job in open_:
            entry = self._settle(job, queued.get(job), told.get(job))
            if entry is not None:
                found[job] = entry
                if entry.state == "GONE" or cause_of(entry.state):
                    self._ended[job] = entry
        return found

    def find(self, names: Sequence[str], since: str) -> dict[str, list[str]]:
        """Ids of the jobs by their names, array elements one by one. since: an ISO time; none was submitted before.

        Raises `SlurmSilent`.
        """
        found: dict[str, set[str]] = {}
        listed = ",".join(names)
        output = self._run(
            ["squeue", "--noheader", "--array", "--states=all", f"--name={listed}", "--format=%i|%j"], ok_to_fail=False
        )
        lines = output.splitlines()
        if self.accounting:
            day = since.partition("T")[0]
            columns = "--format=JobID,JobName"
            lines += self._ask_sacct([f"--name={listed}", f"--starttime={day}", columns]).splitlines()
        for line in lines:
            job, _, name = line.strip().partition("|")
            found.setdefault(name, set()).update(elements(job))
        return {name: sorted(ids) for name, ids in found.items()}

    def knows(self, array: str) -> bool:
        """Whether squeue still has anything of an array. Raises `SlurmSilent`."""
        return bool(self._squeue([array]))

    def down_nodes(self) -> list[str]:
        """Names of nodes that do not work. Raises `SlurmSilent`."""
        states = "--states=down,fail,no_respond,drain"
        return self._run(["sinfo", "--noheader", "--Node", states, "--format=%N"], ok_to_fail=False).split()

    def hosts(self, nodes: str) -> list[str]:
        """The hosts of a list as Slurm writes it, such as `n[1-4,7]`. Raises `SlurmSilent`."""
        return self._run(["scontrol", "show", "hostnames", nodes], ok_to_fail=False).split()

    def cancel(self, ids: Sequence[str]) -> None:
        """Cancel the jobs, waiting or running; what has ended already is no error. Raises `SlurmSilent`."""
        if ids:
            self._run(["scancel", "--quiet", *ids], ok_to_fail=True)

    def _settle(self, job: str, queued: Entry | None, told: Entry | None) -> Entry | None:
        if queued is not None and not cause_of(queued.state):
            self._not_told_since.pop(job, None)
            return queued
        if told is not None and cause_of(told.state):
            return told
        since = self._not_told_since.setdefault(job, time.monotonic())
        if queued is not None:
            known = cause_of(queued.state) == "done" or not self._accounting
            return queued if known or time.monotonic() - since >= _TOLD_GRACE_S else None
        grace = _GONE_GRACE_ACCOUNTED_S if self._accounting else _GONE_GRACE_S
        return Entry("GONE") if time.monotonic() - since >= grace else None

    def _squeue(self, ids: Sequence[str]) -> dict[str, Entry]:
        command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={_listed(ids)}"]
        output = self._run([*command, "--format=%i|%T|%r|%N"], ok_to_fail=False)
        found = {}
        for line in output.splitlines():
            job, state, reason, nodes = (line.strip().split("|") + [""] * 3)[:4]
            found[job] = Entry(state, reason, nodes)
        return found

    def _sacct(self, ids: Sequence[str]) -> dict[str, Entry]:
        """How jobs ended, by accounting; nothing where there is none, or none just now."""
        if self._accounting is False:
            return {}
        columns = "--format=JobID,State,ExitCode,NodeList"
        found: dict[str, Entry] = {}
        for line in self._ask_sacct([f"--jobs={_listed(ids)}", columns]).splitlines():
            job, state, exit_code, nodes = (line.strip().split("|") + [""] * 3)[:4]
            entry = Entry(state, "", nodes if nodes != "None assigned" else "", exit_code)
            found.update(dict.fromkeys(elements(job), entry))
        return found

    def _ask_sacct(self, arguments: Sequence[str]) -> str:
        """sacct's output, "" where it gave none; after some failures in a row it is not asked again."""
        try:
            output = self._run(["sacct", "--noheader", "--parsable2", "--allocations", *arguments], ok_to_fail=False)
        except SlurmMissing:
            self._accounting = False
            return ""
        except SlurmSilent as silent:
            self._sacct_failures += 1
            if "disabled" in str(silent) or self._sacct_failures >= _MOST_SACCT_FAILURES:
                self._accounting = False
            return ""
        self._sacct_failures = 0
        self._accounting = True
        return output

    def _run(self, command: Sequence[str], *, ok_to_fail: bool) -> str:
        self.commands += 1
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=_COMMAND_DEADLINE_S,
                stdin=subprocess.DEVNULL,
                env=_askers_environment(os.environ),
                check=False,
            )
        except FileNotFoundError:
            raise SlurmMissing(f"there is no {command[0]} here: run epwatch where Slurm's commands are") from None
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SlurmSilent(f"{command[0]} gave no answer: {error}") from None
        said = " ".join(done.stderr.split())
        fine = "Invalid job id" in said or (ok_to_fail and not _NO_CONTROLLER.search(said))
        if done.returncode and not fine:
            raise SlurmSilent(f"{command[0]} failed: {said or f'exit code {done.returncode}'}")
        return done.stdout
