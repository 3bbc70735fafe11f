"""From the spool into the history: what is accepted, what is refused, and that nothing is lost or counted twice."""

import json
import math
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import func, select, text
from synthetic_records import CASE, failed_record, ok_record, phase_result

from harness import record as records
from harness.case import Case
from regress_db.errors import HistoryError
from regress_db.history import History
from regress_db.ingest import collect
from regress_db.schema import RUN_RANKS, RUN_VALUES, RUNS, SAMPLES
from regress_db.upkeep_verify import verify

POISON = {
    False: [
        "CREATE TRIGGER poison BEFORE INSERT ON samples "
        "WHEN (SELECT notes FROM runs WHERE id = NEW.run) LIKE '%poison%' "
        "BEGIN SELECT RAISE(ABORT, 'the constraint says no'); END"
    ],
    True: [
        "CREATE FUNCTION poison() RETURNS trigger AS $$ BEGIN "
        "IF (SELECT notes::text FROM runs WHERE id = NEW.run) LIKE '%poison%' THEN "
        "RAISE EXCEPTION 'the constraint says no' USING ERRCODE = 'check_violation'; END IF; "
        "RETURN NEW; END $$ LANGUAGE plpgsql",
        "CREATE TRIGGER poison BEFORE INSERT ON samples FOR EACH ROW EXECUTE FUNCTION poison()",
    ],
}
"""What makes the database refuse the samples of a run whose notes say poison: in a file, and on a server."""


def count(history, table=RUNS):
    with history.read() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def names(folder):
    return sorted(file.name for file in folder.iterdir()) if folder.exists() else []


def test_a_record_leaves_the_spool_once_it_is_in_the_history(history, spool):
    record = ok_record()
    records.write(record, spool)
    done = collect(history, spool)
    assert (done.accepted, done.already, done.quarantined) == ([record.run_id], [], [])
    assert names(spool) == ["ingested"]
    assert names(spool / "ingested") == [f"{record.run_id}.json"]


def test_the_same_record_again_changes_nothing(history, spool):
    record = ok_record()
    records.write(record, spool)
    collect(history, spool)
    data = msgspec.json.encode(record)
    (spool / f"{record.run_id}.json").write_bytes(data)
    (spool / "copy.json").write_bytes(records.encode(record))
    done = collect(history, spool)
    assert (done.accepted, done.already, done.quarantined) == ([], [record.run_id] * 2, [])
    assert count(history) == 1


FIRST = Path(__file__).parents[1] / "harness" / "data" / "record_1.json"


def test_a_record_of_version_1_enters_and_is_known_by_the_digest_that_it_always_had(history, spool):
    for _ in range(2):
        spool.mkdir(exist_ok=True)
        (spool / "old.json").write_bytes(FIRST.read_bytes())
        done = collect(history, spool)
        assert done.quarantined == []
    assert len(done.already) == 1
    with history.read() as connection:
        (row,) = connection.execute(select(*RUNS.c)).all()
        ranks = connection.execute(select(RUN_RANKS.c.rank, RUN_RANKS.c.cpus, RUN_RANKS.c.numa)).all()
    assert row.digest == "1e4f2eecaa76af1d263453782220f90b13a3fbc733032758caaf8e956df30bbf"
    assert (row.launcher, row.attempt, row.scheduler_job) == (None, None, None)
    assert sorted(ranks) == [(0, None, None), (1, None, None)]


def test_two_files_of_one_run_in_one_spool_count_once(history, spool):
    record = ok_record()
    records.write(record, spool)
    (spool / "copy.json").write_bytes(records.encode(record))
    done = collect(history, spool)
    assert done.accepted == done.already == [record.run_id]
    assert count(history) == 1


def test_the_same_run_id_with_other_content_is_refused(history, spool):
    record = ok_record(seed=1)
    records.write(record, spool)
    collect(history, spool)
    records.write(ok_record(seed=2, run_id=record.run_id), spool)
    done = collect(history, spool)
    assert done.accepted == done.already == []
    assert "in the history already, with other content" in done.quarantined[0][1]
    assert names(spool / "quarantine") == [f"{record.run_id}.json", f"{record.run_id}.json.reason"]
    assert names(spool / "ingested") == [f"{record.run_id}.json"]


