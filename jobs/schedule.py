"""Every night by itself: what a scheduler has to be told so that it runs a plan each day. Pure.

One line of shell does it, whoever runs it: Slurm's `scrontab`, cron, or a systemd timer. Each of these reads text in
a way of its own, so the line is written for each of them such that what /bin/sh gets is the same. Called by
`jobs.commands.schedule`; next to read: `jobs.scrontab`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from harness.errors import EpwatchError

LOG_FOLDER = ".epwatch"

_TIME = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])")
_WORD = re.compile(r"[A-Za-z0-9_.,+-]+")


class ScheduleError(EpwatchError):
    """A schedule that cannot be made, or a scheduler that does not take it."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A plan, by its name, and the command that runs a night of it each day at a time, in a folder (absolute)."""

    plan: str
    at: time
    folder: Path
    command: tuple[str, ...]

    @property
    def log(self) -> Path:
        """Where what the command prints is kept."""
        return self.folder / LOG_FOLDER / f"nightly-{self.plan}.log"


def time_of_day(words: str) -> time:
    """The time in a text such as `02:00`. Raises `ScheduleError`."""
    found = _TIME.fullmatch(words)
    if found is None:
        raise ScheduleError(f"{words!r} is no time of day: write hours and minutes, such as 02:00")
    return time(int(found[1]), int(found[2]))


def nightly_command(python: str, plan_file: Path, db: str | None) -> tuple[str, ...]:
    """The command that runs a night. db: the history as the user named it, put into the command.

    Raises `ScheduleError` for a history whose URL holds a password, which anyone could read in a schedule.
    """
    command = [python, "-m", "jobs", "nightly", str(plan_file.absolute())]
    if db is None:
        return tuple(command)
    if "://" not in db:
        return (*command, "--db", str(Path(db).expanduser().absolute()))
    parts = urlsplit(db)
    if parts.password or "password" in parse_qs(parts.query):
        raise ScheduleError(
            "--db holds a password, which a schedule would show to others: leave --db out and set EPWATCH_DB in the "
            "environment that the night will have, or keep the password in ~/.pgpass"
        )
    return (*command, "--db", db)


def shell_line(schedule: Schedule) -> str:
    """The line of /bin/sh that runs one night. Raises `ScheduleError` for a name that fits on no line."""
    for name in (str(schedule.folder), *schedule.command):
        if not name.isprintable():
            raise ScheduleError(f"{name!r} cannot be written into a schedule: it holds a character that is not seen")
    folder, *command = (_quoted(word) for word in (str(schedule.folder), *schedule.command))
    log = _quoted(f"{LOG_FOLDER}/{schedule.log.name}")
    return f"cd {folder} && mkdir -p {LOG_FOLDER} && exec {' '.join(command)} >>{log} 2>&1"


def crontab_lines(schedule: Schedule) -> list[str]:
    """The lines of a crontab, where an unescaped % ends the command."""
    line = shell_line(schedule).replace("%", r"\%")
    return _marked(schedule.plan, [f"{schedule.at.minute} {schedule.at.hour} * * * {line}"])


def scrontab_lines(schedule: Schedule, *, partition: str | None, time_limit_min: int | None) -> list[str]:
    """The lines of Slurm's scrontab. partition, time_limit_min: of the job; None for the cluster's own.

    Raises `ScheduleError` for a partition that cannot be one: an option's value is never quoted there.
    """
    options = [f"--job-name=epwatch-{schedule.plan}", f"--output=epwatch-{schedule.plan}.out", "--open-mode=append"]
    if partition is not None:
        if not _WORD.fullmatch(partition):
            raise ScheduleError(f"{partition!r} is not the name of a partition")
        options.append(f"--partition={partition}")
    if time_limit_min is not None:
        options.append(f"--time={time_limit_min}")
    entry = f"{schedule.at.minute} {schedule.at.hour} * * * {shell_line(schedule)}"
    return _marked(schedule.plan, [*(f"#SCRON {option}" for option in options), entry])


def systemd_units(schedule: Schedule) -> dict[str, str]:
    """A service and the timer that starts it, by file name."""
    name = f"epwatch-{schedule.plan}"
    argument = shell_line(schedule)
    for char, written in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        argument = argument.replace(char, written)
    service = [
        "[Unit]",
        f"Description=epwatch: a night of plan {schedule.plan}",
        "[Service]",
        "Type=oneshot",
        "EnvironmentFile=-%h/.config/epwatch/environment",
        f'ExecStart=/bin/sh -c "{argument}"',
    ]
    timer = [
        "[Unit]",
        f"Description=epwatch: plan {schedule.plan} every night",
        "[Timer]",
        f"OnCalendar=*-*-* {schedule.at:%H:%M}:00",
        "[Install]",
        "WantedBy=timers.target",
    ]
    return {f"{name}.service": "\n".join(service) + "\n", f"{name}.timer": "\n".join(timer) + "\n"}


def with_block(text: str, plan: str, block: Sequence[str]) -> str:
    """The table with the plan's block in it, in place of one that was there, every other line as it was.

    Raises `ScheduleError` where the marks of the plan's block are broken.
    """
    lines = text.splitlines(keepends=True)
    found = _block(lines, plan)
    written = [f"{line}\n" for line in block]
    if found is not None:
        lines[found] = written
        return "".join(lines)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    return "".join([*lines, *written])


def without_block(text: str, plan: str) -> str:
    """The table without the plan's block, every other line as it was. Raises `ScheduleError` like `with_block`."""
    lines = text.splitlines(keepends=True)
    found = _block(lines, plan)
    if found is not None:
        del lines[found]
    return "".join(lines)


def _marks(plan: str) -> tuple[str, str]:
    return f"# epwatch: plan {plan} begin", f"# epwatch: plan {plan} end"


def _marked(plan: str, lines: Sequence[str]) -> list[str]:
    begin, end = _marks(plan)
    return [begin, *lines, end]


def _block(lines: Sequence[str], plan: str) -> slice | None:
    """Where the plan's block is, its marks included; None where it has none."""
    begin, end = _marks(plan)
    begins = [place for place, line in enumerate(lines) if line.strip() == begin]
    ends = [place for place, line in enumerate(lines) if line.strip() == end]
    if not begins and not ends:
        return None
    if len(begins) == len(ends) == 1 and begins[0] < ends[0]:
        return slice(begins[0], ends[0] + 1)
    places = ", ".join(str(place + 1) for place in sorted([*begins, *ends]))
    raise ScheduleError(
        f"the marks of plan {plan} in the table are broken (line {places}): there has to be one line {begin!r} and "
        f"after it one {end!r}; mend or remove them with `scrontab -e`"
    )


def _quoted(word: str) -> str:
    """The word for /bin/sh, with quotes such that nobody on the way there takes a piece of it for something else.

    scrontab replaces `$NAME`, cron removes the backslash before a % or another backslash: neither character is ever
    followed by what would make it special.
    """
    return shlex.quote(word).replace("$", "$''").replace("\\", "\\''")
