"""Opening a history: where it is made, what is refused untouched, what is migrated and how."""

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import select
from synthetic_records import ok_record

from harness import record as records
from regress_db import migrate
from regress_db.errors import HistoryError, NotFoundError
from regress_db.history import History
from regress_db.ingest import collect
from regress_db.migrate import PACKAGED, Revisions
from regress_db.schema import METADATA, RUNS

LATER = '''"""A later schema."""

import sqlalchemy as sa
from alembic import op

revision = "9002"
down_revision = "0004"


def upgrade():
    op.create_table("waivers", sa.Column("id", sa.Integer(), primary_key=True))
    with op.batch_alter_table("runs") as runs:
        runs.add_column(sa.Column("mood", sa.String(), server_default="calm", nullable=False))
    {extra}


def downgrade():
    op.drop_table("waivers")
'''


def contents(folder):
    """Every file's digest, but those that SQLite keeps beside an open database."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.iterdir()
        if not file.name.endswith(("-shm", "-wal"))
    }


@pytest.fixture
def filled(tmp_path, spool):
    """A history with three runs, closed."""
    path = tmp_path / "place" / "history.db"
    for seed in range(3):
        records.write(ok_record(seed=seed), spool)
    with History.open(path) as history:
        collect(history, spool)
    return path


def later(tmp_path, extra="pass"):
    """The packaged revisions and one more."""
    folder = tmp_path / "migrations"
    shutil.copytree(PACKAGED.folder, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "9002_later.py").write_text(LATER.format(extra=extra))
    return Revisions(folder, "9002")


def count_runs(history):
    with history.read() as connection:
        return len(connection.execute(select(RUNS.c.id)).all())


def test_a_new_history_is_made_with_its_folder(tmp_path):
    path = tmp_path / "a" / "b" / "history.db"
    with History.open(path) as history:
        assert count_runs(history) == 0
        with history.read() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


def test_a_path_with_odd_characters_is_a_path(tmp_path):
    path = tmp_path / "a?b#c%20 d" / "h'ist.db"
    with History.open(path):
        assert path.is_file()


def test_an_sqlite_url_is_the_same_as_its_path(tmp_path):
    with History.open(f"sqlite:///{tmp_path}/history.db"):
        assert (tmp_path / "history.db").is_file()


@pytest.mark.parametrize("url", ["nonsense://x", "sqlite://", "sqlite:///:memory:", "://"])
def test_a_url_that_is_no_place_is_a_sentence(url):
    with pytest.raises(HistoryError):
        History.open(url)


def test_without_create_a_missing_history_is_a_sentence_and_nothing_is_made(tmp_path):
    with pytest.raises(NotFoundError, match="there is no history at"):
        History.open(tmp_path / "a" / "history.db", create=False)
    assert not (tmp_path / "a").exists()


def test_a_folder_is_no_history(tmp_path):
    with pytest.raises(HistoryError, match="is a folder"):
        History.open(tmp_path)


def test_the_schema_in_the_code_is_the_one_the_revisions_make(history):
    with history.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_the_newest_revision_is_the_one_the_code_expects():
    config = Config()
    config.set_main_option("script_location", str(PACKAGED.folder))
    assert ScriptDirectory.from_config(config).get_current_head() == PACKAGED.head


def test_opening_a_current_history_does_not_load_alembic(filled):
    script = f"""
import sys
from regress_db.history import History
History.open({str(filled)!r}, create=False).close()
print(sorted({{"alembic", "torch", "numpy", "jinja2"}} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60).stdout == "[]\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"hello, this is a text file\n" * 50, "is not a database"),
        (os.urandom(5000), "is not a database"),
        (b"SQLite format 3\0" + b"\xff" * 2000, "damaged"),
    ],
)
def test_a_file_that_is_no_database_is_refused_untouched(tmp_path, content, sentence):
    path = tmp_path / "history.db"
    path.write_bytes(content)
    with pytest.raises(HistoryError, match=sentence):
        History.open(path)
    assert path.read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 1


