"""What the history answers: the same numbers that went in, in order, chosen as asked."""

import dataclasses
import json
import struct
import tempfile
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_records import CASE, START, environment, failed_record, ok_record, phase_result

from harness import record as records
from harness.case import PHASES, Case
from harness.record import Record, Traffic
from regress_db import samples
from regress_db.details import samples_of, show
from regress_db.errors import NotFoundError
from regress_db.history import History
from regress_db.ingest import collect
from regress_db.metrics import metrics_of
from regress_db.queries import nights, runs, trend
from regress_db.selection import Selection
from regress_db.sides import compare_runs

HT = Case(backend="torch", mode="ht", ranks=4, tokens=64, hidden=512, topk=2, experts=8, combine="local_reduce")


def keep(history, spool, *made):
    for record in made:
        records.write(record, spool)
    done = collect(history, spool)
    assert len(done.accepted) == len(made), done
    return made


@pytest.fixture
def month(history, spool):
    """Thirty days of two cases; the second case's last run failed."""
    made = []
    for day in range(30):
        at = {"started": START + timedelta(days=day), "seed": day, "night": f"night-{day:02}"}
        made += [
            ok_record(dispatch_us=100.0 + day, **at),
            (failed_record if day == 29 else ok_record)(case=HT, **at),
        ]
    keep(history, spool, *made)
    return history


def test_a_trend_is_each_series_in_order_of_time(month):
    points = trend(month, phase="dispatch")
    assert [point.case for point in points] == [CASE.key] * 30 + [HT.key] * 29
    first = points[:30]
    assert [point.started_at for point in first] == [START + timedelta(days=day) for day in range(30)]
    assert [point.value for point in first] == pytest.approx([100.0 + day for day in range(30)], rel=0.02)
    assert (first[0].night, first[0].metric, first[0].commit) == ("night-00", "latency_us", "a" * 40)
    assert len(trend(month)) == 2 * 59


def test_a_limit_keeps_the_newest_of_each_series(month):
    points = trend(month, Selection(limit=3), metric="slowest_p50_us", phase="combine")
    assert [point.night for point in points] == [
        *("night-27", "night-28", "night-29"),
        *("night-26", "night-27", "night-28"),
    ]


CHOSEN_BY_TEXT = [
    ((), 59),
    (("ep_core/*",), 30),
    (("r4n1",), 29),
    (("torch/*", "ep_core/*"), 59),
    ((CASE.key,), 30),
    (("no_such",), 0),
    (("ep?core*",), 30),
    (("epxcore*",), 0),
    (("EP_CORE/*",), 30),
    (("mode=ll", "ranks=2"), 30),
    (("mode=ll", "mode=ht"), 0),
    (("mode=ll,ht",), 59),
    (("mode!=ll,ht",), 0),
    (("backend=t*",), 29),
    (("backend~orc",), 29),
    (("backend=orc",), 0),
    (("ranks>2", "ranks<=4"), 29),
    (("ranks>=3", "ep_core"), 0),
    (("tokens>=64", "tokens<128"), 29),
    (("ranks=3",), 0),
    (("platform~some cpu*",), 0),
    (("platform~local/*",), 59),
    (("device_model~cpu", "devices_per_node=8", "cluster=local"), 59),
    (("night=night-07",), 2),
    (("night=night-0?",), 20),
    (("night=",), 0),
    (("night!=night-07",), 57),
    (("commit=aaaa",), 59),
    (("commit=b",), 0),
    (("node=node-1",), 59),
    (("node!=node-1",), 0),
    (("node~ode",), 59),
    (("repeat<1",), 59),
    (("outcome=failed",), 0),
    (("outcome!=failed",), 59),
]
CHOSEN_BY_TIME = [
    ({"since": START + timedelta(days=20)}, 19),
    ({"until": START + timedelta(days=20)}, 40),
    ({"since": START + timedelta(days=3), "until": START + timedelta(days=4)}, 2),
    ({"since": "2026-10-21", "until": "2026-10-22T02:00"}, 2),
    ({"since": "2026-10-21T04:00+02:00"}, 19),
    ({"at": "AAAA"}, 59),
    ({"at": "b"}, 0),
    ({"limit": 10**18}, 59),
]


def test_patterns_and_filters_choose_runs(month):
    for texts, count in CHOSEN_BY_TEXT:
        assert len(trend(month, Selection.of(*texts), phase="dispatch")) == count, texts
        listed = runs(month, Selection.of(*texts))
        assert len([line for line in listed if line.dispatch_us is not None]) == count, texts


def test_times_and_commits_choose_runs(month):
    for chosen, count in CHOSEN_BY_TIME:
        assert len(trend(month, Selection.of(**chosen), phase="dispatch")) == count, chosen


