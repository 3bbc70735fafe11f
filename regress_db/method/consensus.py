"""What many noisy changes agree on: one robust location, an honest error of it, and how many of them share it.

Pure, numpy. Called by `regress_db.method.attribution`, for one node or one night at a time; next to read is that.

Sources: Huber 1964 and Beaton & Tukey 1974 (the location: Huber's, then the biweight from there, so that a fifth of the
values far away on one side do not pull it; k = 1.345 and c = 4.685 keep 95 % efficiency on normal noise); Huber &
Ronchetti 2009, section 6.7 (its error); DerSimonian & Laird 1986 and Paule & Mandel 1982 (changes that truly differ by
more than their errors add a variance of their own, here found with a median so that a few strange series cannot set
it).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtr, stdtrit

Array = NDArray[np.floating[Any]]

_HUBER_K = 1.345
_BIWEIGHT_C = 4.685
_MAD_TO_SIGMA = 1.4826
_LEAST_FOR_SPREAD = 5
"""Fewer values than this say too little of their own spread: their stated errors stand."""
_LEAST_ERROR = 1e-5
_STEPS = 25


@dataclass(frozen=True, slots=True)
class Consensus:
    """What `count` values agree on.

    centre, error: on the values' scale (here log changes). share: the part of the values that moved by `centre`, the
    others being unmoved; share_error: its standard error, infinite where no value is exact enough to tell. chance: the
    probability that those that moved are here by chance, where someone has asked.
    """

    centre: float
    error: float
    count: int
    share: float
    share_error: float
    chance: float = 0.0

    @property
    def p_value(self) -> float:
        """Two-sided, of no common change; 1 for a single value.

        Student's t with 2 (count - 1) degrees of freedom: the values' stated errors are pooled over many runs, so that
        count - 1 would ask too much of few values, and a normal reference too little where noise has heavy tails.
        """
        if self.count < 2:
            return 1.0
        return float(2 * stdtr(self._df, -abs(self.centre) / self.error))

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The interval of the common change, on the values' scale."""
        half = self.error * float(stdtrit(self._df, (1 + confidence) / 2))
        return self.centre - half, self.centre + half

    @property
    def _df(self) -> int:
        return max(2 * (self.count - 1), 1)

    def shared_by(self, share: float) -> bool:
        """Whether it is consistent with this part of the values, or more, having moved together."""
        return self.share + self.share_error >= share


def consensus(values: Array, errors: Array) -> Consensus:
    """The Huber location of `values` [n >= 1], each with its standard error (`errors` [n])."""
    errors = np.maximum(errors, _LEAST_ERROR)
    return agreement(*_locate(values, errors), values, errors)


def agreement(centre: float, error: float, values: Array, errors: Array) -> Consensus:
    """The consensus of values whose common change was found to be `centre`, with error `error`, in another way."""
    share, share_error = _share(values, np.maximum(errors, _LEAST_ERROR), centre)
    return Consensus(centre, error, len(values), share, share_error)


def location(values: Array, errors: Array) -> tuple[float, float]:
    """Centre and error alone, as `consensus` finds them."""
    return _locate(values, np.maximum(errors, _LEAST_ERROR))


def _locate(values: Array, errors: Array) -> tuple[float, float]:
    """Centre and its error. The variance between the values beyond their errors is found on the way."""
    if len(values) == 1:
        return float(values[0]), float(errors[0])
    squares = errors**2
    centre, between = float(np.median(values)), 0.0
    usual = float(np.median(squares))
    for _ in range(_STEPS):
        scale = np.sqrt(squares + between)
        away = np.abs(values - centre) / scale
        weights = np.minimum(1.0, _HUBER_K / np.maximum(away, _HUBER_K)) / scale**2
        moved = float(weights @ values / weights.sum())
        wanted = between
        if len(values) >= _LEAST_FOR_SPREAD:
            spread = _MAD_TO_SIGMA * float(np.median(away))
            wanted = max(0.0, between + (spread**2 - 1) * (usual + between))
        done = abs(moved - centre) < 1e-9 and abs(wanted - between) < 1e-3 * (usual + between)
        centre, between = moved, wanted
        if done:
            break
    scale = np.sqrt(squares + between)
    for _ in range(_STEPS):
        inside = np.maximum(1 - ((values - centre) / scale / _BIWEIGHT_C) ** 2, 0.0)
        weights = inside**2 / scale**2
        if not weights.any():
            break
        moved = float(weights @ values / weights.sum())
        done = abs(moved - centre) < 1e-9
        centre = moved
        if done:
            break
    stated = 1 / math.sqrt(float((1 / scale**2).sum()))
    return centre, max(stated, _seen_error((values - centre) / scale, scale))


def _seen_error(away: Array, scale: Array) -> float:
    """The biweight's error by how the values lie; infinite where they lie so that there is none.

    away: values from the centre, in units of `scale`.
    """
    inside = np.maximum(1 - (away / _BIWEIGHT_C) ** 2, 0.0)
    slope = float((inside * (1 - 5 * (away / _BIWEIGHT_C) ** 2) / scale**2).sum())
    if slope <= 0:
        return math.inf
    return math.sqrt(float(((away * inside**2) ** 2 / scale**2).sum())) / slope


def _share(values: Array, errors: Array, centre: float) -> tuple[float, float]:
    """The part of the values that moved by `centre`, if each did or did not, and its error.

    By moments: a value that moved lies beyond half of the change with probability Phi(|centre| / 2 error), one that did
    not with the complement.
    """
    beyond = ndtr(abs(centre) / 2 / errors)
    told_apart = float((2 * beyond - 1).sum())
    if told_apart < 1:
        return 1.0, math.inf
    seen = float((math.copysign(1, centre) * values > abs(centre) / 2).sum())
    share = (seen - float((1 - beyond).sum())) / told_apart
    return min(max(share, 0.0), 1.0), math.sqrt(float((beyond * (1 - beyond)).sum())) / told_apart