def test_unreadable_files_are_set_aside_with_the_reason_and_the_rest_goes_on(history, spool):
    good = ok_record()
    records.write(good, spool)
    newer = json.loads(records.encode(ok_record())) | {"schema_version": 99}
    contents = {
        "empty.json": b"",
        "half.json": records.encode(ok_record())[:500],
        "binary.json": bytes(range(256)),
        "list.json": b"[1, 2]",
        "newer.json": json.dumps(newer).encode(),
        "unknown-field.json": json.dumps(json.loads(records.encode(ok_record())) | {"colour": "red"}).encode(),
    }
    for name, content in contents.items():
        (spool / name).write_bytes(content)
    done = collect(history, spool)
    assert done.accepted == [good.run_id]
    assert {file.name for file, _ in done.quarantined} == set(contents)
    for name, content in contents.items():
        assert (spool / "quarantine" / name).read_bytes() == content
        assert (spool / "quarantine" / f"{name}.reason").read_text().strip()
    assert "newer epwatch" in (spool / "quarantine" / "newer.json.reason").read_text()


def test_a_second_bad_file_of_one_name_does_not_overwrite_the_first(history, spool):
    for content in (b"one", b"two"):
        (spool / "bad.json").write_bytes(content)
        collect(history, spool)
    assert {file.read_bytes() for file in (spool / "quarantine").glob("*.json")} == {b"one", b"two"}


def test_unfinished_files_and_other_things_are_left_alone(history, spool):
    (spool / ".abc.123.partial").write_bytes(b"{")
    (spool / ".hidden.json").write_bytes(b"{")
    (spool / "notes.txt").write_text("hello")
    (spool / "folder.json").mkdir()
    done = collect(history, spool)
    assert not done.accepted
    assert not done.quarantined
    assert names(spool) == [".abc.123.partial", ".hidden.json", "folder.json", "notes.txt"]


def test_a_spool_that_is_not_there_is_empty(history, tmp_path):
    assert collect(history, tmp_path / "none").accepted == []


def replace_phase(record, **changes):
    first = msgspec.structs.replace(record.phases[0], **changes)
    return msgspec.structs.replace(record, phases=[first, *record.phases[1:]])


def with_stats(**changes):
    record = ok_record()
    return replace_phase(record, stats=msgspec.structs.replace(record.phases[0].stats, **changes))


def contradictions():
    ok = ok_record()
    replace = msgspec.structs.replace
    result = ok.phases[0]
    return {
        "slowest_p50_us is": with_stats(slowest_p50_us=1.0),
        "latency_us is": with_stats(latency_us=1e-6),
        "std_us is": with_stats(std_us=-1.0),
        "p99_us is 0": with_stats(p99_us=0.0),
        "rank_p50_us does not hold 2": with_stats(rank_p50_us=[1.0]),
        "slowest_rank is 2": with_stats(slowest_rank=2),
        "samples of 1 ranks": replace_phase(ok, samples_us=result.samples_us[:1]),
        "different numbers of samples": replace_phase(ok, samples_us=[result.samples_us[0], [1.0]]),
        "none is left": replace_phase(ok, leading_dropped=12),
        "not a positive number": replace_phase(ok, samples_us=[[0.0] * 12, [1.0] * 12]),
        "headline": replace_phase(ok, traffic=replace(result.traffic, headline="nonsense")),
        "byte count": replace_phase(ok, traffic=replace(result.traffic, bytes_per_rank={"recv": -1.0})),
        "a phase is there twice": replace(ok, phases=[result, result]),
        "no timings": replace(ok, phases=[]),
        "a check did not pass": replace(ok, checks=[replace(ok.checks[0], passed=False)]),
        "there is a failure": replace(ok, failure=failed_record().failure),
        "the case cannot be": replace(ok, case=replace(CASE, topk=9)),
        "the nodes hold ranks": replace(ok, nodes=[replace(ok.nodes[0], ranks=[0])]),
        "the placement has other ranks": replace(ok, placement=ok.placement[:1]),
        "than the nodes say": replace(ok, placement=[replace(one, hostname="node-2") for one in ok.placement]),
        "stands on two nodes": replace(ok, nodes=[ok.nodes[0], ok.nodes[0]]),
        "not 32 hex digits": replace(ok, run_id="../../etc/passwd"),
        "started_at": replace(ok, started_at="yesterday"),
        "ended_at": replace(ok, ended_at="2026-10-01T02:00:00"),
        "no failure says why": replace(ok, outcome="failed", phases=[]),
        "but there are timings": replace(ok, outcome="hung", failure=failed_record().failure),
        "cannot be read back": replace(failed_record(), case=replace(CASE, backend="a/b")),
        "key 'ep_core/ll/cpu/r2n1/t-1/": replace(failed_record(), case=replace(CASE, tokens=-1)),
        "does not fit 64 bits": replace(ok, case=replace(CASE, seed=2**70)),
    }


