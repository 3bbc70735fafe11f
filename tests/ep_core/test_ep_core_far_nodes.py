"""Nodes that share neither memory nor processes: PID and network namespaces, joined by a cable that can be pulled."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ADDRESS = {0: "10.78.0.1", 1: "10.78.0.2"}


def run(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True, timeout=10)


@pytest.fixture
def cable() -> Iterator[list[int]]:
    """Two network namespaces with a cable between them: the processes that hold them."""
    missing = [
        name
        for name in ("ip", "nsenter", "unshare")
        if shutil.which(name, path=os.defpath + ":/usr/sbin:/sbin") is None
    ]
    if missing or os.geteuid() != 0:
        why = f"namespaces need root and ip, nsenter and unshare (missing: {', '.join(missing) or 'root'})"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    held = []
    try:
        for _ in ADDRESS:
            process = subprocess.Popen(
                ["unshare", "--net", "--kill-child", "sh", "-c", "echo; exec sleep infinity"], stdout=subprocess.PIPE
            )
            held.append(process)
            assert process.stdout is not None
            process.stdout.readline()
        pids = [process.pid for process in held]
        run(f"nsenter --net=/proc/{pids[0]}/ns/net ip link add far0 type veth peer name far1 netns {pids[1]}")
        for node, pid in enumerate(pids):
            enter = f"nsenter --net=/proc/{pid}/ns/net ip"
            run(f"{enter} address add {ADDRESS[node]}/24 dev far{node}")
            run(f"{enter} link set far{node} up")
            run(f"{enter} link set lo up")
        yield pids
    finally:
        for process in held:
            process.kill()
            process.wait()
            process.stdout.close()


@pytest.fixture
def four_ranks(cable: list[int], tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Ranks 0 and 1 in one container, 2 and 3 in another."""
    ranks = []
    program = f"{sys.executable} {HERE / 'far_rank.py'} {tmp_path}"
    try:
        for node, pid in enumerate(cable):
            environment = {
                **os.environ,
                "WORLD_SIZE": "4",
                "MASTER_ADDR": ADDRESS[0],
                "MASTER_PORT": "29911",
                "GLOO_SOCKET_IFNAME": f"far{node}",
                "PYTHONPATH": str(HERE),
                "OMP_NUM_THREADS": "1",
            }
            environment.pop("EP_RANKS_PER_NODE", None)
            enter = [
                "nsenter",
                f"--net=/proc/{pid}/ns/net",
                "unshare",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
            ]
            both = f"RANK={2 * node} {program} & RANK={2 * node + 1} {program} & wait"
            ranks.append(subprocess.Popen([*enter, "sh", "-c", both], env=environment))
        yield ranks
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def test_two_containers_are_two_nodes_and_a_pulled_cable_is_a_deadline(
    cable: list[int], four_ranks: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    give_up = time.monotonic() + 120
    while len(list(tmp_path.glob("ready*"))) < 4:
        assert all(process.poll() is None for process in four_ranks)
        assert time.monotonic() < give_up
        time.sleep(0.1)
    run(f"nsenter --net=/proc/{cable[1]}/ns/net ip link set far1 down")
    (tmp_path / "go").touch()
    for process in four_ranks:
        process.wait(60)
    for rank in range(4):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert found == {"node_of": [0, 0, 1, 1], "phase": "dispatch", "missing": [2, 3] if rank < 2 else [0, 1]}
