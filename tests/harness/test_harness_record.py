"""Keys that last for ever, and records of which a reader sees the whole or nothing."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import environment, record
from harness.case import Case
from harness.errors import CaseError, RecordError
from harness.job import JobSpec
from harness.record import Failure, PlannedRun, RankPlacement, Record, new_run_id
from harness.unmeasured import write_unmeasured

names = st.from_regex(r"[a-z0-9][a-z0-9_.+-]{0,12}", fullmatch=True)
cases = st.builds(
    Case,
    backend=names,
    mode=st.sampled_from(["ll", "ht"]),
    device=st.sampled_from(["cpu", "cuda"]),
    ranks=st.integers(0, 10**6),
    nodes=st.integers(0, 100),
    tokens=st.integers(0, 10**9),
    hidden=st.integers(0, 10**6),
    topk=st.integers(0, 100),
    experts=st.integers(0, 10**5),
    dtype=st.sampled_from(["bf16", "fp8"]),
    combine=st.sampled_from(["exact", "local_reduce"]),
    routing=names,
    seed=st.integers(0, 2**64),
    protocol=st.sampled_from(["phased", "paired", "graph", "kernel"]),
)


@given(cases)
def test_a_key_is_the_whole_case(case):
    assert Case.parse(case.key) == case
    assert Case.of(msgspec.to_builtins(case)) == case


def test_the_key_of_the_canonical_case_is_as_documented():
    case = Case(backend="ep_core", mode="ll", ranks=2, tokens=128, hidden=7168, topk=8, experts=256)
    assert case.key == "ep_core/ll/cpu/r2n1/t128/h7168/k8/e256/bf16/exact/uniform@0/phased"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("", "malformed"),
        ("ep_core/ll/cpu", "malformed"),
        ("ep_core/ll/cpu/r2n1/t128/h7168/k8/e256/bf16/exact/uniform/phased", "malformed"),
        ("ep_core/xx/cpu/r2n1/t128/h7168/k8/e256/bf16/exact/uniform@0/phased", "mode"),
        ("ep_core/ll/tpu/r2n1/t128/h7168/k8/e256/bf16/exact/uniform@0/phased", "device"),
        ("ep_core/ll/cpu/r2n1/t128/h7168/k8/e256/fp4/exact/uniform@0/phased", "dtype"),
    ],
)
def test_a_key_that_is_none_is_refused(key, words):
    with pytest.raises(CaseError, match=words):
        Case.parse(key)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"experts": 15}, "15 experts cannot be divided among 2 ranks"),
        ({"topk": 17}, "topk is 17 but there are only 16 experts"),
        ({"topk": 33, "experts": 64}, "topk is 33, wanted at most 32"),
        ({"ranks": 65, "experts": 65}, "ranks is 65, wanted at most 64"),
        ({"nodes": 3}, "2 ranks cannot be spread evenly over 3 nodes"),
        ({"hidden": 12}, "a bf16 row must be a multiple of 16 bytes"),
        ({"hidden": 64, "dtype": "fp8"}, "fp8 needs a multiple of 128"),
        ({"mode": "ht"}, "always local_reduce"),
        ({"tokens": -1}, "tokens is -1, wanted at least 0"),
        ({"backend": "EP Core"}, "backend 'EP Core' is not a name"),
    ],
)
def test_sizes_that_cannot_run_say_why(changes, words):
    case = Case(backend="ep_core", mode="ll", ranks=2, tokens=64, hidden=256, topk=4, experts=16)
    with pytest.raises(CaseError, match=words):
        msgspec.structs.replace(case, **changes).validate()


def a_record(**changes):
    made = Record(
        run_id=new_run_id(),
        case=Case(backend="torch", mode="ll", ranks=2, tokens=1, hidden=8, topk=1, experts=2),
        platform=environment.platform("local", "cpu", 1),
        environment=environment.capture({}),
        nodes=environment.nodes(["a", "a"]),
        started_at=environment.utc_now(),
        ended_at=environment.utc_now(),
        warmup=1,
        iters=2,
        outcome="failed",
        checks=[],
        phases=[],
        failure=Failure(step="setup", kind="X", message="no"),
    )
    return msgspec.structs.replace(made, **changes)


def test_written_is_read(tmp_path):
    made = a_record(notes=["µs – ü"])
    path = record.write(made, tmp_path / "deep" / "spool")
    assert record.read(path) == made
    assert [entry.name for entry in path.parent.iterdir()] == [f"{made.run_id}.json"]


FIRST = Path(__file__).parent / "data" / "record_1.json"


def test_a_record_of_version_1_is_read_and_stays_what_it_was():
    made = record.read(FIRST)
    assert (made.schema_version, made.outcome, made.night) == (1, "ok", "old")
    assert (made.placement, made.launcher, made.attempt, made.scheduler_job) == ([], "", 1, "")
    assert record.encode(made) + b"\n" == FIRST.read_bytes()


def test_a_record_of_version_1_has_no_field_of_a_later_one():
    later = FIRST.read_bytes().replace(b'"notes":', b'"launcher": "srun", "notes":')
    with pytest.raises(RecordError, match=r"schema version 1.*launcher"):
        record.decode(later)


def test_a_record_is_found_where_ingestion_moved_it(tmp_path):
    made = a_record()
    assert record.recorded(tmp_path / "absent", made.run_id) is None
    path = record.write(made, tmp_path)
    assert record.recorded(tmp_path, made.run_id) == path
    (tmp_path / record.INGESTED).mkdir()
    moved = path.rename(tmp_path / record.INGESTED / path.name)
    assert record.recorded(tmp_path, made.run_id) == moved


def test_a_run_that_nobody_measured_is_put_where_it_was_and_over_no_record(tmp_path):
    case = a_record().case
    runs = [PlannedRun(run_id=new_run_id(), case=case) for _ in range(2)]
    spec = JobSpec(runs=runs, spool=str(tmp_path), log_folder=str(tmp_path / "log"), attempt=3)
    failure = Failure(step="job", kind="JobDied", message="died")
    known = record.read(write_unmeasured(spec, runs[0], "failed", failure, hosts=["gpu1", "gpu2"]))
    assert known.placement == [RankPlacement(rank=0, hostname="gpu1"), RankPlacement(rank=1, hostname="gpu2")]
    assert {node.hostname: node.ranks for node in known.nodes} == {"gpu1": [0], "gpu2": [1]}
    assert known.attempt == 3
    unknown = record.read(write_unmeasured(spec, runs[1], "failed", failure))
    assert unknown.placement == []
    assert unknown.nodes[0].ranks == [0, 1]
    assert record.read(write_unmeasured(spec, runs[0], "hung", failure)) == known


def test_who_gives_a_run_up_from_a_slurm_job_of_its_own_does_not_name_that_one(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    runs = [PlannedRun(run_id=new_run_id(), case=a_record().case) for _ in range(2)]
    spec = JobSpec(runs=runs, spool=str(tmp_path), log_folder=str(tmp_path / "log"))
    failure = Failure(step="job", kind="JobRefused", message="refused")
    never = record.read(write_unmeasured(spec, runs[0], "failed", failure, scheduler_job=""))
    assert (never.scheduler_job, never.notes) == ("", [])
    begun = record.read(write_unmeasured(spec, runs[1], "failed", failure, scheduler_job="Slurm job 9_1"))
    assert (begun.scheduler_job, begun.notes) == ("Slurm job 9_1", [])


def test_many_writers_leave_whole_records_and_nothing_else(tmp_path):
    made = [a_record() for _ in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: record.write(one, tmp_path), made * 2))
    assert {path.name for path in tmp_path.iterdir()} == {f"{one.run_id}.json" for one in made}
    assert all(record.read(tmp_path / f"{one.run_id}.json") == one for one in made)


def test_a_writer_killed_at_any_moment_leaves_no_torn_record(tmp_path):
    program = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[2])\n"
        "from test_harness_record import a_record; from harness import record\n"
        "print('ready', flush=True)\n"
        "while True: record.write(a_record(notes=['x' * 200000]), pathlib.Path(sys.argv[1]))\n"
    )
    here = os.path.dirname(__file__)  # noqa: PTH120
    for pause_s in (0.01, 0.05, 0.1):
        writer = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), here], stdout=subprocess.PIPE)
        writer.stdout.readline()
        time.sleep(pause_s)
        writer.send_signal(signal.SIGKILL)
        writer.wait(30)
        writer.stdout.close()
    whole = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert whole
    for path in whole:
        record.read(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a run record"),
        (b"{}", "not a run record"),
        (b"\xff\xfe", "not a run record"),
        (b'{"schema_version": 99}', "schema version 99, this epwatch reads up to 2"),
        (b'{"schema_version": 1}', "not a run record of schema version 1"),
    ],
)
def test_what_is_no_record_is_refused_by_name(tmp_path, data, words):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(RecordError, match=words) as caught:
        record.read(path)
    assert str(path) in str(caught.value)


def test_an_unknown_field_is_refused_not_dropped():
    text = record.encode(a_record()).replace(b'"notes":', b'"noise":')
    with pytest.raises(RecordError, match="noise"):
        record.decode(text)


def test_a_spool_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "spool").write_text("a file")
    with pytest.raises(RecordError, match=f"cannot write the record {tmp_path}/spool"):
        record.write(a_record(), tmp_path / "spool")
