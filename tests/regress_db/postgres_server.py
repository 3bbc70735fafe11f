"""A PostgreSQL server of the tests' own: in a new folder, behind a Unix socket, gone when its owner is.

The server is the child of a watchdog (this file, run as a program), which ends it and removes the folder when its
standard input closes: so it also ends when pytest is killed. Where the tests run as root, the server runs as an
unprivileged user, since PostgreSQL refuses root.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

START_DEADLINE_S = 60
USER = "epwatch"
_PR_SET_PDEATHSIG = 1
_UNLIKE_C = ("--locale-provider=icu", "--icu-locale=en-US")
"""Texts sort as people in most places have it, not by bytes as in SQLite: no answer may depend on that."""

_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "60",
    "max_wal_size": "256MB",
    "timezone": "Asia/Kathmandu",
}
"""fsync is off since no test pulls a plug. An odd zone, since nothing may depend on the server's."""


def programs() -> Path | None:
    """The folder of the newest PostgreSQL server's programs here, None where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).resolve().parent if on_path else None


class PostgresServer:
    """A running server. `url(name)` names one of its databases; `stop` ends it."""

    def __init__(self, programs: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="epwatch-postgres-"))
        self._watchdog = subprocess.Popen(
            [sys.executable, "-I", __file__, str(programs), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        said = self._watchdog.stdout.readline()
        if said != "ready\n":
            self.stop()
            raise RuntimeError(f"PostgreSQL did not start: {said}")

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://{USER}@/{database}?host={self.folder}"

    @contextlib.contextmanager
    def database(self, template: str = "template0") -> Iterator[str]:
        """The URL of a new database, which is a copy of `template`; dropped at the end."""
        name = f"t_{uuid.uuid4().hex}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        try:
            yield self.url(name)
        finally:
            self.run(f"DROP DATABASE {name} WITH (FORCE)")

    def run(self, sql: str) -> None:
        """One statement, outside of any transaction, in the database of no history."""
        import psycopg

        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(sql)

    def stop(self) -> None:
        self._watchdog.stdin.close()
        self._watchdog.wait(timeout=60)
        shutil.rmtree(self.folder, ignore_errors=True)


def _as_whom(folder: Path) -> dict[str, object]:
    """What makes `subprocess` run a program as someone PostgreSQL accepts, to whom the folder is given."""
    if os.getuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            os.chown(folder, user.pw_uid, user.pw_gid)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise RuntimeError("PostgreSQL refuses to run as root, and there is neither a user postgres nor nobody")


def watch(programs: Path, folder: Path) -> None:
    """Make and start a server in `folder`, say so, wait for the end of standard input, end it, remove the folder."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; pytest decides when to end
    data = folder / "data"
    server = None
    try:
        as_whom = _as_whom(folder) | {
            "cwd": folder,
            "env": {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": str(folder)},
        }
        subprocess.run(
            [
                programs / "initdb",
                "-D",
                data,
                "-U",
                USER,
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                *_UNLIKE_C,
                "--no-sync",
            ],
            check=True,
            capture_output=True,
            timeout=START_DEADLINE_S,
            **as_whom,
        )
        settings = [f"--{name}={value}" for name, value in _SETTINGS.items()]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", data, "-k", folder, *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
                **as_whom,
            )
        deadline = time.monotonic() + START_DEADLINE_S
        while not _is_ready(data):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / "log").read_text(errors="replace"))
            time.sleep(0.02)
        print("ready", flush=True)
        sys.stdin.read()
    except Exception as error:
        print(f"{error} {getattr(error, 'stderr', None) or ''}".replace("\n", " "), flush=True)
    finally:
        if server is not None:
            _end(server)
        shutil.rmtree(folder, ignore_errors=True)


def _is_ready(data: Path) -> bool:
    """Whether the server says so in the last line of its pid file."""
    try:
        return (data / "postmaster.pid").read_text().splitlines()[-1].strip() == "ready"
    except (OSError, IndexError):
        return False


def _end(server: subprocess.Popen[bytes]) -> None:
    """Fast shutdown, which does not wait for clients; immediate where that takes long."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        server.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(timeout=10)
            return


def _die_with_parent() -> None:
    """Immediate shutdown when the watchdog itself is killed. Called after the change of user, which would undo it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


if __name__ == "__main__":
    watch(Path(sys.argv[1]), Path(sys.argv[2]))
