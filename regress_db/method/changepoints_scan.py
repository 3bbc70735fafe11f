"""Looking for a change of level everywhere in a series at once, by ranks, with p-values that account for the search.

A *scan* compares, in each of a fixed set of intervals of all lengths, the points before and after every split; the best
of all is the scan's score. A score is close to -log p of a Mann-Whitney test. What a score is worth is looked up in a
table of its distribution where nothing changes (`changepoints_null`): there every order of the points is as likely as
any other, so the table depends on the number of points alone, whatever the noise looks like.
Pure. Called by `regress_db.method.changepoints`; next to read: `regress_db.method.changepoints_noise`.

Sources: Kovacs, Buehlmann, Li & Munk 2023, Biometrika 110 (seeded intervals); Mann & Whitney 1947 (the statistic, its
variance and its largest value's probability); Lehmann 1975, section 1.4 (the variance with ties).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, log_ndtr

from regress_db.method.changepoints_null import LEVELS, RECENT_SCORES, SEARCH_SCORES
from regress_db.method.ranks import centred_ranks

Array = NDArray[np.floating[Any]]

LEAST_SIDE = 3
"""A split has at least so many points on each side; one or two nights away and back are no step."""

LEAST_RECENT, MOST_RECENT = 2, 7
"""The newest points that are compared with those before them in a test of their own."""

RECENT_WINDOW = 107
"""The newest points that this test looks at: `MOST_RECENT`, and a hundred to compare with."""

_SHORTEST_INTERVAL = 20
_EXACT_AT_THE_END = 16
"""Power by which a score goes over from the normal approximation to the exact probability of perfect separation."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The best split of each interval of a scan. start, end: the interval; split: first point after; score."""

    start: NDArray[np.intp]
    end: NDArray[np.intp]
    split: NDArray[np.intp]
    score: Array


def scan(values: Array) -> Candidates:
    """The best split in each seeded interval of values [n]; none where n < 2 * LEAST_SIDE."""
    found: list[tuple[Array | NDArray[np.intp], ...]] = []
    for starts, length, best, score in _layers(values[None, :]):
        found.append((starts, starts + length, starts + best[0], score[0]))
    if not found:
        none = np.zeros(0, dtype=np.intp)
        return Candidates(none, none, none, np.zeros(0))
    start, end, split, of_all = (np.concatenate(column) for column in zip(*found, strict=True))
    return Candidates(start.astype(np.intp), end.astype(np.intp), split.astype(np.intp), of_all.astype(np.float64))


def highest_scores(values: Array) -> Array:
    """The scan's score [s] of each of s series, values [s, n]: what the table of the null is made of."""
    highest: Array = np.max([score.max(axis=-1) for _, _, _, score in _layers(values)], axis=0)
    return highest


