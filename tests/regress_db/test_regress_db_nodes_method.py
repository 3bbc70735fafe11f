"""What a node does to its runs, told from what nights, commits, allocations and other nodes do: on known truth."""

import dataclasses
import math
import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from regress_db.method.nodehistory import KnownNode, PlacedSeries, explained_by_nodes
from regress_db.method.nodes import node_contrasts
from regress_db.method.nodes_design import NodeRuns

LEVEL = 0.01
NOISE = {
    "normal": lambda chance: chance.normal(),
    "t3": lambda chance: chance.standard_t(3) / math.sqrt(3),
    "spikes": lambda chance: 0.7 * chance.normal() + 8 * (chance.random() < 0.03),
}


def made(
    seed,
    *,
    units=16,
    nights=16,
    repeats=3,
    hosts=8,
    per_run=1,
    effects=None,
    sd=0.015,
    night_sd=0.01,
    allocation_sd=0.005,
    noise="normal",
    place=None,
    commit=lambda night, unit: 0.0,
    strata=2,
):
    """Nights of units whose runs share allocations of four; effects: log change by host, the slowest of a run counts.

    place: hosts by night, repeat, first unit of the allocation and chance, in place of a free choice.
    """
    chance = np.random.default_rng(seed)
    spread = sd * np.exp(0.4 * chance.normal(size=units))
    level = chance.normal(5, 1, units)
    rows, machines = [], {}
    allocation = 0
    for night in range(nights):
        of_night = night_sd * chance.normal()
        for repeat in range(repeats):
            for first in range(0, units, 4):
                free = tuple(int(host) for host in sorted(chance.choice(hosts, per_run, replace=False)))
                on = place(night, repeat, first, chance) if place else free
                where = machines.setdefault(tuple(f"n{host}" for host in on), len(machines))
                shared = of_night + allocation_sd * chance.normal() + max((effects or {}).get(host, 0.0) for host in on)
                for unit in range(first, min(first + 4, units)):
                    own = spread[unit] * NOISE[noise](chance) + commit(night, unit)
                    rows.append((level[unit] + shared + own, unit, night, allocation, where))
                allocation += 1
    values, *numbers = zip(*rows, strict=True)
    unit, night, allocation, where = (np.array(column, dtype=np.intp) for column in numbers)
    return NodeRuns(
        np.array(values),
        unit,
        night,
        allocation,
        where,
        stratum=np.arange(units, dtype=np.intp) % strata,
        series=np.full(units, 2, dtype=np.intp),
        machines=tuple(machines),
    )


def by_name(runs, level=LEVEL):
    return {name: one for one in node_contrasts(runs, level) for name in one.names}


def slow(found):
    return {name for name, one in found.items() if one.p_value is not None and one.p_value <= LEVEL and one.effect > 0}


def differing(found):
    return {name for name, one in found.items() if one.p_value is not None and one.p_value <= LEVEL}


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"noise": "t3"},
        {"noise": "spikes"},
        {"repeats": 1, "units": 32},
        {"per_run": 2},
        {"allocation_sd": 0.02},
        {"nights": 5},
    ],
    ids=["plain", "t3", "spikes", "one run a night", "two nodes a run", "noisy allocations", "five nights"],
)
def test_a_node_of_eight_that_is_5_per_cent_slow_is_found_and_intervals_cover_as_they_say(shape):
    """30 histories: 240 intervals of 95 %, of which 95 % less or more four standard errors have to cover."""
    truth, covered, told, found_slow, falsely = {7: 0.05}, 0, 0, 0, 0
    for seed in range(30):
        found = by_name(made(seed, effects=truth, **shape))
        told += len(found)
        covered += sum(one.low <= truth.get(int(name[1:]), 0.0) <= one.high for name, one in found.items())
        found_slow += "n7" in slow(found)
        falsely += bool(differing(found) - {"n7"})
    assert told == 240
    assert 0.95 - 4 * math.sqrt(0.05 * 0.95 / told) <= covered / told
    assert found_slow >= 24
    assert falsely <= 2


def test_where_no_node_is_slow_none_is_called_so_more_often_than_the_level():
    alarms = [bool(differing(by_name(made(seed, nights=10, units=8), 0.1))) for seed in range(100)]
    assert sum(alarms) <= 2


