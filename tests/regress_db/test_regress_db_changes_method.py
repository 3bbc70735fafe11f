"""What change points promise: nothing where nothing changes, the change where there is one, whatever the noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regress_db.method.changepoints import detect, segments
from regress_db.method.changepoints_scan import recent_p_value, scan, search_p_value, split_score


def noise(seed, points=100, spread=0.01):
    return 100 * np.exp(spread * np.random.default_rng(seed).standard_normal(points))


def steps(values, **options):
    return [change for change in detect(values, **options) if change.kind == "step"]


@pytest.mark.parametrize("change", [0.05, -0.05, 1.0])
@pytest.mark.parametrize("at", [8, 60, 95])
def test_a_step_is_found_where_it_is_with_its_size(at, change):
    values = noise(at)
    values[at:] *= 1 + change
    (found,) = steps(values)
    assert abs(found.index - at) <= 1
    assert found.earliest <= at <= found.latest
    assert found.low - 0.02 < change < found.high + 0.02
    assert found.effect == pytest.approx(change, abs=0.03 * (1 + change))
    assert found.p_value < 0.01


def test_two_slow_nights_are_enough_and_one_is_not():
    values = noise(1)
    values[98:] *= 1.1
    assert [change.index for change in steps(values)] == [98]
    assert detect(values[:99]) == []


@pytest.mark.parametrize("nights", [1, 2])
def test_what_goes_away_after_a_night_or_two_is_a_transient(nights):
    values = noise(2)
    values[50 : 50 + nights] *= 1.4
    (found,) = detect(values)
    assert (found.kind, found.index, found.latest) == ("transient", 50, 49 + nights)
    assert segments(values) == [(0, 100)]


def test_up_and_back_after_some_nights_are_two_steps():
    values = noise(3, 200)
    values[80:110] *= 1.05
    up, down = steps(values)
    assert (abs(up.index - 80) <= 1, abs(down.index - 110) <= 1) == (True, True)
    assert up.effect > 0 > down.effect
    assert segments(values) == [(0, up.index), (up.index, down.index), (down.index, 200)]


def test_a_long_slope_is_one_drift():
    values = noise(4) * np.exp(np.linspace(0, 0.1, 100))
    (found,) = detect(values)
    assert (found.kind, found.earliest, found.latest) == ("drift", 0, 99)
    assert found.effect == pytest.approx(0.105, abs=0.02)


def correlated(chance, points):
    values = chance.standard_normal(points + 50)
    for place in range(1, points + 50):
        values[place] += 0.5 * values[place - 1]
    return values[50:]


@pytest.mark.parametrize(
    "make",
    [
        lambda c: c.standard_normal(100),
        lambda c: c.standard_t(3, 100),
        lambda c: c.standard_normal(100) + 4 * (c.random(100) < 0.5),
        lambda c: correlated(c, 100),
        lambda c: c.standard_normal(100) + 26 * (c.random(100) < 0.03),
        lambda c: np.round(c.standard_normal(100)),
    ],
    ids=["gaussian", "heavy tails", "two modes", "correlated", "spikes", "few distinct values"],
)
def test_unchanged_series_hardly_ever_alarm(make):
    chance = np.random.default_rng(11)
    alarms = sum(change.kind != "transient" for _ in range(150) for change in detect(np.exp(0.01 * make(chance))))
    assert alarms <= 4


def test_a_slow_node_is_taken_out_where_nodes_take_turns():
    chance = np.random.default_rng(5)
    nodes = chance.integers(0, 2, 100)
    values = noise(6) * np.where(nodes == 1, 1.1, 1.0)
    values[60:] *= 1.03
    assert steps(values) == []
    (found,) = steps(values, groups=list(nodes))
    assert abs(found.index - 60) <= 2
    assert not found.with_label


def test_a_change_that_comes_with_another_node_says_so():
    values = noise(7)
    values[60:] *= 1.05
    (found,) = detect(values, groups=["node-1"] * 60 + ["node-2"] * 40)
    assert found.with_label


def test_a_change_below_the_floor_is_not_told():
    values = noise(8, 400)
    values[200:] *= 1.02
    assert steps(values)
    assert detect(values, floor=0.05) == []


@settings(max_examples=40)
@given(
    st.lists(st.floats(1e-3, 1e6), min_size=0, max_size=60),
    st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_any_series_gives_ordered_changes_within_it_on_any_scale(values, scale):
    found = detect(values)
    assert [change.index for change in found] == sorted(change.index for change in found)
    for change in found:
        assert 0 <= change.earliest <= change.index <= change.latest < len(values)
        assert change.low <= change.effect <= change.high
        assert 0 <= change.p_value <= 1
    parts = segments(values)
    assert [place for start, end in parts for place in range(start, end)] == list(range(len(values)))
    scaled = [(one.kind, one.index) for one in detect([scale * value for value in values])]
    assert len(scaled) == len(found) or scale != 1.0


@given(st.integers(0, 2**32 - 1), st.sampled_from([24, 60]))
def test_a_change_and_its_inverse_are_found_alike(seed, points):
    values = noise(seed, points)
    values[points // 2 :] *= 1.05
    mirrored = [(one.kind, one.index) for one in detect(1 / values)]
    assert mirrored == [(one.kind, one.index) for one in detect(values)]


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10))
def test_ranks_see_the_order_and_nothing_else(seed, power):
    values = np.random.default_rng(seed).random(64) + 0.5
    assert scan(values).score == pytest.approx(scan(values**power).score)


@given(st.integers(6, 6000), st.floats(0, 60), st.floats(0, 5))
def test_a_higher_score_is_never_more_likely(points, score, more):
    for p_value in (search_p_value, recent_p_value):
        assert 0 <= p_value(score + more, points) <= p_value(score, points) <= 1


def test_a_split_that_parts_everything_scores_its_exact_probability():
    import math

    exact = 2 / math.comb(100, 3)
    assert split_score(np.arange(97.0), np.arange(97.0, 100.0)) == pytest.approx(-math.log(exact))


@pytest.mark.parametrize("values", [[1.0, 0.0] * 5, [1.0, -1.0] * 5, [1.0, float("nan")] * 5, [[1.0, 2.0]]])
def test_values_that_cannot_be_are_refused(values):
    with pytest.raises(ValueError, match="value"):
        detect(values)


@pytest.mark.parametrize("options", [{"groups": ["a"]}, {"level": 0.0}, {"level": 1.0}, {"floor": -0.1}])
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match=r"labels|level|floor"):
        detect(noise(0), **options)


@pytest.mark.parametrize("values", [[], [5.0], [5.0, 6.0, 7.0], [5.0] * 50])
def test_nothing_can_be_said_of_few_or_equal_values(values):
    assert detect(values) == []
