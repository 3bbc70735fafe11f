"""What is particular to a history in PostgreSQL: its URL, its refusals, its locks. The other tests run on it too."""

import subprocess
import sys
import threading

import pytest
from sqlalchemy import text
from synthetic_records import ok_record

from harness import record as records
from regress_db import engines
from regress_db.errors import HistoryError, NotFoundError
from regress_db.history import History
from regress_db.ingest import collect


def with_driver(url: str, driver: str) -> str:
    return url.replace("postgresql://", f"{driver}://")


@pytest.mark.parametrize("driver", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2"])
def test_any_postgresql_url_will_do(postgres_url, driver, spool):
    records.write(ok_record(), spool)
    with History.open(with_driver(postgres_url, driver)) as history:
        assert len(collect(history, spool).accepted) == 1


def test_a_database_without_a_history_gets_one_only_where_that_is_wanted(postgres_url):
    with pytest.raises(NotFoundError, match="there is no history at postgresql://"):
        History.open(postgres_url, create=False)
    History.open(postgres_url).close()
    History.open(postgres_url, create=False).close()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3cr3t@127.0.0.1:1/db",
        "postgresql://me:s3cr3t@127.0.0.1:port/db",
        "postgresql://me:s3@cr3t@127.0.0.1:1/db",
        "postgresql://127.0.0.1:1/db?user=me&password=s3cr3t",
        "mysql://me:s3cr3t@127.0.0.1/db",
        "postgresql://me:s3cr3t@/db?host=/nowhere&connect_timeout=nonsense",
        "postgresql://me:s3cr3t@/db?host=/nowhere&nonsense=1",
    ],
)
def test_a_server_that_is_not_there_is_one_sentence_without_the_password(url):
    with pytest.raises(HistoryError) as caught:
        History.open(url)
    said = str(caught.value)
    assert "\n" not in said
    assert "cr3t" not in said
    assert "s3" not in said


def test_a_database_that_is_not_there_is_a_sentence(postgres):
    with pytest.raises(HistoryError, match=r'cannot be reached \(.*database "nonsense" does not exist'):
        History.open(postgres.url("nonsense"))


@pytest.mark.parametrize("table", ["runs", "alembic_version"])
def test_a_database_of_something_else_is_refused_untouched(postgres_url, table, postgres):
    import psycopg

    with psycopg.connect(postgres_url) as other:
        other.execute(f"CREATE TABLE {table} (version_num text)")
        other.execute(f"INSERT INTO {table} VALUES ('0001')")
        other.execute("CREATE TABLE customers (id int)")
    with pytest.raises(HistoryError, match="database of something else, not an epwatch history"):
        History.open(postgres_url)
    with psycopg.connect(postgres_url) as other:
        names = other.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert sorted(names) == sorted([(table,), ("customers",)])


def test_tables_of_others_beside_ours_are_left_alone(postgres_url):
    import psycopg

    with psycopg.connect(postgres_url) as other:
        other.execute("CREATE TABLE customers (id int)")
    History.open(postgres_url).close()
    History.open(postgres_url, create=False).close()


@pytest.mark.parametrize(
    ("version", "sentence"), [("0099", r"has schema 0099.*use a newer epwatch"), ("deadbeef", "which no epwatch made")]
)
def test_a_newer_or_unknown_schema_is_refused(postgres_history, postgres, version, sentence):
    with postgres_history.write() as connection:
        connection.execute(text(f"UPDATE alembic_version SET version_num = '{version}'"))
        url = connection.execute(text("SELECT current_database()")).scalar()
    with pytest.raises(HistoryError, match=sentence):
        History.open(postgres.url(url))


def test_who_writes_waits_for_who_writes_and_sees_what_it_did(postgres_history):
    order = []

    def second():
        with postgres_history.write() as connection:
            order.append("second writes")
            assert connection.execute(text("SELECT count(*) FROM nodes")).scalar() == 1

    with postgres_history.write() as connection:
        connection.execute(text("INSERT INTO nodes (hostname) VALUES ('x')"))
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(timeout=0.3)
        order.append("first commits")
    waiting.join(timeout=30)
    assert order == ["first commits", "second writes"]


