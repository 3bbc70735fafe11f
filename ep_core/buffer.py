"""`Buffer`: expert-parallel dispatch and combine with the interface of DeepEP's legacy `deep_ep.Buffer`.

Names, argument orders, shapes and return values are DeepEP's, so code written for it runs by changing the import. What
is beyond it is marked so. This module makes the buffer; its operations are in `ep_core.low_latency` and
`ep_core.high_throughput`, which check arguments and shape results; engines move the rows (`ep_core.engine`). The
protocol is described in docs/ep_core.md.

Notation: R ranks, T tokens on a rank, K top-k, H hidden, E experts, L = E / R local experts (expert e lives on rank
e // L), Tmax = num_max_dispatch_tokens_per_rank, S = R * Tmax slots.
"""

from __future__ import annotations

import math
import os

import torch
import torch.distributed as dist
from torch.utils.weak import WeakTensorKeyDictionary

from ep_core import _host, checks, cuda
from ep_core.config import Config
from ep_core.engine import Engine
from ep_core.event import EventHandle, EventOverlap
from ep_core.high_throughput import HighThroughputFace
from ep_core.host import HostEngine
from ep_core.low_latency import LowLatencyFace

DEFAULT_TIMEOUT_S = 60.0


class Buffer(LowLatencyFace, HighThroughputFace):
    """The buffers and operations of one group of ranks. Every operation is collective: all ranks call it alike.

    One operation at a time; two threads must not use a buffer at once (`RuntimeError`). A wrong argument is a
    `ValueError` or `TypeError` before anything is sent, and the buffer stays usable on all ranks: the rank may call
    again while the others wait. A peer that does not arrive is an `EPTimeoutError`, after which the buffer is unusable.

    Attributes:
        group, rank, group_size, num_nvl_bytes, num_rdma_bytes, low_latency_mode: as given.
        timeout_s: the deadline of every wait, seconds.
        device: where its operations' tensors are.
        nodes: beyond DeepEP: which ranks share memory; between nodes rows travel over gloo, on CUDA by port channels.
        num_sms: processors for high-throughput kernels (used by the CUDA engine only).
    """

    num_sms: int = 20

    def __init__(
        self,
        group: dist.ProcessGroup,
        num_nvl_bytes: int = 0,
        num_rdma_bytes: int = 0,
        low_latency_mode: bool = False,
        num_qps_per_rank: int = 24,
        allow_nvlink_for_low_latency_mode: bool = True,
        allow_mnnvl: bool = False,
        explicitly_destroy: bool = False,
        *,
        timeout_s: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Make the buffer; collective over `group`.

        Arguments:
            group: the ranks, 1 to 64; on CUDA several nodes want MSCCL++, and low latency alone goes between them.
            num_nvl_bytes: ring for `dispatch` and `combine`, bytes; 0 for none, else at least
                `Config.least_nvl_bytes`, better `Config.get_nvl_buffer_size_hint`.
            num_rdma_bytes: region for low latency, bytes; at least `get_low_latency_rdma_size_hint`, or 0 for none.
                Memory is taken as it is touched, in each rank's own name.
            low_latency_mode: whether low-latency operations will be used.
            num_qps_per_rank: the most channels to each rank of another node, at least 1, which is what low latency has;
                every channel has its own order, so more would not make one message faster.
            allow_nvlink_for_low_latency_mode, allow_mnnvl: accepted and of no effect: inside of a node rows travel over
                shared memory, or memory that its ranks map.
            explicitly_destroy: accepted; memory goes with `destroy` or with the buffer, whichever is first.
            timeout_s: beyond DeepEP: the deadline of every wait, seconds; None: the variable EP_TIMEOUT_S, else 60.
            device: beyond DeepEP: where the operations' tensors are, of the same type on all ranks. None: the current
                CUDA device if the CUDA engine can be used here and either `group` has an NCCL backend or this process
                has used CUDA; else the CPU.

        Raises `ValueError` for sizes that differ between ranks, ranks that cannot share memory or a device that cannot
        be used, and `EPTimeoutError` naming the ranks that did not come.
        """
        if not isinstance(group, dist.ProcessGroup):
            raise TypeError(f"group: wanted a torch.distributed.ProcessGroup, got {type(group).__name__}")
        if not 1 <= group.size() <= _host.MAX_RANKS:
            raise ValueError(f"group: wanted from 1 to {_host.MAX_RANKS} ranks, got {group.size()}")
        for name, value in (("num_nvl_bytes", num_nvl_bytes), ("num_rdma_bytes", num_rdma_bytes)):
            if value < 0:
                raise ValueError(f"{name}: wanted 0 or more bytes, got {value}")
        if num_qps_per_rank < 1:
            raise ValueError(f"num_qps_per_rank: wanted at least 1 channel to each rank, got {num_qps_per_rank}")
        self.group = group
        self.rank = group.rank()
        self.group_size = group.size()
        self.num_nvl_bytes = num_nvl_bytes
        self.num_rdma_bytes = num_rdma_bytes
        self.low_latency_mode = low_latency_mode
        self.explicitly_destroy = explicitly_destroy
        self.timeout_s = _timeout_s(timeout_s)
        self.device = _device(group, device)
        make = HostEngine if self.device.type == "cpu" else cuda.CudaEngine
        self._engine: Engine = make(group, num_nvl_bytes, num_rdma_bytes, self.timeout_s, self.device)
        self.nodes = self._engine.nodes
        self._maps = WeakTensorKeyDictionary()

    def destroy(self) -> None:
        """Give back the memory; the buffer cannot be used afterwards. Not collective, may be called twice.

        Receive hooks that are still open raise `RuntimeError` when called.
        """
        self._engine.destroy()

    @staticmethod
    def set_num_sms(new_num_sms: int) -> None:
        """Set `num_sms`, an even number."""
        if new_num_sms < 0 or new_num_sms % 2:
            raise ValueError(f"new_num_sms: wanted an even number from 0 on, got {new_num_sms}")
        Buffer.num_sms = new_num_sms

    @staticmethod
    def capture() -> EventOverlap:
        """An event for everything that was called before."""
        return EventOverlap(EventHandle())

    @staticmethod
    def get_dispatch_config(num_ranks: int) -> Config:
        """The recommended `Config` for `dispatch` on `num_ranks` ranks."""
        return _config(num_ranks, {2: 24, 4: 6, 8: 6}, default=16)

    @staticmethod
    def get_combine_config(num_ranks: int) -> Config:
        """The recommended `Config` for `combine` on `num_ranks` ranks."""
        return _config(num_ranks, {2: 10, 4: 9, 8: 4}, default=4)

    @staticmethod
    def get_low_latency_rdma_size_hint(
        num_max_dispatch_tokens_per_rank: int, hidden: int, num_ranks: int, num_experts: int, *, num_nodes: int = 1
    ) -> int:
        """The least `num_rdma_bytes` for low-latency operations of these sizes, bytes: twice 2 E Tmax H and a bit.

        num_nodes: beyond DeepEP: how many nodes the ranks are on, as many on each; on CUDA messages to other nodes are
        put together in this memory, and come there, which takes about as much again for each way.
        It is enough for every engine of this build. On the host untouched pages cost nothing: a half is touched only
        where rows are staged.
        """
        checks.experts(num_experts, num_ranks)
        checks.hidden(hidden, fp8=False, bytes_per_element=2)
        checks.max_tokens(num_max_dispatch_tokens_per_rank, num_ranks)
        sizes = (num_max_dispatch_tokens_per_rank, hidden, num_ranks, num_experts)
        if not 1 <= num_nodes <= num_ranks:
            raise ValueError(f"num_nodes: wanted from 1 to num_ranks={num_ranks}, got {num_nodes}")
        return max(_host.low_latency_size_hint(*sizes), cuda.low_latency_size_hint(*sizes, num_nodes))

    def check(self) -> None:
        """Beyond DeepEP: raise what kernels have reported since their operations returned; never waits.

        `EPTimeoutError` for a peer that did not arrive, `ValueError` for a wrong value inside of a tensor: the buffer
        is then unusable. Every operation does this first. On the host operations raise such things themselves.
        """
        self._engine.check()


def _device(group: dist.ProcessGroup, wanted: torch.device | str | None) -> torch.device:
    """The device to serve, as `Buffer` says; a CUDA device with its index."""
    if wanted is None:
        if not (torch.cuda.is_initialized() or "nccl" in dist.get_backend_config(group)) or cuda.obstacle():
            return torch.device("cpu")
        wanted = "cuda"
    device = torch.device(wanted)
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise ValueError(f"device: wanted cpu or cuda, got {device}")
    obstacle = cuda.obstacle()
    if obstacle:
        raise ValueError(f"device: {device} cannot be used here: {obstacle} (python -m ep_core says more)")
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise ValueError(f"device: wanted one of the {torch.cuda.device_count()} CUDA devices here, got {device}")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def _timeout_s(given: float | None) -> float:
    """The deadline to use, seconds: the argument, else EP_TIMEOUT_S, else 60."""
    name, text = ("timeout_s", given) if given is not None else ("EP_TIMEOUT_S", os.environ.get("EP_TIMEOUT_S", ""))
    if text == "":
        return DEFAULT_TIMEOUT_S
    try:
        value = float(text)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: wanted seconds, got {text!r}") from None
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: wanted seconds above 0, and finite, got {text!r}")
    return value


def _config(num_ranks: int, chunked_send_tokens: dict[int, int], default: int) -> Config:
    if not 1 <= num_ranks <= _host.MAX_RANKS:
        raise ValueError(f"num_ranks: wanted from 1 to {_host.MAX_RANKS}, got {num_ranks}")
    return Config(Buffer.num_sms, chunked_send_tokens.get(num_ranks, default), 256, 6, 128)
