"""What is left of a night when something is killed in the middle of it: every planned run is accounted for."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from epwatch_command import clean_environment, epwatch, sentence

from harness.processes import marked

PLAN = """\
[plan]
name = "crash"
[cluster]
kind = "local"
[measure]
repeats = 1
warmup = 1
iters = {iters}
deadline_s = 20.0
job_deadline_s = 60.0
[[cases]]
backend = "torch"
mode = "ll"
ranks = [1, 2]
tokens = 4
hidden = 64
topk = 2
experts = 4
"""
PLACES = ["--db", "history.db", "--spool", "spool", "--no-report"]
FOREVER = 10_000_000


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "plan.toml").write_text(PLAN.format(iters=FOREVER))
    return tmp_path


def until(true: Callable[[], object], what: str, limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, f"waited {limit_s} s for {what}"
        time.sleep(0.05)


@contextlib.contextmanager
def night(place: Path) -> Iterator[subprocess.Popen[str]]:
    """A night in a process group of its own, whose first job (one rank) is being timed."""
    with subprocess.Popen(
        [sys.executable, "-m", "jobs", "nightly", "plan.toml", *PLACES],
        cwd=place,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            until(lambda: "time dispatch" in steps(place) or process.poll() is not None, "the first job")
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def steps(place: Path) -> str:
    return "".join(path.read_text() for path in place.glob(".epwatch/jobs/*/*/logs/progress-rank0.jsonl"))


def job_folder(place: Path) -> Path:
    (spec,) = place.glob(".epwatch/jobs/*/*/job.json")
    return spec.parent


def ranks_alive(place: Path) -> list[int]:
    """Processes whose command line names this night's folder: tasks, launchers, ranks."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if f"{place}/.epwatch".encode() in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
    return found


def outcomes(place: Path) -> list[tuple[str, str]]:
    rows = json.loads(epwatch("runs", "--db", "history.db", "--json", cwd=place).stdout)
    return sorted((row["outcome"], row["failure"]) for row in rows)


def test_a_job_killed_midway_leaves_failed_rows_and_exit_code_3(place):
    with night(place) as process:
        # Nobody but the jobs' own processes carries the mark; the ranks under them die with them.
        for pid in marked(str(job_folder(place))):
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(list(place.glob(".epwatch/jobs/*/*/job.json"))) == 2, "the second job")
        second = max(place.glob(".epwatch/jobs/*/*/job.json")).parent
        until(lambda: marked(str(second)), "the second job's process")
        for pid in marked(str(second)):
            os.kill(pid, signal.SIGKILL)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    assert out.count("failed") >= 4
    assert "Traceback" not in err
    assert [outcome for outcome, _ in outcomes(place)] == ["failed", "failed"]
    assert all("died without a word" in why for _, why in outcomes(place))
    assert "baseline" not in epwatch("baseline", "list", "--db", "history.db", cwd=place).stdout
    until(lambda: not ranks_alive(place), "the ranks' end", limit_s=5)


def ctrl_c(pid: int) -> None:
    """What a terminal does: the signal goes to the whole foreground group."""
    os.killpg(pid, signal.SIGINT)


def terminate(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)


@pytest.mark.parametrize(("end", "code"), [(ctrl_c, 130), (terminate, 143)])
def test_an_interrupted_night_leaves_nothing_running_and_the_rest_missing(place, end, code):
    with night(place) as process:
        refused = epwatch("nightly", "plan.toml", *PLACES, cwd=place)
        assert "another night is running" in sentence(refused)
        end(process.pid)
        out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert "keeps what it has measured" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert out == ""
    until(lambda: not ranks_alive(place), "the ranks' end", limit_s=5)
    (line, *others) = json.loads(epwatch("nights", "--db", "history.db", "--json", cwd=place).stdout)
    assert others == []
    assert (line["planned"], line["missing"], line["finished_at"] is None) == (2, 2, False)


def test_a_run_interrupted_leaves_with_130_and_no_ranks(place):
    key = "torch/ll/cpu/r2n1/t4/h64/k2/e4/bf16/exact/uniform@0/phased"
    with subprocess.Popen(
        [sys.executable, "-m", "jobs", "run", key, "--iters", str(FOREVER), "--db", "history.db", "--spool", "spool"],
        cwd=place,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        until(lambda: list(place.glob(".epwatch/jobs/run-*/*/progress-rank1.jsonl")), "the ranks")
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1] == "epwatch: interrupted"
    until(lambda: not ranks_alive(place), "the ranks' end", limit_s=5)


def test_a_submitter_killed_midway_loses_no_record_and_the_next_night_waits_its_turn(tmp_path):
    (tmp_path / "plan.toml").write_text(PLAN.format(iters=20))
    with subprocess.Popen(
        [sys.executable, "-m", "jobs", "nightly", "plan.toml", *PLACES],
        cwd=tmp_path,
        env=clean_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        until(lambda: (tmp_path / ".epwatch/jobs/.measuring.lock").exists(), "the first job")
        process.kill()
    after = epwatch("nightly", "plan.toml", *PLACES, cwd=tmp_path)
    assert after.returncode == 0, after.stderr
    second, first = json.loads(epwatch("nights", "--db", "history.db", "--json", cwd=tmp_path).stdout)
    assert (second["ok"], second["missing"]) == (2, 0)
    # Its first job ended by itself and its record was ingested; the second was never submitted.
    assert (first["ok"], first["missing"], first["finished_at"]) == (1, 1, None)