def test_a_night_is_meant_exactly_where_a_program_names_it(month):
    assert len(runs(month, Selection(night="night-07"))) == 2
    assert runs(month, Selection(night="night-0?")) == []


def test_a_pattern_is_text_and_not_sql(month):
    for pattern in ("100%", "'; DROP TABLE runs; --", "a_b", "\\", '"', "[a-z]*"):
        assert trend(month, Selection.of(pattern)) == []
        assert trend(month, Selection.of(f"node={pattern}")) == []


def test_a_metric_that_is_not_there_is_a_sentence(month):
    with pytest.raises(NotFoundError, match=r"no metric 'speed'; it has .*latency_us"):
        trend(month, metric="speed")


def test_an_empty_history_answers_with_nothing(history):
    assert trend(history) == runs(history) == nights(history) == []
    with pytest.raises(NotFoundError):
        show(history, "latest")


def test_runs_are_listed_newest_first_with_both_phases(month):
    lines = runs(month, Selection(limit=4))
    assert [line.night for line in lines] == ["night-29", "night-29", "night-28", "night-28"]
    failed = next(line for line in lines if line.outcome == "failed")
    assert (failed.dispatch_us, failed.failure) == (None, "rank 1 was killed by signal 9")
    good = next(line for line in lines if line.case == CASE.key)
    assert good.combine_us == pytest.approx(200, rel=0.02)
    assert good.hosts == ("node-1",)


def test_runs_with_a_clock_that_jumped_are_still_all_there(history, spool):
    started = [START, START - timedelta(days=400), START + timedelta(days=1)]
    keep(history, spool, *(ok_record(started=moment, seed=index) for index, moment in enumerate(started)))
    assert [point.started_at for point in trend(history, phase="combine")] == sorted(started)


def test_one_run_is_shown_whole(history, spool):
    (record,) = keep(history, spool, ok_record(night="n", hostname="node<1>"))
    found = show(history, record.run_id[:8])
    assert found == show(history, record.run_id.upper())
    assert found == show(history, "latest")
    assert found.ranks_on == {"node<1>": (0, 1)}
    assert found.environment == msgspec.to_builtins(record.environment)
    assert [phase.phase for phase in found.phases] == list(PHASES)
    assert found.phases[0].values == pytest.approx(metrics_of(record.phases[0]))
    assert list(found.phases[0].rank_p50_us) == record.phases[0].stats.rank_p50_us
    assert (found.notes, found.conditions, len(found.checks)) == (("a note",), {"load_1m_before": 0.5}, 2)
    assert json.dumps(dataclasses.asdict(found), default=str)


def test_a_failed_run_shows_why_with_its_log(history, spool):
    (record,) = keep(history, spool, failed_record("hung", "rank 3 never arrived", "line 1\nline 2"))
    found = show(history, record.run_id)
    assert (found.outcome, found.phases) == ("hung", ())
    assert (found.failure.message, found.failure.log_tail) == ("rank 3 never arrived", "line 1\nline 2")


def test_the_head_of_an_id_that_several_runs_share_lists_them(history, spool):
    ids = ["abc" + f"{index:029x}" for index in range(3)]
    keep(history, spool, *(ok_record(run_id=run_id) for run_id in ids))
    with pytest.raises(NotFoundError) as error:
        show(history, "abc")
    assert all(run_id in str(error.value) for run_id in ids)
    assert show(history, ids[1]).run_id == ids[1]
    for nothing in ("", "fff", "%", "abd"):
        with pytest.raises(NotFoundError):
            show(history, nothing)


def test_two_runs_side_by_side(history, spool):
    first, second = keep(
        history,
        spool,
        ok_record(combine_us=200.0, env=environment(torch="2.12.0")),
        ok_record(combine_us=300.0, env=environment(torch="2.13.0"), hostname="node-2"),
    )
    found = compare_runs(history, first.run_id, second.run_id)
    change = {(value.phase, value.metric): value.change for value in found.values}
    assert change["combine", "latency_us"] == pytest.approx(0.5, rel=0.01)
    assert change["dispatch", "latency_us"] == pytest.approx(0, abs=0.01)
    assert [(one.name, one.first, one.second) for one in found.differences] == [
        ("hosts", "node-1", "node-2"),
        ("versions.torch", "2.12.0", "2.13.0"),
    ]


def test_a_run_without_numbers_can_be_compared_too(history, spool):
    good, bad = keep(history, spool, ok_record(), failed_record())
    found = compare_runs(history, good.run_id, bad.run_id)
    assert all(value.second is None and value.change is None for value in found.values)
    assert ("outcome", "ok", "failed") in [(one.name, one.first, one.second) for one in found.differences]


def float32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


