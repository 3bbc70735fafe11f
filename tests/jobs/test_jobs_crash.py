"""A night on this machine when something is killed in the middle of it: every planned run is accounted for, once."""

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
from receivers import silence, web_hook

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
tries = {tries}
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


def long(*values):
    """One of a test's parameters that is tried among the long ones."""
    return pytest.param(*values, marks=pytest.mark.long)


FOREVER = 10_000_000


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "plan.toml").write_text(PLAN.format(iters=FOREVER, tries=1))
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
    return "".join(path.read_text() for path in place.glob(".epwatch/jobs/*/*/attempt-*/logs/progress-rank0.jsonl"))


def job_folder(place: Path) -> Path:
    (spec,) = place.glob(".epwatch/jobs/*/*/attempt-*/job.json")
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
        until(lambda: len(list(place.glob(".epwatch/jobs/*/*/attempt-1/job.json"))) == 2, "the second job")
        second = max(place.glob(".epwatch/jobs/*/*/attempt-1/job.json")).parent
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


def killed_in_its_first_job(place: Path) -> None:
    """A night whose command was killed -9 while its first job ran."""
    with subprocess.Popen(
        [sys.executable, "-m", "jobs", "nightly", "plan.toml", *PLACES],
        cwd=place,
        env=clean_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        until(lambda: (place / ".epwatch/jobs/.measuring.lock").exists(), "the first job")
        process.kill()


def nights(place: Path) -> list[dict[str, object]]:
    return json.loads(epwatch("nights", "--db", "history.db", "--json", cwd=place).stdout)


def test_a_night_whose_command_was_killed_is_gone_on_with(tmp_path):
    (tmp_path / "plan.toml").write_text(PLAN.format(iters=20, tries=2))
    killed_in_its_first_job(tmp_path)
    left = json.loads(epwatch("nightly", "status", "plan.toml", "--spool", "spool", "--json", cwd=tmp_path).stdout)
    assert (left["state"], left["total"]) == ("unfinished", 2)
    after = epwatch("nightly", "plan.toml", *PLACES, cwd=tmp_path, timeout_s=120)
    assert after.returncode == 0, after.stderr
    assert f"going on with night {left['night']}" in after.stderr
    (night,) = nights(tmp_path)
    assert (night["ok"], night["missing"], night["finished_at"] is None) == (2, 0, False)
    assert not list((tmp_path / "spool").glob("quarantine/*"))
    done = epwatch("nightly", "status", "plan.toml", "--spool", "spool", cwd=tmp_path).stdout
    assert "is finished: 2 of 2 runs done" in done


@pytest.mark.parametrize(
    ("arguments", "plan_has", "why"),
    [
        long(["--new"], "", "a new night was asked for"),
        ([], "# another\n", "the plan has changed since"),
        long([], "resume_within_h = 0\n", "resume_within_h is 0"),
    ],
)
def test_a_night_that_makes_no_sense_any_more_is_given_up_and_a_new_one_begun(tmp_path, arguments, plan_has, why):
    plan = PLAN.format(iters=20, tries=2)
    if "resume" in plan_has:
        plan = plan.replace('name = "crash"\n', f'name = "crash"\n{plan_has}')
    (tmp_path / "plan.toml").write_text(plan)
    killed_in_its_first_job(tmp_path)
    (tmp_path / "plan.toml").write_text(plan + (plan_has if "#" in plan_has else ""))
    after = epwatch("nightly", "plan.toml", *PLACES, *arguments, cwd=tmp_path, timeout_s=120)
    assert after.returncode == 0, after.stderr
    assert f"is given up: {'' if 'resume' in plan_has else why}" in after.stderr
    assert why in after.stderr
    second, first = nights(tmp_path)
    assert (second["ok"], second["missing"]) == (2, 0)
    assert first["missing"] >= 1
    assert first["finished_at"] is not None


def test_a_night_can_be_cancelled_for_good(tmp_path):
    (tmp_path / "plan.toml").write_text(PLAN.format(iters=FOREVER, tries=2))
    killed_in_its_first_job(tmp_path)
    said = epwatch("nightly", "cancel", "plan.toml", "--db", "history.db", "--spool", "spool", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert "is cancelled" in said.stdout
    until(lambda: not ranks_alive(tmp_path), "the ranks' end", limit_s=5)
    (night,) = nights(tmp_path)
    assert (night["missing"], night["finished_at"] is None) == (2, False)
    again = epwatch("nightly", "cancel", "plan.toml", "--db", "history.db", "--spool", "spool", cwd=tmp_path)
    assert "has no unfinished night" in sentence(again)


def command(place: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    variables |= {"EPWATCH_DB": "history.db", "EPWATCH_SPOOL": "spool"}
    return epwatch(*arguments, cwd=place, timeout_s=120, **variables)


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def measured_and_not_judged(place: Path) -> None:
    """A night whose command was killed -9 when all was measured, while it waited for a file that judging needs."""
    plan = PLAN.format(iters=20, tries=2).replace("[measure]", '[verdict]\nwaivers = "waivers.toml"\n[measure]')
    (place / "plan.toml").write_text(plan)
    waivers = place / "waivers.toml"
    os.mkfifo(waivers)
    with subprocess.Popen(
        [sys.executable, "-m", "jobs", "nightly", "plan.toml", *PLACES],
        cwd=place,
        env=clean_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            waivers.write_text("")
            until(lambda: len(list(place.glob("spool/ingested/*.json"))) == 2, "the records")
            # What is to be confirmed is asked before what is to be said.
            waivers.write_text("")
            until(lambda: nights(place)[0]["finished_at"], "the end of measuring")
        finally:
            process.kill()
    waivers.unlink()
    waivers.write_text("")
    (night,) = nights(place)
    assert (night["ok"], night["judged_at"]) == (2, None)


@pytest.mark.parametrize("arguments", [long(("nightly", "plan.toml", "--no-report")), ("collect", "plan.toml")])
def test_a_night_whose_command_was_killed_before_judging_is_judged_by_the_next(tmp_path, arguments):
    measured_and_not_judged(tmp_path)
    after = command(tmp_path, *arguments)
    assert after.returncode == 0, after.stderr
    assert "going on with night" in after.stderr
    (night,) = nights(tmp_path)
    assert str(night["night"]) in after.stdout
    assert night["judged_at"] is not None
    assert "has no unfinished night" in command(tmp_path, "collect", "plan.toml").stderr


@pytest.mark.parametrize("arguments", [(), long(("--new",))])
def test_a_night_measured_in_full_is_judged_however_old_it_is_and_a_new_one_begun(tmp_path, arguments):
    measured_and_not_judged(tmp_path)
    (manifest,) = tmp_path.glob(".epwatch/jobs/*/night.json")
    rewrite(manifest, started_at="2026-01-01T00:00:00+00:00")
    after = command(tmp_path, "nightly", "plan.toml", *arguments)
    assert after.returncode == 0, after.stderr
    assert "is over: " in after.stderr
    assert "all of it was measured" in after.stderr
    assert "given up" not in after.stderr
    second, first = nights(tmp_path)
    assert (first["missing"], second["missing"]) == (0, 0)
    assert None not in (first["judged_at"], second["judged_at"])
    assert f"night {first['night']} of plan crash against" in after.stderr
    assert str(first["night"]) not in after.stdout
    assert sorted(path.stem for path in tmp_path.glob(".epwatch/reports/*")) == [first["night"], second["night"]]


def test_collect_judges_a_night_measured_in_full_whose_plan_has_changed(tmp_path):
    measured_and_not_judged(tmp_path)
    with (tmp_path / "plan.toml").open("a") as plan:
        plan.write("# changed\n")
    after = command(tmp_path, "collect", "plan.toml", "--json", "--strict", "--report", "mine.html")
    assert after.returncode == 4, after.stderr
    assert (tmp_path / "mine.html").exists()
    assert "is over: the plan has changed since; all of it was measured" in after.stderr
    assert {one["verdict"] for one in json.loads(after.stdout)["series"]} == {"insufficient"}
    assert "has no unfinished night" in command(tmp_path, "collect", "plan.toml").stderr


def test_a_spool_that_cannot_be_made_is_found_out_before_a_night_is(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "plan.toml").write_text(PLAN.format(iters=20, tries=2))
    done = epwatch("nightly", "plan.toml", "--db", "h.db", "--spool", "file/spool", cwd=tmp_path)
    assert "cannot make the spool" in sentence(done)
    assert "name another with --spool" in done.stderr
    assert not list(tmp_path.glob("**/night.json"))


def test_collect_says_what_is_missing_of_a_night_that_is_given_up(tmp_path):
    plan = PLAN.format(iters=20, tries=2).replace('name = "crash"\n', 'name = "crash"\nresume_within_h = 0\n')
    (tmp_path / "plan.toml").write_text(plan)
    killed_in_its_first_job(tmp_path)
    after = command(tmp_path, "collect", "plan.toml")
    assert after.returncode == 3, after.stderr
    assert "is given up: it began 0.0 hours ago, and resume_within_h is 0; what it measured is kept" in after.stderr
    assert after.stdout.count("missing") >= 2
    (night,) = nights(tmp_path)
    assert night["missing"] >= 1
    assert night["judged_at"] is not None
    assert command(tmp_path, "collect", "plan.toml").returncode == 0


@pytest.mark.slow
def test_a_night_whose_command_was_killed_while_it_told_is_told_by_the_next_with_the_same_verdict(tmp_path):
    plan = PLAN.format(iters=20, tries=2)
    plan += '[tell]\nwhen = "always"\n[baseline]\npolicy = "first"\n'
    (tmp_path / "plan.toml").write_text(plan)
    with silence() as mute:
        variables = clean_environment(EPWATCH_TELL=f"json://{mute}/")
        with subprocess.Popen(
            [sys.executable, "-m", "jobs", "nightly", "plan.toml", *PLACES],
            cwd=tmp_path,
            env=variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                until(lambda: "crash" in command(tmp_path, "baseline", "list").stdout, "the baseline")
            finally:
                process.kill()
    with web_hook() as (where, received):
        after = command(tmp_path, "nightly", "plan.toml", "--no-report", EPWATCH_TELL=f"json://{where}/")
        again = command(tmp_path, "collect", "plan.toml", EPWATCH_TELL=f"json://{where}/")
    assert after.returncode == 0, after.stderr
    assert "against no baseline" in after.stdout
    assert "It is now baseline crash." in after.stdout
    assert len(nights(tmp_path)) == len(received) == 1
    assert "has no unfinished night" in again.stderr


def of_another_version(place: Path) -> Path:
    """The plan of the night that was left, as an epwatch wrote it that called its fields otherwise."""
    (own,) = place.glob(".epwatch/jobs/*/plan.toml")
    own.write_text(own.read_text().replace("iters =", "iterations ="))
    return own


@pytest.mark.slow
def test_a_night_with_a_plan_of_another_version_is_cancelled_on_the_clusters_of_the_present_one(tmp_path):
    (tmp_path / "plan.toml").write_text(PLAN.format(iters=FOREVER, tries=2))
    killed_in_its_first_job(tmp_path)
    own = of_another_version(tmp_path)
    words = f"plan {own}, line 8: measure.iterations: there is no such field"
    seen = command(tmp_path, "nightly", "status", "plan.toml")
    assert seen.returncode == 0, seen.stderr
    assert words in seen.stderr
    said = command(tmp_path, "nightly", "cancel", "plan.toml")
    assert said.returncode == 0, said.stderr
    assert words in said.stderr
    assert "on the clusters of plan.toml instead" in said.stderr
    assert "is cancelled" in said.stdout
    until(lambda: not ranks_alive(tmp_path), "the ranks' end", limit_s=5)


@pytest.mark.parametrize(
    ("arguments", "why"), [([], "the plan has changed since"), long(["--new"], "a new night was asked for")]
)
def test_a_night_with_a_plan_of_another_version_is_given_up_for_a_new_one(tmp_path, arguments, why):
    (tmp_path / "plan.toml").write_text(PLAN.format(iters=20, tries=2))
    killed_in_its_first_job(tmp_path)
    of_another_version(tmp_path)
    after = command(tmp_path, "nightly", "plan.toml", "--no-report", *arguments)
    assert after.returncode == 0, after.stderr
    assert f"is given up: {why}" in after.stderr
    assert [night["missing"] > 0 for night in nights(tmp_path)] == [False, True]


def test_a_job_on_a_cluster_that_the_plan_has_no_longer_is_named(tmp_path):
    (tmp_path / "plan.toml").write_text(PLAN.format(iters=FOREVER, tries=2))
    killed_in_its_first_job(tmp_path)
    of_another_version(tmp_path)
    until(lambda: list(tmp_path.glob(".epwatch/jobs/*/*/attempt-1/submitted.json")), "the job's number")
    renamed = (tmp_path / "plan.toml").read_text().replace('kind = "local"', 'kind = "local"\nname = "other"')
    (tmp_path / "plan.toml").write_text(renamed)
    said = command(tmp_path, "nightly", "cancel", "plan.toml")
    for pid in marked(str(job_folder(tmp_path))):
        os.kill(pid, signal.SIGKILL)
    assert said.returncode == 0, said.stderr
    assert "could not be cancelled: it is on cluster local, which plan.toml has no longer" in said.stderr
