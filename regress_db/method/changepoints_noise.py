"""The noise of a series: how much one run remembers of the one before, its spread, and what goes with a label.

Called by `regress_db.method.changepoints`, which scans what `whitened` returns. Pure.

Sources: Tukey 1977, chapter 10 (median polish); Kendall 1954 and Marriott & Pope 1954 (the bias of autocorrelations);
Chakar, Lebarbier, Levy-Leduc & Robin 2017, Bernoulli 23 (why changes must not enter the autocorrelation, and
prewhitening before a search); Masreliez 1975 (a filter that bounds what one outlier does to the next prediction).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from regress_db.method.ranks import centred_ranks

Array = NDArray[np.floating[Any]]

_MAD_TO_SIGMA = 1.4826
TAIL_DF = 4.0
TAIL_MAD_SIGMA = 1.098
"""Residuals are taken to have the tails of Student's t with 4 degrees of freedom; 1.4826 times its median |t|."""

_JUMP_SIDE = 5
_PLAIN_JUMP = 5.0
_LARGEST_SHARE = 0.95
_BIAS_OF_A_REMOVED_STEP = 3.5
_CAUTION_SE = 1.0
_CLIP_SIGMA = 3.0
_CLIP_WINDOW = 9
_LEFTOVER_LAGS = 10
_LEFTOVER_BIAS = 2.5
_POLISHES = 4
_LINE_STEPS = 6
_LEVEL_WINDOW = 9
_LEAST_OF_A_LABEL = 8
_LEAST_SPELLS = 3


@dataclass(frozen=True, slots=True)
class Noise:
    """What `whitened` found. share: what a run keeps of the deviation of the run before (autocorrelation, taken high);
    sigma: robust standard deviation of one run, log scale; excess: how many times the variance of long sums of
    innovations is that of independent ones, at least 1.
    """

    share: float
    sigma: float
    excess: float


def median(values: Array) -> float:
    """Of values [n >= 1], none of them NaN: what `numpy.median` says, without the cost of asking for it."""
    half, odd = divmod(len(values), 2)
    if odd:
        return float(np.partition(values, half)[half])
    middle = np.partition(values, (half - 1, half))
    return float(middle[half - 1] + middle[half]) / 2


def spread(residuals: Array) -> float:
    """Robust standard deviation of residuals [n]: 1.4826 MAD about 0, or the mean's counterpart where that is 0."""
    sizes = np.abs(residuals)
    middle = median(sizes)
    return _MAD_TO_SIGMA * middle if middle > 0 else math.sqrt(math.pi / 2) * float(sizes.mean())


def centre(values: Array) -> float:
    """Mean of values [n] without the highest and the lowest fifth: outliers do not move it, and where there are two
    modes it lies between them, where the median would be in one or the other.
    """
    cut = len(values) // 5
    return float(np.sort(values)[cut : len(values) - cut].mean())


