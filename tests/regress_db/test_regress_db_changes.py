"""Changes over a history: since which run and commit, what else changed there, and what is stored of it."""

import random
from datetime import timedelta

import pytest
from click.testing import CliRunner
from sqlalchemy import select
from synthetic_records import CASE, START, environment, ok_record

from harness import record as records
from harness.case import Case
from jobs.cli import cli
from regress_db.changes import changes
from regress_db.errors import FilterError, NotFoundError
from regress_db.ingest import collect
from regress_db.schema import CHANGE_POINTS, SERIES
from regress_db.selection import Selection

OTHER = Case(backend="torch", mode="ll", ranks=2, tokens=32, hidden=256, topk=4, experts=8)
NIGHTS = 40


@pytest.fixture
def months(history, spool):
    """Forty nights of two cases. On night 25 the code makes one case's dispatch slower; on night 30 torch changes and
    with it the other's combine; night 10's combine of the first is a blip.
    """
    chance = random.Random(1)
    for night in range(NIGHTS):
        started = START + timedelta(days=night)
        env = environment(
            commit=f"{'b' if night >= 25 else 'a'}{night:039d}", torch="2.14.0" if night >= 30 else "2.13.0"
        )
        for case, dispatch, combine in (
            (CASE, 110.0 if night >= 25 else 100.0, 400.0 if night == 10 else 200.0),
            (OTHER, 100.0, 260.0 if night >= 30 else 200.0),
        ):
            records.write(
                ok_record(
                    case=case,
                    night=f"night-{night:02}",
                    started=started,
                    env=env,
                    seed=night,
                    dispatch_us=dispatch * chance.uniform(0.99, 1.01),
                    combine_us=combine * chance.uniform(0.99, 1.01),
                ),
                spool,
            )
    assert len(collect(history, spool).accepted) == 2 * NIGHTS
    return history


def test_a_change_names_its_night_size_and_commits(months):
    newest, older = changes(months)
    assert (older.case, older.phase, older.kind, older.night) == (CASE.key, "dispatch", "step", "night-25")
    assert older.low < 0.1 < older.high
    assert older.at == START + timedelta(days=25)
    assert older.earliest <= older.at <= older.latest
    assert older.commit_after.startswith("b")
    assert older.cause == "code"
    assert (newest.case, newest.phase, newest.night) == (OTHER.key, "combine", "night-30")
    assert newest.cause == "code or environment"
    assert ("versions.torch", "2.13.0", "2.14.0") in [(one.name, one.first, one.second) for one in newest.differences]


def test_a_blip_is_told_on_request(months):
    (blip,) = changes(months, kinds=("transient",))
    assert (blip.case, blip.phase, blip.night) == (CASE.key, "combine", "night-10")
    assert blip.effect > 0.5


def test_times_choose_among_changes_and_not_among_runs(months):
    since = START + timedelta(days=28)
    (found,) = changes(months, Selection.of(since=since))
    assert (found.night, found.points) == ("night-30", NIGHTS)
    assert [one.night for one in changes(months, Selection.of(until=since))] == ["night-25"]
    assert [one.night for one in changes(months, Selection.of(limit=1))] == ["night-30"]


def test_filters_choose_series(months):
    assert [one.case for one in changes(months, Selection.of("backend=torch"))] == [OTHER.key]
    assert changes(months, phase="dispatch", floor=0.5) == []


def test_an_unknown_metric_is_refused_by_name(months):
    with pytest.raises(NotFoundError, match="slowest_p50_us"):
        changes(months, metric="p51")


def test_an_empty_history_has_no_changes(history):
    assert changes(history) == []


def test_keeping_twice_stores_each_change_once(months):
    for _ in range(2):
        changes(months, keep=True)
        with months.read() as connection:
            rows = connection.execute(select(CHANGE_POINTS.c.kind, CHANGE_POINTS.c.cause)).all()
            assert len(connection.execute(select(SERIES.c.id)).all()) == 3
        assert sorted(row.kind for row in rows) == ["step", "step", "transient"]


def test_part_of_a_series_is_not_kept(months):
    with pytest.raises(FilterError, match="whole series"):
        changes(months, Selection.of("node=node-1"), keep=True)


def test_the_command_shows_the_same(months, spool):
    import json

    shown = CliRunner().invoke(cli, ["changes", "--db", months.where, "--json"])
    assert shown.exit_code == 0, shown.output
    assert [row["night"] for row in json.loads(shown.output)] == ["night-30", "night-25"]
    everything = CliRunner().invoke(cli, ["changes", "ep_core", "--db", months.where, "--all"])
    assert everything.exit_code == 0, everything.output
    assert "transient" in everything.output
    assert "step" in everything.output
