"""What each number means, in the words that pages, terminal and report share. docs/metrics.md tells it at length.

Pure. `of` knows every name that `regress_db.metrics.metrics_of` makes. Used by `regress_db.web.views`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["µs", "GB/s", "B", ""]


@dataclass(frozen=True, slots=True)
class Definition:
    """A metric in words. words: short; definition: a sentence; unit: "" for a ratio."""

    words: str
    definition: str
    unit: Unit

    @property
    def lower_is_better(self) -> bool:
        """Bandwidths are better high, all others low."""
        return self.unit != "GB/s"


_OVER_RANKS = "of each rank's mean over its iterations"
_POOLED = "over all iterations of all ranks"
_SLOWEST = "of the slowest rank's time in each iteration"

DEFINITIONS: dict[str, Definition] = {
    "latency_us": Definition("latency, average over ranks", f"The average over ranks {_OVER_RANKS}.", "µs"),
    "latency_min_us": Definition("latency, fastest rank", f"The lowest {_OVER_RANKS}.", "µs"),
    "latency_max_us": Definition("latency, slowest rank", f"The highest {_OVER_RANKS}.", "µs"),
    "slowest_p50_us": Definition(
        "run value (what is judged)",
        "Per iteration the slowest rank, then the median over iterations: the one number of a run that is judged.",
        "µs",
    ),
    "slowest_p95_us": Definition("slowest rank, p95", f"The 95th percentile {_SLOWEST}.", "µs"),
    "slowest_p99_us": Definition("slowest rank, p99", f"The 99th percentile {_SLOWEST}.", "µs"),
    "p50_us": Definition("median", f"The median {_POOLED}.", "µs"),
    "p95_us": Definition("p95", f"The 95th percentile {_POOLED}.", "µs"),
    "p99_us": Definition("p99", f"The 99th percentile {_POOLED}.", "µs"),
    "std_us": Definition("standard deviation", f"The sample standard deviation {_POOLED}.", "µs"),
    "mad_us": Definition("median absolute deviation", f"The median distance from the median {_POOLED}.", "µs"),
    "skew": Definition("skew", "The slowest rank's mean latency over the fastest rank's.", ""),
    "bandwidth_gbs": Definition(
        "bandwidth per rank", "The headline bytes of a rank over the average latency (GB = 1e9 bytes).", "GB/s"
    ),
    "aggregate_gbs": Definition("bandwidth, all ranks", "The bandwidth per rank times the ranks.", "GB/s"),
    "wire_bytes": Definition(
        "bytes on the wire", "What the engine really moves between ranks, per rank, after each row is sent once.", "B"
    ),
}

_BYTES = {
    "recv": "received rows, one for each (token, expert) selection",
    "send": "sent rows, one for each (token, expert) selection",
    "total_send": "sent tokens, one row for each destination node",
    "nvl_send": "sent tokens that stay on the node",
    "rdma_send": "sent tokens that go to other nodes",
    "total_recv": "received tokens, one row for each source",
    "nvl_recv": "received tokens from the same node",
    "rdma_recv": "received tokens from other nodes",
}


def of(metric: str) -> Definition:
    """What the metric of this name means; of a name that is not known, the name itself."""
    if metric in DEFINITIONS:
        return DEFINITIONS[metric]
    kind, _, name = metric.partition(".")
    what = _BYTES.get(name, name)
    if kind == "bytes":
        return Definition(f"bytes, {name}", f"The bytes of {what}, averaged over ranks.", "B")
    if kind == "gbs":
        return Definition(f"bandwidth of {name}", f"The bytes of {what} over the average latency, per rank.", "GB/s")
    return Definition(metric, f"The metric {metric}.", "µs" if metric.endswith("_us") else "")