def test_a_database_of_something_else_is_refused_untouched(tmp_path):
    path = tmp_path / "history.db"
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA journal_mode=WAL")
        other.execute("CREATE TABLE runs (id INTEGER)")
    other.close()
    before = contents(tmp_path)
    with pytest.raises(HistoryError, match="not an epwatch history"):
        History.open(path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("size", [100, 1000, 4096, 5000, 40960])
def test_a_history_cut_short_is_refused_untouched(filled, size):
    os.truncate(filled, size)
    before = contents(filled.parent)
    with pytest.raises(HistoryError, match="damaged"):
        History.open(filled)
    assert contents(filled.parent) == before


def test_a_newer_history_is_refused_untouched(filled):
    with sqlite3.connect(filled) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0099'")
    connection.close()
    before = contents(filled.parent)
    with pytest.raises(HistoryError, match=r"schema 0099.*use a newer epwatch"):
        History.open(filled)
    assert contents(filled.parent) == before


def test_a_history_of_an_unknown_schema_is_refused(filled):
    with sqlite3.connect(filled) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'deadbeef'")
    connection.close()
    with pytest.raises(HistoryError, match="which no epwatch made"):
        History.open(filled)


def test_an_older_history_is_backed_up_then_migrated(filled, tmp_path):
    with History.open(filled, revisions=later(tmp_path)) as history:
        assert count_runs(history) == 3
        with history.read() as connection:
            assert connection.exec_driver_sql("SELECT DISTINCT mood FROM runs").all() == [("calm",)]
            assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
    backup = filled.with_name("history.db.before-9002.bak")
    with History.open(backup, create=False) as before:
        assert count_runs(before) == 3
    with pytest.raises(HistoryError, match="use a newer epwatch"):
        History.open(filled)


def test_an_earlier_backup_is_never_overwritten(filled, tmp_path):
    earlier = filled.with_name("history.db.before-9002.bak")
    earlier.write_text("precious")
    History.open(filled, revisions=later(tmp_path)).close()
    assert earlier.read_text() == "precious"
    assert filled.with_name("history.db.before-9002.2.bak").exists()


def test_a_migration_that_fails_midway_changes_nothing(filled, tmp_path):
    with sqlite3.connect(filled) as connection:
        before = connection.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall()
    connection.close()
    broken = later(tmp_path, "raise RuntimeError('power cut')")
    with pytest.raises(RuntimeError, match="power cut"):
        History.open(filled, revisions=broken)
    with sqlite3.connect(filled) as connection:
        assert connection.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall() == before
    connection.close()
    with History.open(filled) as history:
        assert count_runs(history) == 3


def test_several_processes_that_migrate_at_once_migrate_once(filled, tmp_path):
    revisions = later(tmp_path)
    script = f"""
from pathlib import Path
from regress_db.history import History
from regress_db.migrate import Revisions
History.open({str(filled)!r}, revisions=Revisions(Path({str(revisions.folder)!r}), "9002")).close()
"""
    started = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(4)]
    assert [process.wait(timeout=90) for process in started] == [0] * 4
    assert [file.name for file in filled.parent.glob("*.bak")] == ["history.db.before-9002.bak"]


def test_a_history_in_a_read_only_folder_can_be_read_and_says_so_when_written(filled, tmp_path):
    """As an unprivileged user, since root may write anywhere."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(filled, folder / "history.db")
        (folder / "history.db").chmod(0o444)
        folder.chmod(0o555)
        script = f"""
import os
from datetime import UTC, datetime
from harness.errors import EpwatchError
from regress_db import nights, queries
from regress_db.history import History
with History.open({str(tmp_path / "other.db")!r}) as loads_everything:
    queries.runs(loads_everything)
    nights.open_night(loads_everything, "n", "p", datetime.now(UTC), [])
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
with History.open({str(folder / "history.db")!r}) as history:
    print(len(queries.runs(history)))
    try:
        nights.open_night(history, "n", "p", datetime.now(UTC), [])
    except EpwatchError as error:
        print(error)
try:
    History.open({str(folder / "new" / "history.db")!r})
except EpwatchError as error:
    print(error)
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd="/")
        folder.chmod(0o755)
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stderr
    assert lines[0] == "3"
    assert "read-only" in lines[1]
    assert "cannot make the folder" in lines[2]


def test_times_are_kept_in_utc_whatever_zone_they_came_in(history, spool):
    started = datetime(2026, 10, 1, 4, 30, tzinfo=timezone(timedelta(hours=5)))
    records.write(ok_record(started=started), spool)
    collect(history, spool)
    with history.read() as connection:
        assert connection.execute(select(RUNS.c.started_at)).scalar_one() == started
        stored = connection.exec_driver_sql("SELECT started_at FROM runs").scalar()
    assert str(stored).startswith("2026-09-30 23:30:00")


def test_a_time_without_a_zone_is_refused(history):
    with pytest.raises(Exception, match="has no zone"), history.read() as connection:
        connection.execute(select(RUNS.c.id).where(RUNS.c.started_at > datetime(2026, 1, 1)))


def test_an_error_within_a_write_keeps_nothing(history, spool):
    records.write(ok_record(), spool)

    class Interrupted(Exception):
        pass

    def work():
        with history.write() as connection:
            connection.exec_driver_sql("INSERT INTO nodes (hostname) VALUES ('x')")
            raise Interrupted

    with pytest.raises(Interrupted):
        work()
    with history.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM nodes").scalar() == 0


def test_readers_do_not_wait_for_a_writer(tmp_path):
    with History.open(tmp_path / "history.db") as history, history.write() as writing:
        writing.exec_driver_sql("INSERT INTO nodes (hostname) VALUES ('x')")
        with history.read() as reading:
            assert reading.exec_driver_sql("SELECT count(*) FROM nodes").scalar() == 0


def test_the_file_says_whose_it_is(filled):
    assert migrate.file_version(filled) == PACKAGED.head
    assert filled.read_bytes()[68:72] == b"EPWT"
