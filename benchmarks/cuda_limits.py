"""Physical limits, measured in the run whose figures they stand beside: links, memory, flags, launches.

All ranks measure at once, as an operation uses them at once; where ranks share a GPU each has its part of it. The put
is one kernel that writes into the next rank's memory. Kernels are in cuda_limits.cu, built here by nvcc; where that
cannot be, the limits that need them are left out with the reason. On CPU there are only copy and fill. Called by
benchmarks/cuda_engine_ranks.py; next to read: benchmarks/cuda_engine_table.py, which sets times beside them.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from cuda_engine_plan import COPY, EMPTY, FEW_SMS, FILL, FLAGS, PUT, PUT_FEW

from harness.errors import BackendError
from harness.graphs import TURNS, captured
from harness.steps import Run, RunFailed
from harness.timers import Operation, Samples, clock_for

SOURCE = Path(__file__).with_name("cuda_limits.cu")
COUNT = 20
BYTES = {"cuda": 256 << 20, "cpu": 16 << 20}
WORD_BYTES = 8
BUILD_DEADLINE_S = 50.0


@dataclass
class Limits:
    """What was found: of each limit the bytes it moves (0: none) and µs, [ranks][iterations]. missing: why others not.

    `FLAGS` is two exchanges of a flag between neighbours, as dispatch and combine are.
    """

    bytes_moved: dict[str, int] = field(default_factory=dict)
    samples_us: dict[str, list[Samples]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def measure(run: Run, folder: Path, sms: int, align: Operation) -> Limits:
    """All limits that can be measured here. folder: for what is built. sms: processors that this rank has."""
    found, size = Limits(), BYTES[run.case.device]
    _add_memory(run, found, size, align)
    if run.case.device == "cuda":
        kernels: list[Kernels] = []
        try:
            run.agreed("build limits", lambda: build(folder, _architecture()) if run.world.rank == 0 else None)
            run.agreed("open limits", lambda: kernels.append(Kernels(folder)))
            _add_kernels(run, found, kernels[0], size, sms, align)
        except RunFailed as failed:
            for name in (PUT, PUT_FEW, FLAGS, EMPTY):
                if name not in found.samples_us:
                    found.missing[name] = failed.failure.message
        finally:
            for one in kernels:
                one.close()
    return found


def _add_memory(run: Run, found: Limits, size: int, align: Operation) -> None:
    device = run.world.device(run.case.device)
    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))

    def copy() -> None:
        target.copy_(source)

    def fill() -> None:
        target.fill_(1)

    _add(run, found, COPY, 2 * size, copy, align)
    _add(run, found, FILL, size, fill, align)


def _add_kernels(run: Run, found: Limits, kernels: Kernels, size: int, sms: int, align: Operation) -> None:
    world = run.world
    handles = run.agreed("allocate for limits", lambda: kernels.allocate(size))
    run.agreed("map a peer for limits", lambda: kernels.open(handles[(world.rank + 1) % world.size]))
    _add(run, found, PUT, size, lambda: kernels.put(size, sms), align)
    if sms > FEW_SMS:
        _add(run, found, PUT_FEW, size, lambda: kernels.put(size, FEW_SMS), align)
    run.agreed("begin flags", kernels.begin_exchanges)
    _add_graph(run, found, FLAGS, [kernels.exchange, kernels.exchange], align, kernels.check_exchanges)
    _add_graph(run, found, EMPTY, [kernels.nothing], align)


def _add(run: Run, found: Limits, name: str, moved: int, operation: Operation, align: Operation) -> None:
    def timed() -> Samples:
        operation()
        return clock_for(run.case.device).time([operation], COUNT, align)[0]

    found.samples_us[name] = run.agreed(f"time {name}", timed)
    found.bytes_moved[name] = moved


def _add_graph(
    run: Run,
    found: Limits,
    name: str,
    operations: list[Operation],
    align: Operation,
    check: Operation = lambda: None,
) -> None:
    held: list[torch.cuda.CUDAGraph] = []

    def capture() -> None:
        # A kernel is loaded when it is launched for the first time, which a capture may not have.
        for operation in operations:
            operation()
        torch.cuda.synchronize()
        held.append(captured(name, operations))

    def timed() -> Samples:
        samples = clock_for("cuda").time([held[0].replay], COUNT, align)[0]
        check()
        return [took_us / TURNS for took_us in samples]

    run.agreed(f"capture {name}", capture)
    found.samples_us[name] = run.agreed(f"time {name}", timed)
    found.bytes_moved[name] = 0


def _library(folder: Path) -> Path:
    return folder / "cuda_limits.so"


def _architecture() -> str:
    """This rank's GPU's, as nvcc calls it."""
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def build(folder: Path, architecture: str) -> None:
    """Build the kernels. Raises `BackendError` with the reason where there is no nvcc or it fails."""
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        raise BackendError("nvcc is not installed")
    done = subprocess.run(
        [
            *(nvcc, "-O3", "-std=c++20", f"-arch={architecture}", "-shared", "-Xcompiler", "-fPIC"),
            *("-cudart", "static", "-o", str(_library(folder)), str(SOURCE)),
        ],
        capture_output=True,
        text=True,
        timeout=BUILD_DEADLINE_S,
        check=False,
    )
    if done.returncode:
        raise BackendError(f"nvcc cannot build {SOURCE.name}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")


class Kernels:
    """The built kernels, this rank's memory, and that of the next rank, opened."""

    def __init__(self, folder: Path) -> None:
        self._library = ctypes.CDLL(str(_library(folder)))
        self._library.limit_error.restype = ctypes.c_char_p
        self._own: list[ctypes.c_void_p] = []
        self._opened: list[ctypes.c_void_p] = []

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._library, function)(*arguments)
        if code:
            raise BackendError(f"{function}: {self._library.limit_error(code).decode()}")

    def allocate(self, size: int) -> tuple[bytes, bytes]:
        """Room for a peer's bytes, for its flag, for what is sent and for the count of calls; two to be opened."""
        handles = []
        for part in (size, WORD_BYTES, size, WORD_BYTES):
            memory, handle = ctypes.c_void_p(), ctypes.create_string_buffer(64)
            self._call("limit_allocate", ctypes.c_size_t(part), ctypes.byref(memory), handle)
            self._own.append(memory)
            handles.append(handle.raw)
        return handles[0], handles[1]

    def open(self, of_next: tuple[bytes, bytes]) -> None:
        """Map the room of the next rank and its flag. Each rank tells the next, and hears from the one before it."""
        for handle in of_next:
            memory = ctypes.c_void_p()
            self._call("limit_open", ctypes.create_string_buffer(handle, 64), ctypes.byref(memory))
            self._opened.append(memory)

    def put(self, size: int, blocks: int) -> None:
        """Enqueue a put of `size` bytes into the next rank's room."""
        self._call(
            "limit_put_bytes", self._opened[0], self._own[2], ctypes.c_size_t(size), ctypes.c_int(blocks), _stream()
        )

    def begin_exchanges(self) -> None:
        """Count from the beginning."""
        self._call("limit_begin_exchanges", self._own[3])

    def exchange(self) -> None:
        """Enqueue: tell the next rank the number of this call, wait until the previous one has told as much."""
        self._call("limit_exchange_flags", self._opened[1], self._own[1], self._own[3], _stream())

    def check_exchanges(self) -> None:
        """Raises `BackendError` when one waited in vain."""
        held = ctypes.c_int()
        self._call("limit_exchanges_held", self._own[3], ctypes.byref(held))
        if not held.value:
            raise BackendError("a flag did not come within 5 s")

    def nothing(self) -> None:
        """Enqueue an empty kernel."""
        self._call("limit_launch_nothing", _stream())

    def close(self) -> None:
        """Unmap and free."""
        torch.cuda.synchronize()
        for memory in self._opened:
            self._library.limit_close(memory)
        for memory in self._own:
            self._library.limit_free(memory)


def _stream() -> ctypes.c_void_p:
    return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
