"""`epwatch serve` as a process on a free port of loopback, and the Chromium that looks at it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

START_DEADLINE_S = 60
STOP_DEADLINE_S = 20
_CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True, slots=True)
class Served:
    """A server that answers. url: of its first page, without a slash at the end. log: what it writes."""

    url: str
    log: Path
    pid: int


@contextlib.contextmanager
def serve(database: Path | str, log: Path, *options: str) -> Iterator[Served]:
    """`epwatch serve` over this history until the block ends; it has to end by itself when it is told to."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "jobs", "serve", "--db", str(database), "--port", str(port), *options]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        _wait_until_it_answers(process, url, log)
        yield Served(url, log, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail(f"the server did not stop within {STOP_DEADLINE_S} s of being told to")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_it_answers(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"the server ended with {process.returncode}: {log.read_text()}")
        with contextlib.suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(f"{url}/healthz"):
            return
        time.sleep(0.05)
    pytest.fail(f"the server did not answer within {START_DEADLINE_S} s: {log.read_text()}")


def chromium() -> str:
    """The path of Chromium. Missing is a failure in CI, and skips on a laptop."""
    found = next(filter(None, map(shutil.which, _CHROMIUMS)), None)
    if found is None:
        why = "Chromium is not installed (Debian: apt-get install chromium)"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    return found