def test_several_slow_nodes_are_told_apart_even_in_runs_on_both():
    found = by_name(made(1, nights=25, per_run=2, effects={6: 0.1, 7: 0.05}))
    assert slow(found) == differing(found) == {"n6", "n7"}
    assert found["n6"].effect == pytest.approx(0.1, abs=0.01)
    assert found["n7"].effect == pytest.approx(0.05, abs=0.01)


def test_nodes_that_always_run_together_are_one():
    pairs = [(0, 1), (2, 3), (4, 5)]
    found = node_contrasts(made(1, effects={3: 0.05}, place=lambda *given: pairs[given[-1].integers(3)]))
    assert [one.names for one in found] == [("n0", "n1"), ("n2", "n3"), ("n4", "n5")]
    assert found[1].effect == pytest.approx(0.05, abs=0.01)


def test_of_a_single_node_nothing_can_be_told():
    (found,) = node_contrasts(made(1, hosts=1))
    assert (found.effect, found.low, found.p_value) == (None, None, None)
    assert (found.runs, found.nights, found.units, found.series) == (768, 16, 16, 32)


def test_nights_that_ran_wholly_on_one_node_are_compared_with_other_nights():
    found = by_name(made(1, nights=60, repeats=1, effects={7: 0.08}, place=lambda night, *_: (night * 5 % 8,)))
    assert slow(found) == {"n7"}
    assert found["n7"].low < 0.08 < found["n7"].high


@pytest.mark.parametrize("start", [52, 57, 59])
def test_one_spell_on_a_node_tells_nothing_since_a_commit_may_have_come_with_it(start):
    found = by_name(
        made(
            1,
            nights=60,
            repeats=1,
            place=lambda night, *_: (7,) if night >= start else (night * 3 % 7,),
            commit=lambda night, _: 0.1 * (night >= start),
        )
    )
    assert found["n7"].effect is None
    assert not differing(found)


@pytest.mark.parametrize("start", [25, 28, 29])
def test_a_commit_that_slows_just_what_moves_to_a_new_node_is_not_that_node(start):
    def place(night, repeat, first, chance):
        return (7,) if night >= start and first // 4 % 2 else (first // 4 % 7,)

    def commit(night, unit):
        return 0.1 * (night >= start and unit // 4 % 2)

    for seed in range(5):
        found = by_name(made(seed, units=40, nights=30, repeats=1, place=place, commit=commit))
        assert not differing(found)


def test_a_commit_that_slows_half_of_the_series_half_way_is_no_node():
    truth = {7: 0.05}
    found = by_name(made(2, nights=20, effects=truth, commit=lambda night, unit: 0.2 * (night >= 10 and unit % 2)))
    assert differing(found) == {"n7"}
    assert found["n7"].low < 0.05 < found["n7"].high


def changed(runs, host, nights, effect):
    """The same, with this host slower in these nights."""
    there = runs.holds(host) & np.isin(runs.night, list(nights))
    return dataclasses.replace(runs, values=runs.values + np.where(there, effect, 0.0))


def test_of_a_node_that_got_slow_only_what_came_after_counts_and_since_when_is_told():
    found = by_name(changed(made(1, nights=30, hosts=4), "n3", range(20, 30), 0.06))
    assert differing(found) == {"n3"}
    assert found["n3"].since == 20
    assert found["n3"].nights == 10
    assert found["n3"].low < 0.06 < found["n3"].high


def test_a_node_that_was_repaired_is_usual_again():
    found = by_name(changed(made(1, nights=30, hosts=4), "n3", range(20), 0.06))
    assert not differing(found)
    assert found["n3"].since == 20
    assert abs(found["n3"].effect) < 0.01


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.floats(-3, 3), st.floats(0.2, 5), st.randoms())
@example(10155, 0.0, 2.0, random.Random(1)).via("exactly as many nights as are enough")
def test_neither_units_nor_nights_nor_names_nor_order_matter(seed, moved, scale, shuffled):
    runs = made(seed, units=6, nights=6, hosts=4, effects={1: 0.08})
    before = node_contrasts(runs)
    levels = np.linspace(0, moved, 6)[runs.unit] + np.linspace(0, moved, 6)[runs.night] + math.log(scale)
    order = list(range(len(runs.values)))
    shuffled.shuffle(order)
    after = node_contrasts(
        dataclasses.replace(
            runs,
            values=(runs.values + levels)[order],
            **{name: getattr(runs, name)[order] for name in ("unit", "night", "allocation", "where")},
        )
    )
    for one, other in zip(before, after, strict=True):
        assert one.names == other.names
        assert (one.runs, one.nights, one.units) == (other.runs, other.nights, other.units)
        assert other.effect == pytest.approx(one.effect, abs=1e-6)
        assert other.p_value == pytest.approx(one.p_value, rel=1e-3, abs=1e-6)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.floats(0.03, 0.5))
