"""Everything that only a machine with a GPU can show, in under nine minutes: `make gpu-check`.

    make gpu-check PYTHON=python3 [OUT=folder]
    python3 tests/cuda/gpu_check.py [--only STEP ...] [--budget SECONDS] [--no-mps]

Builds the extension in place for this Python, runs the tests under tests/cuda, those that kill ranks and those of
several nodes apart, the harness's on GPUs, compute-sanitizer on a small round trip, and benchmarks/cuda_engine.py. It
needs a driver, nvcc and, in this Python, torch with CUDA, numpy, setuptools, nanobind, cmake, ninja, pytest and
hypothesis; no network. msgspec is wanted by what uses the harness; nvidia-ml-py tells clocks.

Tests with more ranks than GPUs run under a private MPS daemon, where ranks on one GPU run side by side; those that kill
ranks never do, as a client of MPS that dies can take its server along. Each step has a deadline, and its log in the
folder named by OUT, else in a new one. Exit code: 0 every step passed; 1 one failed; 2 nothing can be checked here;
3 none failed, and one could not be run.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import mps

ROOT = Path(__file__).resolve().parents[2]
BUDGET_S = 530.0
MOST_RANKS = 8
TAIL_LINES = 25
KILL_GRACE_S = 20.0
FAULTS, HARNESS = "tests/cuda/test_cuda_faults.py", "tests/cuda/test_cuda_harness.py"
PORTS = "tests/cuda/test_cuda_ports.py"
SANITIZED = "tests/cuda/sanitize.py"
# synccheck follows so many barriers at once; the kernels have some for each warp of each block.
BARRIERS = ("--num-cuda-barriers", "8192")
NEEDED = ("torch", "numpy", "setuptools", "nanobind", "pytest", "hypothesis")


@dataclass(frozen=True)
class Step:
    """One program. needs: a module of this Python, or a program, without which the step cannot be run. mps: whether it
    runs under MPS where ranks share a GPU. vital: whether nothing else can be done without it. shown: whether what it
    says is for whoever runs this.
    """

    name: str
    command: tuple[str, ...]
    deadline_s: float
    module: str = ""
    program: str = ""
    mps: bool = False
    vital: bool = False
    shown: bool = False


def steps(out: Path, shared: bool) -> list[Step]:
    """All steps, in their order: what is worth most comes first, as time may run out. shared: one GPU for all ranks."""
    python, sanitizer, pytest = sys.executable, "compute-sanitizer", pytest_words()
    # Two protocols of four: the oracle looks at every round, which takes longer than the round.
    few = ("--protocols", "graph", "kernel", "--rounds", "3", "--ht-rounds", "2")
    bench = ("benchmarks/cuda_engine.py", "--json", str(out), *few, "--deadline", "190")
    watched = (sanitizer, "--error-exitcode", "1", "--tool")
    return [
        Step("build", (python, "setup.py", "egg_info", "build_ext", "--inplace"), 180, program="nvcc", vital=True),
        Step("report", (python, "-m", "ep_core"), 40, shown=True),
        Step(
            "tests",
            (python, *pytest, "tests/cuda", *(f"--ignore={file}" for file in (FAULTS, HARNESS, PORTS))),
            180,
            mps=True,
        ),
        Step("bench", (python, *bench, *(("--mps",) if shared else ())), 200, module="msgspec", shown=True),
        Step("faults", (python, *pytest, FAULTS), 150),
        # Without MPS, as ranks are killed in it.
        Step("ports", (python, *pytest, PORTS), 300, module="ep_core._mscclpp"),
        Step("harness", (python, *pytest, HARNESS), 120, module="msgspec", mps=True),
        Step("memcheck", (*watched, "memcheck", python, SANITIZED), 90, program=sanitizer),
        Step("racecheck", (*watched, "racecheck", python, SANITIZED, "ll"), 90, program=sanitizer),
        Step("synccheck", (*watched, "synccheck", *BARRIERS, python, SANITIZED), 60, program=sanitizer),
    ]


def pytest_words() -> tuple[str, ...]:
    """How this Python runs pytest. The project's settings want pytest-timeout; steps have deadlines without it, too."""
    settings = () if has_module("pytest_timeout") else ("-c", os.devnull, "--rootdir=.")
    return ("-m", "pytest", *settings, "--confcutdir=tests/cuda", "-p", "no:cacheprovider", "-m", "gpu", "-q")


