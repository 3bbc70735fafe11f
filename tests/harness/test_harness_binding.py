"""Each rank of the local launcher gets its own share of the cores, and nobody gets a core twice."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.binding import share

CORES = st.sets(st.integers(0, 511), min_size=1, max_size=128).map(list)


@given(cores=CORES, ranks=st.integers(1, 64))
def test_shares_are_equal_disjoint_and_made_of_the_cores_given(cores: list[int], ranks: int) -> None:
    shares = [share(cores, rank, ranks) for rank in range(ranks)]
    if ranks > len(cores):
        assert all(sorted(one) == sorted(cores) for one in shares)
        return
    assert {len(one) for one in shares} == {len(cores) // ranks}
    taken = list(itertools.chain.from_iterable(shares))
    assert len(set(taken)) == len(taken)
    assert set(taken) <= set(cores)


@given(cores=CORES, ranks=st.integers(1, 64))
def test_a_share_is_of_neighbours(cores: list[int], ranks: int) -> None:
    ordered = sorted(cores)
    for rank in range(ranks):
        mine = share(cores, rank, ranks)
        first = ordered.index(mine[0])
        assert mine == ordered[first : first + len(mine)]


def bound(value: str | None) -> subprocess.CompletedProcess[str]:
    """What a process that binds itself as rank 0 of 2 says of its cores, before and after."""
    code = (
        "import os; from harness import environment, binding; before = len(os.sched_getaffinity(0));"
        "binding.bind(0, 2, os.environ);"
        "print(before, len(os.sched_getaffinity(0)), len(environment.cores_given()))"
    )
    environ = {name: text for name, text in os.environ.items() if name != "EPWATCH_BIND"}
    if value is not None:
        environ["EPWATCH_BIND"] = value
    return subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core cannot be shared out between two ranks")
def test_a_bound_rank_still_reports_the_platform_it_was_given() -> None:
    before, after, given_cores = map(int, bound(None).stdout.split())
    assert after == before // 2
    assert given_cores == before


def test_binding_can_be_switched_off() -> None:
    before, after, _ = map(int, bound("none").stdout.split())
    assert after == before


def test_an_unknown_way_of_binding_is_refused_with_the_choices() -> None:
    done = bound("sockets")
    assert done.returncode != 0
    assert "EPWATCH_BIND='sockets' is unknown: set it to cores or none" in done.stderr
