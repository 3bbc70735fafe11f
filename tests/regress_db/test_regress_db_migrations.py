"""Migrations with data: from every released schema to the newest and back, in a file and in PostgreSQL.

`data/history_<revision>.sql` is the dump of an SQLite history that the epwatch of that revision made: two nights with
runs, a failure, a missing run, baselines (one retired) and verdicts.
"""

import json
import sqlite3
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, MetaData, create_engine, inspect, text

from regress_db import details, queries
from regress_db.baselines import list_baselines
from regress_db.history import History
from regress_db.migrate import APPLICATION_ID, PACKAGED, Revisions
from regress_db.schema import METADATA
from regress_db.upkeep_verify import verify

DATA = Path(__file__).parent / "data"
RELEASED = sorted(path.stem.removeprefix("history_") for path in DATA.glob("history_*.sql"))


def restore(dump: Path, path: Path) -> Path:
    """The SQLite history that was dumped."""
    connection = sqlite3.connect(path)
    connection.executescript(dump.read_text(encoding="utf-8"))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.commit()
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    return path


def migrate_to(connection: Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(PACKAGED.folder))
    config.attributes["connection"] = connection
    there = connection.execute(text("SELECT version_num FROM alembic_version")).scalar() if tables(connection) else ""
    (command.downgrade if revision < there else command.upgrade)(config, revision)


def tables(connection: Connection) -> list[str]:
    return sorted(inspect(connection).get_table_names())


def content(connection: Connection) -> dict[str, list[str]]:
    """Every row of every table there is, as the database's own words."""
    found = MetaData()
    found.reflect(connection)
    return {
        name: sorted(
            json.dumps(dict(row), default=repr, sort_keys=True) for row in connection.execute(table.select()).mappings()
        )
        for name, table in found.tables.items()
        if name != "alembic_version"
    }


def load(path: Path, url: str, revision: str) -> None:
    """The rows of the SQLite history `path` in the empty PostgreSQL database `url`, at the same revision."""
    source = create_engine(f"sqlite:///{path}")
    with source.connect() as reading, History.open(url, revisions=Revisions(PACKAGED.folder, PACKAGED.head)) as history:
        old = MetaData()
        old.reflect(reading)
        with history.write() as writing:
            migrate_to(writing, revision)
            new = MetaData()
            new.reflect(writing)
            for table in new.sorted_tables:
                rows = [dict(row) for row in reading.execute(old.tables[table.name].select()).mappings()]
                if rows and table.name != "alembic_version":
                    writing.execute(table.insert(), rows)
                if "id" in table.c:
                    name = table.name
                    writing.execute(text(f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), max(id)) FROM {name}"))
    source.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def released(request, tmp_path):
    """Makes a history of a released schema, with data, and says where it is."""

    def make(revision):
        path = restore(DATA / f"history_{revision}.sql", tmp_path / "released.db")
        if request.param == "sqlite":
            return str(path)
        url = request.getfixturevalue("postgres_url")
        load(path, url, revision)
        return url

    return make


def test_every_released_schema_has_data_to_migrate():
    revisions = sorted(path.name[:4] for path in (PACKAGED.folder / "versions").glob("0*.py"))
    assert revisions == [*RELEASED, PACKAGED.head]


@pytest.mark.parametrize("revision", RELEASED)
def test_what_was_recorded_under_a_released_schema_is_all_there_after_migration(released, revision):
    where = released(revision)
    with History.open(where) as history:
        assert verify(history).faults == ()
        assert [line.outcome for line in queries.runs(history)].count("ok") == 8
        assert [(line.night, line.planned, line.ok, line.not_ok, line.missing) for line in queries.nights(history)] == [
            ("2026-10-02-0200", 6, 4, 1, 1),
            ("2026-10-01-0200", 6, 4, 1, 1),
        ]
        assert [one.name for one in list_baselines(history, retired=True)] == ["main", "old"]
        shown = details.show(history, "1" + "0" * 31)
        assert shown.phases
        with history.read() as connection:
            said = connection.execute(text("SELECT verdict, confirmations FROM v_verdicts")).all()
            assert sorted(said) == [("failed", 0), ("failed", 0), ("missing", 0), ("missing", 0)]


