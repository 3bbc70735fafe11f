"""The parts of the night's method: distributions, multiplicity, spread and its shrinkage, tails, power, modes."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from regress_db.method.distributions import (
    f_upper,
    fisher_exact,
    t_quantile,
    t_upper,
    trigamma_inverse,
    u_cdf,
    z_of_t,
)
from regress_db.method.modes import compare_modes, two_modes
from regress_db.method.multiplicity import q_values
from regress_db.method.power import Stage, detectable
from regress_db.method.spread import LEAST_SD, Runs, platform_prior, spread_of
from regress_db.method.tails import Tails

values = st.integers(min_value=500, max_value=50_000).map(lambda tenths: tenths / 10)
p_values = st.lists(st.floats(min_value=0, max_value=1), min_size=1, max_size=40)


def noisy(rng, count, sd=0.015):
    return tuple((100 * np.exp(sd * rng.standard_normal(count))).tolist())


def apart(values_us):
    return Runs(tuple(values_us), tuple(f"night {place}" for place in range(len(values_us))))


# Distributions


@pytest.mark.parametrize(("p", "df", "t"), [(0.975, 4, 2.77645), (0.995, 9, 3.24984), (0.975, math.inf, 1.95996)])
def test_quantiles_of_t_are_those_of_the_tables(p, df, t):
    assert t_quantile(p, df) == pytest.approx(t, rel=1e-5)
    assert t_upper(t, df) == pytest.approx(1 - p, rel=1e-4)


@given(st.floats(min_value=-1e6, max_value=1e6), st.floats(min_value=0.5, max_value=1e5))
def test_a_deviate_is_finite_has_the_sign_of_t_and_is_no_farther_out(t, df):
    z = z_of_t(t, df)
    assert abs(z) <= min(37.6, abs(t) + 1e-6)
    assert z * t >= 0


@given(st.floats(min_value=1e-5, max_value=1e5))
def test_the_inverse_of_trigamma_is_its_inverse(x):
    from scipy.special import polygamma

    assert trigamma_inverse(float(polygamma(1, x))) == pytest.approx(x, rel=1e-3)
    assert trigamma_inverse(0.0) == math.inf


def test_a_variance_ratio_against_a_known_variance_is_a_chi_square():
    assert f_upper(2.0, 9, math.inf) == pytest.approx(f_upper(2.0, 9, 1e7), rel=1e-4)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 5), (2, 3), (4, 3), (5, 5)])
def test_the_distribution_of_u_is_that_of_all_orderings(n, m):
    statistics = [
        sum(rank - place for place, rank in enumerate(sorted(ranks)))
        for ranks in itertools.combinations(range(n + m), n)
    ]
    for u in range(-1, n * m + 2):
        assert u_cdf(u, n, m) == pytest.approx(sum(one <= u for one in statistics) / len(statistics))


def test_the_normal_approximation_joins_the_exact_distribution():
    assert u_cdf(4200, 100, 100) == pytest.approx(u_cdf(4242, 100, 101), rel=0.03)


@pytest.mark.parametrize(("table", "p"), [((3, 0, 0, 3), 0.1), ((1, 1, 1, 1), 1.0), ((10, 0, 0, 10), 2 / 184756)])
def test_fishers_exact_test_counts_tables(table, p):
    assert fisher_exact(*table) == pytest.approx(p)


@given(*[st.integers(min_value=0, max_value=12)] * 4)
def test_fishers_exact_test_has_the_symmetries_of_a_table(a, b, c, d):
    p = fisher_exact(a, b, c, d)
    assert 0 < p <= 1 + 1e-12
    assert p == pytest.approx(fisher_exact(c, d, a, b))
    assert p == pytest.approx(fisher_exact(a, c, b, d))


# Multiplicity


@given(p_values)
def test_adjusted_p_values_are_in_the_order_of_the_p_values_and_never_smaller(ps):
    adjusted = q_values(ps)
    assert all(p <= q * (1 + 1e-12) and q <= 1 for p, q in zip(ps, adjusted, strict=True))
    ordered = [q for _, q in sorted(zip(ps, adjusted, strict=True))]
    assert ordered == sorted(ordered)


@given(p_values, st.floats(min_value=0.001, max_value=0.5))
def test_what_is_rejected_is_what_the_step_up_rejects(ps, level):
    edges = [abs(p - level * k / len(ps)) for p in ps for k in range(len(ps) + 1)]
    assume(min(edges) > 1e-9)
    ranked = sorted(ps)
    most = max((k for k in range(1, len(ps) + 1) if ranked[k - 1] <= level * k / len(ps)), default=0)
    assert sum(q <= level for q in q_values(ps)) == sum(p <= ranked[most - 1] for p in ps) * (most > 0)


@given(p_values, st.randoms())
def test_the_order_of_series_does_not_matter(ps, random):
    places = list(range(len(ps)))
    random.shuffle(places)
    adjusted = q_values(ps)
    assert q_values([ps[place] for place in places]) == [adjusted[place] for place in places]


def test_one_p_value_is_its_own():
    assert q_values([0.02]) == [0.02]
    assert q_values([]) == []


# Spread


@given(
    st.lists(values, min_size=3, max_size=3),
    st.lists(st.lists(values, min_size=3, max_size=8), min_size=3, max_size=8),
)
def test_a_shrunk_variance_lies_between_its_own_and_the_platforms(base, others):
    prior = platform_prior([apart(other) for other in others])
    own, shrunk = (spread_of(Runs((base[0],)), apart(base), (), one) for one in (None, prior))
    ends = sorted((own.variance, prior.variance))
    assert ends[0] * (1 - 1e-9) <= shrunk.variance <= ends[1] * (1 + 1e-9)


@given(st.lists(st.lists(values, min_size=1, max_size=8), max_size=8))
def test_a_platform_of_any_series_has_a_usable_prior(series):
    prior = platform_prior([apart(one) for one in series])
    assert LEAST_SD**2 <= prior.variance < math.inf
    assert 0 <= prior.df < math.inf
    spread = spread_of(Runs((100.0,)), apart([100.0, 101.0, 103.0]), (), prior)
    assert 0 < spread.variance < math.inf


def test_series_that_are_alike_pool_and_series_that_are_not_do_not():
    rng = np.random.default_rng(1)
    alike = platform_prior([apart(noisy(rng, 10)) for _ in range(100)])
    unlike = platform_prior([apart(noisy(rng, 10, 0.015 * math.exp(rng.standard_normal()))) for _ in range(100)])
    assert alike.df > 20
    assert unlike.df < 5


def test_a_few_wild_series_do_not_spoil_the_platform():
    rng = np.random.default_rng(2)
    calm = [apart(noisy(rng, 10)) for _ in range(100)]
    wild = [apart(noisy(rng, 10, 0.4)) for _ in range(5)]
    prior = platform_prior([*calm, *wild])
    assert math.sqrt(prior.variance) == pytest.approx(0.015, rel=0.15)
    assert prior.df > 15


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_the_nights_share_is_found(share):
    rng = np.random.default_rng(3)
    made = []
    for _ in range(200):
        logs = math.sqrt(share) * rng.standard_normal((8, 1)) + math.sqrt(1 - share) * rng.standard_normal((8, 2))
        made.append(
            Runs(tuple((100 * np.exp(0.02 * logs)).ravel().tolist()), tuple(n for n in "abcdefgh" for _ in "xx"))
        )
    prior = platform_prior(made)
    assert prior.night_share == pytest.approx(share, abs=0.08)
    assert math.sqrt(prior.variance) == pytest.approx(0.02, rel=0.1)


def test_nobody_says_what_nights_share_where_no_night_has_two_runs():
    rng = np.random.default_rng(4)
    assert platform_prior([apart(noisy(rng, 10)) for _ in range(30)]).night_share is None


def test_runs_without_a_night_stand_alone_and_runs_without_nights_are_of_one():
    assert Runs((1.0, 2.0, 3.0), ("a", "", "")).places() == [[0], [1], [2]]
    assert Runs((1.0, 2.0, 3.0)).places() == [[0, 1, 2]]
    assert Runs((1.0, 2.0, 3.0), ("a", "b", "a")).places() == [[0, 2], [1]]
    assert Runs((1.0, 2.0, 3.0, 4.0), ("a", "a", "b", "b")).night_weight() == 0.5


# Tails


@given(
    st.lists(st.floats(min_value=-30, max_value=30), min_size=1, max_size=200),
    st.floats(min_value=-10, max_value=100),
    st.sampled_from([1, -1]),
)
def test_far_runs_are_rarer_the_farther_they_are_and_never_impossible(deviates, z, side):
    tails = Tails.of(deviates)
    assert 0 < tails.upper(z + 1, side) <= tails.upper(z, side) <= 1


@given(
    st.lists(st.floats(min_value=-30, max_value=30), min_size=1, max_size=200),
    st.floats(min_value=1e-6, max_value=0.3),
    st.sampled_from([1, -1]),
)
def test_a_quantile_is_where_the_chance_is_reached(deviates, chance, side):
    tails = Tails.of(deviates)
    z = tails.quantile(chance, side)
    assert tails.upper(z + 1e-6, side) <= chance * (1 + 1e-6)


def test_a_platform_with_spikes_knows_on_which_side_they_are():
    tails = Tails.of([*np.linspace(-2.5, 2.5, 970), *[17.0] * 30])
    assert tails.upper(10.0, 1) == pytest.approx(31 / 1001)
    assert tails.upper(10.0, -1) < 0.001


# Power


def test_one_stage_adds_the_quantile_of_t():
    assert detectable(Stage(0.05, 0.01), 9) == pytest.approx(0.05 + 0.01 * t_quantile(0.8, 9))


@given(
    st.floats(min_value=0.001, max_value=0.5),
    st.floats(min_value=0.001, max_value=0.5),
    st.floats(min_value=0.001, max_value=0.1),
    st.floats(min_value=1.01, max_value=4),
)
def test_a_first_stage_never_makes_more_visible(last_least, first_least, error, ratio):
    last, first = Stage(last_least, error), Stage(first_least, error * ratio)
    assert detectable(last, 20, first) >= detectable(last, 20) - 1e-12


def test_two_stages_are_seen_four_times_in_five_in_simulation():
    rng = np.random.default_rng(5)
    first, last = Stage(0.030, 0.016), Stage(0.030, 0.010)
    change = detectable(last, 1000, first)
    final = change + last.error * rng.standard_normal(200_000)
    early = final + math.sqrt(first.error**2 - last.error**2) * rng.standard_normal(200_000)
    seen = float(((final >= last.least) & (early >= first.least)).mean())
    assert seen == pytest.approx(0.8, abs=0.01)


# Modes


def two_speeds(rng, count, slow_share, gap=0.1, sd=0.01):
    slow = np.arange(count) < round(count * slow_share)
    return tuple((100 * np.exp(sd * rng.standard_normal(count) + gap * slow)).tolist())


@pytest.mark.parametrize("count", [12, 30, 100])
def test_two_speeds_are_recognised(count):
    modes = two_modes(two_speeds(np.random.default_rng(6), count, 0.4))
    assert modes is not None
    assert modes.slow_us / modes.fast_us == pytest.approx(math.exp(0.1), rel=0.02)
    assert modes.fast_us < modes.border_us < modes.slow_us
    assert modes.slow_share == pytest.approx(0.4, abs=0.05)


@pytest.mark.parametrize("noise", ["normal", "t3", "exponential"])
def test_one_speed_is_seldom_taken_for_two(noise):
    rng = np.random.default_rng(7)
    draw = {
        "normal": rng.standard_normal,
        "t3": lambda count: rng.standard_t(3, count),
        "exponential": lambda count: rng.exponential(size=count),
    }[noise]
    found = sum(two_modes((100 * np.exp(0.015 * draw(30))).tolist()) is not None for _ in range(300))
    assert found <= {"normal": 6, "t3": 6, "exponential": 30}[noise]


def test_few_runs_and_equal_runs_have_no_modes():
    assert two_modes([100.0, 100.1, 110.0, 110.1]) is None
    assert two_modes([100.0] * 20) is None


@given(st.sampled_from([1e-3, 1.0, 1e6]))
def test_modes_do_not_depend_on_the_unit(unit):
    made = two_speeds(np.random.default_rng(8), 20, 0.5)
    modes = two_modes([value * unit for value in made])
    assert modes is not None
    assert modes.border_us == pytest.approx(two_modes(made).border_us * unit)


def test_modes_are_compared_as_proportions_and_as_locations():
    rng = np.random.default_rng(9)
    base = two_speeds(rng, 20, 0.2)
    modes = two_modes(base)
    more_often_slow = compare_modes(two_speeds(rng, 10, 0.9), base, modes)
    assert (more_often_slow.new_slow, more_often_slow.base_slow) == (9, 4)
    assert more_often_slow.proportion_p < 0.01
    assert abs(more_often_slow.slow_change) < 0.02
    moved = compare_modes([value * 1.03 for value in two_speeds(rng, 10, 0.2)], base, modes)
    assert moved.proportion_p > 0.5
    assert moved.fast_change == pytest.approx(0.03, abs=0.01)
    assert compare_modes([100.0], base, modes).slow_change is None
