"""The process that hands messages to the notification library: `python -m jobs.messenger`, started by `jobs.notify`.

It reads one request from stdin and prints a line for each URL when its service is known, and another when that has
answered; its parent ends it at the deadline. What the library logs may hold addresses and goes nowhere; of it only the
status that a service answered with is told.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from typing import TYPE_CHECKING

import msgspec

from harness.processes import die_with_parent
from jobs.notify import Answer, Message, Request

if TYPE_CHECKING:
    from apprise import AppriseResult, NotifyBase

_STATUS = re.compile(r"\berror[= ](\d{3})\b")
_UNKNOWN = "it is no URL that the notification library knows"


def main() -> None:
    """Answer the request on stdin."""
    die_with_parent()
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    threads = [
        threading.Thread(target=_serve, args=(position, url, request), daemon=True)
        for position, url in enumerate(request.urls)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The library keeps threads of services that it has given up; they do not hold this process.
    os._exit(0)


def _serve(position: int, url: str, request: Request) -> None:
    """Send to one URL and say how it went."""
    from apprise import Apprise

    service = Apprise.instantiate(url)
    if service is None:
        _answer(position, "", _UNKNOWN)
        return
    name = str(service.service_name)
    if request.message is None:
        _answer(position, name, "")
        return
    _answer(position, name, f"it did not answer within {request.deadline_s:g} s")
    try:
        why = _send(service, request.message)
    except Exception as error:
        why = f"the notification library failed with {type(error).__name__}"
    _answer(position, name, why)


def _send(service: NotifyBase, message: Message) -> str:
    """Hand the message over; why it did not arrive, "" where it did."""
    from apprise import Apprise, NotifyFormat

    rich = service.resolve_format(None) == NotifyFormat.HTML
    result = Apprise(services=service).notify(
        title=message.title,
        body=message.markdown if rich else message.text,
        body_format=NotifyFormat.MARKDOWN if rich else NotifyFormat.TEXT,
        notify_type=message.mood,
    )
    return "" if result else _why(result)


def _why(result: AppriseResult) -> str:
    """What may be told of a failure."""
    from apprise import AppriseResultStatus

    if result.status == AppriseResultStatus.TIMEOUT:
        return "it did not answer in time"
    for entry in result.logs():
        if found := _STATUS.search(entry.message):
            return f"it answered with status {found[1]}"
    return "it could not be reached, or did not take the message"


def _answer(position: int, service: str, why: str) -> None:
    """One line in one piece, since threads share the pipe."""
    os.write(sys.stdout.fileno(), msgspec.json.encode(Answer(position=position, service=service, why=why)) + b"\n")


if __name__ == "__main__":
    main()
