"""The first judge: its symmetries, its interval, and its error rates on simulated runs."""

import itertools
import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regress_db.distributions import t_cdf, t_quantile, u_cdf
from regress_db.judge import DEFAULT_JUDGE, RobustJudge

MIRROR = {"regressed": "improved", "improved": "regressed"}

values = st.integers(min_value=500, max_value=50_000).map(lambda tenths: tenths / 10)
few = st.lists(values, min_size=1, max_size=8)
several = st.lists(values, min_size=3, max_size=12)
floors = st.floats(min_value=0.005, max_value=2.0)


def close(one, other):
    return one is other or math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)


# Distributions


@pytest.mark.parametrize(
    ("p", "df", "t"),
    [(0.975, 1, 12.7062), (0.975, 4, 2.77645), (0.995, 9, 3.24984), (0.8, 2, 1.06066), (0.995, 1e6, 2.57583)],
)
def test_quantiles_of_t_are_those_of_the_tables(p, df, t):
    assert math.isclose(t_quantile(p, df), t, rel_tol=1e-5)
    assert math.isclose(t_quantile(1 - p, df), -t, rel_tol=1e-5)


@given(st.floats(min_value=-50, max_value=50), st.integers(min_value=1, max_value=200))
def test_the_t_distribution_is_symmetric_and_its_quantile_its_inverse(t, df):
    p = t_cdf(t, df)
    assert math.isclose(p + t_cdf(-t, df), 1, abs_tol=1e-12)
    if 1e-4 < p < 1 - 1e-4:
        assert math.isclose(t_quantile(p, df), t, rel_tol=1e-6, abs_tol=1e-6)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 5), (2, 3), (4, 3), (5, 5)])
def test_the_distribution_of_u_is_that_of_all_orderings(n, m):
    found = [
        sum(sum(rank - place for place, rank in enumerate(sorted(ranks))) <= u for ranks in orderings) / len(orderings)
        for orderings in [list(itertools.combinations(range(n + m), n))]
        for u in range(-1, n * m + 2)
    ]
    assert [u_cdf(u, n, m) for u in range(-1, n * m + 2)] == pytest.approx(found)


def test_the_normal_approximation_joins_the_exact_distribution():
    assert u_cdf(4200, 100, 100) == pytest.approx(u_cdf(4242, 100, 101), rel=0.03)


# The judge


@given(few, several, floors, st.floats(min_value=0.01, max_value=100))
def test_the_unit_of_time_does_not_matter(new, base, floor, factor):
    one = DEFAULT_JUDGE.judge(new, base, floor)
    other = DEFAULT_JUDGE.judge([factor * value for value in new], [factor * value for value in base], floor)
    for name in ("effect", "low", "high", "detectable", "p_value"):
        assert close(getattr(one, name), getattr(other, name))


@given(several, several, floors)
def test_new_and_baseline_exchanged_give_the_mirror_image(new, base, floor):
    one, other = DEFAULT_JUDGE.judge(new, base, floor), DEFAULT_JUDGE.judge(base, new, floor)
    assert close(math.log1p(one.effect), -math.log1p(other.effect))
    assert close(math.log1p(one.low), -math.log1p(other.high))
    assert close(one.p_value, other.p_value)
    if abs(abs(math.log1p(one.effect)) - math.log1p(floor)) > 1e-9 and min(abs(one.low), abs(one.high)) > 1e-9:
        assert MIRROR.get(one.verdict, one.verdict) == other.verdict


@given(few, several, floors, st.randoms())
def test_the_order_of_runs_does_not_matter(new, base, floor, chance):
    mixed_new, mixed_base = chance.sample(new, len(new)), chance.sample(base, len(base))
    assert DEFAULT_JUDGE.judge(new, base, floor) == DEFAULT_JUDGE.judge(mixed_new, mixed_base, floor)


@given(few, several, floors)
def test_the_interval_holds_the_effect_and_the_verdict_follows_from_it(new, base, floor):
    found = DEFAULT_JUDGE.judge(new, base, floor)
    assert found.low <= found.effect <= found.high
    assert found.detectable >= floor * (1 - 1e-9)
    assert 0 <= found.p_value <= 1
    if found.verdict == "regressed":
        assert found.low > 0
        assert found.effect >= floor * (1 - 1e-9)
    if found.verdict == "improved":
        assert found.high < 0
    if found.verdict == "unchanged":
        assert found.high < floor
        assert found.low > -floor


@given(few, st.lists(values, max_size=2), floors)
def test_two_baseline_runs_are_never_enough(new, base, floor):
    found = DEFAULT_JUDGE.judge(new, base, floor)
    assert found.verdict == "insufficient"
    assert found.low is found.high is found.detectable is None