def gpus() -> int:
    """How many GPUs the driver gives this process; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def has_module(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")


def missing(step: Step) -> str:
    """Why the step cannot be run here, "" when it can."""
    if step.module and not has_module(step.module):
        return f"this Python has no {step.module}"
    if step.program and program(step.program) is None:
        return f"{step.program} is not installed"
    return ""


def environment(step: Step, given: Mapping[str, str], count: int) -> dict[str, str]:
    """A step's environment. given: MPS's variables, empty where it does not run."""
    found = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]),
        "EP_CORE_GPU_REQUIRED": "1",
    }
    if step.mps and given:
        # Every rank of the largest world has its own part of a GPU.
        percentage = str(100 * count // MOST_RANKS)
        found |= {**given, "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": percentage}
    return found


def run(step: Step, log: Path, environ: Mapping[str, str], deadline_s: float) -> str:
    """Run a step; "" when it passed, else what happened. Whatever it started is gone afterwards."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            step.command,
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            return f"did not end within {deadline_s:.0f} s"
        finally:
            _end(process)
    return "" if code == 0 else f"ended with exit code {code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the step and what it left, which share a session. One that runs is asked first: it may have to clean up."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILL_GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    return "\n".join(f"    {line}" for line in lines)


@contextlib.contextmanager
def private_mps(wanted: bool) -> Iterator[dict[str, str]]:
    if not wanted:
        yield {}
        return
    with mps.daemon() as variables:
        yield variables


def check(wanted: list[Step], out: Path, count: int, budget_s: float, with_mps: bool) -> dict[str, list[str]]:
    """Run the steps, a line each. Names of those that `passed`, `failed` and were `left out`."""
    done: dict[str, list[str]] = {"passed": [], "failed": [], "left out": []}
    started = time.monotonic()
    for number, step in enumerate(wanted, 1):
        left_s = budget_s - (time.monotonic() - started)
        log, begun = out / f"{number}-{step.name}.log", time.monotonic()
        print(f"{step.name:<12}", end="", flush=True)
        why = missing(step) or ("" if left_s > 1 else "no time is left")
        if why:
            done["left out"].append(step.name)
            print(f"left out: {why}", flush=True)
        else:
            try:
                with private_mps(with_mps and step.mps) as given:
                    why = run(step, log, environment(step, given, count), min(step.deadline_s, left_s))
            except mps.MpsError as error:
                why = str(error)
            done["failed" if why else "passed"].append(step.name)
            took_s = time.monotonic() - begun
            print(f"FAILED, {took_s:.0f} s: {why}; {log}" if why else f"passed, {took_s:.0f} s", flush=True)
            if why and log.exists():
                print(tail(log), flush=True)
            elif step.shown:
                print(log.read_text(errors="replace"), flush=True)
        if why and step.vital:
            break
    return done


def obstacle(count: int) -> str:
    """Why nothing can be checked here, "" when something can."""
    if not count:
        return "there is no GPU here (no driver, or CUDA_VISIBLE_DEVICES names none), and one or two are wanted"
    absent = [name for name in NEEDED if not has_module(name)]
    return f"{sys.executable} has no {', '.join(absent)}: name another by PYTHON=" if absent else ""


def folder_for_logs(given: str) -> Path:
    """The folder, made where it is not there; a new one where none is given. Raises `OSError` unless it takes files."""
    out = Path(given) if given else Path(tempfile.mkdtemp(prefix="epwatch-gpu-check-"))
    out.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=out).close()
    return out.resolve()


def main() -> int:
    here = steps(Path(), shared=False)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[step.name for step in here], metavar="STEP", help="these steps")
    parser.add_argument("--budget", type=float, default=BUDGET_S, metavar="S", help="for all steps together")
    parser.add_argument("--no-mps", action="store_true", help="let ranks that share a GPU take turns")
    options = parser.parse_args()
    count = gpus()
    if why := obstacle(count):
        print(f"gpu-check: {why}", file=sys.stderr)
        return 2
    try:
        out = folder_for_logs(os.environ.get("OUT", ""))
    except OSError as error:
        print(f"gpu-check: OUT={os.environ.get('OUT', '')} cannot be used: {error.strerror or error}", file=sys.stderr)
        return 2
    with_mps = not options.no_mps and count < MOST_RANKS and shutil.which(mps.CONTROL) is not None
    print(f"{count} GPU{'s' if count > 1 else ''}, {sys.executable}; {'' if with_mps else 'no '}MPS; logs in {out}")
    wanted = [
        step for step in steps(out, shared=with_mps and count == 1) if options.only is None or step.name in options.only
    ]
    done = check(wanted, out, count, options.budget, with_mps)
    print("; ".join(f"{word}: {', '.join(names)}" for word, names in done.items() if names))
    if done["failed"]:
        return 1
    return 3 if done["left out"] or sum(map(len, done.values())) < len(wanted) else 0


if __name__ == "__main__":
    sys.exit(main())
