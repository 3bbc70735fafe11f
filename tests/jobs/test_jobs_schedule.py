"""A plan that runs every night by itself: what each scheduler is told, and that it comes to the same command."""

import os
import re
import shutil
import stat
import subprocess
import sys
import time
from datetime import datetime, timedelta
from datetime import time as time_of
from pathlib import Path

import pytest
from epwatch_command import clean_environment, epwatch, sentence
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.commands.schedule import local_zone
from jobs.schedule import (
    Schedule,
    ScheduleError,
    crontab_lines,
    nightly_command,
    scrontab_lines,
    shell_line,
    systemd_units,
    time_of_day,
    with_block,
    without_block,
)

NASTY = """ %$\\'"`;&|<>()*?!#~=^{}[]:@+,éA"""
NAMES = st.text(NASTY, min_size=1, max_size=12).map(lambda text: f"d{text}d")
TABLES = st.lists(st.text("#SCRON =0*/a'%\\$\r\t\x0c\u2028é", max_size=12), max_size=8).map("\n".join)
BLOCK = ["# epwatch: plan nightly begin", "0 2 * * * true", "# epwatch: plan nightly end"]
PLAN = """\
[plan]
name = "nightly"
[cluster]
kind = "local"
[[cases]]
backend = "ep_core"
mode = "ll"
ranks = 2
tokens = 32
hidden = 256
topk = 4
experts = 8
"""


def schedule_of(folder, command=("python", "-m", "jobs"), at=time_of(2, 5)):
    return Schedule("nightly", at, folder, tuple(command))


def by_vixie_cron(line):
    """What Vixie's cron hands to /bin/sh: a backslash hides a % or a backslash, a % ends the command."""
    return re.sub(r"\\([%\\])|%.*", lambda found: found[1] or "", line)


def by_cronie(line):
    """What cronie hands to /bin/sh: a backslash hides any character and is removed before a % alone."""
    return re.sub(r"\\(.)|%.*", lambda found: found[1] if found[1] == "%" else found[0] if found[1] else "", line)


def by_scrontab(line):
    """What Slurm makes of a line in a table that also sets variables: it puts their values in, quotes or not."""
    return line.replace("$A", "oops").replace("$d", "oops")


def by_systemd(argument):
    """What systemd makes of a quoted argument, by its manual: escapes, then specifiers, then variables."""
    text = re.sub(r'\\([\\"])', lambda found: found[1], argument)
    assert not re.search(r"(?<!%)(%%)*%(?!%)", text)
    assert not re.search(r"(?<!\$)(\$\$)*\$(?!\$)", text)
    return text.replace("%%", "%").replace("$$", "$")


def entry(lines):
    """The command of the one entry of a table."""
    (line,) = [line for line in lines if not line.startswith("#")]
    assert line.startswith("5 2 * * * ")
    return line.removeprefix("5 2 * * * ")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAMES, NAMES, NAMES)
def test_whoever_runs_it_the_same_command_runs_in_the_same_folder(tmp_path, folder, program, argument):
    place = tmp_path / folder.replace("/", "")
    place.mkdir(exist_ok=True)
    script = place / program
    script.write_text('#!/bin/sh\nprintf \'%s\\n\' "$PWD" "$0" "$@"\n')
    script.chmod(0o755)
    schedule = schedule_of(place, (str(script), "nightly", argument))
    unit = systemd_units(schedule)["epwatch-nightly.service"]
    (argument_of_unit,) = re.findall(r'^ExecStart=/bin/sh -c "(.*)"$', unit, re.MULTILINE)
    lines = {
        shell_line(schedule),
        by_vixie_cron(entry(crontab_lines(schedule))),
        by_cronie(entry(crontab_lines(schedule))),
        by_scrontab(entry(scrontab_lines(schedule, partition=None, time_limit_min=None))),
        by_systemd(argument_of_unit),
    }
    assert lines == {shell_line(schedule)}
    schedule.log.unlink(missing_ok=True)
    subprocess.run(["/bin/sh", "-c", shell_line(schedule)], check=True, timeout=30, cwd="/")
    assert schedule.log.read_text().splitlines() == [str(place), str(script), "nightly", argument]