def whitened(values: Array) -> tuple[Array, Noise]:
    """values [n] less what each keeps of the one before, and the noise. Steps stay steps at their places.

    The autocorrelation is that of normal scores of ranks, after plain jumps and the best single step, or a line, were
    taken out; what taking them out costs is put back, and one standard error on top: too high costs a little power,
    too low would make noise into changes. What is left at longer lags, a slow wave under white noise, goes into
    `excess`.
    """
    residuals = _without_levels(values)
    sigma = spread(residuals)
    share = _raised(_autocorrelations(residuals, 1)[0], len(values))
    innovations = _innovations(values, share, sigma)
    lags = min(_LEFTOVER_LAGS, len(values) // 10)
    if lags == 0:
        return innovations, Noise(share, sigma, 1.0)
    left = _autocorrelations(_without_levels(innovations), lags).sum() + lags * _LEFTOVER_BIAS / len(values)
    return innovations, Noise(share, sigma, 1 + 2 * max(0.0, float(left)))


def label_offsets(values: Array, labels: Sequence[Hashable]) -> Array:
    """What goes with each point's label [n], 0 on the middle label: by median polish against a moving median.

    Only labels with eight points or more in three spells or more get one: a rare label's offset would be its points.
    A label that stays for long stretches moves the moving median with it and gets no offset: there a change of the
    label and a change of the level cannot be told apart.
    """
    offsets = np.zeros(len(values))
    groups = [np.array(places) for places in _places(labels).values() if _takes_turns(places)]
    for _ in range(_POLISHES):
        residuals = values - offsets - _moving_median(values - offsets, _LEVEL_WINDOW)
        for places in groups:
            offsets[places] += median(residuals[places])
    return offsets - median(offsets)


def _takes_turns(places: Sequence[int]) -> bool:
    spells = 1 + sum(after - before > 1 for before, after in pairwise(places))
    return len(places) >= _LEAST_OF_A_LABEL and spells >= _LEAST_SPELLS


def _places(labels: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    places: dict[Hashable, list[int]] = {}
    for place, label in enumerate(labels):
        places.setdefault(label, []).append(place)
    return places


def _moving_median(values: Array, window: int) -> Array:
    half = window // 2
    padded = np.pad(values, half, mode="reflect")
    medians: Array = np.median(np.lib.stride_tricks.sliding_window_view(padded, window), axis=-1)
    return medians


def _without_levels(values: Array) -> Array:
    """Residuals [n] from the centres between plain jumps, then from the best single step or from a line."""
    residuals = values.copy()
    cuts = [0, *_plain_jumps(values), len(values)]
    for start, end in pairwise(cuts):
        residuals[start:end] -= centre(residuals[start:end])
    split = _best_split(residuals)
    levels = np.concatenate([part - centre(part) for part in (residuals[:split], residuals[split:])])
    _, line = line_through(residuals)
    return levels if np.abs(levels).sum() <= np.abs(line).sum() else line


def line_through(values: Array) -> tuple[float, Array]:
    """Slope per point of a line through values [n >= 3], and the residuals [n]: the maximum likelihood of Student's t
    with 4 degrees of freedom, by least squares with weights (Lange, Little & Taylor 1989).
    """
    times = np.arange(len(values)) - (len(values) - 1) / 2
    weights: Array = np.ones(len(values))
    slope = 0.0
    residuals: Array = values
    for _ in range(_LINE_STEPS):
        total = float(weights.sum())
        middle, level = float(weights @ times) / total, float(weights @ values) / total
        slope = float(weights @ ((times - middle) * (values - level))) / float(weights @ (times - middle) ** 2)
        residuals = values - level - slope * (times - middle)
        sigma = spread(residuals - median(residuals))
        if sigma == 0:
            break
        weights = (TAIL_DF + 1) / (TAIL_DF + (residuals / sigma * TAIL_MAD_SIGMA) ** 2)
    return slope, residuals


def _plain_jumps(values: Array) -> list[int]:
    """Where the medians of the next and the last five points are so far apart that no correlated noise does it."""
    side = _JUMP_SIDE
    if len(values) < 2 * side + 2:
        return []
    medians = np.median(np.lib.stride_tricks.sliding_window_view(values, side), axis=-1)
    jumps = np.abs(medians[side:] - medians[:-side])
    unit = spread(np.diff(values)) / math.sqrt(2)
    found: list[int] = []
    while len(found) <= len(values) // 20:
        place = int(jumps.argmax())
        if unit == 0 or jumps[place] < _PLAIN_JUMP * unit:
            break
        found.append(place + side)
        jumps[max(0, place - 2 * side + 1) : place + 2 * side] = 0
    return sorted(found)


def _best_split(values: Array, side: int = 3) -> int:
    """The first point after the split that parts the ranks best."""
    count = len(values)
    if count < 2 * side:
        return count // 2
    ranks = centred_ranks(values)
    before = np.arange(side, count - side + 1)
    return int(before[(np.abs(ranks.cumsum()[before - 1]) / np.sqrt(before * (count - before))).argmax()])


def _autocorrelations(residuals: Array, lags: int) -> Array:
    """Of the normal scores of the ranks, at lags 1, 2, ... [lags]."""
    count = len(residuals)
    scores = ndtri((centred_ranks(residuals) + count / 2) / count)
    squares = float(scores @ scores)
    if squares == 0:
        return np.zeros(lags)
    return np.array([scores[lag:] @ scores[:-lag] / squares if lag < count else 0.0 for lag in range(1, lags + 1)])


def _raised(autocorrelation: float, count: int) -> float:
    """The autocorrelation of the noise, from that of residuals from a fitted step: bias put back, one error on top."""
    bias = _BIAS_OF_A_REMOVED_STEP / count
    unbiased = (autocorrelation + bias) / max(1 - 3 * bias, 0.4)
    error = math.sqrt(max(1 - unbiased * unbiased, 0.05) / count) / max(1 - 3 * bias, 0.4)
    return float(min(max(unbiased + _CAUTION_SE * error, 0.0), _LARGEST_SHARE))


def _innovations(values: Array, share: float, sigma: float) -> Array:
    """Each value less `share` of the one before, whose distance from the last few's median is bounded."""
    if share == 0:
        return values
    window = min(_CLIP_WINDOW, len(values))
    padded = np.concatenate([np.full(window - 1, median(values[:window])), values])
    recent = np.median(np.lib.stride_tricks.sliding_window_view(padded, window), axis=-1)
    bounded = recent + np.clip(values - recent, -_CLIP_SIGMA * sigma, _CLIP_SIGMA * sigma)
    before = np.concatenate([[median(values[:window])], bounded[:-1]])
    innovations: Array = values - share * before
    return innovations
