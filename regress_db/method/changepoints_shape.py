"""What a change looks like: where exactly, how large, a step or a slope, or a point or two away and back.

Called by `regress_db.method.changepoints` with the splits that its search found. Pure; log values throughout.

Sources: Hodges & Lehmann 1963 (the shift); Hollander & Wolfe 1999, section 4.2 (its standard error); Hinkley 1970,
Biometrika 57 (the place of a change as the maximum of a random walk of likelihood ratios; the interval here is what a
flat prior makes of that walk); Lange, Little & Taylor 1989 (Student's t with 4 degrees of freedom as a likelihood that
outliers cannot pull); Schwarz 1978 (the price of a parameter).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from regress_db.method.changepoints_noise import TAIL_DF, TAIL_MAD_SIGMA, centre, line_through, median, spread

Array = NDArray[np.floating[Any]]

_CONFIDENCE = 0.95
_TRANSIENT_LEVEL = 0.05
_RARE = 10
_NEAREST = 100
"""Points on each side that the size of a step is taken from."""


@dataclass(frozen=True, slots=True)
class Step:
    """split: first point of the new level; p_value: from the search."""

    split: int
    p_value: float


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps (places in their list) that are one change, points [start, end) it is seen in; of a drift its shift over
    the stretch and half of its 95 % interval.
    """

    steps: tuple[int, ...]
    start: int
    end: int
    drifts: bool = False
    shift: float = 0.0
    error: float = 0.0


@dataclass(frozen=True, slots=True)
class Blip:
    """Points [start, end) away from their level: by how much, and half of its 95 % interval."""

    start: int
    end: int
    shift: float
    error: float
    p_value: float


def residuals(logs: Array, splits: Sequence[int]) -> Array:
    """From the centre of each segment [n]."""
    cuts = [0, *splits, len(logs)]
    return np.concatenate([logs[start:end] - centre(logs[start:end]) for start, end in pairwise(cuts) if end > start])


def placed(logs: Array, splits: Sequence[int], *, times: int) -> list[int]:
    """The splits, each moved to where its two neighbouring levels meet most likely; none passes another, and at least
    two points stay on both sides.
    """
    cuts = [0, *splits, len(logs)]
    for _ in range(times):
        sigma = spread(residuals(logs, cuts[1:-1]))
        for place in range(1, len(cuts) - 1):
            start, end = cuts[place - 1], cuts[place + 1]
            if end - start < 4:
                continue
            walk = _walk(logs[start:end], cuts[place] - start, sigma)
            cuts[place] = start + 2 + int(walk[2:-2].argmax())
    return cuts[1:-1]


def interval(logs: Array, steps: Sequence[Step], place: int, share: float) -> tuple[int, int]:
    """First and last index of the shortest interval around the step that holds it with 95 %."""
    start, end = _around(steps, place, len(logs))
    sigma = spread(residuals(logs, [step.split for step in steps]))
    split = steps[place].split
    walk = _walk(logs[start:end], split - start, sigma)[1:-1] * _independent(share)
    weights = np.exp(walk - walk.max())
    weights /= weights.sum()
    low = high = split - start - 1
    held = weights[low]
    while held < _CONFIDENCE and high - low + 1 < len(weights):
        before = weights[low - 1] if low > 0 else -1.0
        after = weights[high + 1] if high + 1 < len(weights) else -1.0
        if before >= after:
            low -= 1
        else:
            high += 1
        held += max(before, after)
    return start + 1 + low, start + 1 + high


def shift(logs: Array, steps: Sequence[Step], place: int) -> float:
    """Hodges-Lehmann shift from the points before the step to those after."""
    start, end = _around(steps, place, len(logs))
    split = steps[place].split
    before, after = logs[max(start, split - _NEAREST) : split], logs[split : min(end, split + _NEAREST)]
    return median(np.subtract.outer(after, before).ravel())


def shift_and_error(logs: Array, steps: Sequence[Step], place: int, share: float) -> tuple[float, float]:
    """The shift and half of its 95 % interval."""
    start, end = _around(steps, place, len(logs))
    split = steps[place].split
    before, after = min(split - start, _NEAREST), min(end - split, _NEAREST)
    sigma = spread(residuals(logs, [step.split for step in steps]))
    error = sigma * math.sqrt(math.pi / 3 * (1 / before + 1 / after) / _independent(share))
    return shift(logs, steps, place), error * float(stdtrit(max(before + after - 2, 1), (1 + _CONFIDENCE) / 2))


def persistent(logs: Array, steps: Sequence[Step]) -> tuple[list[Step], list[tuple[int, int, float]]]:
    """The steps that stay, and (start, end, p) of pairs that go away and come back within two points."""
    stay: list[Step] = []
    blips: list[tuple[int, int, float]] = []
    waiting = list(steps)
    while waiting:
        step = waiting.pop(0)
        if waiting and waiting[0].split - step.split <= 2:
            following = waiting[0]
            before = logs[stay[-1].split if stay else 0 : step.split]
            after = logs[following.split : waiting[1].split if len(waiting) > 1 else len(logs)]
            away = median(logs[step.split : following.split]) - median(before)
            back = median(after) - median(before)
            if abs(back) < abs(away) / 2:
                blips.append((step.split, following.split, min(step.p_value, following.p_value)))
                waiting.pop(0)
                continue
        stay.append(step)
    return stay, blips


