"""The drill, from the first night to the gate: a fault made to order is found, named, and nothing else is blamed."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from epwatch_command import clean_environment, epwatch

pytestmark = pytest.mark.slow

PLAN = """\
[plan]
name = "drill"
[cluster]
kind = "local"
[measure]
repeats = 4
warmup = 2
iters = 10
deadline_s = 30.0
job_deadline_s = 90.0
seed = 7
[baseline]
policy = "first"
[verdict]
floor = 10.0
confirmations = 1
[[cases]]
backend = ["ep_core", "torch"]
mode = "ll"
ranks = 2
tokens = 8
hidden = 256
topk = 2
experts = 4
"""
EP_CORE = "ep_core/ll/cpu/r2n1/t8/h256/k2/e4/bf16/exact/uniform@0/phased"
PLACES = ["--db", "history.db", "--spool", "spool"]
DELAY_US = "100000"
"""Hundreds of times what combine takes: whatever else the machine does meanwhile, every run shows it."""


TRIES = 3
"""A machine that is so busy that its runs differ a hundredfold can decide nothing, and says so: then try again."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two nights have been: one that became the baseline, one with the fault."""
    for _ in range(TRIES):
        folder = tmp_path_factory.mktemp("drill")
        (folder / "plan.toml").write_text(PLAN)
        first = epwatch("nightly", "plan.toml", *PLACES, cwd=folder, timeout_s=170)
        (folder / "first.txt").write_text(first.stdout)
        assert first.returncode == 0, first.stderr
        second = epwatch(
            "nightly", "plan.toml", *PLACES, "--json", cwd=folder, timeout_s=170, EPWATCH_INJECT_DELAY_US=DELAY_US
        )
        assert second.returncode in (0, 1), second.stdout + second.stderr
        if second.returncode == 1:
            break
        undecided = {one["verdict"] for one in json.loads(second.stdout)["series"] if one["case"] == EP_CORE}
        assert "inconclusive" in undecided, second.stdout
    assert second.returncode == 1, second.stdout + second.stderr
    (folder / "second.json").write_text(second.stdout)
    return folder


@pytest.fixture(scope="module")
def night(place: Path) -> dict:
    return json.loads((place / "second.json").read_text())


def gate(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The gate as from an installed wheel: in a folder without a conftest."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "jobs.gate", "-p", "no:cacheprovider", "-rA"),
            *("--epwatch-gate", "--epwatch-db", "history.db", *arguments),
        ],
        cwd=place,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.timeout(1100)
def test_the_first_clean_night_becomes_the_baseline(place):
    assert "It is now baseline drill." in (place / "first.txt").read_text()
    (line,) = json.loads(epwatch("baseline", "list", "--db", "history.db", "--json", cwd=place).stdout)
    assert (line["name"], line["runs"], line["series"]) == ("drill", 8, 2)
    assert line["reason"] == "first clean night of plan drill"


def test_combine_of_ep_core_and_nothing_else_regressed(night):
    regressed = [(one["case"], one["phase"]) for one in night["series"] if one["verdict"] == "regressed"]
    assert regressed == [(EP_CORE, "combine")]
    worst = night["series"][0]
    assert (worst["case"], worst["phase"]) == (EP_CORE, "combine")
    assert worst["latency_us"] >= float(DELAY_US)
    assert (worst["new_runs"], worst["confirmations"], worst["baseline_runs"]) == (6, 2, 4)
    assert "2 of them re-runs" in worst["sentence"]
    assert night["exit_code"] == 1
    assert night["baseline"] == "drill"
    assert {one["phase"] for one in night["series"]} == {"dispatch", "combine"}
    assert len(night["series"]) == 4


def test_the_injected_fault_is_named_as_what_changed_and_stands_for_one_finding(night):
    (finding,) = night["findings"]
    assert finding["series"] == 1
    assert night["series"][0]["finding"] == finding["number"]
    assert finding["effect"] == pytest.approx(night["series"][0]["effect"])


def test_the_report_says_so_and_needs_no_network(place, night):
    text = (place / night["report"]).read_text()
    assert EP_CORE in text
    assert "regressed" in text
    assert 'src="http' not in text
    assert 'href="http' not in text


def test_the_runs_say_that_a_fault_was_injected(place):
    rows = list(
        csv.DictReader(io.StringIO(epwatch("runs", "ep_core", "--csv", "--db", "history.db", cwd=place).stdout))
    )
    assert len(rows) == 10
    shown = epwatch("show", rows[0]["run_id"][:10], "--db", "history.db", cwd=place).stdout
    assert "EPWATCH_INJECT_DELAY_US" in shown
    older = epwatch("compare", rows[-1]["run_id"], rows[0]["run_id"], "--db", "history.db", cwd=place).stdout
    assert "variables.EPWATCH_INJECT_DELAY_US" in older


def test_the_gate_fails_the_same_series_in_two_workers(place, night):
    done = gate(place, "-n", "2")
    assert done.returncode == 1, done.stdout + done.stderr
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert [line.partition("epwatch::")[2].split(" - ")[0] for line in failed] == [f"{EP_CORE}::combine"]
    assert night["series"][0]["sentence"] in done.stdout
    assert "Traceback" not in done.stdout
    assert "3 passed" in done.stdout


def test_the_gate_can_be_asked_for_one_series(place):
    done = gate(place, "-k", "ep_core and dispatch", "--epwatch-plan", "plan.toml")
    assert done.returncode == 0, done.stdout
    assert "1 passed, 3 deselected" in done.stdout


def test_the_night_that_is_the_baseline_cannot_be_judged_by_it(place):
    nights = json.loads(epwatch("nights", "--db", "history.db", "--json", cwd=place).stdout)
    done = gate(place, "--epwatch-night", nights[-1]["night"], "--epwatch-baseline", "drill")
    assert done.returncode == 4
    assert "another night has to come first" in done.stderr


def test_retiring_the_baseline_leaves_the_gate_without_one(place):
    done = gate(place, "--epwatch-baseline", "other")
    assert done.returncode == 4
    assert "there is no baseline 'other'; there are drill" in done.stderr
