"""How fast the host engine is: low-latency dispatch and combine against plain memcpy and against torch on gloo.

    python benchmarks/host_engine.py [--ranks 2 4] [--ranks-per-node N] [--json FILE]

Prints, from one run, for each number of ranks: latency and bandwidth of each operation, and two ratios of bandwidths:
(a) to memcpy of the same logical bytes by the same number of processes at once, from and to each process's own memory;
(b) to the `torch` backend (`all_to_all_single` on gloo). With --ranks-per-node, also ("split") operations of a buffer
that takes the ranks for several nodes of so many ranks, between which rows travel over gloo, as all of the torch
backend's do. Bytes are the logical ones of docs/metrics.md: one row for each selection received. All take turns within
every round, so they see the same machine. A figure is the median over rounds of the mean over ranks of a rank's mean
over the round's iterations.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import ep_core
from ep_core import _host
from harness import backends
from harness.backends.base import Setup
from harness.case import Case
from harness.inputs import make_inputs

DEADLINE_S = 600.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=7168)
    parser.add_argument("--topk", type=int, default=8)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--iters", type=int, default=10, help="of each operation in a round, back to back")
    parser.add_argument("--torch-iters", type=int, default=1, help="of the torch backend in a round")
    parser.add_argument("--ranks-per-node", type=int, help="also with the ranks as several nodes of so many ranks")
    parser.add_argument("--no-torch", action="store_true", help="leave (b) out")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    return parser.parse_args()


class Memcpy:
    """memcpy of `count` bytes between two pieces of this process's memory, both touched before."""

    def __init__(self, count: int) -> None:
        self._from = torch.ones(count, dtype=torch.uint8)
        self._to = torch.zeros(count, dtype=torch.uint8)
        self._count = count

    def __call__(self) -> None:
        """One copy."""
        ctypes.memmove(self._to.data_ptr(), self._from.data_ptr(), self._count)


class ZeroCopy:
    """A dispatch, and a combine whose rows are already in the shared buffer."""

    def __init__(self, case: Case, group: dist.ProcessGroup, rank: int) -> None:
        sizes = (case.tokens, case.hidden, case.ranks, case.experts)
        self._given = make_inputs(case, rank)
        self._buffer = ep_core.Buffer(group, 0, ep_core.Buffer.get_low_latency_rdma_size_hint(*sizes), True)
        self._rows, _, self._handle, _, _ = self._buffer.low_latency_dispatch(
            self._given.x, self._given.topk_idx, case.tokens, case.experts, use_fp8=False
        )
        self._out = torch.empty_like(self._given.x)
        for _ in range(2):
            self._buffer.get_next_low_latency_combine_buffer(self._handle).copy_(self._rows)
            self.combine()

    def combine(self) -> None:
        """One combine; the rows have been put into both halves of the buffer before."""
        self._buffer.get_next_low_latency_combine_buffer(self._handle)
        self._buffer.low_latency_combine(
            self._rows, self._given.topk_idx, self._given.topk_weights, self._handle, zero_copy=True, out=self._out
        )


def ready(backend: Any, given: Setup) -> torch.Tensor:
    """Set a backend up and dispatch once; what came goes back with every combine."""
    backend.setup(given)
    backend.dispatch()
    rows: torch.Tensor = backend.received().x
    backend.give(rows)
    return rows


def timed(operation: Callable[[], None], iters: int) -> float:
    """Mean seconds of `iters` calls back to back, after all ranks are ready."""
    dist.barrier()
    started = time.perf_counter()
    for _ in range(iters):
        operation()
    return (time.perf_counter() - started) / iters


