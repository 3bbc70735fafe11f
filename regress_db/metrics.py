"""The names of the numbers that the history keeps of a phase, and the numbers of one record by these names.

Pure. A change of meaning is a new name. Used by `regress_db.ingest`, which stores them, and by whoever asks.
"""

from __future__ import annotations

from harness.record import PhaseResult, Stats

RUN_VALUE_METRIC = "slowest_p50_us"
"""The metric that verdicts compare: per iteration the maximum over ranks, then the median over iterations."""

BANDWIDTH_METRIC = "bandwidth_gbs"
"""The headline bandwidth per rank, whichever byte count it is of (`RunPhaseRow.headline` says)."""

SCALARS = (*(name for name in Stats.__struct_fields__ if name.endswith("_us") and name != "rank_p50_us"), "skew")
"""Names of the single numbers of `Stats`."""


def metrics_of(result: PhaseResult) -> dict[str, float]:
    """Every single number of a phase by metric name: those of `Stats`, `bandwidth_gbs` (the headline per rank),
    `aggregate_gbs`, `wire_bytes` where known, and `bytes.<name>` and `gbs.<name>` for each byte count of `Traffic`.
    """
    traffic = result.traffic
    values = {name: float(getattr(result.stats, name)) for name in SCALARS}
    values[BANDWIDTH_METRIC] = traffic.per_rank_gbs[traffic.headline]
    values["aggregate_gbs"] = traffic.aggregate_gbs
    if traffic.wire_bytes_per_rank is not None:
        values["wire_bytes"] = traffic.wire_bytes_per_rank
    values |= {f"bytes.{name}": count for name, count in traffic.bytes_per_rank.items()}
    values |= {f"gbs.{name}": bandwidth for name, bandwidth in traffic.per_rank_gbs.items()}
    return values
