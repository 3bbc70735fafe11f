"""How many jobs of several arrays run together, however long each takes: never more than the plan allows."""

import heapq
import random

from hypothesis import given
from hypothesis import strategies as st

from jobs.slurm_submit import turn_parameters, turns

sizes_of_arrays = st.lists(st.integers(1, 20), min_size=1, max_size=12)


def most_together(sizes, plan, seed):
    """The most jobs that ran together, and whether all ran, where each may begin as soon as its turn allows it."""
    draw = random.Random(seed)
    waiting, running, peak = list(sizes), [0] * len(sizes), 0
    ends = []
    while any(waiting) or ends:
        for place, turn in enumerate(plan):
            free = turn.after is None or not (waiting[turn.after] or running[turn.after])
            while free and waiting[place] and running[place] < turn.at_once:
                waiting[place] -= 1
                running[place] += 1
                heapq.heappush(ends, ((ends[0][0] if ends else 0) + draw.random(), place))
        peak = max(peak, sum(running))
        assert ends, "jobs wait for each other"
        _, place = heapq.heappop(ends)
        running[place] -= 1
    return peak


@given(sizes_of_arrays, st.integers(1, 30), st.integers(0, 9))
def test_never_more_than_allowed_and_all_get_their_turn(sizes, most, seed):
    assert most_together(sizes, turns(sizes, most), seed) <= most


@given(sizes_of_arrays, st.integers(1, 300))
def test_nobody_waits_without_need(sizes, most):
    plan = turns(sizes, most)
    if len(sizes) <= most:
        assert sum(turn.at_once for turn in plan) == min(most, sum(sizes))
        assert all(turn.at_once <= size and turn.after is None for turn, size in zip(plan, sizes, strict=True))
    else:
        assert [turn.after for turn in plan[:most]] == [None] * most
    if sum(sizes) <= most:
        assert [turn.at_once for turn in plan] == sizes


def test_what_slurm_is_told():
    assert turn_parameters(3, "") == {"array_parallelism": 3}
    assert turn_parameters(1, "77") == {"array_parallelism": 1, "dependency": "afterany:77"}
