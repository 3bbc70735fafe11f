"""Faults, with real processes: many at once, killed at any moment, no room on the disk, bits that flip, odd clocks.

What is acknowledged (a file that left the spool) is in the history, and once. Each test forks its victims from a
process that has everything loaded, so that a kill hits the work and not the start of Python.
"""

import json
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select
from synthetic_records import START, ok_record
from test_regress_db_migrations import DATA, restore

from harness import record as records
from regress_db import queries
from regress_db.history import History
from regress_db.ingest import collect
from regress_db.schema import RUNS, SAMPLES
from regress_db.upkeep_verify import verify

DEADLINE_S = 150

FORKED = """
import json, os, random, signal, sys, time
from pathlib import Path
from regress_db import ingest, migrate, queries, upkeep_verify
from regress_db.history import History
from regress_db.migrate import PACKAGED, Revisions
import alembic.command, alembic.config, alembic.runtime.migration, sqlalchemy.dialects.postgresql

def fork(work):
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return child

def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def killed_after(work, delay_s):
    '''Whether the work was killed `delay_s` after its start, and not done before.'''
    child = fork(work)
    time.sleep(delay_s)
    os.kill(child, signal.SIGKILL)
    return ended(child) == -signal.SIGKILL
"""


def forked(script: str, *arguments: object) -> list[object]:
    """Runs a script that may fork; its lines of JSON."""
    done = subprocess.run(
        [sys.executable, "-c", FORKED + textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir()) if folder.exists() else []


def count(history: History, table=RUNS) -> int:
    with history.read() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


AT_ONCE = """
place, folder = sys.argv[1], Path(sys.argv[2])
gate = os.pipe()

def collector(number):
    def work():
        os.close(gate[1])
        os.read(gate[0], 1)
        with History.open(place) as history:
            done = ingest.collect(history, folder / f"spool-{number % 16}")
        said = json.dumps([len(done.accepted), len(done.already), len(done.quarantined)])
        os.write(1, f"{said}\\n".encode())
    return work

children = [fork(collector(number)) for number in range(20)]
os.close(gate[1])
codes = [ended(child) for child in children]
assert codes == [0] * 20, codes
"""


def test_twenty_collectors_at_once_count_everything_once(new_place, tmp_path):
    """Twenty processes make one history and fill it: from 16 spools, four of them shared by two processes.

    Five records in each spool are its own, ten are in every spool, and one spool has a record that clashes.
    """
    shared = [ok_record(seed=index, hostname=f"node-{index}") for index in range(10)]
    for spool in range(16):
        folder = tmp_path / f"spool-{spool}"
        for record in shared:
            records.write(record, folder)
        for index in range(5):
            records.write(ok_record(seed=100 * spool + index, night=f"night-{index}"), folder)
    (tmp_path / "spool-3" / "bad.json").write_bytes(b"bad")
    said = forked(AT_ONCE, new_place, tmp_path)
    accepted, already, quarantined = (sum(column) for column in zip(*said, strict=True))
    assert (accepted, quarantined) == (16 * 5 + 10, 1)
    assert already >= 15 * 10
    with History.open(new_place, create=False) as history:
        assert (count(history), count(history, SAMPLES)) == (90, 180)
        assert verify(history).faults == ()
    for spool in range(16):
        folder = tmp_path / f"spool-{spool}"
        assert names(folder) == ["ingested", *(["quarantine"] if spool == 3 else [])]
        assert len(names(folder / "ingested")) == 15


KILLED_COLLECTORS = """
place, spool, stock, kills = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
ingest._BATCH = 3
History.open(place).close()
chance = random.Random()

def work():
    with History.open(place) as history:
        ingest.collect(history, spool)

killed = midway = 0
longest_s = 0.15
while killed < kills:
    waiting = list(spool.glob("*.json"))
    for file in sorted(stock.iterdir())[:40 - len(waiting)]:
        file.rename(spool / file.name)
    acknowledged = {file.stem for file in (spool / "ingested").glob("*.json")}
    was_killed = killed_after(work, chance.uniform(0.0, longest_s))
    longest_s *= 1.1 if was_killed else 0.8
    with History.open(place) as history:
        there = {line.run_id for line in queries.runs(history)}
    moved = {file.stem for file in (spool / "ingested").glob("*.json")}
    assert acknowledged <= moved <= there, moved - there
    killed += was_killed
    midway += was_killed and acknowledged < moved
print(json.dumps([killed, midway]))
"""


def kill_collectors(place, spool, kills):
    stock = spool.with_name("stock")
    run_ids = set()
    for seed in range(20 * kills + 40):
        record = ok_record(seed=seed, iters=3)
        records.write(record, stock)
        run_ids.add(record.run_id)
    ((killed, midway),) = forked(KILLED_COLLECTORS, place, spool, stock, kills)
    assert killed == kills
    assert midway > 0
    for file in stock.iterdir():
        file.rename(spool / file.name)
    with History.open(place, create=False) as history:
        collect(history, spool)
        assert {line.run_id for line in queries.runs(history)} == run_ids
        assert (count(history), count(history, SAMPLES)) == (len(run_ids), 2 * len(run_ids))
        assert verify(history).faults == ()
    assert {name.removesuffix(".json") for name in names(spool / "ingested")} == run_ids
    assert names(spool) == ["ingested"]


def test_collectors_that_are_killed_lose_nothing(new_place, spool):
    kill_collectors(new_place, spool, 6)


@pytest.mark.long
def test_fifty_collectors_that_are_killed_lose_nothing(new_place, spool):
    kill_collectors(new_place, spool, 50)


KILLED_MIGRATIONS = """
source, folder, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
import shutil
chance = random.Random()
killed, newer, faults = 0, 0, []
longest_s = 0.3
while killed < kills:
    place = folder / f"{killed}" / "history.db"
    shutil.rmtree(place.parent, ignore_errors=True)
    place.parent.mkdir(parents=True)
    shutil.copy(source, place)
    start = time.monotonic()
    if not killed_after(lambda: History.open(place).close(), chance.uniform(0.0, longest_s)):
        longest_s *= 0.8
        continue
    killed += 1
    version = migrate.file_version(place)
    assert version in ("0001", PACKAGED.head), version
    newer += version == PACKAGED.head
    with History.open(place) as history:
        faults += upkeep_verify.verify(history).faults
        assert len(queries.runs(history)) == 10
    for backup in place.parent.glob("*.bak"):
        assert migrate.file_version(backup) == "0001"
    assert list(place.parent.glob("*.bak"))
    shutil.rmtree(place.parent)
print(json.dumps([killed, newer, faults]))
"""


def kill_migrations(tmp_path, kills):
    source = restore(DATA / "history_0001.sql", tmp_path / "released.db")
    ((killed, _, faults),) = forked(KILLED_MIGRATIONS, source, tmp_path / "work", kills)
    assert (killed, faults) == (kills, [])


def test_a_migration_that_is_killed_has_happened_or_not(tmp_path):
    kill_migrations(tmp_path, 8)


@pytest.mark.long
def test_fifty_migrations_that_are_killed_have_happened_or_not(tmp_path):
    kill_migrations(tmp_path, 50)


KILLED_MAKERS = """
place = sys.argv[1]
for turn in range(8):
    if not killed_after(lambda: History.open(place).close(), random.uniform(0.0, 0.2)):
        break
print(turn)
"""


def test_a_history_whose_making_is_killed_can_be_made(new_place, spool):
    forked(KILLED_MAKERS, new_place)
    records.write(ok_record(), spool)
    with History.open(new_place) as history:
        assert len(collect(history, spool).accepted) == 1
        assert verify(history).faults == ()


FULL_DISK = """
import subprocess, sys
from pathlib import Path
from harness.errors import EpwatchError
from regress_db.history import History
from regress_db.ingest import collect
from regress_db.upkeep import back_up

disk, spool = Path(sys.argv[1]), Path(sys.argv[2])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=768k", "none", disk], check=True)
print("mounted", flush=True)
with History.open(disk / "history.db") as history:
    for step in (lambda: collect(history, spool), lambda: back_up(history.where, disk / "backup.db")):
        try:
            step()
            print("no error", flush=True)
        except EpwatchError as error:
            print(str(error), flush=True)
    print(sorted(file.name for file in disk.iterdir() if "backup" in file.name), len(list(spool.glob("*.json"))))
subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
with History.open(disk / "history.db") as history:
    print(len(collect(history, spool).quarantined), flush=True)
    back_up(history.where, spool / "kept.db")
"""


def test_a_disk_that_is_full_is_a_sentence_and_with_room_again_nothing_is_lost(tmp_path, spool):
    """A disk of its own: a small tmpfs in a mount namespace, which ends with the process."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare here")
    for index in range(60):
        records.write(ok_record(seed=index, iters=2000), spool)
    (tmp_path / "disk").mkdir()
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", FULL_DISK, tmp_path / "disk", spool],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    if not done.stdout.startswith("mounted"):
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip().splitlines()[-1]}")
    lines = done.stdout.splitlines()
    assert len(lines) == 5, (lines, done.stderr)
    assert "no space" in lines[1] or "is full" in lines[1]
    assert "full" in lines[2] or "No space" in lines[2]
    assert lines[3].startswith("[] ")
    assert lines[4] == "0"
    with History.open(spool / "kept.db", create=False) as history:
        assert (count(history), count(history, SAMPLES)) == (60, 120)
        assert verify(history).faults == ()


def test_a_clock_that_goes_backwards_orders_runs_by_what_it_said_and_loses_none(history, spool):
    for seed, hours in enumerate((0, 5, -48, 3, -1)):
        records.write(ok_record(seed=seed, started=START + timedelta(hours=hours)), spool)
        collect(history, spool)
    points = queries.trend(history, metric="slowest_p50_us", phase="combine")
    assert [point.started_at - START for point in points] == [timedelta(hours=hours) for hours in (-48, -1, 0, 3, 5)]
    assert verify(history).faults == ()


def test_a_record_of_a_newer_version_waits_in_quarantine_and_enters_when_it_can(history, spool, monkeypatch):
    record = ok_record()
    newer = json.loads(records.encode(record)) | {"schema_version": records.SCHEMA_VERSION + 1}
    (spool / "newer.json").write_text(json.dumps(newer))
    ((_, reason),) = collect(history, spool).quarantined
    assert "use a newer epwatch" in reason
    assert count(history) == 0
    monkeypatch.setattr(records, "SCHEMA_VERSION", records.SCHEMA_VERSION + 1)
    (spool / "quarantine" / "newer.json").rename(spool / "newer.json")
    assert collect(history, spool).accepted == [record.run_id]


def test_a_file_that_is_no_history_any_more_while_open_is_a_sentence(sqlite_history, spool):
    """Bits flipped under an open history: a later step says so, and what lies in the spool stays there."""
    for index in range(30):
        records.write(ok_record(seed=index), spool)
    collect(sqlite_history, spool)
    sqlite_history.close()
    path = sqlite_history.path
    data = bytearray(path.read_bytes())
    for page in range(2, len(data) // 4096):
        data[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(data)
    waiting = ok_record(seed=99)
    records.write(waiting, spool)
    with pytest.raises(Exception, match=r"^the history .* is damaged") as caught:
        collect(sqlite_history, spool)
    assert "\n" not in str(caught.value)
    assert [file.stem for file in spool.glob("*.json")] == [waiting.run_id]


def test_a_killed_pytest_takes_its_postgresql_along(postgres, tmp_path):
    """The tests' own server: nothing of it is left when its owner is killed, neither processes nor files."""
    script = (
        f"import sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from postgres_server import PostgresServer, programs\n"
        "server = PostgresServer(programs())\n"
        "print(server.folder, (server.folder / 'data/postmaster.pid').read_text().split()[0], flush=True)\n"
        "time.sleep(100)"
    )
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    folder, pid = owner.stdout.readline().split()
    assert Path(f"/proc/{pid}").exists()
    owner.send_signal(signal.SIGKILL)
    owner.communicate(timeout=30)
    deadline = time.monotonic() + 30
    while (Path(folder).exists() or Path(f"/proc/{pid}").exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(folder).exists()
    assert not Path(f"/proc/{pid}").exists()