def recent_scores(values: Array) -> Array:
    """Scores [MOST_RECENT - 1] of the last 2, 3, ... 7 points of values [n] against those before them.

    -inf where fewer points are before than after.
    """
    count = len(values)
    scores = np.full(MOST_RECENT - LEAST_RECENT + 1, -np.inf)
    ranks = centred_ranks(values)
    squares = float(ranks @ ranks)
    for position, recent in enumerate(range(LEAST_RECENT, min(MOST_RECENT, count // 2) + 1)):
        scores[position] = score_of_sums(ranks[-recent:].sum(), count, recent, squares=squares)
    return scores


def split_score(before: Array, after: Array) -> float:
    """The score of one split alone: of the points before [n] against those after [m], both at least one."""
    ranks = centred_ranks(np.concatenate([before, after]))
    return float(score_of_sums(ranks[: len(before)].sum(), len(ranks), len(before), squares=float(ranks @ ranks)))


def score_of_sums(total: Array, points: int, side: int, *, squares: float | None = None) -> Array:
    """Scores [...] of one split by the sums of the centred ranks of the `side` points on one side of it.

    squares: the sum of all squared ranks; without, that of ranks without ties.
    """
    side = min(side, points - side)
    of_split = tuple(column[:1] for column in _splits(points, side))
    whole = np.asarray(points * (points * points - 1) / 12 if squares is None else squares)
    return _score_of(np.asarray(total)[..., None], whole[..., None], of_split)[..., 0]  # type: ignore[arg-type]


def search_p_value(score: float, points: int) -> float:
    """Probability that a scan of so many points without a change scores as high or higher."""
    return _p_value(score, points, SEARCH_SCORES)


def recent_p_value(score: float, points: int) -> float:
    """Probability that the best of `recent_scores` of so many points without a change is as high or higher."""
    return _p_value(score, points, RECENT_SCORES)


@lru_cache(maxsize=512)
def _seeded(points: int) -> tuple[tuple[int, NDArray[np.intp]], ...]:
    """(length, starts) of the intervals: lengths fall by sqrt 2, and neighbours overlap by half."""
    if points < 2 * LEAST_SIDE:
        return ()
    layers: list[tuple[int, NDArray[np.intp]]] = [(points, np.zeros(1, dtype=np.intp))]
    depth = 1
    while (length := math.ceil(points / 2 ** (depth / 2))) >= _SHORTEST_INTERVAL:
        count = 2 * math.ceil(2 ** (depth / 2)) - 1
        layers.append((length, np.unique(np.linspace(0, points - length, count).astype(np.intp))))
        depth += 1
    return tuple(layers)


def _layers(values: Array) -> list[tuple[NDArray[np.intp], int, NDArray[np.intp], Array]]:
    """Of each layer: starts [c], length, and of the best split its place in the interval and score, [s, c] each."""
    found = []
    for length, starts in _seeded(values.shape[-1]):
        windows = np.lib.stride_tricks.sliding_window_view(values, length, axis=-1)[:, starts]
        scores = _scores(centred_ranks(windows), LEAST_SIDE)
        best = scores.argmax(axis=-1)
        score = np.take_along_axis(scores, best[..., None], axis=-1)[..., 0]
        found.append((starts, length, best + LEAST_SIDE, score))
    return found


_Splits = tuple[NDArray[np.intp], Array, Array, Array]


@lru_cache(maxsize=4096)
def _splits(length: int, side: int) -> _Splits:
    """Of each split with at least `side` points on both sides: points before; the largest deviation of their rank sum;
    its variance for ranks of unit sum of squares; and by how much the score of perfect separation must rise above the
    normal approximation to be exact.
    """
    before = np.arange(side, length - side + 1)
    half = before * (length - before) / 2.0
    variance = 2 * half / (length * (length - 1.0))
    largest = (half - 0.5) / np.sqrt(half * (length + 1) / 6)
    exact = gammaln(length + 1) - gammaln(before + 1) - gammaln(length - before + 1) - math.log(2)
    return before, half, variance, np.maximum(exact - _minus_log_p(largest), 0.0)


def _scores(ranks: Array, side: int) -> Array:
    """Score of each split [..., splits] of centred ranks [..., length] with `side` points on both sides."""
    of_splits = _splits(ranks.shape[-1], side)
    squares = np.einsum("...i,...i->...", ranks, ranks)[..., None]
    return _score_of(ranks.cumsum(axis=-1)[..., of_splits[0] - 1], squares, of_splits)


def _score_of(sums: Array, squares: Array, of_splits: _Splits) -> Array:
    """-log of the two-sided p: normal in the middle, exact at perfect separation, where normal is far too cautious
    for a short side; in between a smooth transition. It needs no accuracy there: the null's table is of this score.
    """
    _, half, variance, rise = of_splits
    deviation = np.maximum(np.abs(sums) - 0.5, 0.0)
    z = deviation / np.sqrt(np.maximum(variance * squares, 1e-300))
    scores: Array = _minus_log_p(z) + (deviation / (half - 0.5)) ** _EXACT_AT_THE_END * rise
    return scores


def _minus_log_p(z: Array) -> Array:
    """Of two-sided p-values of normal deviates z >= 0."""
    minus_logs: Array = -log_ndtr(-z) - math.log(2)
    return minus_logs


def _p_value(score: float, points: int, table: dict[int, tuple[float, ...]]) -> float:
    """Between the table's numbers of points linear in their logarithm; above its scores p falls as exp(-score)."""
    sizes = tuple(table)
    if points < sizes[0]:
        return 1.0
    above = next((size for size in sizes if size >= points), sizes[-1])
    below = max((size for size in sizes if size <= points), default=sizes[0])
    scores = np.array(table[below])
    if above > below:
        share = math.log(points / below) / math.log(above / below)
        scores = (1 - share) * scores + share * np.array(table[above])
    elif points > sizes[-1]:
        scores = scores + math.log(points / sizes[-1])
    possible = int(np.isfinite(scores).sum())
    if possible == 0 or score < scores[0]:
        return 1.0
    if score >= scores[possible - 1]:
        beyond = scores[-1] - score if possible == len(LEVELS) else 0.0
        return float(LEVELS[possible - 1] * math.exp(beyond))
    return float(math.exp(np.interp(score, scores[:possible], np.log(LEVELS[:possible]))))
