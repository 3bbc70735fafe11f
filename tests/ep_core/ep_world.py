"""Real ranks for tests: processes that stay up and run functions of test files when asked to.

The parent hosts the store, so any rank may be killed. Ranks are forked from a server that has imported torch, which is
much cheaper than a new interpreter for each.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_context = get_context("forkserver")
_context.set_forkserver_preload(["torch", "torch.distributed"])


class RankFailed(AssertionError):
    """A rank raised; the message holds its traceback."""


class Context:
    """What a function gets that runs on a rank: its rank, device, groups of the first n ranks, and room for state."""

    def __init__(
        self, rank: int, ranks: int, groups: dict[int, dist.ProcessGroup | None], device: torch.device
    ) -> None:
        self.rank = rank
        self.ranks = ranks
        self.device = device
        self.state: dict[Any, Any] = {}
        self._groups = groups

    def group(self, ranks: int) -> dist.ProcessGroup:
        """The group of ranks 0 to ranks - 1."""
        group = self._groups[ranks]
        assert group is not None
        return group

    def new_buffer(self, ranks: int, nvl: int = 0, rdma: int = 0, timeout_s: float = 30.0) -> Any:
        """A buffer for this rank's device."""
        import ep_core

        return ep_core.Buffer(self.group(ranks), nvl, rdma, True, timeout_s=timeout_s, device=self.device)

    def buffer(self, ranks: int, nvl: int, rdma: int, timeout_s: float = 30.0) -> Any:
        """A buffer kept between calls."""
        key = (ranks, nvl, rdma, timeout_s)
        if key not in self.state:
            self.state[key] = self.new_buffer(*key)
        return self.state[key]

    def settle(self, buffer: Any) -> None:
        """Wait for all that was enqueued, and raise what kernels reported."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        buffer.check()


def device_of(rank: int, kind: str) -> torch.device:
    """The device of a rank of a world of `kind`: ranks beyond the number of GPUs share them."""
    return torch.device(kind, rank % torch.cuda.device_count()) if kind == "cuda" else torch.device(kind)


def poison_new_tensors() -> None:
    """Make `torch.empty` fill with NaN and the largest integers, so that what was never written is never right."""
    torch.use_deterministic_algorithms(True, warn_only=True)


def _load(path: str) -> Any:
    name = Path(path).stem
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(Path(path).parent))
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def _rank_main(
    rank: int, ranks: int, port: int, subgroups: list[int], pipe: Connection, env: dict[str, str], kind: str
) -> None:
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    os.environ.update(env)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    poison_new_tensors()
    device = device_of(rank, kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    sys.path.insert(0, str(Path(__file__).parent))
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    groups = {n: dist.new_group(list(range(n))) for n in subgroups}
    groups[ranks] = dist.group.WORLD
    context = Context(rank, ranks, groups, device)
    pipe.send(("ready", None))
    while True:
        try:
            path, name, kwargs = pipe.recv()
        except (EOFError, OSError):
            break
        try:
            pipe.send(("ok", getattr(_load(path), name)(context, **kwargs)))
        except BaseException:
            pipe.send(("error", traceback.format_exc()))
    os._exit(0)


class RankWorld:
    """`ranks` processes in one process group. Every call has a deadline; a rank that does not answer ends the world.

    device: "cpu", or "cuda" for ranks that take the GPUs in turn. broken: a rank failed, so ranks may no longer agree.
    """

    def __init__(
        self, ranks: int, env: dict[str, str] | None = None, subgroups: list[int] | None = None, device: str = "cpu"
    ) -> None:
        self.ranks = ranks
        self.broken = False
        wanted = list(range(1, ranks)) if subgroups is None else subgroups
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._pipes: list[Connection] = []
        self.processes = []
        for rank in range(ranks):
            ours, theirs = _context.Pipe()
            process = _context.Process(
                target=_rank_main, args=(rank, ranks, self._store.port, wanted, theirs, env or {}, device), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self.processes.append(process)
        self.collect(range(ranks), timeout_s=120)

    def __enter__(self) -> RankWorld:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self.processes:
            process.kill()
            process.join(10)

    def start(self, function: Callable[..., Any], ranks: int | list[int] | None = None, **kwargs: Any) -> list[int]:
        """Ask ranks (the first n, or those listed) to run `function(context, **kwargs)`; returns which."""
        chosen = list(range(self.ranks if ranks is None else ranks)) if not isinstance(ranks, list) else ranks
        path = sys.modules[function.__module__].__file__
        for rank in chosen:
            self._pipes[rank].send((path, function.__name__, kwargs))
        return chosen

    def collect(self, ranks: list[int] | range, timeout_s: float = 60) -> list[Any]:
        """The results, in order of `ranks`. Raises `RankFailed` with the first traceback."""
        results: dict[int, Any] = {}
        errors: list[str] = []
        deadline = time.monotonic() + timeout_s
        while len(results) < len(ranks):
            pending = {self._pipes[rank]: rank for rank in ranks if rank not in results}
            ready = wait(list(pending), timeout=max(deadline - time.monotonic(), 0))
            if not ready:
                for rank in pending.values():
                    os.kill(self.processes[rank].pid or 0, signal.SIGUSR1)
                time.sleep(0.5)
                self.close()
                self.broken = True
                raise RankFailed(f"ranks {sorted(pending.values())} did not answer within {timeout_s} s {errors}")
            for pipe in ready:
                rank = pending[pipe]  # type: ignore[index]
                try:
                    kind, value = pipe.recv()  # type: ignore[union-attr]
                except (EOFError, ConnectionResetError):
                    kind, value = "error", "the process ended"
                results[rank] = value
                if kind == "error":
                    errors.append(f"rank {rank}:\n{value}")
        if errors:
            self.broken = True
            raise RankFailed("\n".join(errors))
        return [results[rank] for rank in ranks]

    def run(
        self, function: Callable[..., Any], ranks: int | list[int] | None = None, timeout_s: float = 60, **kwargs: Any
    ) -> list[Any]:
        """`start`, then `collect`."""
        return self.collect(self.start(function, ranks, **kwargs), timeout_s)
