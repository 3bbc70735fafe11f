"""`make gpu-check` where there is no GPU: its refusal, and its steps with programs that need none."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "cuda"))

import gpu_check
from gpu_check import Step

PROGRAM = Path(gpu_check.__file__)


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.skipif(gpu_check.gpus() > 0, reason="there is a GPU here")
def test_without_a_gpu_it_ends_with_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, PROGRAM], capture_output=True, text=True, env={**os.environ, "OUT": str(tmp_path / "out")}
    )
    assert done.returncode == 2
    assert done.stderr.startswith("gpu-check: there is no GPU here")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_a_folder_that_takes_no_logs_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_check, "obstacle", lambda count: "")
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    (tmp_path / "file").touch()
    for given in (tmp_path / "file", tmp_path / "file" / "folder", Path("/proc/folder")):
        monkeypatch.setenv("OUT", str(given))
        assert gpu_check.main() == 2
        said = capsys.readouterr().err
        assert said.startswith(f"gpu-check: OUT={given} cannot be used: ")
        assert said.count("\n") == 1


def test_steps_that_fail_or_are_left_out_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [
        Step("good", python("print('what it found')"), 20, shown=True),
        Step("bad", python("print('why'); raise SystemExit(3)"), 20),
        Step("slow", python("import time; time.sleep(60)"), 1),
        Step("absent", ("no-such-program",), 20, program="no-such-program"),
        Step("without", python(""), 20, module="no_such_module"),
    ]
    done = gpu_check.check(steps, tmp_path, 1, 60, with_mps=False)
    assert done == {"passed": ["good"], "failed": ["bad", "slow"], "left out": ["absent", "without"]}
    said = capsys.readouterr().out
    assert "what it found" in said
    assert "bad         FAILED" in said
    assert f"ended with exit code 3; {tmp_path / '2-bad.log'}\n    why" in said
    assert "did not end within 1 s" in said
    assert "left out: no-such-program is not installed" in said
    assert "left out: this Python has no no_such_module" in said
    assert (tmp_path / "1-good.log").read_text() == "what it found\n"


def test_nothing_is_begun_when_the_time_is_spent_or_what_is_vital_failed(tmp_path: Path) -> None:
    good, vital = Step("good", python(""), 20), Step("vital", python("raise SystemExit(1)"), 20, vital=True)
    assert gpu_check.check([good], tmp_path, 1, 0.5, with_mps=False)["left out"] == ["good"]
    done = gpu_check.check([vital, good], tmp_path, 1, 60, with_mps=False)
    assert done == {"passed": [], "failed": ["vital"], "left out": []}


def test_a_step_leaves_no_process_behind(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        "print(child.pid, flush=True); time.sleep(600 * {wait})"
    )
    for wait, why in ((0, ""), (1, "did not end within 3 s")):
        log = tmp_path / "log"
        assert gpu_check.run(Step("step", python(code.format(wait=wait)), 3), log, os.environ, 3) == why
        pid = int(log.read_text().split()[0])
        give_up = time.monotonic() + 20
        while alive(pid) and time.monotonic() < give_up:
            time.sleep(0.05)
        assert not alive(pid)


def test_steps_with_many_ranks_get_their_part_of_a_gpu() -> None:
    given = {"CUDA_MPS_PIPE_DIRECTORY": "/pipes"}
    side_by_side, alone = Step("a", (), 1, mps=True), Step("b", (), 1)
    for count, percentage in ((1, "12"), (2, "25")):
        assert gpu_check.environment(side_by_side, given, count)["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == percentage
    assert "CUDA_MPS_PIPE_DIRECTORY" not in gpu_check.environment(alone, given, 1)
    assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in gpu_check.environment(side_by_side, {}, 1)


def test_tests_that_kill_ranks_never_run_under_mps_and_every_file_is_in_a_step() -> None:
    steps = {step.name: step for step in gpu_check.steps(Path("out"), shared=True)}
    assert not steps["faults"].mps
    assert gpu_check.FAULTS in steps["faults"].command
    assert f"--ignore={gpu_check.FAULTS}" in steps["tests"].command
    for path in (gpu_check.FAULTS, gpu_check.HARNESS, gpu_check.SANITIZED):
        assert (gpu_check.ROOT / path).is_file()
    assert "--mps" in steps["bench"].command
    assert "--mps" not in {step.name: step for step in gpu_check.steps(Path("out"), shared=False)}["bench"].command


def test_the_bench_step_s_words_are_understood() -> None:
    import cuda_engine

    steps = {step.name: step for step in gpu_check.steps(Path("out"), shared=True)}
    options = cuda_engine.arguments(list(steps["bench"].command[2:]))
    assert (options.device, options.mps, options.json) == ("cuda", True, Path("out"))
    assert options.deadline < steps["bench"].deadline_s
