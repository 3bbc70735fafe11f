"""The program behind a private Slurm: a guard, and its child, the supervisor, whose children the daemons are.

`python -m jobs.private_slurm.supervisor`, started by `PrivateSlurm`, reads a `Launch` from stdin and answers on stdout
with one line, `Answer`, once the Slurm is up or has failed. Then the supervisor serves requests on a socket in the
folder until it is told to end.

Nothing is left at the guard's end, however it comes about. The guard ends the Slurm when its owner dies. When the
supervisor is killed, the kernel kills the daemons, and the guard, which adopts what is left, kills that. When the guard
is killed, the supervisor is told and ends the Slurm. Only who kills both at one blow leaves job steps behind; the next
start in the same folder, and `epwatch slurm down`, find these by their mark.
Next to read: `jobs.private_slurm.engine`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import msgspec

from jobs.private_slurm import processes
from jobs.private_slurm.configuration import Places
from jobs.private_slurm.engine import Engine, EngineStatus, remove
from jobs.private_slurm.settings import SlurmError, SlurmSettings

LEFTOVERS_S = 10.0
_END_S = 25.0
_REQUEST_S = 2.0
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """What the program is started with. owner_pid: at whose end the Slurm ends. temporary: the folder goes with it."""

    folder: str
    settings: SlurmSettings
    owner_pid: int | None
    temporary: bool


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to do. node: for what is done to one."""

    do: str
    node: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. error: the sentence that says why not."""

    error: str | None = None
    status: EngineStatus | None = None


class _Told(BaseException):
    """A signal to end has come."""


def main() -> int:
    """Run the guard; called once, by `__main__`."""
    launch = msgspec.json.decode(sys.stdin.buffer.read(), type=Launch)
    places = Places(Path(launch.folder))
    for number in _ENDING:
        signal.signal(number, _be_told)
    processes.adopt_orphans()
    os.chdir("/")
    supervisor = 0
    try:
        with _owner(launch.owner_pid) as owner, _lock(places.lock):
            _end_leftovers(places)
            guard = os.getpid()
            # Python forgets, in the child, a signal that comes as it forks: the kernel keeps it for us.
            signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
            supervisor = os.fork()
            if supervisor == 0:
                _supervise(launch, places, guard)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
            _answer_no_more()
            _watch(supervisor, owner)
            _end_everything(supervisor, places, launch.temporary)
    except _Told:
        _end_everything(supervisor, places, launch.temporary)
    except SlurmError as error:
        _answer(Answer(error=str(error)))
    return 0


def _be_told(_: int, __: object) -> NoReturn:
    _be_told_no_more()
    raise _Told


def _be_told_no_more() -> None:
    """What is ending is not disturbed."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def _owner(pid: int | None) -> Iterator[int | None]:
    """A descriptor that becomes readable at the owner's end; None where there is none."""
    if pid is None:
        yield None
        return
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        raise _Told from None
    try:
        if os.getppid() != pid:
            raise _Told
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Hold the folder. The supervisor inherits the lock, so that it is free when both have ended."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise SlurmError(
            f"a Slurm is up already in {file.parent}: `epwatch slurm status` shows it, `epwatch slurm down` ends it"
        ) from None
    yield


def _end_leftovers(places: Places) -> None:
    """Kill what an earlier Slurm left in the folder. Raises `SlurmError` for what will not go."""
    left = processes.kill_all(lambda: processes.of_folder(places.folder, places.slurm_conf), LEFTOVERS_S)
    if left:
        raise SlurmError(
            f"processes {', '.join(map(str, left))} of an earlier Slurm in {places.folder} cannot be killed"
        )


def _watch(supervisor: int, owner: int | None) -> None:
    """Return when the supervisor has ended, or the owner has; take orphans' exit statuses meanwhile."""
    child_ends = processes.child_ends()
    ended = os.pidfd_open(supervisor)
    watched = [ended, child_ends] if owner is None else [ended, child_ends, owner]
    while select.select(watched, [], [])[0] == [child_ends]:
        _drain(child_ends)
        processes.reap([supervisor])


