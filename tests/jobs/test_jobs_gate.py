"""The gate: what it collects, what it refuses, and measuring once for all workers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from epwatch_command import clean_environment, epwatch

from harness.case import Case

KEY = "torch/ll/cpu/r1n1/t4/h64/k2/e4/bf16/exact/uniform@0/phased"
PLAN = """\
[plan]
name = "gated"
history = "history.db"
spool = "spool"
[cluster]
kind = "local"
[measure]
repeats = {repeats}
warmup = 1
iters = 20
[baseline]
policy = "first"
[verdict]
floor = 10.0
[[cases]]
backend = "torch"
mode = "ll"
ranks = 1
tokens = 4
hidden = 64
topk = 2
experts = 4
"""


def pytest_in(place: Path, *arguments: str, plugin: str = "jobs.gate") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", plugin, "-p", "no:cacheprovider", *arguments],
        cwd=place,
        env=clean_environment(XDG_DATA_HOME=str(place / "data")),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "test_other.py").write_text("def test_other():\n    pass\n")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epwatch-gate"], "there is no history"),
        (["--epwatch-gate", "--epwatch-db", "no.db"], "there is no history at no.db"),
        (["--epwatch-gate", "--epwatch-plan", "no.toml"], "no.toml"),
        (["--epwatch-gate", "--epwatch-measure", "--epwatch-night", "x"], "--epwatch-night"),
        (["--epwatch-measure"], "goes with --epwatch-gate"),
        (["--epwatch-strict"], "goes with --epwatch-gate"),
    ],
)
def test_nothing_to_judge_is_an_error_and_never_green(place, arguments, words):
    done = pytest_in(place, *arguments)
    assert done.returncode == 4, done.stdout
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "passed" not in done.stdout


def test_an_empty_history_is_an_error(place):
    from regress_db.history import History

    History.open(place / "history.db").close()
    done = pytest_in(place, "--epwatch-gate", "--epwatch-db", "history.db")
    assert done.returncode == 4
    assert "has no night" in done.stderr


def test_without_the_switch_the_plugin_does_nothing(place):
    done = pytest_in(place, "-q")
    assert done.returncode == 0
    assert "1 passed" in done.stdout


def test_the_plugin_loads_nothing_heavy(place):
    (place / "test_other.py").write_text(
        "import sys\n\ndef test_other():\n"
        "    assert not {'torch', 'sqlalchemy', 'submitit', 'numpy'} & set(sys.modules)\n"
    )
    assert pytest_in(place, "-q").returncode == 0


def night_of(place: Path) -> dict:
    return json.loads(epwatch("nights", "--db", "history.db", "--json", cwd=place).stdout)[0]


@pytest.mark.slow
def test_measuring_for_the_gate_is_done_once_and_judged_by_all(place):
    (place / "three.toml").write_text(PLAN.format(repeats=3))
    (place / "one.toml").write_text(PLAN.format(repeats=1))
    measure = ["--epwatch-gate", "--epwatch-measure", "-n", "2", "--epwatch-plan", "one.toml"]

    without = pytest_in(place, *measure)
    assert without.returncode == 1, without.stdout
    assert "2 failed" in without.stdout
    assert "there is no baseline 'gated'" in without.stdout
    assert not list(place.glob(".epwatch/jobs/*/night.json")), "nothing is measured that cannot be judged"

    first = epwatch("nightly", "three.toml", "--no-report", cwd=place, timeout_s=120)
    assert first.returncode == 0, first.stderr
    done = pytest_in(place, *measure)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert "test_other" not in done.stdout
    assert len(list(place.glob(".epwatch/jobs/*/night.json"))) == 2
    assert (night_of(place)["planned"], night_of(place)["ok"]) == (1, 1)
    assert Case.parse(KEY).ranks == 1

    bare = pytest_in(place, "--epwatch-gate", "--epwatch-db", "history.db", "--junit-xml", "gate.xml")
    assert bare.returncode == 0, bare.stdout
    assert KEY in (place / "gate.xml").read_text()

    # A run that gave no result is no pass, whatever the others say.
    (place / "broken.toml").write_text(
        PLAN.format(repeats=1).replace("iters = 20", "iters = 10000000\njob_deadline_s = 25")
    )
    hung = pytest_in(place, "--epwatch-gate", "--epwatch-measure", "--epwatch-plan", "broken.toml")
    assert hung.returncode == 1, hung.stdout
    assert "2 failed" in hung.stdout
    assert "hung in its only run" in hung.stdout


@pytest.mark.slow
def test_another_baseline_decides_the_tests_and_leaves_the_standing_verdict(place):
    (place / "plan.toml").write_text(PLAN.format(repeats=3))
    for _ in range(2):
        assert epwatch("nightly", "plan.toml", "--no-report", cwd=place).returncode == 0
    gate = ("--epwatch-gate", "--epwatch-db", "history.db")
    one = json.loads(epwatch("runs", "--db", "history.db", "--json", cwd=place).stdout)[-1]["run_id"]
    small = ("baseline", "set", "small", "--run", one, "--why", "a test", "--db", "history.db")
    assert epwatch(*small, cwd=place).returncode == 0
    by_other = pytest_in(place, *gate, "--epwatch-baseline", "small")
    assert by_other.returncode == 1, by_other.stdout
    assert "baseline 'small' has 1 run of it" in by_other.stdout
    by_standing = pytest_in(place, *gate)
    assert by_standing.returncode == 0, by_standing.stdout
