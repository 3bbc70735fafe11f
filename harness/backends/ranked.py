"""DeepEP's exact-size receive under measurement: mode `ht` by any `Buffer` of its interface.

One row per (token, destination rank). `get_dispatch_layout` and `dispatch` are timed together as dispatch, then
`combine`; what the operations return is as large as what arrived, so they allocate it. A CUDA graph must not ask how
much arrived, and while a rank asks, its peers' kernels wait for the next: for the protocols of `DEVICE_ALONE` results
are as large as the most that could arrive (`num_worst_tokens`).

Called by `harness.backends.ep_core` and by adapters of libraries with the same interface. Next to read:
`harness.backends.packed`, the other mode's rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.backends.base import Received, Setup

if TYPE_CHECKING:
    import torch

    from harness.case import Case

DEVICE_ALONE = ("graph", "kernel")
"""Protocols in which the device must go on without asking the host."""


def ring_bytes(buffer: Any, case: Case) -> int:
    """`num_nvl_bytes` for a `Buffer` of class `buffer` by its own recommended configurations, for bf16 rows."""
    row_bytes = case.hidden * 2
    configs = (buffer.get_dispatch_config(case.ranks), buffer.get_combine_config(case.ranks))
    return max(int(config.get_nvl_buffer_size_hint(row_bytes, case.ranks)) for config in configs)


class Ranked:
    """The operations of a backend (`harness.backends.base`) in mode `ht`, by `buffer`, on the device of the inputs.

    ordered: whether the library promises rows in order of source, then token.

    Attributes:
        buffer: as given.
        out: the last combine's result: bf16 [T, H].
    """

    def __init__(self, buffer: Any, given: Setup, *, ordered: bool) -> None:
        import torch

        case = self._case = given.case
        self.buffer = buffer
        self.out = torch.empty(0)
        self._inputs, self._rank, self._ordered = given.inputs, given.rank, ordered
        # A row from every token of the world is the most that can arrive.
        self._worst = max(case.ranks * case.tokens, 1) if case.protocol in DEVICE_ALONE else 0
        self._expert_output = given.inputs.x.new_zeros((self._worst, case.hidden))
        self._rows: Any = torch.empty(0)
        self._topk_idx: Any = self._rows
        self._topk_weights: Any = self._rows
        self._handle: Any = None

    def scratch(self) -> list[torch.Tensor]:
        """What the last dispatch and combine returned, and where experts' outputs are."""
        made = (self._rows, self._topk_idx, self._topk_weights, self._expert_output, self.out)
        return [tensor for tensor in made if tensor.numel()]

    def dispatch(self) -> None:
        """Layout and dispatch."""
        inputs = self._inputs
        per_rank, per_node, per_expert, in_rank, _ = self.buffer.get_dispatch_layout(
            inputs.topk_idx, self._case.experts
        )
        self._rows, self._topk_idx, self._topk_weights, _, self._handle, _ = self.buffer.dispatch(
            inputs.x,
            num_tokens_per_rank=per_rank,
            num_tokens_per_rdma_rank=per_node,
            is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert,
            topk_idx=inputs.topk_idx,
            topk_weights=inputs.topk_weights,
            num_worst_tokens=self._worst,
        )

    def combine(self) -> None:
        """Combine."""
        self.out = self.buffer.combine(self._expert_output, self._handle)[0]

    def received(self) -> Received:
        """The rows, with source and token as the handle says."""
        import torch

        rank_prefix, source_token = self._handle[0], self._handle[3]
        ends = rank_prefix[:, self._rank].to(torch.int64)
        lengths = torch.diff(ends, prepend=ends.new_zeros(1))
        count = int(ends[-1])
        return Received(
            x=self._rows[:count],
            source=torch.arange(self._case.ranks, device=ends.device).repeat_interleave(lengths),
            token=source_token[:count].to(torch.int64),
            topk_idx=self._topk_idx[:count],
            topk_weights=self._topk_weights[:count],
            ordered=self._ordered,
        )

    def give(self, expert_output: torch.Tensor) -> None:
        """Put the experts' outputs where combine reads them."""
        if self._worst:
            self._expert_output[: len(expert_output)] = expert_output
        else:
            self._expert_output = expert_output

    def close(self) -> None:
        """Destroy the buffer."""
        self.buffer.destroy()
