"""A private Slurm as everybody but its supervisor sees it: started, asked, told, ended.

Used by `epwatch slurm` and by tests. Next to read: `jobs.private_slurm.supervisor`, the program at the other end.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import msgspec

from jobs.private_slurm import machine, processes
from jobs.private_slurm.configuration import Places, check_folder
from jobs.private_slurm.engine import EngineStatus
from jobs.private_slurm.settings import SlurmError, SlurmSettings, shape_of
from jobs.private_slurm.supervisor import LEFTOVERS_S, Answer, Launch, Request

_BOOT_S = 240.0
_REQUEST_S = 120.0
_END_S = 60.0
_COMMAND_S = 60.0
_POLL_S = 0.05
_LOG = "supervisor.log"


class NotUpError(SlurmError):
    """No Slurm is up in a folder."""


class PrivateSlurm:
    """A Slurm of one's own in a folder.

        with PrivateSlurm(SlurmSettings(nodes=2, cpus=2)) as slurm:
            slurm.run("srun", "-N2", "hostname")

    Leaving the block ends it, and so does the end of the process that entered, however that comes about. folder: where
    it lives; None makes one under /tmp that goes with it.
    """

    def __init__(self, settings: SlurmSettings | None = None, folder: Path | None = None) -> None:
        self.settings = settings or SlurmSettings()
        self._temporary = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="ep-slurm-", dir="/tmp")) if folder is None else folder.resolve()
        self._guard: subprocess.Popen[bytes] | None = None
        self._started: EngineStatus | None = None

    @classmethod
    def attach(cls, folder: Path) -> PrivateSlurm:
        """The Slurm that is up in `folder`, whoever started it. Raises `SlurmError` when none is."""
        slurm = cls(folder=folder)
        slurm._started = slurm.status()
        slurm.settings = slurm._started.settings
        return slurm

    def __enter__(self) -> PrivateSlurm:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, *, detached: bool = False) -> PrivateSlurm:
        """Boot it and return when all nodes are idle. Raises `SlurmError`. detached: it outlives this process."""
        try:
            machine.check_programs(self.settings.accounting)
            check_folder(self.folder, shape_of(self.settings, machine.this_machine()).nodes)
            make_folder(self.folder)
            self._guard = self._launch(detached)
            self._started = self._first_answer(self._guard)
        except BaseException:
            if self._temporary:
                shutil.rmtree(self.folder, ignore_errors=True)
            raise
        return self

    def stop(self) -> None:
        """End every process of it and return when none is left.

        Raises `SlurmError` when one will not go, and when it is not up, unless it was started here and died since.
        """
        guard, self._guard = self._guard, None
        if guard is not None:
            _end(guard)
            end_leftovers(self.folder)
            if self._temporary:
                shutil.rmtree(self.folder, ignore_errors=True)
            return
        with contextlib.suppress(ProcessLookupError), _ended(self.status().guard_pid) as ended:
            self._ask(Request(do="down"))
            if not select.select([ended], [], [], _END_S)[0]:
                raise SlurmError(f"the Slurm in {self.folder} has not ended after {_END_S:g} s: see {self._log}")

    def wait(self) -> None:
        """Return when it has ended, which somebody else saw to."""
        with contextlib.suppress(ProcessLookupError), _ended(self._known.guard_pid) as ended:
            select.select([ended], [], [])

    def status(self) -> EngineStatus:
        """Its daemons, as they are now. Raises `SlurmError` when it is not up."""
        return self._ask(Request(do="status"))

    def environment(self) -> dict[str, str]:
        """The variables that lead Slurm's commands to it."""
        return {"SLURM_CONF": str(self.slurm_conf), "PATH": machine.search_path()}

    @property
    def slurm_conf(self) -> Path:
        """The file that SLURM_CONF names."""
        return Places(self.folder).slurm_conf

    @property
    def node_names(self) -> tuple[str, ...]:
        """The nodes' names, which are loopback addresses."""
        return tuple(node.name for node in self._known.shape.nodes)

    @property
    def boot_s(self) -> float:
        """How long it took from nothing to all nodes idle."""
        return self._known.boot_s

    def run(self, *command: str, timeout_s: float = _COMMAND_S) -> str:
        """Run a command where the controller is and return what it printed.

        Raises `SlurmError` with its stderr when it fails.
        """
        shown = " ".join(command)
        enter = self.settings.controller.enter if self.settings.controller else ()
        try:
            done = subprocess.run(
                [*enter, *command],
                env=os.environ | self.environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SlurmError(f"{shown} has not ended after {timeout_s:g} s") from None
        if done.returncode != 0:
            raise SlurmError(f"{shown} failed with exit code {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def wait_idle(self, timeout_s: float = 30.0) -> None:
        """Wait until every node is idle. Raises `SlurmError` that tells the nodes' states."""
        give_up = time.monotonic() + timeout_s
        while set(states := self.run("sinfo", "-h", "-N", "-o", "%t").split()) != {"idle"}:
            if time.monotonic() > give_up:
                raise SlurmError(f"nodes are not idle after {timeout_s:g} s, but {', '.join(sorted(set(states)))}")
            time.sleep(_POLL_S)

    def kill_node(self, name: str) -> None:
        """Crash a node: nothing of it is left, and nothing of it could tell the controller."""
        self._ask(Request(do="kill_node", node=name))

    def start_node(self, name: str) -> None:
        """Start a node that was killed; `wait_idle` waits until it is back in service."""
        self._ask(Request(do="start_node", node=name))

    def stop_controller(self, *, hard: bool = False) -> None:
        """End slurmctld: orderly, or (hard) by SIGKILL."""
        self._ask(Request(do="kill_controller" if hard else "stop_controller"))

    def start_controller(self) -> None:
        """Start slurmctld again."""
        self._ask(Request(do="start_controller"))

    def stop_accounting(self) -> None:
        """End slurmdbd and its database."""
        self._ask(Request(do="stop_accounting"))

    def start_accounting(self) -> None:
        """Start slurmdbd and its database again."""
        self._ask(Request(do="start_accounting"))

    @property
    def _known(self) -> EngineStatus:
        if self._started is None:
            raise SlurmError(f"the Slurm in {self.folder} was not started")
        return self._started

    @property
    def _log(self) -> Path:
        return self.folder / _LOG

    def _launch(self, detached: bool) -> subprocess.Popen[bytes]:
        launch = Launch(
            folder=str(self.folder),
            settings=self.settings,
            owner_pid=None if detached else os.getpid(),
            temporary=self._temporary,
        )
        with self._log.open("ab") as log:
            guard = subprocess.Popen(
                [sys.executable, "-P", "-m", "jobs.private_slurm.supervisor"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert guard.stdin is not None
        with contextlib.suppress(BrokenPipeError), guard.stdin:
            guard.stdin.write(msgspec.json.encode(launch))
        return guard

    def _first_answer(self, guard: subprocess.Popen[bytes]) -> EngineStatus:
        """What came of the boot; where it failed nothing is left of it when this raises."""
        assert guard.stdout is not None
        try:
            with guard.stdout as said:
                line = said.readline() if select.select([said], [], [], _BOOT_S)[0] else b""
            if not line:
                raise SlurmError(f"the Slurm in {self.folder} ended without a word as it started: see {self._log}")
            answer = msgspec.json.decode(line, type=Answer)
            if answer.status is None:
                raise SlurmError(answer.error or f"the Slurm in {self.folder} did not start: see {self._log}")
            return answer.status
        except BaseException:
            _end(guard)
            raise

    def _ask(self, request: Request) -> EngineStatus:
        """Have the supervisor do something. Raises `SlurmError` when it cannot, or when there is none."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(_REQUEST_S)
                connection.connect(str(Places(self.folder).control_socket))
                connection.sendall(msgspec.json.encode(request) + b"\n")
                line = connection.makefile("rb").readline()
        except TimeoutError:
            raise SlurmError(
                f"the supervisor of the Slurm in {self.folder} has not answered for {_REQUEST_S:g} s: see {self._log}"
            ) from None
        except OSError:
            line = b""
        if not line:
            raise NotUpError(f"no Slurm is up in {self.folder}: `epwatch slurm up` starts one")
        answer = msgspec.json.decode(line, type=Answer)
        if answer.error is not None or answer.status is None:
            raise SlurmError(answer.error or f"the supervisor of the Slurm in {self.folder} said nothing")
        return answer.status


def make_folder(folder: Path) -> None:
    """Make the folder of a Slurm, for this user alone. Raises `SlurmError` for one that holds other things."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        strange = [path for path in folder.iterdir() if path.name != _LOG]
        if strange and not Places(folder).lock.exists():
            raise SlurmError(f"the folder {folder} holds other things than a Slurm: name an empty or new one")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise SlurmError(f"the folder {folder} cannot be written to: name another one with --folder")
        folder.chmod(0o700)
    except OSError as error:
        raise SlurmError(
            f"cannot make the folder {folder}: {error.strerror or error}; name another one with --folder"
        ) from None


def end_leftovers(folder: Path) -> int:
    """Kill what is left of a Slurm whose supervisor and guard were both killed. Returns how many processes it was."""
    places = Places(folder := folder.resolve())

    def find() -> list[int]:
        return processes.of_folder(folder, places.slurm_conf)

    found = len(find())
    left = processes.kill_all(find, LEFTOVERS_S)
    if left:
        raise SlurmError(f"processes {', '.join(map(str, left))} of the Slurm in {folder} cannot be killed")
    return found


@contextlib.contextmanager
def _ended(pid: int) -> Iterator[int]:
    """A descriptor that becomes readable when the process ends."""
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _end(guard: subprocess.Popen[bytes]) -> None:
    """Have a guard of ours end, and take its exit status."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        guard.send_signal(signal.SIGTERM)
        guard.wait(_END_S)
        return
    guard.kill()
    guard.wait(_END_S)
