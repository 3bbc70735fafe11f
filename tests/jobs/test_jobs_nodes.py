"""`epwatch nodes` as a user types it: a table with a sentence, forms for programs, mistakes in one sentence."""

import csv
import io
import json
import random
import sys
from datetime import timedelta
from pathlib import Path

import msgspec
import polars
import pytest
from epwatch_command import epwatch, sentence

sys.path.insert(0, str(Path(__file__).parents[1] / "regress_db"))

from synthetic_records import CASE, START, ok_record

from harness import record as records
from regress_db.history import History
from regress_db.ingest import collect
from regress_db.nights import open_night


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a history of ten nights on four nodes, of which n3 is 8 % slow."""
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "spool").mkdir()
    chance = random.Random(1)
    with History.open(folder / "history.db") as history:
        for day in range(10):
            started = START + timedelta(days=day)
            open_night(history, f"night-{day}", "plan", started, [])
            for run in range(16):
                host = f"n{chance.randrange(1, 5)}"
                factor = (1.08 if host == "n3" else 1.0) * chance.gauss(1, 0.01)
                made = ok_record(
                    case=msgspec.structs.replace(CASE, tokens=8 << run % 4),
                    started=started + timedelta(minutes=run),
                    night=f"night-{day}",
                    repeat=run // 4,
                    seed=chance.randrange(2**31),
                    dispatch_us=100 * factor,
                    combine_us=200 * factor,
                    hostname=host,
                )
                records.write(made, folder / "spool")
        assert len(collect(history, folder / "spool").accepted) == 160
    return folder


def ask(place, *arguments):
    done = epwatch("nodes", *arguments, "--db", "history.db", cwd=place)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_table_has_the_slowest_first_and_says_so_in_words(place):
    lines = ask(place).splitlines()
    assert lines[0].startswith("node   cluster   slower by")
    assert lines[2].split()[:2] == ["n3", "local"]
    assert "slow" in lines[2]
    assert [line.split()[0] for line in lines[3:6]] != ["n3"]
    assert "n3 (local) makes its runs" in lines[7]
    assert "slower" in lines[7]
    assert "of 8 series in 10 nights." in lines[7]
    assert lines[8].endswith("are as fast as others, within 10 %.")


def test_programs_get_the_same_in_every_form(place, tmp_path):
    found = json.loads(ask(place, "--json"))
    assert [row["verdict"] for row in found] == ["slow", "usual", "usual", "usual"]
    assert found[0]["low"] < 0.08 < found[0]["high"]
    listed = list(csv.DictReader(io.StringIO(ask(place, "--csv"))))
    assert [row["hostname"] for row in listed] == [row["hostname"] for row in found]
    file = tmp_path / "nodes.parquet"
    assert ask(place, "--parquet", file) == ""
    assert polars.read_parquet(file)["effect"].to_list() == [row["effect"] for row in found]


def test_runs_are_chosen_as_everywhere(place):
    assert {row["series"] for row in json.loads(ask(place, "tokens=8", "--json"))} == {2}
    late = json.loads(ask(place, "--since", "2026-10-09", "--cluster", "local", "--json"))
    assert {row["nights"] for row in late} <= {1, 2}
    done = epwatch("nodes", "mode=ht", "--db", "history.db", cwd=place)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no run matches\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cluster", "moon"], "no cluster 'moon'; it has local"),
        (["colour=red"], "no field 'colour'"),
        (["--level", "2"], "not in the range"),
        (["--since", "soon"], "'soon' is no time"),
    ],
)
def test_a_mistake_is_one_sentence(place, arguments, words):
    assert words in sentence(epwatch("nodes", *arguments, "--db", "history.db", cwd=place))