@pytest.mark.parametrize("revision", RELEASED)
def test_down_and_up_again_loses_nothing_of_the_older_schema(released, revision):
    where = released(revision)
    if "://" not in where:
        connection = sqlite3.connect(where)
        before_sql = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql > '' ORDER BY name").fetchall()
        connection.close()
    with History.open(where) as history:
        with history.read() as connection:
            newest = content(connection)
        for _ in range(2):
            with history.write() as connection:
                migrate_to(connection, revision)
            with history.read() as connection:
                older = content(connection)
                assert tables(connection) == sorted([*older, "alembic_version"])
                assert set(inspect(connection).get_view_names()) == (set(VIEWS) if revision > "0001" else set())
            for name, rows in older.items():
                assert len(rows) == len(newest[name]), name
                for row, more in zip(map(json.loads, rows), map(json.loads, newest[name]), strict=True):
                    assert row.items() <= more.items()
            with history.write() as connection:
                migrate_to(connection, PACKAGED.head)
            with history.read() as connection:
                assert content(connection) == newest
        assert verify(history).faults == ()
        with history.write() as connection:
            migrate_to(connection, revision)
    if "://" not in where:
        connection = sqlite3.connect(where)
        after = {name: columns(connection, name) for name, _ in before_sql}
        connection.close()
        connection = sqlite3.connect(restore(DATA / f"history_{revision}.sql", Path(where).with_name("again.db")))
        assert after == {name: columns(connection, name) for name, _ in before_sql}
        connection.close()


def columns(connection: sqlite3.Connection, table: str) -> list[tuple[object, ...]]:
    """Name, type, nullability and place in the key of each column of a table, or the columns of an index."""
    found = connection.execute(f"PRAGMA table_info('{table}')").fetchall()
    return [row[1:] for row in found] or connection.execute(f"PRAGMA index_info('{table}')").fetchall()


def test_the_oldest_schema_can_be_taken_down_to_nothing_and_made_again(history):
    for revision in ("base", "head", "base", "head"):
        with history.write() as connection:
            config = Config()
            config.set_main_option("script_location", str(PACKAGED.folder))
            config.attributes["connection"] = connection
            (command.downgrade if revision == "base" else command.upgrade)(config, revision)
            assert tables(connection) == sorted(["alembic_version", *(METADATA.tables if revision == "head" else ())])
    assert verify(history).faults == ()


VIEWS = {
    "v_runs": "run_id started_at ended_at outcome night plan repeat purpose case_key backend mode device ranks nodes "
    "tokens hidden topk experts dtype combine routing seed protocol platform cluster device_model devices_per_node "
    "interconnect code_commit environment hosts warmup iters failure_step failure_kind failure",
    "v_values": "run_id started_at night case_key platform code_commit phase metric value",
    "v_nights": "night plan started_at finished_at judged_at judge against baseline level aa_series aa_alarms planned "
    "ok not_ok missing",
    "v_verdicts": "night started_at judged_at case_key platform phase verdict effect low high p_value floor "
    "noise_floor detectable runs_needed latency_us bandwidth_gbs baseline_latency_us new_runs confirmations "
    "baseline_runs baseline_first baseline_last cause finding shared waiver sentence",
    "v_changes": "case_key platform phase metric kind after_started_at before_run after_run earliest_run latest_run "
    "before_commit after_commit effect low high p_value cause method found_at",
}
"""A promise to those who bring their own tools: a later schema may add a column, and drops or renames none."""


def test_the_views_have_the_columns_that_were_promised_and_the_document_explains_each(history):
    document = (Path(__file__).parents[2] / "docs" / "history.md").read_text(encoding="utf-8")
    with history.read() as connection:
        assert set(inspect(connection).get_view_names()) == set(VIEWS)
        for view, promised in VIEWS.items():
            there = list(connection.execute(text(f"SELECT * FROM {view}")).keys())
            assert there == promised.split()
            assert f"`{view}`" in document
            assert [name for name in there if f"`{name}`" not in document] == []


@pytest.mark.parametrize("view", VIEWS)
def test_nobody_can_write_through_a_view(history, view):
    with pytest.raises(Exception, match="view"), history.write() as connection:
        connection.execute(text(f"DELETE FROM {view}"))


def test_the_views_say_what_the_queries_say(released):
    with History.open(released("0001")) as history:
        lines = queries.nights(history)
        points = queries.trend(history, metric="slowest_p50_us", phase="combine")
        runs = {line.run_id: line for line in queries.runs(history)}
        with history.read() as connection:
            said = connection.execute(
                text("SELECT night, planned, ok, not_ok, missing FROM v_nights ORDER BY started_at DESC")
            ).all()
            values = connection.execute(
                text("SELECT run_id, value FROM v_values WHERE metric = 'slowest_p50_us' AND phase = 'combine'")
            ).all()
            listed = connection.execute(text("SELECT run_id, outcome, hosts, case_key, purpose FROM v_runs")).all()
    assert said == [(line.night, line.planned, line.ok, line.not_ok, line.missing) for line in lines]
    assert dict(values) == {point.run_id: point.value for point in points}
    assert {row.run_id for row in listed} == set(runs)
    for row in listed:
        line = runs[row.run_id]
        assert (row.outcome, row.case_key, row.purpose) == (line.outcome, line.case, "planned")
        assert row.hosts.split(",") == list(line.hosts)
