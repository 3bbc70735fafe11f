"""Series with known truth for `benchmarks/detection.py`: noise in which nothing changes, and changes put into it.

The first seven kinds of noise are the ordinary troubles of benchmark histories; the rest were made to break the method.
Every value is a latency around 100 µs; noise is about 1 % unless its name says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Chance = np.random.Generator
Series = np.ndarray

TYPICAL_US = 100.0


def correlated(chance: Chance, points: int, shares: tuple[float, ...], heavy: bool = False) -> Series:
    """An autoregression of unit variance about 0; heavy: its innovations are Student's t with 3 degrees."""
    lead = 200
    new = chance.standard_t(3, points + lead) / np.sqrt(3) if heavy else chance.standard_normal(points + lead)
    values = np.zeros(points + lead)
    for place in range(len(shares), points + lead):
        values[place] = new[place] + sum(share * values[place - 1 - lag] for lag, share in enumerate(shares))
    return values[lead:] / _deviation(shares)


def _deviation(shares: tuple[float, ...]) -> float:
    """Standard deviation of an autoregression of order one or two with unit innovations."""
    if len(shares) == 1:
        return float(1 / np.sqrt(1 - shares[0] ** 2))
    one, two = shares
    return float(np.sqrt((1 - two) / ((1 + two) * ((1 - two) ** 2 - one**2))))


def _nodes(chance: Chance, points: int, spell: int) -> np.ndarray:
    """Which of four nodes each run was on: a new draw every `spell` runs."""
    return np.repeat(chance.integers(0, 4, -(-points // spell)), spell)[:points]


def _garch(chance: Chance, points: int) -> Series:
    values, variance = np.zeros(points + 100), 1.0
    new = chance.standard_normal(points + 100)
    for place in range(1, points + 100):
        variance = 0.05 + 0.15 * values[place - 1] ** 2 + 0.8 * variance
        values[place] = np.sqrt(variance) * new[place]
    return values[100:]


def _regimes(chance: Chance, points: int) -> Series:
    return (np.cumsum(chance.random(points) < 0.05) % 2).astype(float)


def _logs(shape: Callable[[Chance, int], Series]) -> Callable[[Chance, int], Series]:
    return lambda chance, points: TYPICAL_US * np.exp(shape(chance, points))


NOISE: dict[str, Callable[[Chance, int], Series]] = {
    "Gaussian 1 %": _logs(lambda c, n: 0.01 * c.standard_normal(n)),
    "Student t3": _logs(lambda c, n: 0.01 * c.standard_t(3, n)),
    "bimodal +4 %": _logs(lambda c, n: 0.01 * c.standard_normal(n) + 0.04 * (c.random(n) < 0.5)),
    "AR(1) 0.5": _logs(lambda c, n: 0.01 * correlated(c, n, (0.5,))),
    "3 % spikes x1.3": _logs(lambda c, n: 0.01 * c.standard_normal(n) + np.log(1.3) * (c.random(n) < 0.03)),
    "drift 0.8 % in all": _logs(lambda c, n: 0.01 * c.standard_normal(n) + np.linspace(0, 0.008, n)),
    "four nodes, 1 % apart": _logs(lambda c, n: 0.01 * c.standard_normal(n) + 0.01 * _nodes(c, n, 1)),
}
"""What the aims are for."""

HARDER: dict[str, Callable[[Chance, int], Series]] = {
    "Student t2": _logs(lambda c, n: 0.01 * c.standard_t(2, n)),
    "slow mode, 15 % of runs": _logs(lambda c, n: 0.005 * c.standard_normal(n) + 0.1 * (c.random(n) < 0.15)),
    "trimodal": _logs(lambda c, n: 0.003 * c.standard_normal(n) + 0.03 * c.integers(0, 3, n)),
    "AR(1) 0.7": _logs(lambda c, n: 0.01 * correlated(c, n, (0.7,))),
    "AR(1) 0.9": _logs(lambda c, n: 0.01 * correlated(c, n, (0.9,))),
    "AR(2) 0.4, 0.3": _logs(lambda c, n: 0.01 * correlated(c, n, (0.4, 0.3))),
    "AR(1) 0.5 of t3": _logs(lambda c, n: 0.01 * correlated(c, n, (0.5,), heavy=True)),
    "slow wave under noise": _logs(lambda c, n: 0.01 * c.standard_normal(n) + 0.0065 * correlated(c, n, (0.9,))),
    "random walk, 0.05 % steps": _logs(
        lambda c, n: 0.01 * c.standard_normal(n) + np.cumsum(0.0005 * c.standard_normal(n))
    ),
    "regimes +1.5 %, 20 nights": _logs(lambda c, n: 0.01 * c.standard_normal(n) + 0.015 * _regimes(c, n)),
    "GARCH": _logs(lambda c, n: 0.01 * _garch(c, n)),
    "whole µs": lambda c, n: np.round(TYPICAL_US * np.exp(0.01 * c.standard_normal(n))),
    "lognormal tail": lambda c, n: TYPICAL_US * (1 + 0.02 * np.exp(c.standard_normal(n))),
    "weekly wave": _logs(
        lambda c, n: 0.01 * c.standard_normal(n) + 0.007 * np.sin(2 * np.pi * (np.arange(n) / 7 + c.random()))
    ),
}
"""What was made to break the method; two of them (regimes, walk) do change their level, only not by the code."""


def stepped(values: Series, at: int, change: float) -> Series:
    """A copy whose points from `at` on are higher by the relative change."""
    moved = values.copy()
    moved[at:] *= 1 + change
    return moved