def measure(rank: int, case: Case, port: int, options: argparse.Namespace, results: Any) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    limit = timedelta(seconds=DEADLINE_S)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=limit)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=case.ranks, timeout=limit)
    world = dist.group.WORLD
    given = Setup(case, rank, make_inputs(case, rank), world, DEADLINE_S)

    engine = backends.load("ep_core")()
    rows = ready(engine, given)
    logical_bytes = rows.shape[0] * case.hidden * 2
    work: dict[str, tuple[Callable[[], None], int]] = {
        "memcpy": (Memcpy(logical_bytes), options.iters),
        "dispatch": (engine.dispatch, options.iters),
        "combine": (engine.combine, options.iters),
        "combine, zero copy": (ZeroCopy(case, world, rank).combine, options.iters),
    }
    if options.ranks_per_node:
        os.environ["EP_RANKS_PER_NODE"] = str(options.ranks_per_node)
        split = backends.load("ep_core")()
        ready(split, given)
        del os.environ["EP_RANKS_PER_NODE"]
        work["dispatch, split"] = (split.dispatch, options.torch_iters)
        work["combine, split"] = (split.combine, options.torch_iters)
    if not options.no_torch:
        other = backends.load("torch")()
        ready(other, given)
        work["torch dispatch"] = (other.dispatch, options.torch_iters)
        work["torch combine"] = (other.combine, options.torch_iters)
    for operation, _ in work.values():
        timed(operation, 3)
    rounds = [{name: timed(*entry) for name, entry in work.items()} for _ in range(options.rounds)]
    everyone: list[Any] = [None] * case.ranks
    dist.all_gather_object(everyone, (logical_bytes, rounds))
    if rank == 0:
        results.put(everyone)
    dist.barrier()
    dist.destroy_process_group()


def summary(everyone: list[Any]) -> dict[str, dict[str, float]]:
    """By operation: microseconds, GB/s per rank, and the spread (quartiles) of the rounds in microseconds."""
    mean_bytes = statistics.fmean(count for count, _ in everyone)
    figures = {}
    for name in everyone[0][1][0]:
        per_round = [
            statistics.fmean(rounds[number][name] for _, rounds in everyone) * 1e6
            for number in range(len(everyone[0][1]))
        ]
        middle = statistics.median(per_round)
        low, _, high = statistics.quantiles(per_round, n=4) if len(per_round) > 1 else (middle,) * 3
        figures[name] = {"us": middle, "us_q1": low, "us_q3": high, "gbs_per_rank": mean_bytes / middle / 1e3}
    return figures


def show(case: Case, figures: dict[str, dict[str, float]]) -> None:
    def speedup(name: str, over: str) -> str:
        if over not in figures:
            return "-"
        return f"{figures[name]['gbs_per_rank'] / figures[over]['gbs_per_rank']:.2f}"

    print(f"\n{case.ranks} ranks, {case.experts} experts")
    print(f"{'':<20}{'us':>10}{'quartiles':>20}{'GB/s per rank':>16}{'(a) memcpy':>13}{'(b) torch':>12}")
    for name, one in figures.items():
        against = f"torch {name.split(',')[0]}"
        versus = speedup(name, against) if not name.startswith(("torch", "memcpy")) else "-"
        quartiles = f"{one['us_q1']:.0f} - {one['us_q3']:.0f}"
        print(
            f"{name:<20}{one['us']:>10.0f}{quartiles:>20}{one['gbs_per_rank']:>16.2f}"
            f"{speedup(name, 'memcpy'):>13}{versus:>12}"
        )


def main() -> None:
    options = arguments()
    print(
        f"T={options.tokens} H={options.hidden} K={options.topk} E={options.experts} bf16, uniform routing; "
        f"{options.rounds} rounds of {options.iters} iterations"
    )
    print(
        f"{platform.node()}: {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}, "
        f"{_host.COMPILER}, {_host.ISA}; torch {torch.__version__}, python {platform.python_version()}"
    )
    document: dict[str, Any] = {"settings": {**vars(options), "json": None}, "isa": _host.ISA, "ranks": {}}
    for ranks in options.ranks:
        case = Case(
            backend="ep_core",
            mode="ll",
            ranks=ranks,
            tokens=options.tokens,
            hidden=options.hidden,
            topk=options.topk,
            experts=options.experts,
        )
        case.validate()
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        results = mp.get_context("spawn").SimpleQueue()
        group = mp.spawn(measure, (case, store.port, options, results), nprocs=ranks, join=False)
        while not group.join(1):
            pass
        figures = summary(results.get())
        show(case, figures)
        document["ranks"][ranks] = figures
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
