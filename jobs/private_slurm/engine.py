"""One private Slurm, in the process whose children its daemons are: boots it, breaks and mends parts of it, ends it.

Lives in the supervisor (`jobs.private_slurm.supervisor`); everybody else speaks to it through `PrivateSlurm`. Every
wait has a deadline, and what fails says so in the daemon's own words.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from jobs.private_slurm import machine, processes
from jobs.private_slurm.configuration import (
    CLUSTER_NAME,
    ConfigurationFile,
    Description,
    Places,
    Ports,
    files,
    stand_in_devices,
)
from jobs.private_slurm.daemons import Daemons, DaemonStatus
from jobs.private_slurm.settings import Shape, SlurmError, SlurmSettings, shape_of

START_S = 30.0
_STOP_S = 10.0
_COMMAND_S = 15.0
_JOBS_END_S = 6.0
_POLL_S = 0.1
_JOB_IDS = 60_000_000
_ATTEMPTS = 2
_SLURMD_IS_UP = "slurmd started on"
_PORT_TAKEN = "address already in use"
_KEPT_VARIABLES = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TZ", "USER")


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What is up. guard_pid: the process at whose end nothing is left."""

    folder: str
    guard_pid: int
    supervisor_pid: int
    boot_s: float
    settings: SlurmSettings
    shape: Shape
    daemons: tuple[DaemonStatus, ...]


