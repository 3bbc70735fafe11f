"""How CUDA buffers would reach ranks of other nodes: which transport, how many proxies, whose slot; what is refused.

Nothing here needs a GPU. What crosses between nodes on GPUs is in tests/cuda/test_cuda_ports.py.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from ep_world import Context, RankWorld
from hypothesis import given
from hypothesis import strategies as st

from ep_core import Buffer, cuda, peers, ports, rendezvous
from ep_core.nodes import Nodes

TRANSPORTS = ["ib", "ethernet", "ipc"]
needs_cuda_extension = pytest.mark.skipif(bool(cuda.not_built()), reason="ep_core._cuda was not built here")


@pytest.fixture(autouse=True)
def no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ports.TRANSPORT, ports.PROXIES, "EP_CORE_TRANSPORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("offers", "one_machine", "wanted"),
    [
        (["ib", "ib"], False, "ib"),
        (["ib", "ib"], True, "ib"),
        (["ib", ""], False, "ethernet"),
        (["", ""], False, "ethernet"),
        (["", "", ""], True, "ipc"),
        (["ethernet!", "ethernet!"], True, "ethernet"),
        (["ipc!", "ipc!"], True, "ipc"),
        (["ib!", "ib!"], False, "ib"),
    ],
)
def test_the_transport_is_what_is_asked_for_or_there(offers: list[str], one_machine: bool, wanted: str) -> None:
    assert ports.agreed(offers, one_machine) == wanted


@pytest.mark.parametrize(
    ("offers", "said"),
    [
        (["ib!", "ethernet!"], "EP_PORT_TRANSPORT: give the same on all ranks, got rank 0 ib, rank 1 ethernet"),
        (["ethernet!", ""], "EP_PORT_TRANSPORT: give the same on all ranks, got rank 0 ethernet, rank 1 none"),
        (["ipc!", "ipc!"], "EP_PORT_TRANSPORT: ipc joins ranks of one machine, not of several: give ib or ethernet"),
    ],
)
def test_transports_that_do_not_go_together_are_refused(offers: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=r"^EP_PORT_TRANSPORT") as raised:
        ports.agreed(offers, one_machine=False)
    assert str(raised.value) == said


@given(st.lists(st.sampled_from(["", "ib", "ib!", "ethernet!", "ipc!"]), min_size=1, max_size=6), st.booleans())
def test_every_rank_agrees_or_none_does(offers: list[str], one_machine: bool) -> None:
    try:
        chosen = ports.agreed(offers, one_machine)
    except ValueError:
        assert any(offered.endswith("!") for offered in offers)
        return
    assert chosen in TRANSPORTS
    assert chosen != "ib" or all(offered.startswith("ib") for offered in offers)
    assert chosen != "ipc" or one_machine


def test_what_a_rank_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (ports.offer(0), ports.offer(4)) == ("", "ib")
    monkeypatch.setenv(ports.TRANSPORT, "ethernet")
    assert ports.offer(4) == "ethernet!"
    monkeypatch.setenv(ports.TRANSPORT, "ib")
    assert ports.offer(1) == "ib!"
    with pytest.raises(ValueError, match=r"^EP_PORT_TRANSPORT: ib cannot be used here: MSCCL\+\+ finds no InfiniBand"):
        ports.offer(0)
    monkeypatch.setenv(ports.TRANSPORT, "carrier pigeon")
    with pytest.raises(ValueError, match=r"^EP_PORT_TRANSPORT: wanted ib, ethernet or ipc, got 'carrier pigeon'$"):
        ports.offer(1)


@pytest.mark.parametrize(
    ("transport", "others", "major", "cores", "ranks_here", "wanted"),
    [
        ("ib", 56, 9, 128, 8, 8),  # a machine with 8 H100 among eight
        ("ib", 8, 9, 96, 8, 6),
        ("ib", 4, 9, 128, 8, 4),  # never more than there are ranks of other nodes
        ("ib", 56, 10, 128, 8, 1),  # a newer GPU
        ("ethernet", 8, 9, 2, 8, 1),  # fewer cores than ranks
        ("ipc", 56, 9, 128, 8, 1),
    ],
)
def test_the_usual_number_of_proxies(
    transport: ports.PortTransport, others: int, major: int, cores: int, ranks_here: int, wanted: int
) -> None:
    assert ports.proxies_of(transport, others, major, cores, ranks_here) == wanted


def test_the_number_of_proxies_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ports.PROXIES, "5")
    assert ports.proxies_of("ib", 56, 10, 2, 8) == 5
    assert ports.proxies_of("ib", 3, 10, 2, 8) == 3
    with pytest.raises(
        ValueError, match=r"^EP_PROXIES: wanted 1 over CUDA IPC, whose copies all go through one stream"
    ):
        ports.proxies_of("ipc", 56, 9, 128, 8)


@pytest.mark.parametrize("text", ["0", "65", "-1", "many", "1.5", "٣"])
def test_a_number_of_proxies_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(ports.PROXIES, text)
    with pytest.raises(ValueError, match=r"^EP_PROXIES: wanted a number of proxies from 1 to 64"):
        ports.proxies_of("ib", 8, 9, 64, 8)


def test_what_is_told_at_the_start() -> None:
    plan = ports.PortPlan(Nodes(0, (0, 0, 1, 1)), "ib", 4)
    assert plan.sentence == (
        "ep_core: 4 ranks on 2 nodes, by port channels over InfiniBand, 4 proxies for each rank "
        "(EP_PORT_TRANSPORT, EP_PROXIES choose others)"
    )
    assert ", 1 proxy for each rank" in replace(plan, proxies=1).sentence


@needs_cuda_extension
@given(st.lists(st.integers(0, 4), min_size=1, max_size=64))
def test_every_pair_of_ranks_has_one_slot_at_either_end(node_of: list[int]) -> None:
    from ep_core import _cuda

    ranks = range(len(node_of))
    slots = [_cuda.port_slots(rank, node_of) for rank in ranks]
    others = [sum(node_of[peer] != node_of[rank] for peer in ranks) for rank in ranks]
    for rank in ranks:
        here, there, most = slots[rank]
        assert most == max(others)
        # In rank order, without a gap, and none for this node's ranks.
        assert [slot for slot in here if slot >= 0] == list(range(others[rank]))
        for peer in ranks:
            far = node_of[peer] != node_of[rank]
            assert (here[peer] >= 0) == far
            assert there[peer] == (slots[peer][0][rank] if far else -1)


@needs_cuda_extension
def test_slots_of_a_world_that_cannot_be_are_refused() -> None:
    from ep_core import _cuda

    for rank, node_of in ((0, []), (2, [0, 1]), (-1, [0]), (0, [0] * 65)):
        with pytest.raises(ValueError, match=r"^node_of: wanted from 1 to 64 ranks"):
            _cuda.port_slots(rank, node_of)


@needs_cuda_extension
@given(st.integers(1, 8), st.sampled_from([2, 4, 8]), st.integers(1, 64), st.sampled_from([128, 2048, 7168]))
def test_several_nodes_need_more_memory_and_more_of_them_still_more(
    per_node: int, local: int, tokens: int, hidden: int
) -> None:
    def hint(nodes: int) -> int:
        return cuda.low_latency_size_hint(tokens, hidden, 8 * per_node, 8 * per_node * local, nodes)

    assert 0 < hint(1) <= hint(2) <= hint(4) <= hint(8)
    if tokens >= 16 and hidden >= 2048:
        assert hint(1) < hint(2) < hint(4) < hint(8)


def test_the_size_hint_wants_a_number_of_nodes_that_can_be() -> None:
    one = Buffer.get_low_latency_rdma_size_hint(16, 512, 8, 16)
    assert Buffer.get_low_latency_rdma_size_hint(16, 512, 8, 16, num_nodes=4) >= one
    for nodes in (0, 9):
        with pytest.raises(ValueError, match=rf"^num_nodes: wanted from 1 to num_ranks=8, got {nodes}$"):
            Buffer.get_low_latency_rdma_size_hint(16, 512, 8, 16, num_nodes=nodes)


def addresses(hosts: list[str], offered: str = "") -> list[rendezvous.Address]:
    mine = rendezvous.Address.of_this_process(-1, "", 0, 0, device="cuda", transport="mscclpp", ports=offered)
    return [replace(mine, host=host, boot_id=f"boot of {host}") for host in hosts]


def test_several_nodes_without_mscclpp_are_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "port_obstacle", lambda: "MSCCL++: ep_core was built without it")
    with pytest.raises(ValueError, match=r"^group: ") as raised:
        peers.port_plan(Nodes(0, (0, 0, 1)), addresses(["a", "a", "b"]), 9)
    assert str(raised.value) == (
        "group: its ranks are on 2 nodes (a and b), and cannot be joined: MSCCL++: ep_core was built without it"
    )
    with pytest.raises(ValueError, match=r"on 2 nodes \(a, which EP_RANKS_PER_NODE divides\), and cannot"):
        peers.port_plan(Nodes(0, (0, 1)), addresses(["a", "a"]), 9)


def test_a_plan_knows_the_transport_and_the_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "port_obstacle", lambda: "")
    split = peers.port_plan(Nodes(1, (0, 1)), addresses(["a", "a"]), 9)
    assert (split.transport, split.proxies) == ("ipc", 1)
    assert peers.port_plan(Nodes(1, (0, 1)), addresses(["a", "b"]), 9).transport == "ethernet"
    assert peers.port_plan(Nodes(1, (0, 1)), addresses(["a", "b"], "ib"), 9).transport == "ib"


def test_where_peers_are_mapped_by_ipc_there_are_no_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.mscclpp_mapping, "obstacle", lambda: "")
    monkeypatch.setenv("EP_CORE_TRANSPORT", "ipc")
    assert peers.port_obstacle() == "EP_CORE_TRANSPORT says ipc, and it takes mscclpp"


def too_few_channels(context: Context) -> None:
    with pytest.raises(ValueError, match=r"^num_qps_per_rank: wanted at least 1 channel to each rank, got 0$"):
        Buffer(context.group(2), 0, 0, True, 0)
    Buffer(context.group(2), 0, 0, True, 1).destroy()


def test_a_number_of_channels_is_one_at_least(world: RankWorld) -> None:
    world.run(too_few_channels, 2)


def test_the_report_says_how_other_nodes_are_reached() -> None:
    done = subprocess.run([sys.executable, "-m", "ep_core"], capture_output=True, text=True, check=True, timeout=60)
    said = [line for line in done.stdout.splitlines() if "ranks of other nodes are reached by: " in line]
    assert len(said) == (0 if cuda.not_built() else 1)
    if said and peers.port_obstacle():
        assert said[0].split(": ", 1)[1] == f"nothing: {peers.port_obstacle()}"
