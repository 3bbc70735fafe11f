"""The bytes of a phase, counted from the routing alone, and the bandwidth they give. Pure; see docs/metrics.md.

`low latency` counts one row for each (token, expert) selection. `high throughput` counts the six figures of NCCL EP's
`ep_bench`: send and receive x total, nvl (within the node) and rdma (between nodes). Counts are averaged over ranks.
Called by `harness.measure`; next to read: `harness.stats`.
"""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from harness.case import FP8_BLOCK, Case, Phase
from harness.record import Traffic
from harness.routing import MASKED, Selections

BF16_BYTES = 2
SCALE_BYTES = 4
GB = 1e9

HEADLINE: MappingProxyType[tuple[str, Phase], str] = MappingProxyType(
    {
        ("ll", "dispatch"): "recv",
        ("ll", "combine"): "send",
        ("ht", "dispatch"): "total_send",
        ("ht", "combine"): "total_send",
    }
)
"""(mode, phase) to the name in `Traffic.bytes_per_rank` whose bandwidth is the phase's bandwidth."""


def dispatch_row_bytes(case: Case) -> int:
    """Bytes of one dispatched row: 2H for bf16; H + 4 (H / 128) for fp8 with its scales."""
    if case.dtype == "fp8":
        return case.hidden + SCALE_BYTES * (case.hidden // FP8_BLOCK)
    return BF16_BYTES * case.hidden


def combine_row_bytes(case: Case) -> int:
    """Bytes of one row on its way back: 2H, always bf16."""
    return BF16_BYTES * case.hidden


def goes_to_rank(case: Case, topk_idx: Selections) -> npt.NDArray[np.bool_]:
    """[source rank, token, destination rank]: the token has an expert there. topk_idx: [ranks, tokens, topk]."""
    reached = np.zeros((case.ranks, case.tokens, case.ranks), dtype=np.bool_)
    source, token, _ = valid = np.nonzero(topk_idx != MASKED)
    reached[source, token, topk_idx[valid] // case.experts_per_rank] = True
    return reached


def logical_bytes(case: Case, topk_idx: Selections) -> dict[Phase, dict[str, float]]:
    """Bytes per rank of each phase, averaged over ranks, by the names of `Traffic.bytes_per_rank`.

    topk_idx: int64 [ranks, tokens, topk], every rank's selections, -1 where masked.
    """
    if case.mode == "ll":
        rows = float(np.count_nonzero(topk_idx != MASKED)) / case.ranks
        return {
            "dispatch": {"recv": rows * dispatch_row_bytes(case)},
            "combine": {"send": rows * combine_row_bytes(case)},
        }
    to_rank = goes_to_rank(case, topk_idx)
    ranks_per_node = case.ranks // case.nodes
    to_node = to_rank.reshape(case.ranks, case.tokens, case.nodes, ranks_per_node).any(axis=3)
    node_of_rank = np.arange(case.ranks) // ranks_per_node
    leaves_node = node_of_rank[:, None] != np.arange(case.nodes)
    comes_from_other = node_of_rank[:, None] != node_of_rank
    counts = {
        "total_send": np.count_nonzero(to_node),
        "rdma_send": np.count_nonzero(to_node & leaves_node[:, None, :]),
        "total_recv": np.count_nonzero(to_rank),
        "rdma_recv": np.count_nonzero(to_rank & comes_from_other[:, None, :]),
    }
    mean = {name: float(count) / case.ranks * combine_row_bytes(case) for name, count in counts.items()}
    dispatch = {
        f"{part}_{way}": value
        for way in ("send", "recv")
        for part, value in (
            ("total", mean[f"total_{way}"]),
            ("nvl", mean[f"total_{way}"] - mean[f"rdma_{way}"]),
            ("rdma", mean[f"rdma_{way}"]),
        )
    }
    return {"dispatch": dispatch, "combine": {_other_way(name): value for name, value in dispatch.items()}}


def _other_way(name: str) -> str:
    part, _, way = name.partition("_")
    return f"{part}_{'recv' if way == 'send' else 'send'}"


def remote_selections(case: Case, topk_idx: Selections) -> float:
    """(token, expert) selections per rank whose expert is on another rank, averaged over ranks."""
    owner = np.where(topk_idx != MASKED, topk_idx // case.experts_per_rank, MASKED)
    source = np.arange(case.ranks)[:, None, None]
    return float(np.count_nonzero((owner != MASKED) & (owner != source))) / case.ranks


def remote_tokens(case: Case, topk_idx: Selections) -> float:
    """(token, destination rank) pairs per rank that leave their rank, averaged over ranks."""
    away = ~np.eye(case.ranks, dtype=np.bool_)
    return float(np.count_nonzero(goes_to_rank(case, topk_idx) & away[:, None, :])) / case.ranks


def deduplicated_bytes(case: Case, topk_idx: Selections) -> dict[Phase, float]:
    """Bytes per rank that leave it, averaged over ranks, where a token goes once to each rank and comes back likewise.

    Only in mode `ll` with combine `exact` each remote selection's row comes back by itself.
    """
    tokens = remote_tokens(case, topk_idx)
    rows_back = remote_selections(case, topk_idx) if case.combine == "exact" else tokens
    return {"dispatch": tokens * dispatch_row_bytes(case), "combine": rows_back * combine_row_bytes(case)}


def bytes_between_nodes(case: Case, topk_idx: Selections) -> dict[Phase, float]:
    """Bytes per rank that leave its node, averaged over ranks, where a token goes once to each node.

    What comes back is a row for each rank of another node that had the token; in mode `ll` with combine `exact`, one
    for each selection.
    """
    ranks_per_node = case.ranks // case.nodes
    node_of_rank = np.arange(case.ranks) // ranks_per_node
    far = node_of_rank[:, None] != node_of_rank
    to_rank = goes_to_rank(case, topk_idx) & far[:, None, :]
    tokens = np.count_nonzero(to_rank.reshape(case.ranks, case.tokens, case.nodes, ranks_per_node).any(axis=3))
    rows_back = np.count_nonzero(to_rank)
    if case.mode == "ll" and case.combine == "exact":
        source, token, choice = np.nonzero(topk_idx != MASKED)
        rows_back = np.count_nonzero(far[source, topk_idx[source, token, choice] // case.experts_per_rank])
    return {
        "dispatch": float(tokens) / case.ranks * dispatch_row_bytes(case),
        "combine": float(rows_back) / case.ranks * combine_row_bytes(case),
    }


def traffic(
    case: Case, phase: Phase, bytes_per_rank: dict[str, float], latency_us: float, wire_bytes_per_rank: float | None
) -> Traffic:
    """Bandwidth of one phase: bytes over `latency_us`, the mean over ranks; aggregate is the headline times ranks."""
    headline = HEADLINE[case.mode, phase]
    per_rank_gbs = {
        name: count / (latency_us * 1e-6) / GB if latency_us > 0 else 0.0 for name, count in bytes_per_rank.items()
    }
    return Traffic(
        bytes_per_rank=bytes_per_rank,
        headline=headline,
        per_rank_gbs=per_rank_gbs,
        aggregate_gbs=per_rank_gbs[headline] * case.ranks,
        wire_bytes_per_rank=wire_bytes_per_rank,
    )
