"""The command line: what it loads, what it says when it is used wrongly, and with which exit code it leaves."""

import csv
import fcntl
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from epwatch_command import clean_environment, epwatch, sentence

from jobs.cli import COMMANDS, LazyGroup, cli, main

HEAVY = {"torch", "sqlalchemy", "numpy", "submitit", "alembic"}
CASE = "ep_core/ll/cpu/r2n1/t8/h256/k2/e4/bf16/exact/uniform@0/phased"


def loaded(arguments: list[str], cwd: Path, **environment: str) -> set[str]:
    """The heavy packages a command leaves loaded."""
    code = (
        "import sys, json; from jobs.cli import main; main(json.loads(sys.argv[1]));"
        f"print('LOADED', *[name for name in {sorted(HEAVY)!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        cwd=cwd,
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.fixture
def history(tmp_path: Path) -> Path:
    from regress_db.history import History

    path = tmp_path / "history.db"
    History.open(path).close()
    return path


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["nightly", "--help"], []])
def test_help_and_version_load_nothing_heavy(arguments, tmp_path):
    assert loaded(arguments, tmp_path) == set()


@pytest.mark.parametrize("arguments", [["suites"], ["cases"], ["plan", "check", "no.toml"]])
def test_what_needs_no_history_loads_none(arguments, tmp_path):
    assert loaded(arguments, tmp_path) == set()


@pytest.mark.parametrize("arguments", [["trend"], ["runs"], ["baseline", "list"], ["collect"]])
def test_asking_the_history_never_loads_torch(arguments, history, tmp_path):
    found = loaded([*arguments, "--db", str(history)], tmp_path, EPWATCH_SPOOL=str(tmp_path / "spool"))
    assert "sqlalchemy" in found
    assert found.isdisjoint({"torch", "submitit"})


def test_every_command_is_listed_with_its_own_words():
    group = cli
    assert isinstance(group, LazyGroup)
    for name, entry in COMMANDS.items():
        command = group.get_command(None, name)
        assert command is not None
        assert command.name == name
        assert command.help
        assert entry.summary.endswith(".")
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.help, f"{name} {parameter.opts} has no help"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope"], "nope"),
        (["run", "--nope"], "--nope"),
        (["run", "not-a-key"], "not-a-key"),
        (["run", CASE.replace("k2", "k9")], "topk is 9"),
        (["run", CASE.replace("/ll/", "/xx/")], "xx"),
        (["run", "--suite", "nope"], "cpu-quick"),
        (["run", "--iters", "1"], "--iters"),
        (["nightly", "no.toml"], "no.toml"),
        (["nightly", "no.toml", "--report", "x", "--no-report"], "--no-report"),
        (["nightly", "no.toml", "--no-wait", "--strict"], "judging to `epwatch collect`"),
        (["nightly", "statuss", "no.toml"], "there is no plan or command 'statuss'; commands are cancel, install, run"),
        (["collect", "--baseline", "x"], "name its PLAN.toml"),
        (["collect", "--spool", "typo"], "there is no spool at "),
        (["plan", "check", "."], "."),
        (["trend", "--json", "--csv"], "exclude each other"),
        (["trend", "--since", "yesterday"], "2026-11-22"),
        (["trend"], "there is no history"),
        (["show", "abc"], "there is no history"),
        (["baseline", "set", "x"], "--why"),
        (["cases", "--suite", "nope"], "canonical-ll"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, words, tmp_path):
    done = epwatch(*arguments, cwd=tmp_path, XDG_DATA_HOME=str(tmp_path / "data"))
    assert words in sentence(done)
    assert not (tmp_path / "data").exists()


def test_a_bad_override_is_a_sentence(tmp_path):
    done = epwatch("run", CASE, cwd=tmp_path, MSCCLPP_EP_LL_TOKENS="many")
    assert "MSCCLPP_EP_LL_TOKENS" in sentence(done)


def test_the_trace_is_there_for_who_asks(tmp_path):
    done = epwatch("nightly", "no.toml", cwd=tmp_path, EPWATCH_DEBUG="1")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("epwatch: cannot read the plan")


def test_a_baseline_that_is_not_there_is_found_out_before_measuring(tmp_path):
    plan = Path(__file__).parents[2] / "examples" / "nightly-cpu.toml"
    done = epwatch("nightly", plan, "--baseline", "gone", "--db", "h.db", "--spool", "spool", cwd=tmp_path)
    assert "there is no baseline 'gone'" in sentence(done)
    assert not (tmp_path / ".epwatch").exists()


def test_a_history_that_is_none_is_a_sentence(tmp_path):
    (tmp_path / "notes.txt").write_text("not a database, but long enough to be taken for one at a glance " * 50)
    assert "notes.txt" in sentence(epwatch("trend", "--db", tmp_path / "notes.txt", cwd=tmp_path))