class Engine:
    """A Slurm in `folder`, which exists and is this user's alone."""

    def __init__(self, folder: Path, settings: SlurmSettings) -> None:
        self._settings = settings
        self._shape = shape_of(settings, machine.this_machine())
        self._places = Places(folder)
        self._environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ} | {
            "PATH": machine.search_path(),
            "SLURM_CONF": str(self._places.slurm_conf),
            processes.FOLDER_MARK: str(folder),
        }
        self._enter = settings.controller.enter if settings.controller else ()
        self._daemons = Daemons(self._places.logs, self._environment)
        self._boot_s = 0.0

    def boot(self) -> None:
        """Start everything and return when all nodes are idle. Raises `SlurmError`."""
        began = time.monotonic()
        machine.check_programs(self._settings.accounting)
        for attempt in range(_ATTEMPTS):
            try:
                self._boot_once()
                break
            except SlurmError as error:
                if _PORT_TAKEN not in str(error).lower() or attempt == _ATTEMPTS - 1:
                    raise
                self._kill_descendants()
        self._boot_s = time.monotonic() - began

    def _boot_once(self) -> None:
        self._describe()
        self._start_munged()
        if self._settings.accounting:
            self.start_accounting()
        # A slurmd that finds no controller sleeps for a second.
        self.start_controller()
        nodes = self._node_names()
        for node in nodes:
            self._start_slurmd(node)
        self._daemons.wait_until(
            lambda: set(self.ask("sinfo", "-h", "-N", "-o", "%t").split()) == {"idle"},
            "all nodes were idle",
            ["slurmctld", *map(_slurmd, nodes)],
            START_S,
        )
        if self._settings.accounting:
            self._daemons.wait_until(
                lambda: CLUSTER_NAME in self.ask("sacctmgr", "-n", "-P", "show", "cluster", "format=cluster").split(),
                "accounting answered",
                ["slurmdbd", "slurmctld"],
                START_S,
            )

    def status(self, guard_pid: int) -> EngineStatus:
        """What is up now."""
        return EngineStatus(
            folder=str(self._places.folder),
            guard_pid=guard_pid,
            supervisor_pid=os.getpid(),
            boot_s=self._boot_s,
            settings=self._settings,
            shape=self._shape,
            daemons=self._daemons.statuses(),
        )

    def pids(self) -> set[int]:
        """The daemons' pids."""
        return self._daemons.pids()

    def kill_node(self, node: str) -> None:
        """A node's crash: its slurmd goes, then its job steps' daemons before they can tell, then their tasks."""
        self._check_node(node)
        name = _slurmd(node)
        if self._daemons.is_up(name):
            self._daemons.stop(name, signal.SIGKILL, _STOP_S)
        steps = self._marked(processes.NODE_MARK, node)
        tasks = processes.descendants(steps)
        for pid in (*steps, *tasks):
            processes.send(pid, signal.SIGKILL)

        def left() -> list[int]:
            processes.reap(self.pids())
            return self._marked(processes.NODE_MARK, node) + self._marked("SLURMD_NODENAME", node)

        self._must_go(processes.kill_all(left, _STOP_S))

    def start_node(self, node: str) -> None:
        """Start a node's slurmd and return when it listens."""
        self._check_node(node)
        self._check_down(_slurmd(node))
        self._start_slurmd(node)
        name = _slurmd(node)
        self._daemons.wait_until(lambda: self._daemons.has_said(name, _SLURMD_IS_UP), "it listened", [name], START_S)

    def stop_controller(self, hard: bool) -> None:
        """End slurmctld: orderly, or by SIGKILL."""
        self._stop("slurmctld", hard)

    def start_controller(self) -> None:
        """Start slurmctld and return when it answers."""
        self._check_down("slurmctld")
        self._daemons.start("slurmctld", [*self._enter, "slurmctld", "-D"])
        self._daemons.wait_until(
            lambda: self.ask("scontrol", "ping").rstrip().endswith("UP"), "it answered", ["slurmctld"], START_S
        )

    def stop_accounting(self) -> None:
        """End slurmdbd and its database: `sacct` fails until they are started again."""
        self._stop("slurmdbd", hard=False)
        self._stop("mariadbd", hard=False)

    def start_accounting(self) -> None:
        """Start the database and slurmdbd and return when it listens."""
        if not self._settings.accounting:
            raise SlurmError("this Slurm was started without accounting: start another with it")
        self._start_database()
        self._check_down("slurmdbd")
        self._daemons.start("slurmdbd", ["slurmdbd", "-D"], MYSQL_UNIX_PORT=str(self._places.database_socket))
        port = self._ports.accounting
        self._daemons.wait_until(lambda: _listens("127.0.0.1", port), "it listened", ["slurmdbd", "mariadbd"], START_S)

    def end(self) -> None:
        """End jobs, which get SIGTERM and a moment where all daemons are up to give it, then every process."""
        if self._boot_s and all(daemon.up for daemon in self._daemons.statuses()):
            give_up = time.monotonic() + _JOBS_END_S
            self.ask("scancel", "--full", f"--user={machine.user_name()}")
            while self.ask("squeue", "-h", "-t", "running,completing") and time.monotonic() < give_up:
                time.sleep(_POLL_S)
        self._kill_descendants()

    def _kill_descendants(self) -> None:
        def left() -> list[int]:
            processes.reap(self.pids())
            self._daemons.statuses()
            return processes.descendants([os.getpid()])

        self._must_go(processes.kill_all(left, _STOP_S))

    def _describe(self) -> None:
        """Write the files, with new ports, key and job ids, in place of those of an earlier Slurm."""
        remove(self._places.made() | {self._places.logs})
        count = len(self._shape.nodes)
        controller, accounting, *nodes = machine.free_ports(2 + count)
        self._ports = Ports(controller=controller, accounting=accounting, nodes=tuple(nodes))
        description = Description(
            folder=self._places.folder,
            host=machine.host_name(),
            user=machine.user_name(),
            ports=self._ports,
            shape=self._shape,
            settings=self._settings,
            first_job_id=1 + secrets.randbelow(_JOB_IDS),
            cgroup_plugin=machine.cgroup_plugin(),
        )
        spools = [self._places.spool(node.name) for node in self._shape.nodes]
        for folder in (
            self._places.logs,
            self._places.state,
            self._places.devices,
            self._places.database / "mysql",
            *spools,
        ):
            folder.mkdir(parents=True, exist_ok=True)
        for name, file in files(description).items():
            _write(self._places.folder / name, file)
        for device in stand_in_devices(description):
            with contextlib.suppress(FileExistsError):
                device.symlink_to("/dev/null")

    def _start_munged(self) -> None:
        folder = self._places.folder
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        files_of_munge = {
            "key-file": key,
            "socket": self._places.munge_socket,
            "pid-file": folder / "munged.pid",
            "log-file": self._places.log("munged"),
            "seed-file": folder / "munge.seed",
        }
        options = [f"--{name}={path}" for name, path in files_of_munge.items()]
        self._daemons.start("munged", ["munged", "--foreground", "--force", "--num-threads=4", *options])
        socket_path = self._places.munge_socket
        self._daemons.wait_until(lambda: _accepts(socket_path), "its socket answered", ["munged"], START_S)

    def _start_database(self) -> None:
        """Start a database that only its socket, in our folder, leads to: it asks for no password."""
        self._check_down("mariadbd")
        folder, socket_path = self._places.database, self._places.database_socket
        command = [
            *("mariadbd", "--no-defaults", f"--datadir={folder}", f"--socket={socket_path}"),
            *(f"--pid-file={self._places.folder}/mariadbd.pid", "--skip-networking", "--skip-grant-tables"),
            *("--innodb-buffer-pool-size=64M", "--innodb-log-file-size=16M", "--innodb-flush-log-at-trx-commit=0"),
            *("--innodb-lock-wait-timeout=900", "--performance-schema=OFF"),
        ]
        self._daemons.start("mariadbd", [*command, *(["--user=root"] if os.geteuid() == 0 else [])])
        self._daemons.wait_until(lambda: _accepts(socket_path), "its socket answered", ["mariadbd"], START_S)

    def _start_slurmd(self, node: str) -> None:
        enter = next(one.enter for one in self._shape.nodes if one.name == node)
        self._daemons.start(_slurmd(node), [*enter, "slurmd", "-D", "-N", node], **{processes.NODE_MARK: node})

    def _stop(self, name: str, hard: bool) -> None:
        if not self._daemons.is_up(name):
            raise SlurmError(f"{name} is not up, so it cannot be stopped")
        self._daemons.stop(name, signal.SIGKILL if hard else signal.SIGTERM, _STOP_S)

    def _check_down(self, name: str) -> None:
        if self._daemons.is_up(name):
            raise SlurmError(f"{name} is up already")

    def _check_node(self, node: str) -> None:
        if node not in self._node_names():
            raise SlurmError(f"there is no node {node}: the nodes are {', '.join(self._node_names())}")

    def _node_names(self) -> list[str]:
        return [node.name for node in self._shape.nodes]

    def _marked(self, name: str, value: str) -> list[int]:
        """Pids of our descendants whose environment has this variable."""
        mine = set(processes.descendants([os.getpid()]))
        return [pid for pid in processes.having(lambda variables: variables.get(name) == value) if pid in mine]

    def ask(self, *command: str) -> str:
        """What a Slurm command prints; nothing where it fails or does not answer in time."""
        try:
            done = subprocess.run(
                [*self._enter, *command],
                env=self._environment,
                capture_output=True,
                text=True,
                timeout=_COMMAND_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout

    def _must_go(self, left: list[int]) -> None:
        if left:
            raise SlurmError(f"processes {', '.join(map(str, left))} of the Slurm cannot be killed")


def _slurmd(node: str) -> str:
    """The name under which a node's slurmd runs."""
    return f"slurmd-{node}"


def _listens(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), 1).close()
    except OSError:
        return False
    return True


def _accepts(path: Path) -> bool:
    """Whether somebody listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as attempt:
        try:
            attempt.connect(str(path))
        except OSError:
            return False
    return True


def remove(paths: Iterable[Path]) -> None:
    """Remove files and folders, those that are there."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _write(path: Path, file: ConfigurationFile) -> None:
    path.unlink(missing_ok=True)
    path.touch(mode=file.mode)
    path.write_text(file.text)
