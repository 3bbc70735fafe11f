"""The daemons of a private Slurm as children of this process: started, waited for, ended, and their last words.

Each runs in the foreground, so that its pid is ours, and the kernel kills it when this process dies. Used by
`jobs.private_slurm.engine`, from one thread only, since the kernel watches the thread that started a child.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import msgspec

from harness.processes import die_with_parent
from jobs.private_slurm.settings import SlurmError

_POLL_S = 0.02
_TAIL_BYTES = 8000
_TELLING_LINES = 3
_LONGEST_WORDS = 500
_TELLING = re.compile("fatal|error", re.IGNORECASE)
_EVERYDAY = re.compile("pmix|context for mpi|more than once|gathered, but not stored|NOTE:", re.IGNORECASE)
"""What Slurm's daemons call errors at every start here."""


class DaemonStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One daemon. ended: how, for one that is down."""

    name: str
    pid: int
    up: bool
    ended: str | None = None


class Daemons:
    """Running and ended daemons, by name. logs: the folder that holds NAME.out, what each printed."""

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        self._logs = logs
        self._environment = environment
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str | Path], **environment: str) -> None:
        """Start a daemon. Raises `SlurmError` when the system refuses."""
        try:
            with (self._logs / f"{name}.out").open("wb") as out:
                self._children[name] = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    cwd=self._logs.parent,
                    env={**self._environment, **environment},
                    start_new_session=True,
                    preexec_fn=functools.partial(die_with_parent, os.getpid()),
                )
        except (OSError, subprocess.SubprocessError) as error:
            raise SlurmError(f"cannot start {name}: {error}") from None

    def wait_until(self, ready: Callable[[], bool], what: str, names: Collection[str], deadline_s: float) -> None:
        """Wait until `ready`. Raises `SlurmError` with their last words when one of `names` ends or time is over.

        what: what `ready` says, in the past tense.
        """
        give_up = time.monotonic() + deadline_s
        while not ready():
            for name in names:
                if not self.is_up(name):
                    raise SlurmError(f"{name} {self.status(name).ended} before {what}: {self.last_words(name)}")
            if time.monotonic() > give_up:
                said = ", ".join(f"{name}: {self.last_words(name)}" for name in names)
                raise SlurmError(f"{deadline_s:g} s went by before {what}; last words of {said}")
            time.sleep(_POLL_S)

    def stop(self, name: str, number: signal.Signals, deadline_s: float) -> None:
        """End a daemon and return when it has; one that is still there at the deadline is killed."""
        child = self._children[name]
        child.send_signal(number)
        try:
            child.wait(deadline_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(deadline_s)

    def is_up(self, name: str) -> bool:
        """Whether a daemon runs."""
        return name in self._children and self._children[name].poll() is None

    def pid(self, name: str) -> int:
        """The pid of a daemon, ended or not."""
        return self._children[name].pid

    def pids(self) -> set[int]:
        """The pids of all that were started last under their name."""
        return {child.pid for child in self._children.values()}

    def status(self, name: str) -> DaemonStatus:
        """Whether a daemon is up, and how it ended."""
        child = self._children[name]
        code = child.poll()
        ended = None
        if code is not None:
            ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return DaemonStatus(name=name, pid=child.pid, up=code is None, ended=ended)

    def statuses(self) -> tuple[DaemonStatus, ...]:
        """All daemons, in the order in which they were first started."""
        return tuple(self.status(name) for name in self._children)

    def has_said(self, name: str, words: str) -> bool:
        """Whether a daemon has printed these words since it was started."""
        return words in (self._logs / f"{name}.out").read_text(errors="replace")

    def last_words(self, name: str) -> str:
        """The last lines in which a daemon says what is wrong, else its last line."""
        out = self._logs / f"{name}.out"
        lines = [line.strip() for line in out.read_bytes()[-_TAIL_BYTES:].decode(errors="replace").splitlines()]
        telling = [line for line in lines if _TELLING.search(line) and not _EVERYDAY.search(line)]
        words = "; ".join(telling[-_TELLING_LINES:]) or next(filter(None, reversed(lines)), "(nothing)")
        return words[:_LONGEST_WORDS]
