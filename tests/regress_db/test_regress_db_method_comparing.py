"""The night's method: its symmetries, its limits with few or odd runs, and its error rates on simulated runs."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from regress_db.method.comparing import (
    CANDIDATE_ALPHA,
    DEFAULT_LEVEL,
    Comparison,
    Runs,
    compare,
    decide,
    is_candidate,
    platform_prior,
)

MIRROR = {"regressed": "improved", "improved": "regressed"}

values = st.integers(min_value=500, max_value=50_000).map(lambda tenths: tenths / 10)
few = st.lists(values, min_size=1, max_size=6)
several = st.lists(values, min_size=3, max_size=14)
floors = st.floats(min_value=0.005, max_value=2.0)


def runs(values_us, night=None):
    return Runs(tuple(values_us), () if night is None else tuple(f"{night} {place}" for place in range(len(values_us))))


def noisy(rng, count, sd=0.015, level=100.0):
    return tuple((level * np.exp(sd * rng.standard_normal(count))).tolist())


def a_platform(rng, series=60, count=10, sd=0.015, night_sd=0.0, runs_a_night=1):
    made = []
    for _ in range(series):
        logs = night_sd * rng.standard_normal((count, 1)) + sd * rng.standard_normal((count, runs_a_night))
        nights = tuple(f"n{night}" for night in range(count) for _ in range(runs_a_night))
        made.append(Runs(tuple((100 * np.exp(logs)).ravel().tolist()), nights))
    return made


def verdict(comparison, level=DEFAULT_LEVEL):
    return decide([comparison], level)[0].verdict


def numbers(one: Comparison):
    return (one.effect, one.low, one.high, one.p_value, one.error, one.noise_floor, one.detectable)


# What must hold for any runs


@given(few, several, floors, st.sampled_from([1e-6, 0.01, 3.0, 1e7]))
def test_the_unit_of_time_does_not_matter(new, base, floor, unit):
    one = compare(runs(new), runs(base), floor=floor)
    other = compare(runs([v * unit for v in new]), runs([v * unit for v in base]), floor=floor)
    assert numbers(other) == pytest.approx(numbers(one), rel=1e-6, abs=1e-9)


@given(few, several, floors)
def test_faster_is_the_mirror_image_of_slower(new, base, floor):
    one = compare(runs(new), runs(base), floor=floor)
    other = compare(runs([1e6 / v for v in new]), runs([1e6 / v for v in base]), floor=floor)
    assert math.log1p(other.effect) == pytest.approx(-math.log1p(one.effect), abs=1e-9)
    assert math.log1p(other.high) == pytest.approx(-math.log1p(one.low), abs=1e-9)
    assert other.p_value == pytest.approx(one.p_value, rel=1e-6)
    assert verdict(other) == MIRROR.get(verdict(one), verdict(one))


@given(few, several, floors, st.floats(min_value=1.0, max_value=3.0))
def test_slower_new_runs_are_never_judged_faster(new, base, floor, factor):
    order = ["improved", "unchanged", "inconclusive", "regressed"]
    one = compare(runs(new), runs(base), floor=floor)
    other = compare(runs([v * factor for v in new]), runs(base), floor=floor)
    assert other.effect >= one.effect - 1e-12
    assert other.error == pytest.approx(one.error)
    if verdict(one) == "regressed":
        assert verdict(other) == "regressed"
    if order.index(verdict(other)) == 0:
        assert verdict(one) == "improved"


@given(few, several, floors)
def test_the_estimate_lies_in_its_interval_and_the_stated_floors_agree_with_the_verdict(new, base, floor):
    one = compare(runs(new), runs(base), floor=floor)
    assert one.low <= one.effect <= one.high
    assert 0 <= one.p_value <= 1
    assert one.detectable >= one.effective_floor * (1 - 1e-9) or one.method == "ranks"
    if verdict(one) == "regressed":
        assert one.effect >= one.effective_floor > 0
        assert one.low > 0
    if verdict(one) == "unchanged":
        assert math.log1p(one.high) < math.log1p(floor)
        assert math.log1p(one.low) > -math.log1p(floor)


@given(few, several, st.floats(min_value=-1, max_value=1))
def test_a_shared_change_is_taken_out_of_the_new_runs_alone(new, base, shared):
    plain = compare(runs(new), runs(base), floor=0.05)
    moved = compare(runs([v * math.exp(shared) for v in new]), runs(base), floor=0.05, shared=shared)
    assert numbers(moved) == pytest.approx(numbers(plain), rel=1e-6, abs=1e-9)


@given(several, st.integers(min_value=1, max_value=5))
def test_runs_all_alike_are_not_believed_to_have_no_noise(base, count):
    flat = compare(runs([base[0] * 1.0005] * count), runs([base[0]] * len(base)), floor=0.05)
    assert flat.error > 0
    assert flat.detectable > 0.05
    assert any("hardly differ" in warning for warning in flat.warnings)
    assert verdict(compare(runs([base[0] * 1.2] * 3), runs([base[0]] * 5), floor=0.05)) == "regressed"


@given(st.lists(values, min_size=0, max_size=2), few)
def test_too_few_baseline_runs_are_insufficient(base, new):
    one = compare(runs(new), Runs(tuple(base)), floor=0.05)
    assert verdict(one) == "insufficient"
    assert decide([one])[0].q_value is None
    assert (one.effect is None) == (not base)
    assert not is_candidate(one)


@given(few, st.lists(values, min_size=3, max_size=60), floors)
def test_more_runs_needed_is_none_or_really_enough(new, base, floor):
    one = compare(runs(new), runs(base), floor=floor)
    if one.runs_needed == 0 and one.method == "t":
        assert one.noise_floor <= floor * (1 + 1e-9)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_value_that_is_no_latency_is_refused(bad):
    with pytest.raises(ValueError, match="wanted a positive number"):
        Runs((1.0, bad))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"floor": -0.1}, "floor"),
        ({"floor": math.nan}, "floor"),
        ({"floor": 0.05, "level": 0.0}, "level"),
        ({"floor": 0.05, "family": 0}, "family"),
        ({"floor": 0.05, "confirmations": -1}, "confirmations"),
        ({"floor": 0.05, "shared": math.inf}, "shared"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options, said):
    with pytest.raises(ValueError, match=said):
        compare(Runs((1.0,)), Runs((1.0, 1.1, 1.2)), **options)


def test_no_new_run_and_nights_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="no new run"):
        compare(Runs(()), Runs((1.0, 1.1, 1.2)), floor=0.05)
    with pytest.raises(ValueError, match="2 runs come with 1 nights"):
        Runs((1.0, 2.0), ("a",))


# Ranks


def test_ranks_decide_where_runs_are_many_and_alone_and_never_otherwise():
    rng = np.random.default_rng(1)
    base, new = noisy(rng, 10), noisy(rng, 5)
    assert compare(runs(new, "new"), runs(base, "old"), floor=0.05).method == "ranks"
    assert compare(Runs(new), Runs(base), floor=0.05).method == "ranks"
    assert compare(runs(new, "new"), runs(base, "old"), floor=0.05, family=300).method == "t"
    assert compare(runs(new[:2], "new"), runs(base, "old"), floor=0.05).method == "t"
    tonight = Runs(new, ("tonight",) * 5)
    assert compare(tonight, runs(base, "old"), floor=0.05).method == "t", "runs of one night are not exchangeable"


def test_the_rank_p_value_is_that_of_all_orderings():
    one = compare(runs([2.0, 2.1, 2.2, 2.3], "new"), runs([1.0 + i / 100 for i in range(10)], "old"), floor=0.05)
    assert one.method == "ranks"
    assert one.p_value == pytest.approx(2 / math.comb(14, 4))


def test_a_spike_among_ranked_runs_does_not_hide_a_regression():
    rng = np.random.default_rng(14)
    one = compare(runs((110.0, 109.0, 111.0, 108.0, 150.0), "new"), runs((*noisy(rng, 9), 130.0), "old"), floor=0.05)
    assert one.method == "ranks"
    assert verdict(one) == "regressed"


# The spread of a series


def test_an_outlying_baseline_run_costs_little_and_an_outlying_confirmation_neither():
    rng = np.random.default_rng(2)
    base = noisy(rng, 10)
    clean = compare(Runs((110.0,)), runs(base, "n"), floor=0.05)
    spiked = compare(Runs((110.0,)), runs((*base[:-1], 160.0), "n"), floor=0.05)
    assert spiked.error < 2 * clean.error
    new = Runs((110.0, 109.0, 150.0), ("x",) * 3)
    assert verdict(compare(new, runs(base, "n"), floor=0.05)) == "regressed"
    assert verdict(compare(Runs((100.0, 99.0, 150.0), ("x",) * 3), runs(base, "n"), floor=0.05)) != "regressed"


def test_the_platform_lends_spread_to_a_short_baseline():
    rng = np.random.default_rng(3)
    prior = platform_prior(a_platform(rng))
    lucky = Runs((100.0, 100.01, 100.02), ("a", "b", "c"))
    alone, with_platform = (compare(Runs((101.0,)), lucky, floor=0.05, prior=one) for one in (None, prior))
    assert alone.error < 0.002
    assert 0.012 < with_platform.error < 0.02
    assert with_platform.df > alone.df


def test_a_series_noisier_than_its_platform_keeps_its_noise():
    rng = np.random.default_rng(4)
    prior = platform_prior(a_platform(rng))
    base = Runs(noisy(rng, 10, sd=0.15), tuple("abcdefghij"))
    assert compare(Runs((100.0,)), base, floor=0.05, prior=prior).error > 0.1


def test_earlier_segments_lend_spread_and_not_level():
    rng = np.random.default_rng(5)
    earlier = Runs(noisy(rng, 20, level=60.0), tuple(f"e{i}" for i in range(20)))
    one = compare(Runs((100.0,)), Runs((100.0,)), floor=0.05, earlier=(earlier,))
    assert one.effect == pytest.approx(0.0)
    assert 0.01 < one.error < 0.035
    assert verdict(one) in {"unchanged", "inconclusive"}
    assert verdict(compare(Runs((100.0,)), Runs((100.0,)), floor=0.05)) == "insufficient"


def test_a_night_that_moves_as_one_is_not_three_proofs():
    rng = np.random.default_rng(6)
    prior = platform_prior(a_platform(rng, sd=0.005, night_sd=0.03, runs_a_night=3))
    assert prior.night_share > 0.9
    base = Runs(noisy(rng, 10, sd=0.03), tuple("abcdefghij"))
    same, own = (Runs((108.0, 108.1, 107.9), nights) for nights in (("x",) * 3, ("x", "y", "z")))
    assert compare(same, base, floor=0.05, prior=prior).error > 1.4 * compare(own, base, floor=0.05, prior=prior).error


def test_the_series_own_nights_speak_where_the_platform_does_not():
    rng = np.random.default_rng(7)
    steady, moving = a_platform(rng, 1, 15, 0.02, 0.0, 3)[0], a_platform(rng, 1, 15, 0.005, 0.02, 3)[0]
    new = Runs((100.0, 100.1, 100.2), ("x",) * 3)
    assert not compare(new, steady, floor=0.05).warnings
    relative = [compare(new, base, floor=0.05).error / np.log(base.values_us).std() for base in (steady, moving)]
    assert relative[1] > relative[0]


def test_new_runs_of_several_nights_leave_the_spread_of_a_one_night_baseline_as_it_is():
    rng = np.random.default_rng(13)
    base = Runs(noisy(rng, 10))
    one, other = (compare(Runs((100.0, 100.1), nights), base, floor=0.05) for nights in (("x", "x"), ("x", "y")))
    assert other.error == pytest.approx(one.error, rel=0.2)
    assert other.df > 5


def test_what_nights_differ_by_is_said_where_it_is_not_known():
    rng = np.random.default_rng(8)
    base = noisy(rng, 10)
    assert "of one night" in compare(Runs((100.0,)), Runs(base), floor=0.05).warnings[0]
    assert "no night has several runs" in compare(Runs((100.0,)), runs(base, "n"), floor=0.05).warnings[0]


# Candidates and the night


def test_only_slower_series_are_rerun():
    rng = np.random.default_rng(9)
    base = runs(noisy(rng, 10), "n")
    assert is_candidate(compare(Runs((110.0,)), base, floor=0.05))
    assert not is_candidate(compare(Runs((90.0,)), base, floor=0.05))
    assert not is_candidate(compare(Runs((100.5,)), base, floor=0.05))


@given(few, several, floors)
def test_what_could_be_called_regressed_is_a_candidate(new, base, floor):
    one = compare(runs(new), runs(base), floor=floor)
    assume(one.method == "t")
    if verdict(one, CANDIDATE_ALPHA) == "regressed":
        assert is_candidate(one)


def test_a_night_of_many_series_asks_more_of_each():
    rng = np.random.default_rng(10)
    base = [runs(noisy(rng, 10), f"n{i}") for i in range(100)]
    slow = compare(Runs((110.0, 107.0, 109.0), ("x",) * 3), base[0], floor=0.02)
    still = [compare(Runs((100.0,)), one, floor=0.02) for one in base[1:]]
    alone, *_ = decide([slow])
    among, *others = decide([slow, *still])
    assert alone.verdict == "regressed"
    assert among.q_value > alone.q_value
    assert not {"regressed", "improved"} & {one.verdict for one in others}


def test_no_series_no_verdict():
    assert decide([]) == []


@given(st.integers(min_value=1, max_value=300))
def test_what_could_be_seen_grows_with_the_number_of_series(family):
    base = Runs((100.0, 101.0, 99.0, 102.0, 98.5, 100.4), tuple("abcdef"))
    one, other = (compare(Runs((100.0,)), base, floor=0.01, confirmations=2, family=k) for k in (1, family))
    assert other.detectable >= one.detectable * (1 - 1e-9)
    fewer = compare(Runs((100.0,)), base, floor=0.01, confirmations=0, family=family)
    assert fewer.detectable >= other.detectable * (1 - 1e-9)


# Error rates, seeded


def test_false_alarms_and_power_of_one_run_and_two_confirmations_against_ten():
    rng = np.random.default_rng(11)
    baselines = a_platform(rng, series=300)
    prior = platform_prior(baselines)
    assert math.sqrt(prior.variance) == pytest.approx(0.015, rel=0.05)
    said = {0.0: [], 0.1: []}
    for change, verdicts in said.items():
        for base in baselines:
            new = noisy(rng, 3, level=100 * (1 + change))
            first = compare(Runs(new[:1], ("x",)), base, floor=0.05, prior=prior, confirmations=2)
            final = compare(Runs(new, ("x",) * 3), base, floor=0.05, prior=prior) if is_candidate(first) else first
            verdicts.append(verdict(final))
    assert said[0.0].count("regressed") <= 2
    assert said[0.1].count("regressed") >= 285


@pytest.mark.parametrize("tails", ["t3", "spikes"])
def test_one_far_run_among_many_series_is_not_believed_where_the_platform_has_such_runs(tails):
    rng = np.random.default_rng(12)

    def draw(count):
        if tails == "t3":
            logs = 0.015 * rng.standard_t(3, count)
        else:
            logs = 0.015 * rng.standard_normal(count) + 0.26 * (rng.random(count) < 0.03)
        return tuple((100 * np.exp(logs)).tolist())

    alarms = 0
    for _ in range(10):
        baselines = [runs(draw(10), f"n{i}") for i in range(100)]
        prior = platform_prior(baselines)
        assert prior.tails is not None
        night = [compare(Runs(draw(1), ("x",)), base, floor=0.05, prior=prior) for base in baselines]
        alarms += sum(one.verdict == "regressed" for one in decide(night))
    assert alarms <= 2


@settings(max_examples=20)
@given(st.integers(min_value=0, max_value=2**32 - 1), st.integers(min_value=1, max_value=5))
def test_null_p_values_are_not_too_small_for_any_number_of_new_runs(seed, count):
    rng = np.random.default_rng(seed)
    small = 0
    for _ in range(40):
        small += compare(Runs(noisy(rng, count)), Runs(noisy(rng, 6)), floor=0.05).p_value < 0.001
    assert small <= 2
