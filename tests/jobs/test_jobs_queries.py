"""The commands that ask the history, as a user types them: filters, times, groups, sides, and forms for programs."""

import csv
import io
import json
import shutil
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars
import pytest
from epwatch_command import epwatch, sentence

sys.path.insert(0, str(Path(__file__).parents[1] / "regress_db"))

from synthetic_records import CASE, START, environment, failed_record, ok_record

from harness import record as records
from jobs.tables import Column, print_table
from regress_db.history import History
from regress_db.ingest import collect
from regress_db.nights import open_night
from regress_db.schedules import set_schedule


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a history of three nights, two runs each, and one failure."""
    folder = tmp_path_factory.mktemp("asked")
    (folder / "spool").mkdir()
    with History.open(folder / "history.db") as history:
        for day in range(3):
            started = START + timedelta(days=day)
            open_night(history, f"night-{day}", "plan", started, [])
            for repeat in range(2):
                made = ok_record(
                    started=started + timedelta(minutes=repeat),
                    night=f"night-{day}",
                    repeat=repeat,
                    seed=2 * day + repeat,
                    dispatch_us=100 * (1 + day / 10),
                    env=environment(str(day) * 40),
                    hostname=f"gpu0{repeat}",
                )
                records.write(made, folder / "spool")
        bad = failed_record(started=START + timedelta(days=2, hours=1), night="night-2", message="the \x1b[31mend\a")
        records.write(bad, folder / "spool")
        assert len(collect(history, folder / "spool").accepted) == 7
    return folder


def ask(place, *arguments):
    done = epwatch(*arguments, "--db", "history.db", cwd=place)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(place, *arguments):
    return json.loads(ask(place, *arguments, "--json"))


def test_filters_and_times_choose(place):
    assert len(rows(place, "trend", "ranks>=2", "node~gpu0*", "--phase", "dispatch")) == 6
    assert len(rows(place, "trend", "ranks>2")) == 0
    assert len(rows(place, "trend", "mode=ll", "dtype=bf16,fp8", "--at", "22", "--phase", "combine")) == 2
    assert len(rows(place, "trend", "--since", "2026-10-02", "--until", "2026-10-03", "--phase", "combine")) == 2
    assert [row["failure"] for row in rows(place, "runs", "outcome=failed")] == ["the \x1b[31mend\a"]


def test_filters_can_be_given_in_one_text(place):
    words = f"mode={CASE.mode} ranks={CASE.ranks} dtype=*"
    chosen = rows(place, "trend", "--case", words, "--phase", "combine")
    assert chosen
    assert chosen == rows(place, "trend", *words.split(), "--phase", "combine")
    assert not rows(place, "trend", "--case", words, "dtype=fp8", "--phase", "combine")


def test_a_trend_by_night_in_every_form(place, tmp_path):
    asked = ("trend", "--by", "night", "--as", "max", "--phase", "dispatch")
    found = rows(place, *asked)
    assert [(row["group"], row["runs"]) for row in found] == [(f"night-{day}", 2) for day in range(3)]
    assert [row["value"] for row in found] == pytest.approx([100, 110, 120], rel=0.02)
    assert "max latency_us" in ask(place, *asked)
    listed = list(csv.DictReader(io.StringIO(ask(place, *asked, "--csv"))))
    assert [row["started_at"] for row in listed] == [row["started_at"] for row in found]
    file = tmp_path / "trend.parquet"
    assert ask(place, *asked, "--parquet", file) == ""
    frame = polars.read_parquet(file)
    assert frame["value"].to_list() == [row["value"] for row in found]
    assert frame.schema["started_at"] == polars.Datetime("us", "UTC")
    assert f"{frame['started_at'][0]:%Y-%m-%dT%H:%M:%SZ}" == found[0]["started_at"]


@pytest.mark.parametrize(
    "command", [["runs"], ["nights"], ["trend"], ["show", "latest"], ["baseline", "list"], ["cases"]]
)
def test_wherever_rows_are_shown_they_go_to_parquet_too(place, tmp_path, command):
    file = tmp_path / "rows.parquet"
    where = [] if command == ["cases"] else ["--db", "history.db"]
    done = epwatch(*command, *where, "--parquet", file, cwd=place)
    assert (done.returncode, done.stdout) == (0, "")
    assert polars.read_parquet(file).width > 1


def test_a_run_is_shown_with_where_each_of_its_ranks_was(place):
    shown = ask(place, "show", "latest")
    lines = [line.split() for line in shown.splitlines()]
    assert ["launched", "by", "torchrun"] in lines
    assert ["attempt", "1"] in lines
    table = lines.index(["rank", "node", "CPUs", "NUMA", "nodes"])
    assert lines[table + 2 : table + 4] == [["0", "node-1", "0", "0"], ["1", "node-1", "1", "0"]]
    ranks = json.loads(ask(place, "show", "latest", "--json"))["ranks"]
    assert ranks == [{"rank": rank, "node": "node-1", "cpus": str(rank), "numa": "0"} for rank in range(2)]


def test_nights_are_listed_with_those_that_did_not_happen(place, tmp_path):
    file = tmp_path / "history.db"
    shutil.copy(place / "history.db", file)
    two_days_ago = datetime.now(UTC) - timedelta(days=2, hours=3)
    with History.open(file) as history:
        set_schedule(history, "plan", f"{two_days_ago:%H:%M}", "UTC", "ann", when=two_days_ago - timedelta(hours=1))
    asked = ("nights", "--db", file)
    found = json.loads(epwatch(*asked, "--json", cwd=tmp_path).stdout)
    assert [row["state"] for row in found] == ["did not happen"] * 3 + ["running"] * 3
    expected = [f"{two_days_ago + timedelta(days=day):%Y-%m-%dT%H:%M:00Z}" for day in (2, 1, 0)]
    assert [row["expected_at"] for row in found] == [*expected, None, None, None]
    assert [(row["night"], row["started_at"]) for row in found[:3]] == [("", None)] * 3
    table = epwatch(*asked, cwd=tmp_path).stdout
    assert f"did not happen, expected {two_days_ago:%Y-%m-%d %H:%M} UTC" in table


def test_two_nights_two_commits_and_two_runs_can_be_compared(place):
    found = rows(place, "compare", "night-0", "night:latest", "--phase", "dispatch")
    assert [(row["case"], row["first_runs"], row["second_runs"]) for row in found] == [(CASE.key, 2, 2)]
    assert found[0]["change"] == pytest.approx(0.2, abs=0.02)
    assert "A is commit 0000" in ask(place, "compare", "commit:00", "commit:2", "mode=ll")
    first, second = (row["run_id"] for row in rows(place, "runs", "outcome=ok", "--limit", "2"))
    assert rows(place, "compare", first, second)["first"]["run_id"] == first
    assert "hosts" in ask(place, "compare", first, second)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trend", "colour=red"], "no field 'colour'"),
        (["trend", "rank=2"], "did you mean ranks?"),
        (["trend", "ranks"], "the shell takes < and >"),
        (["runs", "--since", "7d", "--until", "30d"], "no run starts"),
        (["runs", "--since", "soon"], "'soon' is no time"),
        (["trend", "--by", "month"], "'month' is not one of"),
        (["trend", "--metric", "speed"], "no metric 'speed'"),
        (["trend", "--csv", "--parquet", "x.parquet"], "exclude each other"),
        (["trend", "--parquet", "no/such/x.parquet"], "no folder no/such"),
        (["trend", "--parquet", "."], "is a directory"),
        (["compare", "night-0", "night-9"], "'night-9' is no run"),
        (["compare", "night:night-0", "run:zz"], "'zz' is no run"),
        (["compare", "latest", "latest", "mode=ll"], "nothing to choose"),
    ],
)
def test_a_mistake_is_one_sentence(place, arguments, words):
    assert words in sentence(epwatch(*arguments, "--db", "history.db", cwd=place))


def test_what_a_record_says_cannot_take_over_the_terminal(capsys):
    print_table(["the \x1b[31mend\a\nof it"], [Column("text", str, "text")])
    assert "the \\x1b[31mend\\x07\\nof it" in capsys.readouterr().out