@pytest.mark.parametrize("reason", contradictions())
def test_a_record_that_contradicts_itself_is_refused(history, spool, reason):
    (spool / "bad.json").write_bytes(records.encode(contradictions()[reason]))
    done = collect(history, spool)
    assert not done.accepted
    assert reason in done.quarantined[0][1]
    assert count(history) == 0


def test_what_the_database_refuses_does_not_take_its_neighbours_with_it(history, spool):
    """The refused record comes first, and had added a node and a case that its neighbours share."""
    for statement in POISON[history.path is None]:
        with history.write() as connection:
            connection.execute(text(statement))
    bad = msgspec.structs.replace(ok_record(run_id="0" * 32, hostname="shared"), notes=["poison"])
    good = [ok_record(hostname="shared", seed=seed) for seed in range(3)]
    for record in (bad, *good):
        records.write(record, spool)
    done = collect(history, spool)
    assert sorted(done.accepted) == sorted(record.run_id for record in good)
    assert "the constraint says no" in done.quarantined[0][1]
    assert count(history) == 3
    assert verify(history).faults == ()


def test_failed_runs_of_impossible_cases_are_kept(history, spool):
    impossible = Case(backend="ep_core", mode="ll", ranks=3, tokens=32, hidden=256, topk=4, experts=8)
    record = failed_record("failed", "8 experts cannot be divided among 3 ranks", case=impossible)
    records.write(record, spool)
    assert collect(history, spool).accepted == [record.run_id]
    assert count(history, RUN_VALUES) == 0


def test_a_clock_that_went_backwards_is_no_reason_to_refuse(history, spool):
    record = msgspec.structs.replace(ok_record(), ended_at="2020-01-01T00:00:00Z")
    records.write(record, spool)
    assert collect(history, spool).accepted == [record.run_id]


def test_values_and_samples_are_kept_apart(history, spool):
    records.write(ok_record(), spool)
    collect(history, spool)
    assert count(history, SAMPLES) == 2
    assert count(history, RUN_VALUES) > 20


def test_a_full_disk_is_a_sentence_and_the_records_stay_in_the_spool(tmp_path, spool):
    for index in range(40):
        records.write(ok_record(seed=index, iters=200), spool)
    database = tmp_path / "history.db"
    History.open(database).close()
    script = f"""
import resource, sys
from pathlib import Path
from harness.errors import EpwatchError
from regress_db.history import History
from regress_db.ingest import collect
with History.open({str(database)!r}) as history:
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
    try:
        collect(history, Path({str(spool)!r}))
    except EpwatchError as error:
        sys.exit(f"SENTENCE {{error}}")
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert process.stderr.startswith("SENTENCE the history"), process.stderr
    assert "no space" in process.stderr
    assert len(list(spool.glob("*.json"))) == 40
    with History.open(database) as history:
        assert count(history) == 0
        assert len(collect(history, spool).accepted) == 40


def test_a_spool_that_cannot_be_written_keeps_the_history_in_order(history, spool, monkeypatch):
    record = ok_record()
    records.write(record, spool)
    (spool / "ingested").write_text("a file where the folder should be")
    with pytest.raises(HistoryError, match="cannot move"):
        collect(history, spool)
    (spool / "ingested").unlink()
    assert collect(history, spool).already == [record.run_id]
    assert count(history) == 1


def test_the_factory_tells_the_truth():
    """The statistics of synthetic records follow the definitions, so that the tests above mean something."""
    result = phase_result("dispatch", [[9.0, 1.0, 2.0, 3.0], [9.0, 4.0, 1.0, 2.0]])
    assert math.isclose(result.stats.latency_us, (2 + 7 / 3) / 2)
    assert result.stats.slowest_p50_us == 3.0