@given(TABLES, TABLES)
def test_a_table_keeps_every_line_that_is_not_the_plans(before, after):
    table = before + "\n" + after
    once = with_block(table, "nightly", BLOCK)
    ends = table if table.endswith("\n") else table + "\n"
    assert once == ends + "".join(f"{line}\n" for line in BLOCK)
    assert without_block(once, "nightly") == ends
    assert without_block(table, "nightly") == table
    assert with_block(once, "nightly", BLOCK) == once
    between = once + "# after\nB=c"
    other = [BLOCK[0], "0 3 * * * false", BLOCK[2]]
    assert with_block(between, "nightly", other) == between.replace("0 2 * * * true", "0 3 * * * false")
    assert without_block(between, "nightly") == ends + "# after\nB=c"


def test_plans_have_blocks_of_their_own():
    both = with_block(
        with_block("", "nightly", BLOCK), "night", ["# epwatch: plan night begin", "# epwatch: plan night end"]
    )
    assert without_block(both, "nightly") == "# epwatch: plan night begin\n# epwatch: plan night end\n"


@pytest.mark.parametrize(
    "lines", [BLOCK[:2], BLOCK[1:], BLOCK[::-1], BLOCK * 2, [BLOCK[0], *BLOCK], [*BLOCK, BLOCK[2]]]
)
def test_broken_marks_are_refused_with_their_lines(lines):
    table = "# mine\n" + "\n".join(lines)
    for change in (lambda: with_block(table, "nightly", BLOCK), lambda: without_block(table, "nightly")):
        with pytest.raises(ScheduleError, match=r"plan nightly .* broken \(line [\d, ]+\)"):
            change()


def test_options_of_the_scrontab_stand_before_the_entry():
    lines = scrontab_lines(schedule_of(Path("/x")), partition="gpu,cpu", time_limit_min=90)
    assert lines[:1] + lines[-1:] == BLOCK[::2]
    options = [line.removeprefix("#SCRON --") for line in lines if line.startswith("#SCRON")]
    assert options == [
        *("job-name=epwatch-nightly", "output=epwatch-nightly.out", "open-mode=append"),
        *("partition=gpu,cpu", "time=90"),
    ]
    for bad in ("a b", "", "--wrap", "a\nb"):
        if bad != "--wrap":
            with pytest.raises(ScheduleError, match="partition"):
                scrontab_lines(schedule_of(Path("/x")), partition=bad, time_limit_min=None)


@pytest.mark.parametrize(
    ("words", "expected"), [("02:00", time_of(2)), ("2:05", time_of(2, 5)), ("23:59", time_of(23, 59))]
)
def test_a_time_of_day(words, expected):
    assert time_of_day(words) == expected


@pytest.mark.parametrize("words", ["24:00", "2", "02:60", "02:00:00", "2am", "", " 2:00", "0x:00", "٠٢:٠٠"])
def test_what_is_no_time_of_day(words):
    with pytest.raises(ScheduleError, match="02:00"):
        time_of_day(words)


def test_a_history_is_named_as_it_can_be_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = (sys.executable, "-m", "jobs", "nightly", str(tmp_path / "plan.toml"))
    assert nightly_command(sys.executable, Path("plan.toml"), None) == plain
    assert nightly_command(sys.executable, Path("plan.toml"), "h.db") == (*plain, "--db", str(tmp_path / "h.db"))
    url = "postgresql://ada@db.example/epwatch"
    assert nightly_command(sys.executable, Path("plan.toml"), url) == (*plain, "--db", url)
    for secret in ("postgresql://ada:hush@db.example/epwatch", f"{url}?password=hush"):
        with pytest.raises(ScheduleError, match="password") as raised:
            nightly_command(sys.executable, Path("plan.toml"), secret)
        assert "hush" not in str(raised.value)


def test_a_name_that_fits_on_no_line_is_refused():
    with pytest.raises(ScheduleError, match="not seen"):
        shell_line(schedule_of(Path("/a\nb")))