def stretches(logs: Array, steps: Sequence[Step], share: float) -> list[Stretch]:
    """Each step, or each row of steps in one direction where a line explains its points better than the steps do."""
    found: list[Stretch] = []
    place = 0
    while place < len(steps):
        row = [place]
        rises = shift(logs, steps, place) > 0
        while row[-1] + 1 < len(steps) and (shift(logs, steps, row[-1] + 1) > 0) == rises:
            row.append(row[-1] + 1)
        drift = _drift(logs, steps, row, share)
        found += [drift] if drift else [Stretch((one,), *_around(steps, one, len(logs))) for one in row]
        place = row[-1] + 1
    return found


def transients(logs: Array, splits: Sequence[int], blips: Sequence[tuple[int, int, float]], least: float) -> list[Blip]:
    """One or two points so far from their level that even Student's t with 4 degrees of freedom would not put them
    there, with points at the level on both sides; `blips` are known already. Where more than one point in ten is so far
    away there are two modes, and none of it is a transient.
    """
    left = residuals(logs, splits)
    sigma = spread(left)
    if sigma == 0:
        return []
    half = sigma * float(stdtrit(TAIL_DF, (1 + _CONFIDENCE) / 2)) / TAIL_MAD_SIGMA
    found = [
        Blip(start, end, median(left[start:end]), half / math.sqrt(end - start), p_value)
        for start, end, p_value in blips
    ]
    taken = {place for start, end, _ in blips for place in range(start, end)}
    taken |= {place for split in splits for place in (split - 1, split)} | {0, len(logs) - 1}
    tails = stdtr(TAIL_DF, -np.abs(left) / sigma * TAIL_MAD_SIGMA)
    for place in map(int, np.flatnonzero(tails <= math.sqrt(_TRANSIENT_LEVEL / (2 * len(logs))))):
        if place in taken:
            continue
        following = place + 1
        together = following not in taken and left[place] * left[following] > 0
        p_value = 2 * len(logs) * float(max(tails[place], tails[following]) ** 2 if together else tails[place])
        if together and p_value > _TRANSIENT_LEVEL:
            together, p_value = False, 2 * len(logs) * float(tails[place])
        end = place + 2 if together else place + 1
        moved = median(left[place:end])
        if p_value <= _TRANSIENT_LEVEL and abs(moved) >= least:
            found.append(Blip(place, end, moved, half / math.sqrt(end - place), p_value))
            taken |= set(range(place, end))
    return found if len(found) <= max(1, len(logs) // _RARE) else found[: len(blips)]


def label_leaves(labels: Sequence[Hashable], earliest: int, latest: int) -> bool:
    """Whether no label from before `earliest` is there after `latest`."""
    return set(labels[:earliest]).isdisjoint(labels[latest:])


def _around(steps: Sequence[Step], place: int, count: int) -> tuple[int, int]:
    """The points [start, end) between the neighbouring steps."""
    start = steps[place - 1].split if place else 0
    return start, steps[place + 1].split if place + 1 < len(steps) else count


def _walk(logs: Array, split: int, sigma: float) -> Array:
    """Log-likelihood [n + 1] of a split before each point, up to a constant, the levels being those around `split`."""
    if sigma == 0:
        sigma = 1e-9 + 1e-3 * abs(centre(logs[split:]) - centre(logs[:split]))
    scale = sigma / TAIL_MAD_SIGMA
    before, after = ((logs - centre(part)) / scale for part in (logs[:split], logs[split:]))
    gains = (TAIL_DF + 1) / 2 * (np.log1p(after * after / TAIL_DF) - np.log1p(before * before / TAIL_DF))
    return np.concatenate([[0.0], gains.cumsum()])


def _independent(share: float) -> float:
    """How many independent points one correlated point is worth, in long sums."""
    return (1 - share) / (1 + share)


def _drift(logs: Array, steps: Sequence[Step], row: Sequence[int], share: float) -> Stretch | None:
    """The row of steps as one line over its whole stretch, where that costs less than the steps."""
    start, end = _around(steps, row[0], len(logs))[0], _around(steps, row[-1], len(logs))[1]
    count = end - start
    if count < 10:
        return None
    part = logs[start:end]
    slope, left_of_line = line_through(part)
    left_of_steps = residuals(part, [steps[place].split - start for place in row])
    scale = spread(left_of_steps) / TAIL_MAD_SIGMA
    if scale == 0:
        return None
    of_line, of_steps = (np.log1p((left / scale) ** 2 / TAIL_DF).sum() for left in (left_of_line, left_of_steps))
    gain = (TAIL_DF + 1) / 2 * (of_steps - of_line) * _independent(share)
    if gain <= -(2 * len(row) - 1) * math.log(count) / 2:
        return None
    sigma = spread(left_of_line)
    error = sigma * math.sqrt(12 / count / _independent(share)) * 1.96
    return Stretch(tuple(row), start, end, True, slope * (count - 1), error)