numbers = st.floats(min_value=0.01, max_value=1e8)


@given(st.integers(0, 5), st.integers(0, 40), st.data())
def test_samples_come_back_to_float32(ranks, iterations, data):
    made = data.draw(
        st.lists(st.lists(numbers, min_size=iterations, max_size=iterations), min_size=ranks, max_size=ranks)
    )
    found = samples.unpack(samples.pack(made))
    assert found == [[float32(sample) for sample in of_rank] for of_rank in made]


@pytest.mark.parametrize("blob", [b"", b"x" * 50, samples.pack([[1.0, 2.0]])[:-3]])
def test_what_is_no_packed_sample_is_refused(blob):
    with pytest.raises(ValueError, match="not packed samples"):
        samples.unpack(blob)


def test_samples_take_about_what_they_should():
    """20 x 8 samples: about 500 bytes."""
    result = ok_record(case=msgspec.structs.replace(CASE, ranks=8), iters=20).phases[0]
    assert len(samples.pack(result.samples_us)) < 600


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
strings = st.dictionaries(text, text, max_size=3)


@st.composite
def any_record(draw) -> Record:
    """A consistent record with everything in it that a harness might write."""
    ranks = draw(st.sampled_from([1, 2, 4]))
    iterations = draw(st.integers(2, 6))
    case = Case(
        backend=draw(st.sampled_from(["ep_core", "torch", "nccl.ep"])),
        mode="ll",
        ranks=ranks,
        tokens=draw(st.integers(0, 2**40)),
        hidden=128,
        topk=2,
        experts=8,
        seed=draw(st.integers(0, 2**63 - 1)),
    )
    record = ok_record(case=case, night=draw(st.sampled_from(["", "n1", "n2"])), hostname=draw(text))
    rows = st.lists(st.lists(numbers, min_size=iterations, max_size=iterations), min_size=ranks, max_size=ranks)
    phases = []
    for phase in draw(st.sampled_from([PHASES, PHASES[:1], PHASES[1:]])):
        result = phase_result(phase, draw(rows))
        counts = {"send": draw(numbers), **draw(st.dictionaries(text, numbers, max_size=3))}
        traffic = Traffic(
            bytes_per_rank=counts,
            headline="send",
            per_rank_gbs=counts,
            aggregate_gbs=draw(numbers),
            wire_bytes_per_rank=draw(st.none() | numbers),
        )
        phases.append(msgspec.structs.replace(result, traffic=traffic))
    return msgspec.structs.replace(
        record,
        phases=phases,
        environment=msgspec.structs.replace(environment(), variables=draw(strings), topology=draw(strings)),
        conditions=draw(st.dictionaries(text, numbers, max_size=2)),
        notes=draw(st.lists(text, max_size=3)),
        placement=[msgspec.structs.replace(one, cpus=draw(text), numa=draw(text)) for one in record.placement]
        if draw(st.booleans())
        else [],
        launcher=draw(text),
        attempt=draw(st.integers(1, 100)),
        scheduler_job=draw(text),
        repeat=draw(st.integers(0, 100)),
    )


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(any_record(), min_size=1, max_size=3))
def test_whatever_a_record_says_the_history_says_too(made):
    with tempfile.TemporaryDirectory() as folder, History.open(Path(folder) / "history.db") as history:
        spool = Path(folder) / "spool"
        keep(history, spool, *made)
        for record in made:
            found = show(history, record.run_id)
            assert Case.parse(found.case) == record.case
            assert (found.platform, found.night, found.repeat) == (record.platform.key, record.night, record.repeat)
            assert found.environment == msgspec.to_builtins(record.environment)
            assert found.environment_digest == record.environment.digest
            assert list(found.notes) == record.notes
            assert found.conditions == record.conditions
            placed = {one.rank: one for one in record.placement}
            assert [(one.rank, one.node) for one in found.ranks] == [
                (rank, record.nodes[0].hostname) for rank in range(record.case.ranks)
            ]
            for one in found.ranks:
                there = placed.get(one.rank)
                assert (one.cpus, one.numa) == ((there.cpus or None, there.numa or None) if there else (None, None))
            assert (found.launcher or "", found.attempt) == (record.launcher, record.attempt)
            assert (found.scheduler_job or "") == record.scheduler_job
            assert found.ranks_on == {record.nodes[0].hostname: tuple(range(record.case.ranks))}
            assert {one.phase: one.values for one in found.phases} == {
                one.phase: metrics_of(one) for one in record.phases
            }
            for one in record.phases:
                stored = samples_of(history, record.run_id)[one.phase]
                assert stored == [[float32(sample) for sample in of_rank] for of_rank in one.samples_us]
        assert {line.run_id for line in runs(history)} == {record.run_id for record in made}
