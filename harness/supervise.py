"""Looking after the processes that a job's ranks are: deadlines, signs of life, stacks of what hangs, and a clean end.

`supervise` starts one command on this machine, which is a rank or starts some, and returns when it and all it started
are gone. Of several that look after one world (a cluster's job has one on each host, or for each rank) one leads: it
alone judges whether the world hangs, and tells the others by a file in the log folder. Times are of the monotonic
clock. Torch-free. Called by `harness.launch` and `jobs.rank_task`. Next to read: `harness.diagnosis`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from harness import progress
from harness.errors import JobError
from harness.job import JobSpec
from harness.processes import MARK, kill_marked, marked, send
from harness.progress import RECORDED, WAITS

POLL_S = 0.1
_LOOK_S = 0.5
"""How often the files of a log folder, which may be far away, are looked at when there are followers."""
TERMINATE_GRACE_S = 2.0
STACK_DUMP_S = 0.5
_STOP_FILE = "stop"


@dataclass(frozen=True)
class JobEvent:
    """Something to show while a job runs. `step`: rank 0 begins a step of a run; `record`: the run has its record."""

    kind: Literal["step", "record"]
    run_id: str
    step: str = ""
    outcome: str = ""


@dataclass(frozen=True)
class Ended:
    """How the command ended. exit_code: minus the signal's number where one ended it. recorded: runs whose records rank
    0 wrote, as seen by the one that leads. halted: why the leader ended the world, in words, "" where it did not.
    alive: whether the ranks still got on then. asked: whether the command was ended because the leader, or whoever
    runs this, asked for it.
    """

    exit_code: int
    recorded: set[str] = field(default_factory=set)
    halted: str = ""
    alive: bool = False
    asked: bool = False


def ask_to_stop(log_folder: Path) -> None:
    """Have all who look after this world end their ranks."""
    with contextlib.suppress(OSError):
        (log_folder / _STOP_FILE).touch()


def supervise(
    spec: JobSpec,
    command: Sequence[str],
    environ: Mapping[str, str],
    log: Path,
    *,
    leads: bool = True,
    alone: bool = True,
    told_to_end: Callable[[], bool] = lambda: False,
    tell: Callable[[JobEvent], None] = lambda event: None,
) -> Ended:
    """Run the command until it ends, its leader finds the world hung or out of time, or `told_to_end` says so.

    log: receives the command's output. leads: whether this one judges. alone: whether nobody else looks after the
    world. tell: told of rank 0's steps, when leading. Raises `JobError` for processes that cannot be killed. Whatever
    ends the call, none of the processes is left.
    """
    started = time.monotonic()
    log_folder = Path(spec.log_folder)
    mark = uuid.uuid4().hex
    pulse = _Pulse(spec, tell)
    with log.open("wb") as output, _notices_blocked():
        process = subprocess.Popen(
            command,
            env={**environ, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    halted, alive, asked = "", False, False
    look_s = POLL_S if alone else _LOOK_S
    looked = -look_s
    ended = os.pidfd_open(process.pid)
    try:
        while process.poll() is None:
            if asked := told_to_end():
                break
            now = time.monotonic()
            if now - looked >= look_s:
                looked = now
                if leads:
                    pulse.look()
                    if halted := pulse.halt(now - started):
                        alive = pulse.beats
                        ask_to_stop(log_folder)
                        _dump_stacks(spec, mark)
                        # The others dump theirs too, once they have seen the file.
                        time.sleep(0 if alone else 3 * _LOOK_S)
                        break
                elif (log_folder / _STOP_FILE).exists():
                    asked = True
                    _dump_stacks(spec, mark)
                    break
            select.select([ended], [], [], POLL_S)
    finally:
        os.close(ended)
        _terminate(process)
        left = kill_marked(mark)
    if leads:
        pulse.look()
    if left:
        raise JobError(f"processes {', '.join(map(str, left))} of the job cannot be killed: look at this machine")
    return Ended(process.returncode, pulse.recorded, halted, alive, asked)


@contextlib.contextmanager
def _notices_blocked() -> Iterator[None]:
    """Have what is started meanwhile never receive SIGUSR2: Slurm sends its notice of a time limit to every process of
    a job, and a rank would die of it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Pulse:
    """Follows what the ranks say they do: tells of rank 0's steps, and knows when anything was last said."""

    def __init__(self, spec: JobSpec, tell: Callable[[JobEvent], None]) -> None:
        self.recorded: set[str] = set()
        self._spec, self._tell = spec, tell
        self._log_folder = Path(spec.log_folder)
        self._read_bytes = [0] * spec.ranks
        self._last = time.monotonic()

    def look(self) -> None:
        """Read what is new."""
        for rank in range(self._spec.ranks):
            new, self._read_bytes[rank] = progress.read_new(self._log_folder, rank, self._read_bytes[rank])
            if new:
                self._last = time.monotonic()
            for entry in new if rank == 0 else ():
                if entry.step == RECORDED:
                    self.recorded.add(entry.run_id)
                    self._tell(JobEvent("record", entry.run_id, outcome=entry.outcome))
                elif not entry.step.endswith(WAITS):
                    self._tell(JobEvent("step", entry.run_id, step=entry.step))

    @property
    def beats(self) -> bool:
        """Whether the ranks get on: one has begun a step in less than half of the time that they have for it."""
        return time.monotonic() - self._last < min(self._spec.heartbeat_s, self._spec.deadline_s) / 2

    def halt(self, elapsed_s: float) -> str:
        """Why the world is to be ended, in words; "" where it is not."""
        if elapsed_s > self._spec.deadline_s:
            return f"the job was killed at its deadline of {self._spec.deadline_s:g} s"
        if time.monotonic() - self._last > self._spec.heartbeat_s:
            return f"no rank has begun a step for {self._spec.heartbeat_s:g} s"
        return ""


def _terminate(process: subprocess.Popen[bytes]) -> None:
    """End the command, which ends what it started; what it leaves behind is killed by the job's mark."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(TERMINATE_GRACE_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _dump_stacks(spec: JobSpec, mark: str) -> None:
    """Have each rank of this machine write its stacks into its log, so that the record can say where it hung."""
    log_folder = Path(spec.log_folder)
    ranks = {steps[-1].pid for rank in range(spec.ranks) if (steps := progress.read(log_folder, rank))}
    send([pid for pid in marked(mark) if pid in ranks], signal.SIGUSR1)
    time.sleep(STACK_DUMP_S)
