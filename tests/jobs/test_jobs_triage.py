"""Triage, notes, export and plots as a user types them, and the gate that follows what is acknowledged."""

import csv
import json
import os
import pty
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from epwatch_command import clean_environment, epwatch, sentence

sys.path.insert(0, str(Path(__file__).parents[1] / "regress_db"))

from nights_of_records import run_night
from synthetic_records import CASE, START, environment

from regress_db.baselines import set_baseline
from regress_db.history import History
from regress_db.triage import acknowledge, decisions, withdraw
from regress_db.verdicts import Rules, judge_night

TODAY = datetime.now(UTC).date()


def measure(folder, *combine_us):
    """A history in the folder: one judged night for each level of combine, the first of which is the baseline."""
    (folder / "spool").mkdir(exist_ok=True)
    with History.open(folder / "history.db") as history:
        for level in combine_us:
            with history.read() as connection:
                day = connection.exec_driver_sql("SELECT count(*) FROM nights").scalar()
            name = f"night{day}"
            env = environment(commit=f"{day:x}" * 40, torch="2.13.0" if day < 2 else "2.14.0")
            run_night(history, folder / "spool", name, combine_us=level, started=START + timedelta(days=day), env=env)
            if day == 0:
                set_baseline(history, "main", night=name, who="ada", why="release")
            else:
                judge_night(history, name, baseline="main", rules=Rules(floor=0.1))
    return folder