@given(several, floors)
def test_the_same_runs_again_have_not_changed(runs, floor):
    assert DEFAULT_JUDGE.judge(runs, runs, floor).verdict in {"unchanged", "inconclusive"}


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_latency_is_an_error(bad):
    with pytest.raises(ValueError, match="a new run's value"):
        DEFAULT_JUDGE.judge([bad], [1.0, 2.0, 3.0], 0.1)
    with pytest.raises(ValueError, match="a baseline run's value"):
        DEFAULT_JUDGE.judge([1.0], [1.0, 2.0, bad], 0.1)


def test_no_run_or_no_floor_is_an_error():
    with pytest.raises(ValueError, match="no new run"):
        DEFAULT_JUDGE.judge([], [1.0, 2.0, 3.0], 0.1)
    with pytest.raises(ValueError, match="floor"):
        DEFAULT_JUDGE.judge([1.0], [1.0, 2.0, 3.0], 0.0)


def test_a_clear_change_is_named_and_its_size_is_right():
    base = [100.0, 101.0, 99.0, 100.5, 99.5]
    slower = DEFAULT_JUDGE.judge([value * 1.2 for value in base], base, 0.05)
    assert slower.verdict == "regressed"
    assert slower.method == "ranks"
    assert slower.effect == pytest.approx(0.2)
    assert DEFAULT_JUDGE.judge([value / 1.2 for value in base], base, 0.05).verdict == "improved"
    assert DEFAULT_JUDGE.judge([121.0], base, 0.05).verdict == "regressed"
    assert DEFAULT_JUDGE.judge([100.2], base, 0.05).verdict == "unchanged"


def test_one_spike_among_several_new_runs_is_no_regression():
    base = [100.0, 101.0, 99.0, 100.5, 99.5]
    assert DEFAULT_JUDGE.judge([100.0, 100.3, 99.7, 100.1, 160.0], base, 0.05).verdict != "regressed"


def test_a_change_below_the_floor_does_not_count_however_sure_it_is():
    base = [100.0 + index / 100 for index in range(20)]
    assert DEFAULT_JUDGE.judge([value * 1.02 for value in base], base, 0.05).verdict == "unchanged"


def test_runs_that_are_all_alike_come_with_a_warning():
    assert "says nothing of the noise" in DEFAULT_JUDGE.judge([100.0] * 3, [100.0] * 3, 0.05).warnings[-1]


# Error rates, by simulation with fixed seeds


def rate(verdict, *, new, base, noise, change, floor, trials=600, heavy=False):
    """How often the verdict is given: runs with log-normal noise (or Student t with 3 degrees of freedom)."""
    chance = random.Random(20261001)

    def run(shift):
        draw = chance.gauss(0, 1)
        if heavy:
            draw /= math.sqrt(sum(chance.gauss(0, 1) ** 2 for _ in range(3)) / 3) * math.sqrt(3)
        return 100 * math.exp(shift + noise * draw)

    shift = math.log1p(change)
    found = [
        DEFAULT_JUDGE.judge([run(shift) for _ in range(new)], [run(0) for _ in range(base)], floor)
        for _ in range(trials)
    ]
    return statistics.fmean(judgement.verdict == verdict for judgement in found)


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize(("new", "base"), [(1, 10), (3, 3), (3, 10), (5, 5), (5, 20)])
def test_unchanged_runs_are_seldom_called_regressed(new, base, heavy):
    """With next to no floor the rate is the test's own: half of 1 %, more where tails are heavy."""
    limit = 0.025 if heavy else 0.015
    assert rate("regressed", new=new, base=base, noise=0.02, change=0.0, floor=1e-6, heavy=heavy) <= limit


@pytest.mark.parametrize(("new", "base"), [(1, 10), (3, 10), (5, 5)])
def test_a_floor_of_three_sigma_makes_false_alarms_rare(new, base):
    assert rate("regressed", new=new, base=base, noise=0.02, change=0.0, floor=0.06) <= 0.005


@pytest.mark.parametrize(("new", "base", "least"), [(1, 10, 0.9), (3, 5, 0.9), (5, 5, 0.99), (5, 20, 0.99)])
def test_ten_per_cent_is_seen_where_runs_vary_by_less_than_two(new, base, least):
    assert rate("regressed", new=new, base=base, noise=0.015, change=0.10, floor=0.05) >= least


@pytest.mark.parametrize(("new", "base"), [(1, 10), (3, 5), (5, 10)])
def test_what_is_said_to_be_detectable_is_detected_about_four_times_in_five(new, base):
    """The stated size is an approximation: between two and twenty in twenty would be no statement at all."""
    chance = random.Random(7)
    judge = RobustJudge()
    typical = statistics.median(
        judge.judge(
            [math.exp(chance.gauss(0, 0.02)) for _ in range(new)],
            [math.exp(chance.gauss(0, 0.02)) for _ in range(base)],
            0.02,
        ).detectable
        for _ in range(300)
    )
    assert 0.65 <= rate("regressed", new=new, base=base, noise=0.02, change=typical, floor=0.02) <= 0.95
