"""Bytes are counted from routing alone: compared with a count token by token, on any world."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import routing, traffic
from harness.case import Case

NAMES = [f"{part}_{way}" for part in ("total", "nvl", "rdma") for way in ("send", "recv")]


@st.composite
def problems(draw, mode):
    nodes = draw(st.sampled_from([1, 1, 2, 3]))
    ranks = nodes * draw(st.integers(1, 3))
    experts = ranks * draw(st.integers(1, 4))
    case = Case(
        backend="torch",
        mode=mode,
        ranks=ranks,
        nodes=nodes,
        tokens=draw(st.integers(0, 10)),
        hidden=draw(st.sampled_from([128, 256, 7168])),
        topk=draw(st.integers(1, min(experts, 5))),
        experts=experts,
        dtype=draw(st.sampled_from(["bf16", "fp8"])),
        combine="local_reduce" if mode == "ht" else "exact",
        routing=draw(st.sampled_from(list(routing.GENERATORS))),
        seed=draw(st.integers(0, 99)),
    )
    return case, routing.all_selections(case)


def brute_force(case, topk_idx):
    """The six counts, by walking over tokens as docs/metrics.md words them."""
    count = dict.fromkeys(NAMES, 0)
    per_node = case.ranks // case.nodes
    for source in range(case.ranks):
        for token in range(case.tokens):
            valid = [int(e) for e in topk_idx[source, token] if e != -1]
            ranks = {e // case.experts_per_rank for e in valid}
            for node in {rank // per_node for rank in ranks}:
                count["total_send"] += 1
                count["rdma_send" if node != source // per_node else "nvl_send"] += 1
            for rank in ranks:
                count["total_recv"] += 1
                count["rdma_recv" if rank // per_node != source // per_node else "nvl_recv"] += 1
    return {name: value / case.ranks * 2 * case.hidden for name, value in count.items()}


@settings(max_examples=150, deadline=None)
@given(problems("ht"))
def test_high_throughput_bytes_equal_a_walk_over_tokens(problem):
    case, topk_idx = problem
    wanted = brute_force(case, topk_idx)
    got = traffic.logical_bytes(case, topk_idx)
    assert got["dispatch"] == pytest.approx(wanted)
    swap = {"send": "recv", "recv": "send"}
    for name, value in wanted.items():
        part, way = name.split("_")
        assert got["combine"][f"{part}_{swap[way]}"] == pytest.approx(value)
    if case.nodes == 1:
        assert got["dispatch"]["rdma_send"] == got["dispatch"]["rdma_recv"] == 0


@settings(max_examples=150, deadline=None)
@given(problems("ll"))
def test_low_latency_bytes_are_the_mean_of_receive_counts(problem):
    case, topk_idx = problem
    received = [
        sum(int(e) // case.experts_per_rank == rank for e in topk_idx.ravel() if e != -1) for rank in range(case.ranks)
    ]
    row = case.hidden + 4 * case.hidden // 128 if case.dtype == "fp8" else 2 * case.hidden
    got = traffic.logical_bytes(case, topk_idx)
    assert got["dispatch"] == {"recv": pytest.approx(np.mean(received) * row)}
    assert got["combine"] == {"send": pytest.approx(np.mean(received) * 2 * case.hidden)}


@settings(max_examples=100, deadline=None)
@given(problems("ll"))
def test_remote_rows_equal_a_walk_over_tokens(problem):
    case, topk_idx = problem
    selections = tokens = 0
    for source in range(case.ranks):
        for row in topk_idx[source]:
            owners = [int(e) // case.experts_per_rank for e in row if e != -1]
            selections += sum(owner != source for owner in owners)
            tokens += len(set(owners) - {source})
    assert traffic.remote_selections(case, topk_idx) == pytest.approx(selections / case.ranks)
    assert traffic.remote_tokens(case, topk_idx) == pytest.approx(tokens / case.ranks)
    row = traffic.dispatch_row_bytes(case)
    for combine, rows_back in (("exact", selections), ("local_reduce", tokens)):
        assert traffic.deduplicated_bytes(msgspec.structs.replace(case, combine=combine), topk_idx) == {
            "dispatch": pytest.approx(tokens / case.ranks * row),
            "combine": pytest.approx(rows_back / case.ranks * 2 * case.hidden),
        }


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["ll", "ht"]).flatmap(problems))
def test_what_goes_between_nodes_equals_a_walk_over_tokens(problem):
    case, topk_idx = problem
    per_node = case.ranks // case.nodes
    tokens = selections = ranks = 0
    for source in range(case.ranks):
        for row in topk_idx[source]:
            owners = [int(e) // case.experts_per_rank for e in row if e != -1]
            far = [owner for owner in owners if owner // per_node != source // per_node]
            tokens += len({owner // per_node for owner in far})
            selections += len(far)
            ranks += len(set(far))
    for combine, rows_back in (("exact", selections), ("local_reduce", ranks)):
        if (case.mode, combine) != ("ht", "exact"):
            assert traffic.bytes_between_nodes(msgspec.structs.replace(case, combine=combine), topk_idx) == {
                "dispatch": pytest.approx(tokens / case.ranks * traffic.dispatch_row_bytes(case)),
                "combine": pytest.approx(rows_back / case.ranks * 2 * case.hidden),
            }


def test_bandwidth_comes_from_the_given_time_and_aggregates_over_ranks():
    case = Case(backend="torch", mode="ll", ranks=4, tokens=8, hidden=128, topk=2, experts=4)
    found = traffic.traffic(case, "dispatch", {"recv": 3e6}, 1500.0, None)
    assert found.headline == "recv"
    assert found.per_rank_gbs == {"recv": pytest.approx(2.0)}
    assert found.aggregate_gbs == pytest.approx(8.0)
    assert found.wire_bytes_per_rank is None


def test_the_headline_of_both_phases_of_ht_is_total_send():
    case = Case(backend="torch", mode="ht", ranks=2, tokens=8, hidden=128, topk=2, experts=4, combine="local_reduce")
    bytes_of = traffic.logical_bytes(case, routing.all_selections(case))
    for phase in ("dispatch", "combine"):
        found = traffic.traffic(case, phase, bytes_of[phase], 10.0, 5.0)
        assert found.headline == "total_send"
        assert sorted(found.bytes_per_rank) == sorted(NAMES)
        assert found.aggregate_gbs == pytest.approx(2 * found.per_rank_gbs["total_send"])