@pytest.fixture
def place(tmp_path):
    return measure(tmp_path, 200.0, 200.0, 260.0)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A history that no test changes: fifteen nights, slower from the eleventh on, and two notes."""
    folder = measure(tmp_path_factory.mktemp("seen"), *[200.0, 201.0] * 5, *[260.0] * 5)
    for note in (["new rack", "--at", "2026-10-03T02:00"], ["nsys \x1b[31mrun\x1b[0m", "--night", "night12"]):
        assert ask(folder, "note", *note, "--who", "ada")
    return folder


def ask(folder, *arguments):
    done = epwatch(*arguments, "--db", "history.db", cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(folder, *arguments):
    return json.loads(ask(folder, *arguments, "--json"))


def refused(folder, *arguments):
    return sentence(epwatch(*arguments, "--db", "history.db", cwd=folder))


def gate(folder):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "jobs.gate", "-p", "no:cacheprovider", "-rx"),
            *("--epwatch-gate", "--epwatch-db", "history.db"),
        ],
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.slow
def test_the_gate_follows_a_regression_through_its_life(place):
    code, said = gate(place)
    assert code == 1
    assert "1 failed, 1 passed" in said

    (made,) = rows(place, "ack", "mode=ll", "--why", "known, bob is on it", "--who", "ada")
    assert (made["phase"], made["effect"] > 0.25, made["until"]) == ("combine", True, None)
    code, said = gate(place)
    assert code == 0, said
    assert "1 passed, 1 xfailed" in said
    assert "acknowledged by ada, at +30." in said
    assert "known, bob is on it" in said

    measure(place, 330.0)
    code, said = gate(place)
    assert code == 1
    assert "1 failed, 1 passed" in said

    with History.open(place / "history.db") as history:
        for one in decisions(history):
            withdraw(history, one.number, who="ada", why="anew")
        acknowledge(history, [CASE.key], who="ada", why="till today", until=TODAY)
    assert gate(place)[0] == 0
    with History.open(place / "history.db") as history:
        for one in decisions(history):
            withdraw(history, one.number, who="ada", why="anew")
        days_ago = datetime.now(UTC) - timedelta(days=3)
        acknowledge(
            history, [CASE.key], who="ada", why="too short", until=days_ago.date() + timedelta(days=1), when=days_ago
        )
    assert gate(place)[0] == 1
    (open_,) = rows(place, "triage")
    assert open_["state"] == "open"
    assert open_["remark"].startswith("the acknowledgement by ada ended on ")


def test_triage_lists_what_has_become_of_each(place):
    table = ask(place, "triage")
    assert "open" in table
    assert "+30." in table
    ask(place, "ack", "mode=ll", "--why", "known", "--until", str(TODAY))
    (one,) = rows(place, "triage", "ranks=2")
    assert (one["state"], one["until"], one["why"], one["number"]) == ("acknowledged", str(TODAY), "known", 1)
    assert (one["since"], one["night"]) == ("night2", "night2")
    assert rows(place, "triage", "--state", "open") == []
    assert rows(place, "triage", "ranks>2") == []
    assert "nothing that matches has regressed" in epwatch("triage", "ranks>2", "--db", "history.db", cwd=place).stderr
    assert ask(place, "triage", "--csv").startswith("state,case,platform,phase,effect,")
    ask(place, "ack", "--withdraw", "1", "--why", "it matters")
    assert rows(place, "triage")[0]["state"] == "open"
    listed = rows(place, "ack", "--list")
    assert [(row["number"], row["withdrawn_reason"]) for row in listed] == [(1, "it matters")]
    assert rows(place, "accept", "--list") == []


def test_what_cannot_be_acknowledged_is_one_sentence(place):
    assert "--why is missing" in refused(place, "ack", "mode=ll")
    assert "a CASE or FILTER is missing" in refused(place, "ack", "--why", "known")
    assert "no case with a run matches mode=ht" in refused(place, "ack", "mode=ht", "--why", "known")
    assert "has an open regression" in refused(place, "ack", "mode=ll", "--phase", "dispatch", "--why", "known")
    assert "is past: name today" in refused(place, "ack", "mode=ll", "--until", "2020-01-01", "--why", "known")
    assert "'soon' is no day: write 2026-12-31" in refused(place, "ack", "mode=ll", "--until", "soon", "--why", "known")
    assert "no decision 7 stands" in refused(place, "ack", "--withdraw", "7", "--why", "known")
    assert "there is no field 'moode'" in refused(place, "ack", "moode=ll", "--why", "known")
    assert rows(place, "ack", "--list") == []


def test_notes_stand_beside_what_they_are_about(place):
    (made,) = rows(place, "note", "driver 580", "--night", "night1", "--who", "ada")
    assert (made["number"], made["night"], made["at"]) == (1, "night1", "2026-10-02T02:00:00Z")
    ask(place, "note", "seen with nsys", "--run", "latest", "--phase", "combine")
    ask(place, "note", "both phases", "--case", "*r2n1*", "--at", "2026-10-01")
    assert {row["night"]: row["notes"] for row in rows(place, "nights")}["night1"] == ["driver 580"]
    assert "driver 580" in ask(place, "nights")
    shown = ask(place, "show", "latest")
    assert "seen with nsys (" in shown
    assert "driver 580" not in shown
    assert [row["text"] for row in rows(place, "note", "--list", "--night", "night1")] == ["driver 580"]
    assert rows(place, "note", "--list", "--case", CASE.key)[-1]["case"] == CASE.key
    ask(place, "note", "--withdraw", "1", "--why", "it was 570")
    assert "driver 580" not in ask(place, "nights")
    assert "it was 570" in json.dumps(rows(place, "note", "--list"))


def test_what_cannot_be_noted_is_one_sentence(place):
    assert "TEXT is missing" in refused(place, "note")
    assert "--why goes with --withdraw" in refused(place, "note", "x", "--why", "y")
    assert "no case with a run matches" in refused(place, "note", "x", "--case", "nowhere")
    assert "has no night 'never'" in refused(place, "note", "x", "--night", "never")
    assert "'later' is no time" in refused(place, "note", "x", "--at", "later")
    assert "no note 5 stands" in refused(place, "note", "--withdraw", "5", "--why", "y")
    assert "not both" in refused(place, "note", "x", "--withdraw", "5")
    assert rows(place, "note", "--list") == []


def test_values_are_exported_once(seen, tmp_path):
    file = tmp_path / "values.csv"
    chosen = ("mode=ll", "--metric", "p99_us", "--phase", "combine", "--since", "2026-10-14")
    assert ask(seen, "export", file, *chosen) == f"10 values of 10 runs are in {file}\n"
    with file.open() as opened:
        assert {row["night"] for row in csv.DictReader(opened)} == {"night13", "night14"}
    assert "is there already and stays as it is" in refused(seen, "export", file)
    assert "is to end in .csv or .parquet" in refused(seen, "export", tmp_path / "values.json")


# Drawn


def plotted(folder, *arguments, width=100):
    done = epwatch(
        *("trend", "--plot", *arguments, "--db", "history.db"),
        cwd=folder,
        COLUMNS=str(width),
        PYTHONIOENCODING="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("width", [40, 60, 100, 200])
def test_a_plot_has_the_page_s_marks_and_fits(seen, width):
    said = plotted(seen, "--phase", "combine", width=width)
    drawing = [line for line in said.splitlines() if re.match(r" *[\d,.]+ \|", line)]
    assert len(drawing) > 10
    assert max(len(line) for line in drawing) <= max(width, 44)
    canvas = "\n".join(drawing)
    for sign in ("▲", "•", "c1", "n1", "n2", "e1"):
        assert sign in canvas
    assert re.search(r"^band  .*: baseline main, set by ada, 5 runs$", said, re.MULTILINE)
    assert "▲ regressed" in said
    assert re.search(r"^c1 +2026-10-11  Step on .*night night10: the run value is \+(29|30)\.\d %", said, re.MULTILINE)
    assert re.search(r"^e1 +2026-10-03  versions.torch: 2.13.0 to 2.14.0$", said, re.MULTILINE)
    assert re.search(r"^n1 +2026-10-03  new rack \(ada\)$", said, re.MULTILINE)
    assert r"nsys \x1b[31mrun\x1b[0m (ada)" in said
    assert "\x1b" not in said


def test_a_plot_is_of_what_was_asked_for(seen):
    both = plotted(seen, "mode=ll", "dtype=*", "--by", "night")
    assert [line.split(" of ")[0] for line in both.splitlines() if " of ep_core/" in line] == ["dispatch", "combine"]
    later = plotted(seen, "--phase", "combine", "--since", "2026-10-12", "--metric", "bandwidth_gbs", "--by", "commit")
    assert "(GB/s)" in later
    assert "•" not in later
    assert "2026-10-03" not in later


def test_what_cannot_be_drawn_is_one_sentence(seen):
    assert "choose one" in refused(seen, "trend", "--plot", "--json")
    assert "0 series match" in refused(seen, "trend", "--plot", "mode=ht")
    assert "--plot draws runs, or medians by night or commit" in refused(seen, "trend", "--plot", "--by", "node")
    assert "--plot draws whole series" in refused(seen, "trend", "--plot", "node=gpu01")
    assert "no metric 'warmth'" in refused(seen, "trend", "--plot", "--metric", "warmth")
    done = epwatch("trend", "--plot", "--db", "history.db", cwd=seen, PYTHONIOENCODING="ascii")
    assert "needs a terminal in UTF-8" in sentence(done)


def on_a_terminal(folder, *arguments, **variables):
    """What the command writes to a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "jobs", *arguments, "--db", "history.db"],
        cwd=folder,
        env=clean_environment(COLUMNS="100", LINES="50", TERM="xterm", PYTHONIOENCODING="utf-8") | variables,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.STDOUT,
    ) as process:
        os.close(theirs)
        said = b""
        try:
            while piece := os.read(ours, 65536):
                said += piece
        except OSError:
            pass
        os.close(ours)
        assert process.wait(timeout=60) == 0, said.decode()
    return said.decode()


def test_a_terminal_gets_the_plot_in_colours_and_a_pipe_the_table(seen):
    drawn = on_a_terminal(seen, "trend", "--phase", "combine")
    assert "c1" in drawn
    assert "\x1b[" in drawn
    assert "\x1b[" not in on_a_terminal(seen, "trend", "--phase", "combine", NO_COLOR="1")
    for table in (
        on_a_terminal(seen, "trend", "--no-plot", NO_COLOR="1"),
        on_a_terminal(seen, "trend", "--limit", "2", NO_COLOR="1"),
        on_a_terminal(seen, "trend", "--by", "week", NO_COLOR="1"),
        on_a_terminal(seen, "trend", NO_COLOR="1", PYTHONIOENCODING="ascii:backslashreplace"),
        ask(seen, "trend"),
    ):
        assert "latency_us" in table
        assert "band" not in table
    assert "no run matches" in on_a_terminal(seen, "trend", "mode=ht", NO_COLOR="1")
