"""What could have been seen: the smallest slowing that the whole rule calls regressed four times in five.

The rule asks for an estimate of at least the floor and at least what the noise supports, and, where candidates are
re-run, for a first estimate that made it a candidate. Pure; log scale. Called by `regress_db.method.comparing`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from regress_db.method.distributions import t_quantile

POWER = 0.8

_NODES: NDArray[np.float64] = np.asarray(special.ndtri((np.arange(160) + 0.5) / 160), dtype=np.float64)
"""Normal deviates of equal probability, over which the final estimate is averaged."""

_REACH: NDArray[np.float64] = np.linspace(0.0, 6.0, 49, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Stage:
    """One look at the new runs: the least estimate that passes it, and the error (log sd) of its estimate."""

    least: float
    error: float


def detectable(last: Stage, df: float, first: Stage | None = None) -> float:
    """The log change that passes every stage with probability `POWER`, given the spread as estimated with `df`.

    One stage: least + t(POWER, df) * error: the estimate about the truth, in units of an error that is itself an
    estimate, is Student's t (Hahn & Meeker 1991, section 4.7). Two stages: the first estimate is the last one and an
    independent part of variance first.error² - last.error² beside it, since re-runs only add to the first runs.
    """
    alone = last.least + t_quantile(POWER, df) * last.error
    if first is None or first.error <= last.error or last.error == 0:
        return alone
    beside = (first.error**2 - last.error**2) ** 0.5
    deviates = _NODES * (1 + (_NODES**2 + 1) / (4 * df))  # Student's t by the normal (Fisher 1926)
    truths = alone + _REACH * first.error
    estimates: NDArray[np.float64] = truths[:, None] + last.error * deviates
    passes = special.ndtr((estimates - first.least) / beside) * _ramp((estimates - last.least) / last.error)
    powers = np.maximum.accumulate(passes.mean(axis=1))
    if powers[0] >= POWER:
        return alone
    return float(np.interp(POWER, powers, truths))


def _ramp(distance: NDArray[np.floating]) -> NDArray[np.floating]:
    """One above zero and zero below, blurred over the distance between nodes so that the mean is smooth."""
    ramp: NDArray[np.floating] = np.clip(distance / 0.05 + 0.5, 0.0, 1.0)
    return ramp
