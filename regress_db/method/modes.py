"""Series with two levels: recognised, and their modes compared as proportions and locations.

A case may run at one of two speeds, by where its ranks landed or which path a library chose. A test of one location
then sees a wide spread and little else. Here: whether runs have two modes at all (`two_modes`), and, where they have,
whether new runs visit the slow one more often, or whether a mode itself has moved (`compare_modes`). Pure. Called by
`regress_db.verdicts` for what it says beside a verdict; the verdict itself is `regress_db.method.comparing`'s, which
needs no assumption about modes.

Sources: Wolfe 1970 and McLachlan 1987 (two components against one by likelihood ratio, its distribution by parametric
bootstrap: the usual chi-square does not hold); Scott & Symons 1971 (the split of largest likelihood); Ashman, Bird &
Zepf 1994 (how far apart); Fisher 1935 (the exact test). A likelihood ratio alone takes skewed and flat noise for two
modes, a valley alone (as in the dip test of Hartigan & Hartigan 1985) needs more runs than baselines have: both are
asked for, or a gap that is clear even with few runs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from regress_db.method.distributions import fisher_exact
from regress_db.method.spread import LEAST_SD

LEAST_RUNS = 10
"""Fewer runs cannot show two modes."""

LEAST_IN_MODE = 3
"""Fewer runs apart are outliers, not a mode."""

LEAST_SEPARATION = 3.0
"""Standard deviations of a mode between the two, at least."""

CLEAR_GAP = 1.5
"""Standard deviations of a mode without any run: modes of few runs are told by it."""

VALLEY_ALPHA = 0.05
"""One-sided level of the valley between the modes: those of many runs are told by it."""

MODES_ALPHA = 0.01
"""Level of the likelihood ratio."""

_BOOTSTRAPS = 999
_SEED = 20260101


@dataclass(frozen=True, slots=True)
class Modes:
    """Two modes of a series' runs. fast_us, slow_us: medians of each; border_us: between them; slow_share: of the runs
    in the slow one; separation: distance in standard deviations of a mode (log scale); p_value: of only one mode.
    """

    fast_us: float
    slow_us: float
    border_us: float
    slow_share: float
    separation: float
    p_value: float


@dataclass(frozen=True, slots=True)
class ModesCompared:
    """New runs against a bimodal baseline. new_slow, base_slow: runs in the slow mode; proportion_p: of the slow mode
    being no more or less frequent (Fisher's exact test, two-sided); fast_change, slow_change: relative change of each
    mode's median, None where new runs did not visit it.
    """

    new_slow: int
    new_runs: int
    base_slow: int
    base_runs: int
    proportion_p: float
    fast_change: float | None
    slow_change: float | None


def two_modes(values_us: Sequence[float]) -> Modes | None:
    """The two modes of these runs' positive values, or None where one explains them.

    The statistic is the likelihood ratio of the best split into two normal groups of one variance against a single
    group, over all splits that leave at least three runs on each side. Its p-value is its rank among 999 samples of one
    normal distribution of the same size, with a fixed seed; the statistic does not depend on location and scale, so
    that this is the parametric bootstrap, exact for normal runs. The modes must also lie `LEAST_SEPARATION` standard
    deviations apart, with a clear gap or a valley between them, which noise that is merely not normal seldom has.
    """
    count = len(values_us)
    if count < LEAST_RUNS:
        return None
    logs = np.sort(np.log(np.asarray(values_us, dtype=np.float64)))
    ratios, within = _splits(logs[None, :])
    place = int(ratios[0].argmax())
    cut = place + LEAST_IN_MODE
    fast, slow = logs[:cut], logs[cut:]
    sd = max(math.sqrt(within[0, place] / (count - 2)), LEAST_SD)
    separation = float(slow.mean() - fast.mean()) / sd
    reference = _reference(count)
    p_value = (1 + int((reference >= ratios[0, place]).sum())) / (len(reference) + 1)
    apart = (
        slow[0] - fast[-1] >= CLEAR_GAP * sd or _valley_p(logs, float(fast.mean()), float(slow.mean())) <= VALLEY_ALPHA
    )
    if p_value > MODES_ALPHA or separation < LEAST_SEPARATION or not apart:
        return None
    return Modes(
        math.exp(float(np.median(fast))),
        math.exp(float(np.median(slow))),
        math.exp(float(fast[-1] + slow[0]) / 2),
        len(slow) / count,
        separation,
        p_value,
    )


def compare_modes(new_us: Sequence[float], base_us: Sequence[float], modes: Modes) -> ModesCompared:
    """New runs against the baseline's runs, each counted to the mode whose side of the border it is on. Both positive
    and not empty.
    """
    new_slow = [value for value in new_us if value > modes.border_us]
    base_slow = [value for value in base_us if value > modes.border_us]
    new_fast = [value for value in new_us if value <= modes.border_us]
    base_fast = [value for value in base_us if value <= modes.border_us]
    return ModesCompared(
        len(new_slow),
        len(new_us),
        len(base_slow),
        len(base_us),
        fisher_exact(len(new_slow), len(new_fast), len(base_slow), len(base_fast)),
        _change(new_fast, base_fast),
        _change(new_slow, base_slow),
    )


def _valley_p(logs: NDArray[np.float64], fast: float, slow: float) -> float:
    """Chance of so few runs in the middle third between two centres, were there no valley.

    A density with one peak has at least as much in the middle as in the emptier of two windows of the same width about
    the centres; of the runs in either, the middle then has half or more (binomial).
    """
    reach = (slow - fast) / 6
    middle, *sides = (int((np.abs(logs - at) <= reach).sum()) for at in ((fast + slow) / 2, fast, slow))
    runs = middle + min(sides)
    return float(sum(math.comb(runs, seen) for seen in range(middle + 1)) / 2**runs)


def _change(new: Sequence[float], base: Sequence[float]) -> float | None:
    return statistics.median(new) / statistics.median(base) - 1 if new and base else None


def _splits(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each ascending row [rows, n]: the log ratio of its squares to those within two groups, and the latter, for
    every split that leaves `LEAST_IN_MODE` on each side, [rows, n - 2 * LEAST_IN_MODE + 1].
    """
    count = rows.shape[1]
    centred = rows - rows.mean(axis=1, keepdims=True)
    total = (centred**2).sum(axis=1, keepdims=True)
    left = np.arange(LEAST_IN_MODE, count - LEAST_IN_MODE + 1)
    sums = np.cumsum(centred, axis=1)[:, left - 1]
    between = sums**2 * (1 / left + 1 / (count - left))
    within = np.maximum(total - between, count * LEAST_SD**2)
    return np.log(np.maximum(total, count * LEAST_SD**2) / within), within


@lru_cache(maxsize=128)
def _reference(count: int) -> NDArray[np.float64]:
    """The largest ratio of each of 999 samples of one normal distribution, float64 [999]."""
    rows = np.sort(np.random.default_rng([_SEED, count]).standard_normal((_BOOTSTRAPS, count)), axis=1)
    return np.asarray(_splits(rows)[0].max(axis=1))