@pytest.mark.parametrize("form", ["--csv", "--json", ""])
def test_a_reader_that_goes_away_is_no_error(form, tmp_path):
    plan = Path(__file__).parents[2] / "examples" / "nightly-cpu.toml"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m jobs plan check {plan} {form} | head -1"],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.count("\n") == 1
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interrupt_leaves_with_130(monkeypatch, capsys):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "main", interrupted)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    assert main([]) == 130
    for number, handler in before.items():
        signal.signal(number, handler)
    assert capsys.readouterr().err == "epwatch: interrupted\n"


def test_a_plan_can_be_checked_in_three_forms(tmp_path):
    plan = Path(__file__).parents[2] / "examples" / "nightly-cpu.toml"
    document = json.loads(epwatch("plan", "check", plan, "--json", cwd=tmp_path).stdout)
    rows = list(csv.DictReader(io.StringIO(epwatch("plan", "check", plan, "--csv", cwd=tmp_path).stdout)))
    table = epwatch("plan", "check", plan, cwd=tmp_path).stdout
    assert [row["case"] for row in rows] == [run["case"] for run in document["runs"]]
    assert len(rows) == 40
    assert [job["job"] for job in document["jobs"]] == sorted({row["job"] for row in rows}, key=_by_number)
    assert all(job["job"] in table for job in document["jobs"])
    listed = epwatch("plan", "check", plan, "--runs", cwd=tmp_path).stdout
    assert all(row["case"] in listed for row in rows)
    assert list(tmp_path.iterdir()) == []


def checked(plan: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    (cwd / "plan.toml").write_text(plan)
    return epwatch("plan", "check", "plan.toml", cwd=cwd, XDG_DATA_HOME=str(cwd / "data"), **environment)


SMALL = (
    '[plan]\nname = "p"\n[cluster]\nkind = "slurm"\nname = "h100"\n[[cases]]\nbackend = "torch"\nmode = "ll"\n'
    "ranks = 2\ntokens = 4\nhidden = 64\ntopk = 2\nexperts = 4\n"
)


def test_a_check_says_what_it_costs_and_what_comes_on_top(tmp_path):
    done = checked(SMALL, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    cost = re.search(r"about ([\d.]+) node-minutes, and at most (\d+) by the jobs' limits", done.stdout)
    assert float(cost[1]) <= int(cost[2])
    assert "re-runs and new attempts come on top" in done.stdout


def test_a_backend_that_is_not_here_is_a_warning_since_the_cluster_may_have_it(tmp_path):
    done = checked(SMALL.replace('"torch"', '["torch", "elsewhere"]'), tmp_path)
    assert done.returncode == 0
    (said,) = done.stderr.splitlines()
    assert "backend 'elsewhere' is not known on this machine" in said
    assert "cluster h100" in said


def test_a_check_goes_on_without_a_server_and_not_with_what_is_no_history(tmp_path):
    def with_history(where: str) -> subprocess.CompletedProcess[str]:
        return checked(SMALL.replace('name = "p"', f'name = "p"\nhistory = "{where}"'), tmp_path)

    unreached = with_history("postgresql://ada:hush@127.0.0.1:9/x")
    assert unreached.returncode == 0
    assert "cannot be reached" in unreached.stderr
    assert "hush" not in unreached.stderr
    assert "10 runs" in unreached.stdout or "5 runs" in unreached.stdout
    assert with_history("not-yet.db").stderr == ""
    assert "is no place for a history" in sentence(with_history("mysql://db.example/x"))
    (tmp_path / "folder").mkdir()
    assert "is a folder" in sentence(with_history("folder"))
    assert not (tmp_path / "not-yet.db").exists()


@pytest.mark.parametrize("group", ["nightly", "plan", "baseline", "history", "slurm"])
def test_the_commands_of_a_group_are_listed_in_whole_sentences(group, tmp_path):
    listed = epwatch(group, "--help", cwd=tmp_path).stdout.partition("Commands:")[2].strip().splitlines()
    cut = [line for line in listed if line.endswith("...")]
    assert listed
    assert not cut


def _by_number(job: str) -> int:
    return int(job.removeprefix("repeat").partition("-")[0])


def on_terminal(arguments: list[str], columns: int, cwd: Path) -> str:
    """What a command prints on a terminal of this width."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-m", "jobs", *arguments],
        cwd=cwd,
        env=clean_environment(TERM="xterm", NO_COLOR="1"),
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:
                break
            said += piece
        assert process.wait(timeout=30) == 0
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode()).replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [200, 80, 30])
def test_a_terminal_of_any_width_shows_every_character(columns, tmp_path):
    plan = str(Path(__file__).parents[2] / "examples" / "nightly-cpu.toml")
    shown = on_terminal(["plan", "check", "--runs", plan], columns, tmp_path)
    runs = json.loads(epwatch("plan", "check", plan, "--json", cwd=tmp_path).stdout)["runs"]
    assert "…" not in shown
    assert shown.count("repeat0-r2n1") == sum(run["job"] == "repeat0-r2n1" for run in runs)
    for run in runs:
        assert run["case"] in shown
    if columns == 80:
        table = [line for line in shown.splitlines() if "cases x" not in line]
        assert [line for line in table if len(line) > 80] == []
