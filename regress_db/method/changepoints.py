"""Change points of one series: where its level changed, how surely, how much, and between which points.

`detect` takes run values in the order of time and nothing else; what the points are (nights, commits) is the caller's.
It ranks, so that spikes, modes and heavy tails count no more than any other order of the points, and its p-values
account for having looked everywhere. Pure. Called by `regress_db.changes`; next to read:
`regress_db.method.changepoints_noise` (correlated noise), `changepoints_scan` (the search), `changepoints_shape` (what
is said of each change that was found). docs/statistics.md says how well each part keeps its promise.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from regress_db.method import changepoints_scan as scanning
from regress_db.method import changepoints_shape as shape
from regress_db.method.changepoints_noise import Noise, label_offsets, spread, whitened

Array = NDArray[np.floating[Any]]
Kind = Literal["step", "transient", "drift"]

METHOD = "ranks-1"
"""Stands beside each change point in the history."""

DEFAULT_LEVEL = 0.01
_SHARE_OF_THE_SEARCH = 0.6
_SHARE_OF_THE_NEWEST = 0.4
_LEAST_EFFECT_SIGMA = 0.5
_PLACINGS = 2


@dataclass(frozen=True, slots=True)
class ChangePoint:
    """One change. Effects are relative: 0.1 is ten per cent higher after than before.

    kind: `step`; `transient`: one or two points away and back; `drift`: a line explains it better than steps.
    index: the first point of the new level; of a transient the first point away; of a drift where half of it is done.
    earliest, latest: the 95 % interval in which the index lies; of a transient its first and last point away, of a
    drift its first and last point. low, high: 95 % interval of the effect. p_value: of nothing having changed
    anywhere in the series, the search accounted for. with_label: the points' label changes at this very place and
    does not come back, so that the label explains the change as well as anything else.
    """

    kind: Kind
    index: int
    earliest: int
    latest: int
    effect: float
    low: float
    high: float
    p_value: float
    with_label: bool = False


def detect(
    values: ArrayLike,
    *,
    groups: Sequence[Hashable] | None = None,
    level: float = DEFAULT_LEVEL,
    floor: float = 0.0,
) -> list[ChangePoint]:
    """The changes in values [n], positive, in the order of time; in the order of their index.

    groups: a label of each point, such as its node: a difference of level that goes with a label is taken out where
    labels take turns. level: probability of any step or drift at all in a series where nothing changes. floor: the
    smallest relative change worth reporting; a change below half the noise of one point is never reported.
    Raises `ValueError` for other values, or another number of labels than of values.
    """
    logs = _logarithms(values)
    if groups is not None and len(groups) != len(logs):
        raise ValueError(f"{len(groups)} labels were given for {len(logs)} values")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, wanted a probability between 0 and 1")
    if not 0 <= floor < math.inf:
        raise ValueError(f"floor is {floor}, wanted a relative change of 0 or more")
    if len(logs) < 2 * scanning.LEAST_RECENT or np.ptp(logs) == 0:
        return []
    if groups is not None:
        logs = logs - label_offsets(logs, groups)
    innovations, noise = whitened(logs)
    p_values = _search(innovations, noise, level)
    splits = shape.placed(logs, sorted(p_values), times=_PLACINGS)
    steps = [shape.Step(split, p_value) for split, (_, p_value) in zip(splits, sorted(p_values.items()), strict=True)]
    steps, blips = shape.persistent(logs, steps)
    least = max(math.log1p(floor), _LEAST_EFFECT_SIGMA * spread(shape.residuals(logs, [step.split for step in steps])))
    steps = _large_enough(logs, steps, least)
    found = [_described(stretch, logs, steps, noise, groups) for stretch in shape.stretches(logs, steps, noise.share)]
    found += [_transient(blip) for blip in shape.transients(logs, [step.split for step in steps], blips, least)]
    return sorted(found, key=lambda change: (change.index, change.kind))


def segments(
    values: ArrayLike,
    *,
    groups: Sequence[Hashable] | None = None,
    level: float = DEFAULT_LEVEL,
    floor: float = 0.0,
) -> list[tuple[int, int]]:
    """(start, end) of the stretches of points between the steps and drifts that `detect` finds, end excluded.

    A drift parts two stretches where half of it is done. Transients part nothing.
    """
    count = len(np.atleast_1d(np.asarray(values)))
    return between(count, detect(values, groups=groups, level=level, floor=floor))


def between(count: int, changes: Iterable[ChangePoint]) -> list[tuple[int, int]]:
    """`segments` of `count` points whose changes are known."""
    cuts = [0, *(change.index for change in changes if change.kind != "transient"), count]
    return [(start, end) for start, end in pairwise(cuts) if end > start]


def _logarithms(values: ArrayLike) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"values have the shape {list(array.shape)}, wanted one number a point")
    if not (np.isfinite(array).all() and (array > 0).all()):
        raise ValueError("a value is not a positive number")
    logs: Array = np.log(array)
    return logs


def _search(innovations: Array, noise: Noise, level: float) -> dict[int, float]:
    """p-value by split: the best split of all, then the best of the intervals that it does not lie in, and so on;
    then what the newest points say of themselves.
    """
    count = len(innovations)
    found: dict[int, float] = {}
    candidates = scanning.scan(innovations)
    scores = candidates.score / noise.excess
    alive = np.ones(len(scores), dtype=bool)
    while alive.any():
        best = int(np.where(alive, scores, -np.inf).argmax())
        p_value = scanning.search_p_value(float(scores[best]), count) / _SHARE_OF_THE_SEARCH
        if p_value > level:
            break
        split = int(candidates.split[best])
        found.setdefault(split, min(p_value, 1.0))
        alive &= (candidates.start >= split) | (candidates.end <= split)
    newest = innovations[max([count - scanning.RECENT_WINDOW, 0, *found]) :]
    if len(newest) >= 2 * scanning.LEAST_RECENT:
        of_newest = scanning.recent_scores(newest)
        p_value = scanning.recent_p_value(float(of_newest.max()), len(newest)) / _SHARE_OF_THE_NEWEST
        if p_value <= level:
            found[count - scanning.LEAST_RECENT - int(of_newest.argmax())] = p_value
    return found


def _large_enough(logs: Array, steps: list[shape.Step], least: float) -> list[shape.Step]:
    """Without the steps smaller than `least`, the smallest taken out first, since that changes its neighbours."""
    while steps:
        sizes = [abs(shape.shift(logs, steps, place)) for place in range(len(steps))]
        smallest = int(np.argmin(sizes))
        if sizes[smallest] >= least:
            break
        steps = steps[:smallest] + steps[smallest + 1 :]
    return steps


def _described(
    stretch: shape.Stretch, logs: Array, steps: list[shape.Step], noise: Noise, groups: Sequence[Hashable] | None
) -> ChangePoint:
    """A step or a drift with its intervals."""
    p_value = min(steps[place].p_value for place in stretch.steps)
    if stretch.drifts:
        middle, error = stretch.shift, stretch.error
        index, earliest, latest = (stretch.start + stretch.end) // 2, stretch.start, stretch.end - 1
    else:
        place = stretch.steps[0]
        index = steps[place].split
        earliest, latest = shape.interval(logs, steps, place, noise.share)
        middle, error = shape.shift_and_error(logs, steps, place, noise.share)
    return ChangePoint(
        kind="drift" if stretch.drifts else "step",
        index=index,
        earliest=earliest,
        latest=latest,
        effect=math.expm1(middle),
        low=math.expm1(middle - error),
        high=math.expm1(middle + error),
        p_value=p_value,
        with_label=groups is not None and not stretch.drifts and shape.label_leaves(groups, earliest, latest),
    )


def _transient(blip: shape.Blip) -> ChangePoint:
    return ChangePoint(
        kind="transient",
        index=blip.start,
        earliest=blip.start,
        latest=blip.end - 1,
        effect=math.expm1(blip.shift),
        low=math.expm1(blip.shift - blip.error),
        high=math.expm1(blip.shift + blip.error),
        p_value=blip.p_value,
    )
