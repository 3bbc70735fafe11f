"""A private MPS daemon: with one, processes that share a GPU run side by side; without, they take turns.

Its pipes and logs are in a folder of its own, so it is nobody else's, and it is gone when the block is. Used by
benchmarks/cuda_engine.py and tests/cuda/gpu_check.py. Needs nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

CONTROL = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
PIPES_BY_DEFAULT = "/tmp/nvidia-mps"
START_DEADLINE_S = 10.0
STOP_DEADLINE_S = 10.0


class MpsError(Exception):
    """The daemon cannot be started; one sentence."""


def in_words(environ: Mapping[str, str]) -> str:
    """Whether processes with this environment are MPS's clients, as far as can be seen."""
    pipes = environ.get(PIPES, PIPES_BY_DEFAULT)
    return "MPS" if (Path(pipes) / "control").exists() else "no MPS"


@contextlib.contextmanager
def daemon() -> Iterator[dict[str, str]]:
    """Run a daemon; gives the variables that make a process its client. Raises `MpsError`."""
    program = shutil.which(CONTROL)
    if program is None:
        raise MpsError(f"{CONTROL} is not installed, which comes with the driver: MPS cannot be started")
    with tempfile.TemporaryDirectory(prefix="epwatch-mps-") as name:
        folder = Path(name)
        variables = {PIPES: str(folder / "pipes"), LOGS: str(folder / "logs")}
        for made in variables.values():
            Path(made).mkdir()
        with (folder / "said").open("wb") as said:
            process = subprocess.Popen(
                [program, "-f"],
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
            )
        try:
            _await_control(process, folder)
            yield variables
        finally:
            _stop(program, process, variables)


def _await_control(process: subprocess.Popen[bytes], folder: Path) -> None:
    give_up = time.monotonic() + START_DEADLINE_S
    while not (folder / "pipes" / "control").exists():
        if process.poll() is not None or time.monotonic() > give_up:
            said = (folder / "said").read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise MpsError(f"{CONTROL} does not start: {said[-1]}")
        time.sleep(0.05)


def _stop(program: str, process: subprocess.Popen[bytes], variables: Mapping[str, str]) -> None:
    """Ask it to end its servers and itself; end it where it does not."""
    if process.poll() is None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                [program],
                env={**os.environ, **variables},
                input=b"quit -t 5\n",
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=STOP_DEADLINE_S,
                check=False,
            )
    try:
        process.wait(STOP_DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
