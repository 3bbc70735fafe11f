"""Slurm's own table of repeated jobs, read and written through its command `scrontab`.

Called by `jobs.commands.schedule`. What the table holds is `jobs.schedule`'s to say.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from jobs.schedule import ScheduleError

_DEADLINE_S = 60.0


class NoScrontabError(ScheduleError):
    """There is no scrontab that could be used here."""


@dataclass(frozen=True, slots=True)
class _Said:
    """How a call of scrontab ended, and what it said."""

    code: int
    out: str
    err: str


def read_table() -> str:
    """The user's scrontab, "" where there is none yet. Raises `NoScrontabError` with the reason."""
    done = _scrontab("-l")
    if done.code == 0:
        return done.out
    if done.out.startswith("no crontab for "):
        return ""
    words = _words(done)
    if "scrontab is disabled" in words:
        raise NoScrontabError(
            "scrontab is off on this cluster; its administrator turns it on by ScronParameters=enable"
        )
    raise NoScrontabError(f"scrontab does not give the table: {words}")


def write_table(text: str) -> None:
    """Make `text` the user's scrontab. Raises `ScheduleError`, the table being as it was, where Slurm refuses it."""
    done = _scrontab("-", text) if text.strip() else _scrontab("-r")
    if done.code != 0:
        raise ScheduleError(f"Slurm refuses the new scrontab and keeps the old one: {_words(done)}")


def _scrontab(argument: str, table: str = "") -> _Said:
    try:
        done = subprocess.run(
            ["scrontab", argument],
            # Whatever bytes a table holds go back as they came.
            input=table.encode("utf-8", "surrogateescape"),
            capture_output=True,
            timeout=_DEADLINE_S,
            check=False,
        )
    except FileNotFoundError:
        raise NoScrontabError("there is no command scrontab on this machine") from None
    except subprocess.TimeoutExpired:
        raise ScheduleError(f"scrontab did not answer within {_DEADLINE_S:g} s") from None
    out, err = (said.decode("utf-8", "surrogateescape") for said in (done.stdout, done.stderr))
    return _Said(done.returncode, out, err)


def _words(done: _Said) -> str:
    """What scrontab said, in one line."""
    lines = [line.removeprefix("scrontab: ").strip() for line in (*done.out.splitlines(), *done.err.splitlines())]
    # Before a fatal error come its causes, one below the other, in words for administrators.
    lines = [line.removeprefix("fatal: ") for line in lines if line.startswith("fatal: ")] or lines
    return "; ".join(line for line in lines if line) or f"it ended with {done.code} and said nothing"
