"""Where a rank runs: lists of CPUs as the kernel writes them, NUMA nodes, and who shares whose memory."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import environment
from harness.placement import cpu_list, here, in_equal_blocks, in_words, members, memory_domain, numa_of

numbers = st.sets(st.integers(0, 400))


@given(numbers)
def test_a_list_of_cpus_is_read_back_and_is_as_short_as_the_kernel_has_it(cpus):
    text = cpu_list(cpus)
    assert members(text) == cpus
    spans = [part for part in text.split(",") if part]
    breaks = sum(number - 1 not in cpus for number in cpus)
    assert len(spans) == breaks


@pytest.mark.parametrize(
    ("cpus", "text"), [([], ""), ([3], "3"), ([0, 1], "0-1"), ([8, 0, 2, 1, 3], "0-3,8"), ([0, 2, 4], "0,2,4")]
)
def test_lists_of_cpus_look_like_this(cpus, text):
    assert cpu_list(cpus) == text


def test_numa_nodes_are_those_of_the_cpus(tmp_path):
    for node, cpus in {"node0": "0-3,8-11", "node1": "4-7,12-15", "node10": "", "online": "0-1"}.items():
        (tmp_path / node).mkdir()
        (tmp_path / node / "cpulist").write_text(f"{cpus}\n")
    assert numa_of({0, 9}, tmp_path) == "0"
    assert numa_of({3, 4}, tmp_path) == "0-1"
    assert numa_of({99}, tmp_path) == ""
    assert numa_of({0}, tmp_path / "absent") == ""
    (tmp_path / "node1" / "cpulist").write_text("some\n")
    assert numa_of({0}, tmp_path) == ""


def test_this_process_is_where_the_kernel_says(monkeypatch):
    found = here(3)
    assert (found.rank, found.hostname) == (3, environment.hostname())
    assert members(found.cpus) == os.sched_getaffinity(0)
    monkeypatch.setenv("SLURMD_NODENAME", "gpu07")
    assert here(3).hostname == "gpu07"


def test_processes_of_one_machine_have_one_domain():
    program = "from harness.placement import memory_domain; print(memory_domain())"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.strip() == memory_domain()


domains = st.lists(st.sampled_from("abc"), min_size=1, max_size=12)


@given(domains)
def test_ranks_are_evenly_spread_when_dividing_their_number_gives_their_node(of_rank):
    nodes = list(dict.fromkeys(of_rank))
    even = len(of_rank) % len(nodes) == 0 and all(
        domain == nodes[rank * len(nodes) // len(of_rank)] for rank, domain in enumerate(of_rank)
    )
    assert in_equal_blocks(of_rank) == even


def test_who_shares_memory_is_said_in_words():
    assert in_words(["a", "a", "b", "b"], ["x", "x", "x", "x"]) == "a and b share memory"
    assert in_words(["a", "b", "c"], ["x", "x", "y"]) == "a and b share memory, c has memory of its own"
