"""Looking after a history: moving it, checking it, dropping old samples, backing it up; in a file and in PostgreSQL."""

import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import func, select, text
from synthetic_records import CASE, START, environment, failed_record, ok_record

from harness import record as records
from harness.case import Case
from harness.record import PlannedRun
from regress_db import schema
from regress_db.baselines import list_baselines, set_baseline
from regress_db.errors import HistoryError, NotFoundError
from regress_db.history import History
from regress_db.ingest import collect
from regress_db.nights import open_night
from regress_db.samples import pack
from regress_db.upkeep import back_up, copy, prune
from regress_db.upkeep_verify import verify

OTHER = Case(
    backend="torch", mode="ht", ranks=4, tokens=64, hidden=256, topk=4, experts=8, seed=2**40, combine="local_reduce"
)


def fill(history, spool, runs=12):
    """Runs of two nights, two cases and two commits; one failed, one wrong, one missing; a baseline; odd texts."""
    for number, night in enumerate(("n1", "n2")):
        start = START + timedelta(days=number)
        planned = [
            PlannedRun(run_id=f"{number}{index:031x}", case=CASE, night=night, repeat=index) for index in range(3)
        ]
        open_night(history, night, "plan ☃", start, planned)
        for one in planned[:2]:
            records.write(ok_record(run_id=one.run_id, night=night, repeat=one.repeat, started=start), spool)
    for seed in range(runs):
        started = START + timedelta(days=seed, microseconds=seed)
        case = OTHER if seed % 2 else CASE
        env = environment(commit=f"{seed % 3:x}" * 40)
        records.write(ok_record(seed=seed, case=case, env=env, started=started, hostname=f"nöde-{seed % 5}"), spool)
    records.write(failed_record("hung", 'it\'s "hung" at 100% \\ \n\t', log_tail="a\0b\x1b[31m ☃ %s :x"), spool)
    wrong = failed_record("wrong")
    records.write(msgspec.structs.replace(wrong, failure=None), spool)
    done = collect(history, spool)
    assert done.quarantined == []
    set_baseline(history, "main", who="me", why="'; DROP TABLE runs; --", night="n1")
    return history


@pytest.fixture(scope="session")
def filled_once(tmp_path_factory):
    """A filled history in a file, closed, for others to copy."""
    folder = tmp_path_factory.mktemp("filled")
    (folder / "spool").mkdir()
    with History.open(folder / "history.db") as history:
        fill(history, folder / "spool")
    return folder / "history.db"


@pytest.fixture
def filled_file(filled_once, tmp_path):
    """A filled history in a file, open."""
    shutil.copy(filled_once, tmp_path / "history.db")
    with History.open(tmp_path / "history.db") as history:
        yield history


@pytest.fixture(scope="session")
def filled_template(postgres, postgres_template, tmp_path_factory):
    """The name of a database with a filled history, for others to copy."""
    postgres.run(f"CREATE DATABASE filled TEMPLATE {postgres_template}")
    with History.open(postgres.url("filled")) as history:
        fill(history, tmp_path_factory.mktemp("spool"))
    return "filled"


@pytest.fixture
def filled_server(postgres, filled_template):
    """A filled history in PostgreSQL, open."""
    with postgres.database(filled_template) as url, History.open(url) as history:
        yield history


@pytest.fixture(params=["filled_file", "filled_server"])
def filled(request):
    """A filled history in each kind of database in turn."""
    return request.getfixturevalue(request.param)


def everything(history):
    """All rows of all tables."""
    with history.read() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(select(table)).all()))
            for table in schema.METADATA.sorted_tables
        }


