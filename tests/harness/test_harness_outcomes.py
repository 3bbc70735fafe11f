"""Cases that go wrong while their ranks live: what the record says, and that the next case goes on."""

import pytest
from small_jobs import EP_CORE_LL, TORCH_LL, but, records, spec_of

from harness.launch import run_job


@pytest.mark.usefixtures("faulty")
def test_wrong_answers_are_records_without_timings_and_a_raise_on_one_rank_stops_no_other_case(tmp_path):
    faults = ("crosses-rows", "loses-row-when-timed", "stale-output", "raises-on-one-rank")
    spec = spec_of(tmp_path, [*(but(TORCH_LL, backend=name) for name in faults), TORCH_LL], op_deadline_s=3.0)
    outcome = run_job(spec)
    crossed, lost, stale, raised, good = records(spec)
    assert len(outcome.recorded) == 5
    for made, when in ((crossed, "before"), (lost, "after"), (stale, "after")):
        assert (made.outcome, made.phases, made.failure.kind) == ("wrong", [], "WrongAnswer")
        assert (made.checks[-1].when, made.checks[-1].passed) == (when, False)
    assert "combine is wrong in" in crossed.failure.message
    assert lost.failure.rank == 1
    assert "received row 0" in lost.failure.message
    assert "nan" in stale.failure.message
    assert (raised.outcome, raised.failure.rank, raised.failure.message) == ("failed", 1, "out of send slots")
    assert "raise RuntimeError" in raised.failure.log_tail
    assert good.outcome == "ok"


@pytest.mark.usefixtures("faulty")
def test_a_backend_that_cannot_be_closed_is_noted_and_takes_nothing_along(tmp_path):
    spec = spec_of(tmp_path, [but(TORCH_LL, backend="cannot-be-closed"), TORCH_LL], op_deadline_s=3.0)
    assert run_job(spec).exit_code == 0
    open_still, good = records(spec)
    assert (open_still.outcome, good.outcome) == ("ok", "ok")
    assert "rank 1 could not close the backend: the segment is still mapped" in open_still.notes
    assert good.notes == []


@pytest.mark.usefixtures("faulty")
def test_a_rank_that_comes_too_late_hangs_one_case_and_the_next_goes_on(tmp_path):
    spec = spec_of(tmp_path, [but(EP_CORE_LL, backend="comes-late"), EP_CORE_LL], op_deadline_s=2.0)
    outcome = run_job(spec)
    late, good = records(spec)
    assert outcome.exit_code == 0
    assert (late.outcome, late.failure.kind, late.failure.rank) == ("hung", "EPTimeoutError", 0)
    assert late.failure.step == "check dispatch before"
    assert good.outcome == "ok"
