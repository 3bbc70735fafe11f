"""The command line as a user runs it: a process of its own, in a folder of its own, with nothing of ours around it."""

import os
import subprocess
import sys
from pathlib import Path

OURS = ("EPWATCH_", "MSCCLPP_", "XDG_CONFIG_HOME")


def clean_environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith((*OURS, "PYTEST_"))}
    return kept | more


def epwatch(
    *arguments: str | Path, cwd: Path, timeout_s: float = 60.0, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs", *map(str, arguments)],
        cwd=cwd,
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def sentence(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """The one sentence on stderr of a command that was refused."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr.strip().splitlines()[-1]