def test_systemd_takes_the_units(tmp_path):
    """By systemd's own parser. Missing is a failure in CI, and skips on a machine without systemd."""
    if shutil.which("systemd-analyze") is None:
        why = "systemd-analyze is not installed (Debian: apt-get install systemd)"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    place = tmp_path / "a %h $HOME \\x 'q' \"z\" é;"
    units = systemd_units(schedule_of(place, (str(place / "python"), "-m", "jobs", "nightly", "plan 100%.toml")))
    for name, text in units.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / name) for name in units)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_zone_has_a_name_that_is_known():
    import zoneinfo

    assert local_zone() == "" or zoneinfo.ZoneInfo(local_zone())


SCRONTAB = """\
#!{python}
# Answers as Slurm's scrontab was seen to: Debian's packages of Slurm come without that command.
import pathlib, sys
table = pathlib.Path({table!r})
if {off}:
    sys.exit("scrontab: fatal: scrontab is disabled on this cluster")
if sys.argv[1:] == ["-l"]:
    if not table.exists():
        print("no crontab for ada")
        sys.exit(1)
    sys.stdout.buffer.write(table.read_bytes())
elif sys.argv[1:] == ["-r"]:
    table.unlink(missing_ok=True)
elif sys.argv[1:] == ["-"]:
    text = sys.stdin.buffer.read()
    if b"--partition=nope" in text:
        print("There was an issue with the job submission on lines 1-2")
        print("The error message was: invalid partition specified: nope")
        sys.exit(1)
    table.write_bytes(text)
"""


@pytest.fixture
def place(tmp_path):
    """A folder with a plan, whose name is no trouble."""
    folder = tmp_path / "a folder with 100%"
    folder.mkdir()
    (folder / "plan.toml").write_text(PLAN)
    return folder


def with_scrontab(tmp_path, off=False):
    """The environment of a machine with a scrontab, and where its table is."""
    programs, table = tmp_path / "bin", tmp_path / "table"
    programs.mkdir(exist_ok=True)
    program = programs / "scrontab"
    program.write_text(SCRONTAB.format(python=sys.executable, table=str(table), off=off))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{programs}:{os.environ['PATH']}"}, table


def test_install_replaces_its_own_entry_and_uninstall_leaves_the_rest(place, tmp_path):
    environ, table = with_scrontab(tmp_path)
    mine = b"# mine\nA=b\r\n0 5 * * * /bin/true \xff"
    table.write_bytes(mine)
    for at in ("02:00", "03:30"):
        done = epwatch("nightly", "install", "plan.toml", "--at", at, "--db", "h.db", cwd=place, **environ)
        assert done.returncode == 0, done.stderr
        assert f"every day at {at}" in done.stdout
    lines = table.read_bytes().removeprefix(mine + b"\n").decode().splitlines()
    assert lines[0] == BLOCK[0]
    assert lines[-1] == BLOCK[2]
    assert lines[-2].startswith(f"30 3 * * * cd '{place}' && ")
    assert f"-m jobs nightly '{place}/plan.toml' --db '{place}/h.db'" in lines[-2]
    again = ("nightly", "install", "plan.toml", "--at", "04:00", "--db", "h.db")
    refused = epwatch(*again, "--partition", "nope", cwd=place, **environ)
    assert "invalid partition specified: nope" in sentence(refused)
    done = epwatch("nightly", "uninstall", "plan.toml", "--db", "h.db", cwd=place, **environ)
    assert done.returncode == 0, done.stderr
    assert table.read_bytes() == mine + b"\n"
    assert "not installed" in sentence(
        epwatch("nightly", "uninstall", "plan.toml", "--db", "h.db", cwd=place, **environ)
    )


def test_what_was_never_installed_is_not_and_makes_no_history(place, tmp_path):
    environ, _ = with_scrontab(tmp_path)
    asked = ("nightly", "uninstall", "plan.toml", "--db", "h.db")
    assert "plan nightly is not installed" in sentence(epwatch(*asked, cwd=place, **environ))
    assert not (place / "h.db").exists()


def test_a_table_with_nothing_left_is_removed(place, tmp_path):
    environ, table = with_scrontab(tmp_path)
    epwatch("nightly", "install", "plan.toml", "--at", "2:00", "--db", "h.db", cwd=place, **environ)
    assert table.exists()
    epwatch("nightly", "uninstall", "plan.toml", "--db", "h.db", cwd=place, **environ)
    assert not table.exists()


