"""`Config`: how much memory a high-throughput operation may use in flight, under DeepEP's names.

Used by `ep_core.buffer.Buffer`. Next to read: `ep_core.buffer`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ep_core import _host, cuda

_MOST_EXTRA_BYTES = 128 * 4 + _host.MAX_TOPK * 8


@dataclass(frozen=True)
class Config:
    """Tuning of high-throughput operations.

    The host engine takes its chunk size from `num_nvl_bytes` alone: of these values it uses
    `num_max_nvl_chunked_recv_tokens`, in the size hint. The others are there for the interface and are checked.

    Attributes:
        num_sms: even count of processors for the kernels.
        num_max_nvl_chunked_send_tokens, num_max_nvl_chunked_recv_tokens: tokens in flight to and from one rank of the
            same node; the first is less than the second.
        num_max_rdma_chunked_send_tokens, num_max_rdma_chunked_recv_tokens: likewise between nodes.
    """

    num_sms: int = 20
    num_max_nvl_chunked_send_tokens: int = 6
    num_max_nvl_chunked_recv_tokens: int = 256
    num_max_rdma_chunked_send_tokens: int = 6
    num_max_rdma_chunked_recv_tokens: int = 256

    def __post_init__(self) -> None:
        if self.num_sms < 0 or self.num_sms % 2:
            raise ValueError(f"num_sms: wanted an even number from 0 on, got {self.num_sms}")
        for link in ("nvl", "rdma"):
            send: int = getattr(self, f"num_max_{link}_chunked_send_tokens")
            recv: int = getattr(self, f"num_max_{link}_chunked_recv_tokens")
            if not 0 < send < recv:
                raise ValueError(
                    f"num_max_{link}_chunked_send_tokens: wanted from 1 to below "
                    f"num_max_{link}_chunked_recv_tokens={recv}, got {send}"
                )

    def get_nvl_buffer_size_hint(self, hidden_bytes: int, num_ranks: int) -> int:
        """`num_nvl_bytes` for rows of `hidden_bytes` bytes on `num_ranks` ranks, bytes; a multiple of 128.

        Room for `num_max_nvl_chunked_recv_tokens` rows from each rank, with up to 128 scales and 32 top-k entries each.
        Any smaller size down to `least_nvl_bytes` works too, in smaller chunks.
        """
        rows = num_ranks * self.num_max_nvl_chunked_recv_tokens * (hidden_bytes + _MOST_EXTRA_BYTES + 8)
        return max((rows + 127) // 128 * 128, self.least_nvl_bytes(hidden_bytes, num_ranks))

    def get_rdma_buffer_size_hint(self, hidden_bytes: int, num_ranks: int) -> int:
        """`num_rdma_bytes` for high throughput, bytes: 0, as one node needs none."""
        return 0

    @staticmethod
    def least_nvl_bytes(hidden_bytes: int, num_ranks: int) -> int:
        """The least `num_nvl_bytes` that any operation with such rows accepts, bytes."""
        sizes = (hidden_bytes, _MOST_EXTRA_BYTES, num_ranks)
        return max(_host.high_throughput_least_bytes(*sizes), cuda.high_throughput_least_bytes(*sizes))