def _end_everything(supervisor: int, places: Places, temporary: bool) -> None:
    """Have the supervisor end the Slurm, then kill whatever is there still."""
    if supervisor:
        processes.send(supervisor, signal.SIGTERM)
        with contextlib.suppress(ProcessLookupError):
            select.select([os.pidfd_open(supervisor)], [], [], _END_S)

    def left() -> list[int]:
        processes.reap()
        return processes.descendants([os.getpid()]) or processes.of_folder(places.folder, places.slurm_conf)

    for pid in processes.kill_all(left, LEFTOVERS_S):
        print(f"process {pid} cannot be killed", file=sys.stderr, flush=True)
    _tidy(places, temporary)


def _tidy(places: Places, temporary: bool) -> None:
    """Remove what the Slurm made; its logs too, if the folder is to go."""
    if temporary:
        shutil.rmtree(places.folder, ignore_errors=True)
    else:
        remove(places.made())


def _supervise(launch: Launch, places: Places, guard: int) -> NoReturn:
    """The supervisor: boot, answer, serve, end."""
    try:
        processes.be_told_of_parents_end()
        processes.adopt_orphans()
        if os.getppid() != guard:
            raise _Told
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        engine = Engine(places.folder, launch.settings)
        try:
            engine.boot()
            with _listener(places.control_socket) as listener:
                _answer(Answer(status=engine.status(guard)))
                _serve(engine, guard, listener)
        finally:
            _be_told_no_more()
            engine.end()
            if os.getppid() != guard:
                _tidy(places, launch.temporary)
    except SlurmError as error:
        _answer(Answer(error=str(error)))
    except _Told:
        pass
    except BaseException as error:
        traceback.print_exc()
        _answer(Answer(error=f"this should not have happened: {type(error).__name__}: {error}"))
    finally:
        os._exit(0)


@contextlib.contextmanager
def _listener(path: Path) -> Iterator[socket.socket]:
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield listener


def _serve(engine: Engine, guard: int, listener: socket.socket) -> None:
    """Answer requests, one after another, until one says `down`."""
    child_ends = processes.child_ends()
    while True:
        ready = select.select([listener.fileno(), child_ends], [], [])[0]
        if child_ends in ready:
            _drain(child_ends)
            processes.reap(engine.pids())
        if listener.fileno() not in ready:
            continue
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError, msgspec.DecodeError):
            connection.settimeout(_REQUEST_S)
            request = msgspec.json.decode(connection.makefile("rb").readline(), type=Request)
            error = None
            try:
                _do(engine, request)
            except SlurmError as failure:
                error = str(failure)
            connection.sendall(msgspec.json.encode(Answer(error=error, status=engine.status(guard))) + b"\n")
            if request.do == "down":
                return


def _drain(descriptor: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while os.read(descriptor, 512):
            continue


def _do(engine: Engine, request: Request) -> None:
    """What a request asks for, done. Raises `SlurmError`."""
    match request.do:
        case "status" | "down":
            return
        case "kill_node":
            engine.kill_node(request.node)
        case "start_node":
            engine.start_node(request.node)
        case "stop_controller":
            engine.stop_controller(hard=False)
        case "kill_controller":
            engine.stop_controller(hard=True)
        case "start_controller":
            engine.start_controller()
        case "stop_accounting":
            engine.stop_accounting()
        case "start_accounting":
            engine.start_accounting()
        case _:
            raise SlurmError(f"a private Slurm cannot {request.do!r}")


def _answer(answer: Answer) -> None:
    """Say what came of the start, to whoever started this, who reads one line."""
    with contextlib.suppress(OSError):
        os.write(1, msgspec.json.encode(answer) + b"\n")
    _answer_no_more()


def _answer_no_more() -> None:
    """Let go of stdout, so that the reader's end of it is not kept waiting."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.close(silence)


if __name__ == "__main__":
    sys.exit(main())
