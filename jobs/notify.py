"""Messages to people, each sent by the notification library in a process of its own that has a deadline.

Whatever a service does (never answer, answer for ever, crash the library), the night goes on; and since addresses are
secrets, they go to that process through a pipe, and nothing that the library says comes back but what kind of service
it is and whether it took the message. Called by `jobs.tell`; next to read: `jobs.messenger`, the other end of the pipe.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Literal

import msgspec

Mood = Literal["success", "warning", "failure"]

_DIED = "the process that sends messages died"


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent. text: for services that show plain text; markdown: for those that show HTML."""

    title: str
    text: str
    markdown: str
    mood: Mood


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the messenger is told. message: None only asks what services the URLs belong to."""

    urls: list[str]
    message: Message | None
    deadline_s: float


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one URL. service: its kind, "" where it is none; why: it did not go well, "" where it did."""

    position: int
    service: str
    why: str


def deliver(urls: Sequence[str], message: Message | None, *, deadline_s: float) -> list[Answer]:
    """Send the message to each URL, all at once; one answer for each, in order, at the latest after `deadline_s`."""
    if not urls:
        return []
    request = Request(urls=list(urls), message=message, deadline_s=deadline_s)
    answers = {position: Answer(position=position, service="", why=_DIED) for position in range(len(urls))}
    for line in _exchange(msgspec.json.encode(request), deadline_s).splitlines():
        answer = msgspec.json.decode(line, type=Answer)
        answers[answer.position] = answer
    return [answers[position] for position in sorted(answers)]


def _exchange(request: bytes, deadline_s: float) -> bytes:
    """What the messenger says until it ends or has to be ended; whole lines."""
    with subprocess.Popen(
        [sys.executable, "-m", "jobs.messenger"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            said, _ = process.communicate(request, timeout=deadline_s)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
        except BaseException:
            process.kill()
            raise
    return said[: said.rfind(b"\n") + 1]
