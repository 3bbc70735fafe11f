"""A night of ep_core over several nodes: ranks of two Slurm nodes that do not share memory, rows over gloo."""

import pytest
from slurm_nights import Place, plan_text


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_night_over_two_nodes_is_measured_and_judged(slurm_without_accounting, tmp_path):
    text = plan_text(
        {"backend": ["ep_core", "torch"], "ranks": 4, "nodes": 2, "dtype": "bf16"},
        {"backend": "ep_core", "ranks": 4, "nodes": 2, "hidden": 256, "dtype": "fp8"},
        {"backend": "ep_core", "mode": "ht", "combine": "local_reduce", "ranks": 4, "nodes": 2},
    )
    # Both of Slurm's nodes are this machine: its ranks are told apart as those of two machines would be.
    place = Place(tmp_path, slurm_without_accounting, text, EP_RANKS_PER_NODE="2")
    ended = place.epwatch("nightly", "plan.toml")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = place.records()
    assert sorted(one.case.backend for one in found) == ["ep_core", "ep_core", "ep_core", "torch"]
    assert {one.outcome for one in found} == {"ok"}
    for one in found:
        assert (one.case.ranks, one.case.nodes) == (4, 2)
        assert len({rank.hostname for rank in one.placement}) == 2
    (high_throughput,) = (one for one in found if one.case.mode == "ht")
    for phase in high_throughput.phases:
        moved = phase.traffic.bytes_per_rank
        assert moved["total_send"] == pytest.approx(moved["nvl_send"] + moved["rdma_send"])
        assert moved["rdma_send"] > 0
    dispatch = next(phase.traffic for phase in high_throughput.phases if phase.phase == "dispatch")
    assert dispatch.wire_bytes_per_rank == pytest.approx(dispatch.bytes_per_rank["rdma_send"])
