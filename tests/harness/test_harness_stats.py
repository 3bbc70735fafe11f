"""Statistics of samples: what each figure is, and what must not change it."""

import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import CaseError
from harness.stats import summarise

samples = st.integers(1, 5).flatmap(
    lambda ranks: st.integers(2, 20).flatmap(
        lambda iters: st.lists(
            st.lists(st.floats(0.5, 1e6), min_size=iters, max_size=iters), min_size=ranks, max_size=ranks
        )
    )
)


@settings(max_examples=200, deadline=None)
@given(samples)
def test_figures_equal_their_definitions(times):
    kept = [rank[1:] for rank in times]
    means = [statistics.fmean(rank) for rank in kept]
    flat = [value for rank in kept for value in rank]
    slowest = [max(column) for column in zip(*kept, strict=True)]
    found = summarise(times, 1)
    assert found.latency_us == pytest.approx(statistics.fmean(means))
    assert found.latency_min_us == pytest.approx(min(means))
    assert found.latency_max_us == pytest.approx(max(means))
    assert found.p50_us == pytest.approx(statistics.median(flat))
    assert found.slowest_p50_us == pytest.approx(statistics.median(slowest))
    assert found.skew == pytest.approx(max(means) / min(means))
    assert means[found.slowest_rank] == pytest.approx(max(means))
    assert found.rank_p50_us == pytest.approx([statistics.median(rank) for rank in kept])
    middle = statistics.median(flat)
    assert found.mad_us == pytest.approx(statistics.median(abs(value - middle) for value in flat), abs=1e-6)
    if len(flat) > 1:
        assert found.std_us == pytest.approx(statistics.stdev(flat), rel=1e-6, abs=1e-6)
    assert found.p50_us <= found.p95_us <= found.p99_us
    assert found.slowest_p50_us <= found.slowest_p95_us <= found.slowest_p99_us


@settings(max_examples=50, deadline=None)
@given(samples, st.floats(1e6, 1e9))
def test_the_first_iteration_counts_for_nothing(times, cold):
    assert summarise([[cold, *rank[1:]] for rank in times], 1) == summarise(times, 1)


def test_one_slow_iteration_moves_the_mean_and_not_the_run_value():
    calm = [[100.0] * 50, [100.0] * 50]
    jolt = [[100.0] * 49 + [5000.0], [100.0] * 50]
    assert summarise(jolt, 1).slowest_p50_us == summarise(calm, 1).slowest_p50_us == 100.0
    assert summarise(jolt, 1).latency_us > 140


def test_one_sample_left_has_no_spread():
    found = summarise([[9.0, 5.0]], 1)
    assert (found.latency_us, found.std_us, found.mad_us, found.skew) == (5.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("times", [[[1.0]], [[]], [[1.0], [1.0]]])
def test_nothing_left_after_the_first_is_refused(times):
    with pytest.raises(CaseError, match="ask for at least 2 iterations"):
        summarise(times, 1)


def test_ranks_of_different_length_are_refused():
    with pytest.raises(CaseError, match=r"same number of samples, got \[2, 3\]"):
        summarise([[1.0, 2.0], [1.0, 2.0, 3.0]], 1)
