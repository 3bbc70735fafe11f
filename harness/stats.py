"""The statistics of one phase from its samples. Pure; definitions in docs/metrics.md.

Called by `harness.measure` on rank 0 after the samples of all ranks were gathered. Next to read: `harness.traffic`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.errors import CaseError
from harness.record import Stats

LEADING_DROPPED = 1
"""Iterations at the head of each rank's samples that no statistic counts: what comes after idle is another thing."""


def summarise(samples_us: Sequence[Sequence[float]], leading_dropped: int) -> Stats:
    """Statistics of samples [ranks][iterations] in µs, without each rank's first `leading_dropped` iterations.

    Percentiles interpolate linearly. Raises `CaseError` when no iteration would be left or ranks differ in number.
    """
    lengths = {len(rank) for rank in samples_us}
    if len(lengths) != 1:
        raise CaseError(f"every rank must have the same number of samples, got {sorted(lengths)}")
    if min(lengths) <= leading_dropped:
        raise CaseError(
            f"{min(lengths)} timed iterations leave nothing after the first {leading_dropped}: ask for at least "
            f"{leading_dropped + 1} iterations"
        )
    times = np.asarray(samples_us, dtype=np.float64)[:, leading_dropped:]
    mean_of_rank = times.mean(axis=1)
    slowest = times.max(axis=0)
    fastest_us, slowest_us = float(mean_of_rank.min()), float(mean_of_rank.max())
    median_us = float(np.median(times))
    p50, p95, p99 = (float(value) for value in np.percentile(times, (50, 95, 99)))
    slowest_p50, slowest_p95, slowest_p99 = (float(value) for value in np.percentile(slowest, (50, 95, 99)))
    return Stats(
        latency_us=float(mean_of_rank.mean()),
        latency_min_us=fastest_us,
        latency_max_us=slowest_us,
        p50_us=p50,
        p95_us=p95,
        p99_us=p99,
        std_us=float(times.std(ddof=1)) if times.size > 1 else 0.0,
        mad_us=float(np.median(np.abs(times - median_us))),
        skew=slowest_us / fastest_us if fastest_us > 0 else 1.0,
        slowest_rank=int(mean_of_rank.argmax()),
        slowest_p50_us=slowest_p50,
        slowest_p95_us=slowest_p95,
        slowest_p99_us=slowest_p99,
        rank_p50_us=[float(value) for value in np.median(times, axis=1)],
    )
