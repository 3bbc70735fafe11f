"""After a night, tell: messages to those whose addresses the environment holds, a Markdown summary, a JUnit file.

Called by `jobs.commands.nightly` and `jobs.commands.tell`. Telling never fails a night: what could not be told is a
sentence on stderr. Addresses are secrets: a sentence names the variable and the kind of service. Next to read:
`jobs.summary` (what is said), `jobs.notify` (how it is sent), `jobs.plan_tell` (when, and to whom).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.junit import junit
from jobs.notify import Message, Mood, deliver
from jobs.plan_tell import DEFAULT_VARIABLE, TellSection, filled
from jobs.summary import NightSummary, changed, markdown, text, title

if TYPE_CHECKING:
    from jobs.judging import Judged
    from regress_db.nightverdict import NightVerdict
    from regress_db.schedules import AbsentNight

DEADLINE_S = 60.0
"""How long all messages of a night may take together."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a message goes: the position-th URL (from 1) of a variable."""

    variable: str
    position: int
    url: str = field(repr=False)

    def named(self, service: str) -> str:
        """The address as people may read it."""
        return f"{self.variable}, URL {self.position}{f' ({service})' if service else ''}"


@dataclass(frozen=True, slots=True)
class Told:
    """One message or file. to: the variable and the kind of service, or the path; why: it was not, "" where it was."""

    to: str
    why: str
    is_file: bool = False

    @property
    def sentence(self) -> str:
        """What became of it."""
        do, did = ("write", "wrote") if self.is_file else ("tell", "told")
        return f"could not {do} {self.to}: {self.why}" if self.why else f"{did} {self.to}"


def tell(
    plan_name: str,
    section: TellSection,
    judged: Judged,
    *,
    report: Path | None,
    environ: Mapping[str, str],
    before: NightVerdict | None = None,
    hosts: Sequence[str] = (),
    logs: Path | None = None,
    absent: Sequence[AbsentNight] = (),
    deadline_s: float = DEADLINE_S,
) -> list[Told]:
    """Write the section's files, and send its messages where `when` says so.

    before: the verdict on the plan's night before, so that what recovered is known. absent: the nights between that did
    not happen. environ: holds the addresses.
    What could not be told is said on stderr, and in the answer.
    """
    summary = NightSummary(plan_name, judged, before, tuple(hosts), report, logs, tuple(absent))
    told = write_files(section, summary)
    if wanted(section, summary):
        told += _send(section, summary, environ, deadline_s)
    for one in told:
        if one.why:
            print(f"epwatch: {one.sentence}", file=sys.stderr)
    return told


def wanted(section: TellSection, summary: NightSummary) -> bool:
    """Whether there is something to say that the section wants said."""
    if section.when == "on-change":
        return changed(summary)
    return section.when == "always" or summary.judged.exit_code in (1, 3)


def addresses(section: TellSection, environ: Mapping[str, str]) -> tuple[list[Address], list[Told]]:
    """Where messages go; and which variables, of those that the plan names itself, hold nothing."""
    found: list[Address] = []
    unset: list[Told] = []
    for variable in section.to_env:
        urls = environ.get(variable, "").split()
        found += [Address(variable, position, url) for position, url in enumerate(urls, start=1)]
        if not urls and variable != DEFAULT_VARIABLE:
            unset.append(Told(variable, "the environment variable that the plan's tell.to_env names is not set"))
    return found, unset


def services(section: TellSection, environ: Mapping[str, str], *, deadline_s: float = DEADLINE_S) -> list[Told]:
    """Who would be told, without telling; `why` is what is wrong with an address."""
    found, unset = addresses(section, environ)
    return _answered(found, None, deadline_s) + unset


def message_of(summary: NightSummary) -> Message:
    """What is sent."""
    return Message(title=title(summary), text=text(summary), markdown=markdown(summary), mood=_mood(summary))


def write_files(section: TellSection, summary: NightSummary) -> list[Told]:
    """Write the Markdown summary and the JUnit file that the section asks for."""
    contents: list[tuple[str, Callable[[], str]]] = [
        (section.markdown, lambda: markdown(summary)),
        (section.junit, lambda: junit(summary.plan, summary.judged)),
    ]
    told = []
    for name, content in contents:
        if name:
            path = filled(name, night=summary.judged.verdict.night, plan=summary.plan)
            told.append(Told(str(path), _write(path, content()), is_file=True))
    return told


def _send(section: TellSection, summary: NightSummary, environ: Mapping[str, str], deadline_s: float) -> list[Told]:
    found, unset = addresses(section, environ)
    return _answered(found, message_of(summary), deadline_s) + unset


def _answered(found: Sequence[Address], message: Message | None, deadline_s: float) -> list[Told]:
    answers = deliver([address.url for address in found], message, deadline_s=deadline_s)
    return [Told(address.named(answer.service), answer.why) for address, answer in zip(found, answers, strict=True)]


def _mood(summary: NightSummary) -> Mood:
    if summary.judged.exit_code in (1, 3):
        return "failure"
    return "warning" if summary.judged.exit_code else "success"


def _write(path: Path, content: str) -> str:
    """Write the file whole or not at all; why it could not be written, "" where it was."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(content, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        return error.strerror or str(error)
    return ""
