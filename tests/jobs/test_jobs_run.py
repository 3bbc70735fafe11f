"""`epwatch run`: real ranks here and now, the environment's overrides, and what is kept."""

import csv
import io
import json
from pathlib import Path

from epwatch_command import epwatch

KEY = "torch/ll/cpu/r1n1/t4/h64/k2/e4/bf16/exact/uniform@0/phased"
PLACES = ["--db", "history.db", "--spool", "spool"]
QUICK = ["--iters", "5", "--warmup", "1"]


def test_what_was_measured_is_shown_and_kept(tmp_path):
    done = epwatch("run", KEY, *QUICK, "--repeats", "2", "--json", *PLACES, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [(row["repeat"], row["phase"], row["outcome"]) for row in rows] == [
        (0, "dispatch", "ok"),
        (0, "combine", "ok"),
        (1, "dispatch", "ok"),
        (1, "combine", "ok"),
    ]
    assert all(0 < row["latency_min_us"] <= row["latency_us"] <= row["latency_max_us"] for row in rows)
    kept = list(csv.DictReader(io.StringIO(ask(tmp_path, "trend", "torch/ll", "--phase", "combine", "--since", "1h"))))
    assert [float(row["value"]) for row in kept] == [row["latency_us"] for row in rows if row["phase"] == "combine"]
    assert ask(tmp_path, "trend", "ranks=2").count("\n") == 1
    assert list((tmp_path / "spool").glob("*.json")) == []


def ask(place: Path, *arguments: str) -> str:
    """A command's CSV, from the history in the folder."""
    done = epwatch(*arguments, "--csv", "--db", "history.db", cwd=place)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_override_makes_another_case_and_is_told(tmp_path):
    done = epwatch("run", KEY, *QUICK, *PLACES, cwd=tmp_path, MSCCLPP_EP_LL_TOKENS="6")
    assert done.returncode == 0, done.stderr
    assert "MSCCLPP_EP_LL_TOKENS=6" in done.stderr
    assert KEY.replace("/t4/", "/t6/") in done.stdout
    assert KEY not in done.stdout


def test_sizes_that_cannot_run_are_a_failed_case_with_the_reason(tmp_path):
    done = epwatch("run", KEY, *QUICK, *PLACES, cwd=tmp_path, MSCCLPP_EP_LL_TOPK="9")
    assert done.returncode == 3
    assert "topk is 9 but there are only 4 experts" in done.stderr
    assert "failed" in ask(tmp_path, "runs", "outcome=failed")


def test_a_backend_that_is_not_there_is_a_failed_case_with_the_reason(tmp_path):
    done = epwatch("run", KEY.replace("torch", "nonesuch"), *QUICK, *PLACES, cwd=tmp_path)
    assert done.returncode == 3
    assert "nonesuch" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_is_kept_where_that_is_asked(tmp_path):
    done = epwatch("run", KEY, *QUICK, "--no-record", cwd=tmp_path, XDG_DATA_HOME=str(tmp_path / "data"))
    assert done.returncode == 0, done.stderr
    assert "combine" in done.stdout
    assert not (tmp_path / "data").exists()


def test_what_cannot_be_read_goes_to_quarantine_with_exit_code_3(tmp_path):
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "broken.json").write_text("{")
    done = epwatch("collect", *PLACES, "--json", cwd=tmp_path)
    assert done.returncode == 3
    (row,) = json.loads(done.stdout)
    assert (row["record"], row["outcome"]) == ("broken.json", "quarantine")
    again = epwatch("collect", *PLACES, cwd=tmp_path)
    assert (again.returncode, again.stdout) == (0, "")
    assert "no records lie in" in again.stderr
