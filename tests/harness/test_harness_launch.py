"""Whole jobs on real ranks: what is measured, what is refused and how, and that every planned run has its record."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import plugin_backends
import pytest
from small_jobs import EP_CORE_LL, TORCH_LL, but, records, shared_memory, spec_of

from harness.errors import JobError
from harness.launch import run_job
from harness.placement import cpu_list

GOOD = {
    "torch ll": TORCH_LL,
    "torch ll fp8": but(TORCH_LL, dtype="fp8", routing="masked"),
    "torch ll without tokens": but(TORCH_LL, tokens=0, dtype="fp8"),
    "torch ht": but(TORCH_LL, mode="ht", combine="local_reduce", routing="masked"),
    "ep_core ll": EP_CORE_LL,
    "ep_core ll paired": but(EP_CORE_LL, protocol="paired", routing="duplicates"),
    "ep_core ll fp8": but(EP_CORE_LL, dtype="fp8", routing="skewed"),
    "ep_core ll local_reduce": but(EP_CORE_LL, combine="local_reduce", routing="masked"),
    "ep_core ll without tokens": but(EP_CORE_LL, tokens=0),
    "ep_core ht": but(EP_CORE_LL, mode="ht", combine="local_reduce", routing="masked"),
}
REFUSED = {
    "experts cannot be divided": but(TORCH_LL, experts=5),
    "'nope' is not known; known are": but(TORCH_LL, backend="nope"),
    "routing 'zipf' is unknown": but(TORCH_LL, routing="zipf"),
    "needs a GPU; on device cpu there are phased, paired": but(TORCH_LL, protocol="graph"),
    "device cuda cannot be used on": but(TORCH_LL, device="cuda"),
    "in mode ll its combine is exact": but(TORCH_LL, combine="local_reduce"),
    "libfast.so.2 is not installed": but(TORCH_LL, backend="unavailable"),
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One job with every good and every refused case, in turn; its records by name, and what it told."""
    folder = tmp_path_factory.mktemp("measured")
    plugins = tmp_path_factory.mktemp("plugins")
    plugin_backends.install(plugins)
    names = [*GOOD, *REFUSED]
    spec = spec_of(folder, [(GOOD | REFUSED)[name] for name in names], cluster="here")
    events, before = [], shared_memory()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(plugins))
        patch.setenv("EPWATCH_INJECT_DELAY_US", "20000")
        outcome = run_job(spec, on_event=events.append)
    return outcome, dict(zip(names, records(spec), strict=True)), events, before == shared_memory(), folder


def test_every_run_of_a_job_is_accounted_for_once(measured):
    outcome, found, events, memory_as_before, _ = measured
    assert outcome.exit_code == 0
    assert {found[name].run_id for name in GOOD} <= set(outcome.recorded)
    assert memory_as_before
    told = [event.run_id for event in events if event.kind == "record"]
    assert sorted(told) == sorted(made.run_id for made in found.values())


@pytest.mark.parametrize("name", GOOD)
def test_a_good_case_is_checked_before_and_after_and_timed(measured, name):
    made = measured[1][name]
    assert made.failure is None
    assert made.outcome == "ok"
    assert [(check.when, check.passed) for check in made.checks] == [("before", True), ("after", True)]
    assert made.checks[1].rows >= made.checks[0].rows
    assert [phase.phase for phase in made.phases] == ["dispatch", "combine"]
    for phase in made.phases:
        assert [len(rank) for rank in phase.samples_us] == [5, 5]
        assert phase.leading_dropped == 1
        assert phase.stats.latency_min_us <= phase.stats.latency_us <= phase.stats.latency_max_us
        headline = phase.traffic.bytes_per_rank[phase.traffic.headline]
        expected = headline / phase.stats.latency_us / 1e3
        assert phase.traffic.per_rank_gbs[phase.traffic.headline] == pytest.approx(expected)
        assert (headline > 0) == (made.case.tokens > 0)
    assert (made.platform.cluster, made.night) == ("here", "n1")
    assert made.nodes[0].ranks == [0, 1]
    assert [(one.rank, one.hostname) for one in made.placement] == [(rank, made.nodes[0].hostname) for rank in (0, 1)]
    assert {one.cpus for one in made.placement} == {cpu_list(os.sched_getaffinity(0))}
    assert (made.launcher, made.attempt, made.scheduler_job) == ("torchrun", 1, "")
    assert {"load_1m_before", "load_1m_after"} <= made.conditions.keys()


