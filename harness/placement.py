"""Where a rank runs: on which node, on which CPUs and NUMA nodes, and with whom it can share memory.

Torch-free and Linux: /proc, /sys and the process's own affinity. `cpu_list` and `members` are pure, as is
`in_equal_blocks`. Called by `harness.world` as the ranks join; what it finds stands in every record
(`harness.record.RankPlacement`). Next to read: `harness.world`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from harness.environment import hostname
from harness.errors import WorldError
from harness.record import RankPlacement

_NUMA_NODES = Path("/sys/devices/system/node")


def here(rank: int) -> RankPlacement:
    """Where this process, which is `rank`, may run now."""
    cpus = os.sched_getaffinity(0)
    return RankPlacement(rank=rank, hostname=hostname(), cpus=cpu_list(cpus), numa=numa_of(cpus))


def memory_domain() -> str:
    """Names the processes that can map this one's memory: of one boot of one kernel, in one PID namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"


def memory_domains(found: Sequence[str]) -> tuple[str, ...]:
    """The domains that ranks told, in rank order, as the world is to take them: split where EP_RANKS_PER_NODE is set.

    Then ranks of one machine act as several nodes, here as in `ep_core` (`ep_core.nodes`).
    """
    if not os.environ.get("EP_RANKS_PER_NODE"):
        return tuple(found)
    from ep_core.nodes import Nodes

    try:
        node_of = Nodes.found(0, found).node_of
    except ValueError as error:
        raise WorldError(str(error)) from error
    return tuple(f"{domain}/{node}" for domain, node in zip(found, node_of, strict=True))


def numa_of(cpus: Iterable[int], nodes: Path = _NUMA_NODES) -> str:
    """The NUMA nodes that these CPUs belong to, as a list like "0-1"; "" where the kernel does not say."""
    wanted, found = set(cpus), set()
    for folder in nodes.glob("node[0-9]*"):
        try:
            held = members((folder / "cpulist").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return ""
        if held & wanted:
            found.add(int(folder.name.removeprefix("node")))
    return cpu_list(found)


def cpu_list(numbers: Iterable[int]) -> str:
    """Numbers as the kernel writes a list of CPUs: 0, 1, 2, 3 and 8 are "0-3,8"."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][-1] + 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    return ",".join("-".join(map(str, span)) for span in spans)


def members(text: str) -> set[int]:
    """The numbers of a list that the kernel or `cpu_list` wrote. `ValueError` for what is none."""
    found: set[int] = set()
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
    return found


def in_equal_blocks(domain_of_rank: Sequence[str]) -> bool:
    """Whether each node has as many ranks as every other, and each its own next to each other."""
    blocks = [len(list(ranks)) for _, ranks in groupby(domain_of_rank)]
    return len(blocks) == len(set(domain_of_rank)) and len(set(blocks)) == 1


def in_words(host_of_rank: Sequence[str], domain_of_rank: Sequence[str]) -> str:
    """Which hosts share memory: "a and b share memory, c has its own"."""
    hosts: dict[str, dict[str, None]] = {}
    for host, domain in zip(host_of_rank, domain_of_rank, strict=True):
        hosts.setdefault(domain, {})[host] = None
    return ", ".join(
        f"{' and '.join(names)} {'share memory' if len(names) > 1 else 'has memory of its own'}"
        for names in hosts.values()
    )