def test_without_a_scrontab_a_line_for_cron_is_printed(place, tmp_path):
    environ, table = with_scrontab(tmp_path, off=True)
    done = epwatch("nightly", "install", "plan.toml", "--at", "02:05", "--db", "h.db", cwd=place, **environ)
    assert done.returncode == 0, done.stderr
    assert "scrontab is off on this cluster" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == BLOCK[0]
    assert entry(lines).startswith(f"cd '{place}' && ".replace("%", r"\%"))
    assert not table.exists()
    asked = ("nightly", "install", "plan.toml", "--at", "02:05", "--db", "h.db")
    for strictly in (["--scrontab"], ["--time-limit", "90"]):
        assert "scrontab is off" in sentence(epwatch(*asked, *strictly, cwd=place, **environ))


def test_units_are_printed_with_the_files_they_go_to(place):
    asked = ("nightly", "install", "plan.toml", "--at", "02:05", "--systemd")
    done = epwatch(*asked, "--db", "h.db", cwd=place)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^# (.*)$", done.stdout, re.MULTILINE) == [
        "~/.config/systemd/user/epwatch-nightly.service",
        "~/.config/systemd/user/epwatch-nightly.timer",
    ]
    assert "OnCalendar=*-*-* 02:05:00" in done.stdout
    assert "systemctl --user enable --now epwatch-nightly.timer" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--at", "25:00"], "no time of day"),
        ([], "--at"),
        (["--at", "02:00", "--crontab", "--partition", "gpu"], "--scrontab"),
        (["--at", "02:00", "--db", "postgresql://ada:hush@db.example/x"], "password"),
        (["--at", "02:00", "--time-limit", "0"], "--time-limit"),
        (["--at", "02:00", "--crontab", "--systemd"], "exclude each other"),
        (["--at", "02:00", "--scrontab", "--crontab"], "exclude each other"),
        (["--at", "02:00", "--who", " "], "--who"),
    ],
)
def test_a_mistake_is_one_sentence_and_installs_nothing(arguments, words, place, tmp_path):
    environ, table = with_scrontab(tmp_path)
    said = sentence(epwatch("nightly", "install", "plan.toml", *arguments, cwd=place, **environ))
    assert words in said
    assert "hush" not in said
    assert not table.exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_slurms_own_scrontab_runs_what_was_installed(slurm, place):
    environ = slurm.environment()
    if shutil.which("scrontab", path=environ["PATH"]) is None:
        pytest.skip("this Slurm comes without the command scrontab, as Debian's packages do")
    ours = clean_environment(**environ)

    def scrontab(argument, text=None):
        return subprocess.run(["scrontab", argument], input=text, env=ours, capture_output=True, text=True, timeout=60)

    mine = "# mine\nA=b\n0 5 1 1 * /bin/true\n"
    assert scrontab("-", mine).returncode == 0
    try:
        # What runs is the plan as it is when it runs: a mistake in it is enough to see that it did, and where.
        soon = datetime.now() + timedelta(seconds=65)
        asked = ("nightly", "install", "plan.toml", "--at", f"{soon:%H:%M}", "--scrontab", "--time-limit", "5")
        done = epwatch(*asked, "--db", "h.db", cwd=place, **environ)
        assert done.returncode == 0, done.stderr
        (place / "plan.toml").write_text(PLAN.replace("topk = 4", "topk = 99"))
        assert scrontab("-l").stdout.startswith(mine)
        log = place / ".epwatch" / "nightly-nightly.log"
        deadline = time.monotonic() + 150
        while not (log.exists() and log.read_text()):
            assert time.monotonic() < deadline, scrontab("-l").stdout
            time.sleep(0.5)
        assert "topk is 99" in log.read_text()
        (place / "plan.toml").write_text(PLAN)
        done = epwatch("nightly", "uninstall", "plan.toml", "--db", "h.db", cwd=place, **environ)
        assert done.returncode == 0, done.stderr
        assert scrontab("-l").stdout == mine
    finally:
        scrontab("-r")
        Path.home().joinpath("epwatch-nightly.out").unlink(missing_ok=True)