def damage(history, *statements):
    """What somebody's own tool does that tells the database not to look."""
    if history.path is None:
        with history.write() as connection:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            for statement in statements:
                connection.exec_driver_sql(statement)
        return
    connection = sqlite3.connect(history.path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_a_history_in_order_has_no_faults(filled):
    found = verify(filled)
    assert found.faults == ()
    assert (found.runs, found.packed_phases) == (18, 32)
    assert found.values > 100


def test_an_empty_history_is_in_order(history):
    assert verify(history).faults == ()


@pytest.mark.parametrize("there", ["file", "server"])
def test_a_copy_holds_the_same_rows_with_the_same_numbers_in_any_database(filled, there, tmp_path, request):
    target = str(tmp_path / "deep" / "copy.db") if there == "file" else request.getfixturevalue("postgres_url")
    done = copy(filled, target)
    with History.open(target, create=False) as copied:
        assert everything(copied) == everything(filled)
        assert verify(copied).faults == ()
    assert done.rows["runs"] == 18
    assert sum(done.rows.values()) == sum(map(len, everything(filled).values()))


def test_a_history_that_went_to_the_server_and_back_is_the_same(filled_file, tmp_path, postgres_url):
    there = copy(filled_file, postgres_url)
    with History.open(postgres_url) as server:
        back = copy(server, f"sqlite:///{tmp_path}/back.db")
    assert there == back
    with History.open(tmp_path / "back.db") as returned:
        assert everything(returned) == everything(filled_file)


def test_a_copy_goes_on_numbering_where_the_original_stopped(filled, new_place, spool):
    copy(filled, new_place)
    record = ok_record(seed=99, hostname="never seen before", env=environment("9" * 40))
    records.write(record, spool)
    with History.open(new_place) as copied:
        assert collect(copied, spool).accepted == [record.run_id]
        set_baseline(copied, "second", who="me", why="it goes on", latest=1)
        assert verify(copied).faults == ()


def test_a_copy_never_goes_over_what_is_there(filled, new_place, tmp_path, spool):
    copy(filled, new_place)
    with History.open(new_place) as copied:
        before = everything(copied)
        with pytest.raises(HistoryError, match=r"is not empty.*stays as it is"):
            copy(filled, new_place)
        assert everything(copied) == before
    with pytest.raises(HistoryError, match="is not empty"):
        copy(filled, filled.where if filled.path else str(new_place))
    (tmp_path / "text.db").write_text("precious\n" * 100)
    with pytest.raises(HistoryError, match="is not a database"):
        copy(filled, str(tmp_path / "text.db"))
    assert (tmp_path / "text.db").read_text() == "precious\n" * 100


def test_a_copy_into_an_empty_history_is_fine(filled, new_place):
    History.open(new_place).close()
    assert copy(filled, new_place).rows["runs"] == 18


def test_a_copy_that_fails_leaves_nothing(filled, tmp_path):
    damage(filled, "UPDATE samples SET run = 999 WHERE run = (SELECT min(run) FROM samples)")
    with pytest.raises(HistoryError):
        copy(filled, str(tmp_path / "folder" / "copy.db"))
    assert list((tmp_path / "folder").iterdir()) == []


FAULTS = {
    "refer by run to rows of runs that are not there": "UPDATE run_ranks SET run = 4711 WHERE run = 1",
    "refer by platform_id to rows of platforms": "UPDATE runs SET platform_id = 4711 WHERE id = 1",
    "is ok but has no phase": "DELETE FROM run_phases WHERE run = 1",
    "is ok but does not have the ranks of its case": "DELETE FROM run_ranks WHERE run = 1 AND rank = 0",
    "has a phase without slowest_p50_us": "DELETE FROM run_values WHERE run = 1",
    "has a phase without a value for each rank": "DELETE FROM rank_values WHERE run = 1 AND rank = 0",
    "has values but is not ok": "UPDATE runs SET outcome = 'failed' WHERE id = 1",
    "has no number and no failure that says why": "DELETE FROM failures",
    "has samples that cannot be unpacked": "UPDATE samples SET packed = {garbage} WHERE run = 1",
    "has samples of another shape": "UPDATE samples SET packed = {small} WHERE run = 1",
    "has another slowest_p50_us than its samples tell": "UPDATE run_values SET value = value * 1.01 WHERE run = 1",
    "has another median of a rank": "UPDATE rank_values SET p50_us = p50_us * 1.01 WHERE run = 1 AND rank = 1",
    "leaves none of its samples": "UPDATE run_phases SET leading_dropped = 12 WHERE run = 1",
    "has samples of a phase that it does not have": "DELETE FROM run_phases WHERE run = 1 AND phase = 'combine'",
    "is not the night, case and repeat that were planned": "UPDATE planned SET repeat = 7 WHERE repeat = 1",
    "has verdicts but was never judged": "INSERT INTO verdicts (night_id, case_id, phase, verdict, floor, new_runs, "
    "baseline_runs, sentence, warnings) VALUES (1, 1, 'combine', 'missing', 0.1, 0, 0, 'said', '[]')",
    "a finding it does not have": "INSERT INTO verdicts (night_id, case_id, phase, verdict, floor, new_runs, "
    "baseline_runs, sentence, warnings, finding) VALUES (1, 1, 'combine', 'missing', 0.1, 0, 0, 'said', '[]', 3)",
    "baseline main holds no run": "DELETE FROM baseline_runs",
    "baseline main holds a run that is not ok": "UPDATE runs SET outcome = 'wrong' WHERE repeat = 1",
    "has a value that is no number": "UPDATE run_values SET value = {infinity} WHERE run = 1",
}


@pytest.mark.parametrize("sentence", FAULTS)
def test_verify_says_what_is_wrong_and_where(filled, sentence):
    server = filled.path is None
    literals = {
        name: f"'\\x{value.hex()}'" if server else f"X'{value.hex()}'"
        for name, value in {"garbage": b"garbage", "small": pack([[1.0]])}.items()
    }
    damage(filled, FAULTS[sentence].format(**literals, infinity="'Infinity'" if server else "9e999"))
    faults = verify(filled).faults
    assert any(sentence in fault for fault in faults), faults
    assert all("\n" not in fault for fault in faults)


def test_verify_names_a_few_and_counts_the_rest(filled):
    damage(filled, "DELETE FROM run_phases")
    (fault,) = [fault for fault in verify(filled).faults if "has no phase" in fault]
    assert "and 13 more" in fault


def test_verify_finds_a_sequence_that_fell_behind(filled_server):
    with filled_server.write() as connection:
        connection.execute(text("SELECT setval('runs_id_seq', 3)"))
    assert any("runs would get a number that is taken" in fault for fault in verify(filled_server).faults)


def test_bits_that_flipped_are_found(filled_file, tmp_path):
    """Every page in turn, in a copy: either opening refuses it, or verify has something to say, in sentences."""
    back_up(filled_file.where, tmp_path / "sound.db")
    sound = (tmp_path / "sound.db").read_bytes()
    page_bytes = 4096
    told = 0
    for page in range(1, len(sound) // page_bytes, 3):
        flipped = bytearray(sound)
        at = page * page_bytes
        for offset in range(at, at + 200):
            flipped[offset] ^= 0xFF
        (tmp_path / "flipped.db").write_bytes(flipped)
        try:
            with History.open(tmp_path / "flipped.db", create=False) as history:
                faults = verify(history).faults
        except HistoryError as error:
            faults = (str(error),)
        assert faults, f"page {page}"
        assert all("\n" not in fault for fault in faults)
        told += 1
    assert told > 5


def test_pruning_drops_old_samples_and_nothing_else(filled):
    before = START + timedelta(days=6)
    kept = everything(filled)
    would = prune(filled, before, dry_run=True)
    assert everything(filled) == kept
    assert prune(filled, before) == would
    assert would.runs == 10
    assert would.phases == 20
    assert would.packed_bytes > 1000
    after = everything(filled)
    assert {name for name in kept if kept[name] != after[name]} == {"samples"}
    assert len(after["samples"]) == 12
    assert verify(filled).faults == ()
    assert prune(filled, before).runs == 0


def test_pruning_goes_on_over_many_runs(filled, monkeypatch):
    monkeypatch.setattr("regress_db.upkeep._RUNS_AT_ONCE", 3)
    assert prune(filled, datetime.now(UTC) + timedelta(days=1)).runs == 16
    with filled.read() as connection:
        assert connection.execute(select(func.count()).select_from(schema.SAMPLES)).scalar_one() == 0


def test_a_backup_is_the_history_with_what_others_are_writing_left_out(filled_file, tmp_path):
    before = everything(filled_file)
    with filled_file.write() as writing:
        writing.execute(text("DELETE FROM samples"))
        size_bytes = back_up(filled_file.where, tmp_path / "b" / "backup.db")
    assert size_bytes == (tmp_path / "b" / "backup.db").stat().st_size
    with History.open(tmp_path / "b" / "backup.db", create=False) as copied:
        assert everything(copied) == before
        assert len(list_baselines(copied)) == 1
    assert [file.name for file in (tmp_path / "b").iterdir()] == ["backup.db"]


def test_a_backup_never_goes_over_what_is_there(filled_file, tmp_path):
    (tmp_path / "backup.db").write_text("precious")
    with pytest.raises(HistoryError, match=r"is there already and stays as it is"):
        back_up(filled_file.where, tmp_path / "backup.db")
    assert (tmp_path / "backup.db").read_text() == "precious"


def test_a_backup_of_nothing_of_something_else_and_of_a_server_is_a_sentence(tmp_path, postgres_history):
    with pytest.raises(NotFoundError, match="there is no history at"):
        back_up(str(tmp_path / "none.db"), tmp_path / "backup.db")
    (tmp_path / "text.db").write_text("hello " * 100)
    with pytest.raises(HistoryError, match="is not a database"):
        back_up(str(tmp_path / "text.db"), tmp_path / "backup.db")
    (tmp_path / "empty.db").touch()
    with pytest.raises(HistoryError, match="nothing to back up"):
        back_up(str(tmp_path / "empty.db"), tmp_path / "backup.db")
    with pytest.raises(HistoryError, match="pg_dump"):
        back_up(postgres_history.where, tmp_path / "backup.db")
    assert not (tmp_path / "backup.db").exists()


def in_a_process(script, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=60, **options
    )


NO_ROOM = """
import resource, sys
from pathlib import Path
from harness.errors import EpwatchError
from regress_db.history import History
from regress_db.upkeep import back_up, copy
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
for step in (lambda: back_up(sys.argv[1], Path(sys.argv[2])), lambda: copy(History.open(sys.argv[1]), sys.argv[2])):
    try:
        step()
    except EpwatchError as error:
        print("SENTENCE", error)
"""


def test_no_room_for_a_copy_is_a_sentence_and_nothing_is_left(filled_file, tmp_path):
    done = in_a_process(NO_ROOM, filled_file.where, tmp_path / "there" / "copy.db")
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    assert all(line.startswith("SENTENCE") for line in lines)
    assert list((tmp_path / "there").iterdir()) == []
    assert verify(filled_file).faults == ()


def test_a_history_nobody_here_may_write_is_verified_and_backed_up_and_not_pruned(filled_file, tmp_path):
    """As an unprivileged user, since root may write anywhere."""
    with tempfile.TemporaryDirectory() as name:
        back_up(filled_file.where, tmp_path / "b.db")
        shutil.copy(tmp_path / "b.db", f"{name}/history.db")
        out = tempfile.mkdtemp()
        Path(out).chmod(0o777)
        Path(f"{name}/history.db").chmod(0o444)
        Path(name).chmod(0o555)
        script = """
import os, sys
from datetime import UTC, datetime
from pathlib import Path
from harness.errors import EpwatchError
from regress_db.history import History
from regress_db.upkeep import back_up, prune
from regress_db.upkeep_verify import verify
import regress_db.asking, sqlalchemy.sql.default_comparator
if os.getuid() == 0:
    with History.open(sys.argv[3]) as loads_everything:
        verify(loads_everything), prune(loads_everything, datetime(2000, 1, 1, tzinfo=UTC))
    os.setgid(65534)
    os.setuid(65534)
with History.open(sys.argv[1], create=False, migrate_older=False) as history:
    print(verify(history).faults)
    print(back_up(sys.argv[1], Path(sys.argv[2]) / "b.db") > 0)
    try:
        prune(history, datetime.now(UTC))
    except EpwatchError as error:
        print(error)
"""
        done = in_a_process(script, f"{name}/history.db", out, tmp_path / "other.db", cwd="/")
        Path(name).chmod(0o755)
        shutil.rmtree(out)
    lines = done.stdout.splitlines()
    assert lines[:2] == ["()", "True"], done.stderr
    assert "read-only" in lines[2]


def test_a_copy_that_is_killed_leaves_no_history(filled_file, tmp_path, postgres_url):
    script = """
import os, signal, sys
from regress_db import upkeep
from regress_db.history import History
upkeep._set_sequences = lambda connection: os.kill(os.getpid(), signal.SIGKILL)
upkeep.copy(History.open(sys.argv[1]), sys.argv[2])
"""
    for target in (str(tmp_path / "there" / "copy.db"), postgres_url):
        assert in_a_process(script, filled_file.where, target).returncode == -signal.SIGKILL
        assert copy(filled_file, target).rows["runs"] == 18
    assert (tmp_path / "there" / "copy.db").exists()


def test_an_older_history_is_refused_where_it_must_not_change(filled_file, tmp_path):
    damage(filled_file, "UPDATE alembic_version SET version_num = '0001'")
    with pytest.raises(HistoryError, match=r"has schema 0001.*nothing was changed"):
        History.open(filled_file.path, create=False, migrate_older=False)
    assert back_up(filled_file.where, tmp_path / "backup.db") > 0
    assert not list(tmp_path.glob("*.bak"))