def test_who_reads_never_waits_and_sees_one_state(postgres_history):
    with postgres_history.read() as reading:
        assert reading.execute(text("SELECT count(*) FROM nodes")).scalar() == 0
        with postgres_history.write() as writing:
            writing.execute(text("INSERT INTO nodes (hostname) VALUES ('x')"))
        assert reading.execute(text("SELECT count(*) FROM nodes")).scalar() == 0
    with postgres_history.read() as reading:
        assert reading.execute(text("SELECT count(*) FROM nodes")).scalar() == 1


def test_a_writer_that_never_ends_is_a_sentence_for_the_others(postgres_url, monkeypatch):
    monkeypatch.setattr(engines, "_BEGIN_WRITING", engines._BEGIN_WRITING.replace("'60s'", "'50ms'"))
    with History.open(postgres_url) as patient, History.open(postgres_url) as other, patient.write():

        def write():
            with other.write():
                pass

        with pytest.raises(HistoryError, match=r"another process has been writing.*try again"):
            write()


def test_a_session_that_the_server_ends_is_a_sentence_and_the_next_one_works(postgres_history, postgres, spool):
    record = ok_record()
    records.write(record, spool)

    def interrupted():
        with postgres_history.write() as connection:
            connection.execute(text("INSERT INTO nodes (hostname) VALUES ('x')"))
            backend = connection.execute(text("SELECT pg_backend_pid()")).scalar()
            postgres.run(f"SELECT pg_terminate_backend({backend})")
            connection.execute(text("SELECT 1"))

    with pytest.raises(HistoryError, match="the server ended the session"):
        interrupted()
    assert collect(postgres_history, spool).accepted == [record.run_id]
    with postgres_history.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM nodes WHERE hostname = 'x'")).scalar() == 0


def test_a_user_who_may_only_read_reads_and_is_told(postgres_history, postgres, spool):
    with postgres_history.write() as connection:
        database = connection.execute(text("SELECT current_database()")).scalar()
        connection.execute(text("DROP ROLE IF EXISTS reader"))
        connection.execute(text("CREATE ROLE reader LOGIN"))
        connection.execute(text("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader"))
    record = ok_record()
    records.write(record, spool)
    with History.open(postgres.url(database).replace("epwatch@", "reader@"), create=False) as history:
        with history.read() as connection:
            assert connection.execute(text("SELECT count(*) FROM v_runs")).scalar() == 0
        with pytest.raises(HistoryError, match=r"cannot be written \(permission denied.*only read"):
            collect(history, spool)
    assert [file.stem for file in spool.glob("*.json")] == [record.run_id]
    with postgres_history.write() as connection:
        connection.execute(text("DROP OWNED BY reader"))
        connection.execute(text("DROP ROLE reader"))


def test_a_missing_driver_is_a_sentence_that_says_how_to_get_it():
    script = """
import sys
sys.modules["psycopg"] = None
from regress_db.history import History
try:
    History.open("postgresql://me:s3cr3t@/db")
except Exception as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "pip install 'epwatch[postgresql]'" in done.stdout, done.stderr
    assert "s3cr3t" not in done.stdout


def test_the_index_on_live_baselines_is_partial(postgres_history):
    with postgres_history.read() as connection:
        definition = connection.execute(
            text("SELECT indexdef FROM pg_indexes WHERE indexname = 'uq_baselines_live_name'")
        ).scalar()
    assert "WHERE (retired_at IS NULL)" in definition


def test_the_command_line_takes_a_url(postgres_url, spool):
    def epwatch(*arguments):
        command = [sys.executable, "-m", "jobs", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    records.write(ok_record(), spool)
    assert epwatch("collect", "--db", postgres_url, "--spool", str(spool)).returncode == 0
    verified = epwatch("history", "verify", postgres_url)
    assert (verified.returncode, verified.stderr) == (0, "")
    assert verified.stdout.strip().endswith("1 runs, 34 values, 2 packed phases: in order")
    refused = epwatch("history", "backup", "copy.db", "--db", postgres_url)
    assert refused.returncode == 2
    assert "pg_dump" in refused.stderr