def test_the_injected_delay_reaches_combine_of_ep_core_alone_and_is_recorded(measured):
    for name, made in measured[1].items():
        if name not in GOOD:
            continue
        dispatch, combine = (phase.stats.p50_us for phase in made.phases)
        assert (combine >= 20000) == (made.case.backend == "ep_core")
        if made.case.protocol == "phased":
            assert dispatch < 20000
        assert any("EPWATCH_INJECT_DELAY_US=20000" in note for note in made.notes) == (made.case.backend == "ep_core")
        assert made.environment.variables["EPWATCH_INJECT_DELAY_US"] == "20000"


@pytest.mark.parametrize("words", REFUSED)
def test_a_case_that_cannot_run_fails_with_the_reason_and_the_rest_goes_on(measured, words):
    made = measured[1][words]
    assert made.outcome == "failed"
    assert words in made.failure.message
    assert made.failure.step == "validate"
    assert made.phases == []


def test_ranks_leave_without_a_word(measured):
    for log in (measured[4] / "log" / "ranks").rglob("*.log"):
        text = log.read_text()
        assert "TCPStore" not in text
        assert "heartbeat" not in text
        assert "destroy_process_group" not in text
    assert (measured[4] / "log" / "launch.log").read_text() == ""


def test_two_jobs_at_once_do_not_meet(tmp_path):
    specs = [spec_of(tmp_path / name, [EP_CORE_LL, TORCH_LL]) for name in ("one", "two")]
    specs[1] = msgspec.structs.replace(specs[1], spool=specs[0].spool)
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(run_job, specs))
    assert [outcome.exit_code for outcome in outcomes] == [0, 0]
    assert [made.outcome for spec in specs for made in records(spec)] == ["ok"] * 4
    assert {path.suffix for path in Path(specs[0].spool).iterdir()} == {".json"}


def test_a_world_that_no_case_can_have_starts_no_ranks(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    spec = spec_of(tmp_path, [but(TORCH_LL, ranks=65, experts=65)])
    outcome = run_job(spec)
    assert outcome.recorded == []
    (made,) = records(spec)
    assert made.failure.message == "ranks is 65, wanted at most 64"
    assert made.notes == [made.scheduler_job] == ["Slurm job 7"]
    assert not (tmp_path / "log" / "launch.log").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"runs": []}, "the job has no runs"),
        ({"deadline_s": 0.0}, "deadlines must be positive"),
    ],
)
def test_a_job_that_cannot_be_is_refused(tmp_path, changes, words):
    with pytest.raises(JobError, match=words):
        run_job(msgspec.structs.replace(spec_of(tmp_path, [TORCH_LL]), **changes))


def test_runs_of_two_worlds_or_one_id_twice_or_a_used_folder_are_refused(tmp_path):
    with pytest.raises(JobError, match="share one world, these want 2 ranks on 1 nodes, 4 ranks on 1 nodes"):
        run_job(spec_of(tmp_path, [TORCH_LL, but(TORCH_LL, ranks=4)]))
    one = spec_of(tmp_path, [TORCH_LL])
    with pytest.raises(JobError, match="same run id"):
        run_job(msgspec.structs.replace(one, runs=one.runs * 2))
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "job.json").write_text("{}")
    with pytest.raises(JobError, match="already holds a job"):
        run_job(one)