def test_an_effect_more_is_seen_as_that_much_more(seed, more):
    runs = made(seed, units=8, nights=8, hosts=5)
    before, after = by_name(runs), by_name(changed(runs, "n2", range(8), more))
    assert after["n2"].effect == pytest.approx(before["n2"].effect + more, abs=0.01)
    assert after["n2"].low <= after["n2"].effect <= after["n2"].high


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0])
def test_a_level_that_is_no_probability_is_refused(level):
    with pytest.raises(ValueError, match="wanted a probability"):
        node_contrasts(made(1, nights=2), level)


def test_values_that_are_no_numbers_are_refused_and_no_run_is_no_node():
    runs = made(1, nights=2)
    with pytest.raises(ValueError, match="not a finite number"):
        node_contrasts(dataclasses.replace(runs, values=np.full(len(runs.values), math.nan)))
    none = np.array([], dtype=np.intp)
    assert node_contrasts(NodeRuns(np.array([]), none, none, none, none, none, none, ())) == []


N7 = KnownNode(("n7",), math.log(1.08), math.log(1.06), math.log(1.10), runs=40, nights=12, units=20)
changes = st.floats(-0.5, 0.5)
nodes = st.sampled_from(["n1", "n7", "n8"])
places = st.lists(nodes, min_size=1, max_size=2, unique=True).map(tuple)


@given(st.lists(st.tuples(changes, places), min_size=1, max_size=5), st.lists(places, max_size=8), st.booleans())
def test_no_more_is_taken_out_than_the_series_changed_or_the_node_surely_did(new, base, code_may_differ):
    n8 = dataclasses.replace(N7, names=("n8",), effect=-0.05, low=-0.07, high=-0.03)
    one = PlacedSeries("series", True, "c", tuple(c for c, _ in new), tuple(h for _, h in new), tuple(base))
    found = explained_by_nodes([one], {("c", "n7"): N7, ("c", "n8"): n8}, code_may_differ)
    for certain, likely in zip(found.certain.get("series", ()), found.likely.get("series", ()), strict=True):
        assert certain * one.shift >= 0
        assert abs(certain) <= abs(likely) <= abs(one.shift) + 1e-12
        assert abs(certain) <= N7.effect - n8.effect
    if {hosts for _, hosts in new} == set(base) and len(set(base)) == 1:
        assert not found.certain


def on_n7(series, change, under_test=True):
    return PlacedSeries(series, under_test, "c", (change,), (("n7",),), (("n1",), ("n2",), ("n3",)))


def test_what_the_interval_leaves_open_is_not_taken_out():
    found = explained_by_nodes([on_n7("a", math.log(1.09))], {("c", "n7"): N7}, True)
    assert found.certain["a"] == (pytest.approx(math.log(1.06)),)
    assert found.likely["a"] == (pytest.approx(math.log(1.08)),)
    assert "it ran on n7, which makes its runs 8.0 % slower (6.0 % to 10.0 %)" in found.words["a"]


@pytest.mark.parametrize("change", [{"nights": 4}, {"units": 3}])
def test_a_node_known_by_few_nights_or_cases_explains_nothing(change):
    known = {("c", "n7"): dataclasses.replace(N7, **change)}
    assert explained_by_nodes([on_n7("a", 0.08)], known, True).certain == {}


def test_controls_on_the_node_have_to_show_its_difference_unless_the_code_is_the_same():
    series = [on_n7("a", 0.08), on_n7("control", 0.0, under_test=False)]
    doubted = explained_by_nodes(series, {("c", "n7"): N7}, True)
    assert doubted.certain == {}
    assert "nothing was taken out" in doubted.notes[0]
    assert "a" in explained_by_nodes(series, {("c", "n7"): N7}, False).certain
    shown = explained_by_nodes([series[0], on_n7("control", 0.07, under_test=False)], {("c", "n7"): N7}, True)
    assert set(shown.certain) == {"a", "control"}
