"""The two distributions that verdicts need, without a numerical library: Student's t and Mann and Whitney's U.

Pure, standard library only, so that judging a night loads nothing. Used by `regress_db.judge`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

_EXACT_UP_TO = 10_000
"""Pairs of runs up to which U's distribution is counted out; above, the normal approximation is good to 4 digits."""


def t_cdf(t: float, df: float) -> float:
    """P(T <= t) for Student's t with `df` degrees of freedom, by the incomplete beta function (DLMF 8.17)."""
    tail = 0.5 * _incomplete_beta(df / (df + t * t), df / 2, 0.5)
    return tail if t < 0 else 1 - tail


@lru_cache(maxsize=1024)
def t_quantile(p: float, df: float) -> float:
    """The t with P(T <= t) = p, for 0 < p < 1, by bisection."""
    if p < 0.5:
        return -t_quantile(1 - p, df)
    low, high = 0.0, 1.0
    while t_cdf(high, df) < p:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        if t_cdf(middle, df) < p:
            low = middle
        else:
            high = middle
    return high


@lru_cache(maxsize=256)
def u_cdf(u: int, n: int, m: int) -> float:
    """P(U <= u) for the Mann-Whitney statistic of n and m values of one continuous distribution."""
    if u < 0:
        return 0.0
    if u >= n * m:
        return 1.0
    if n * m <= _EXACT_UP_TO:
        counts = _u_counts(min(n, m), max(n, m))
        return sum(counts[: u + 1]) / math.comb(n + m, n)
    deviation = math.sqrt(n * m * (n + m + 1) / 12)
    return NormalDist().cdf((u + 0.5 - n * m / 2) / deviation)


@lru_cache(maxsize=64)
def _u_counts(n: int, m: int) -> tuple[int, ...]:
    """How many orderings give each U from 0 to n*m: the coefficients of the Gaussian binomial (Mann & Whitney 1947)."""
    size = n * m + 1
    counts = [1] + [0] * (size - 1)
    for i in range(1, n + 1):
        for u in range(size - 1, m + i - 1, -1):
            counts[u] -= counts[u - m - i]
        for u in range(i, size):
            counts[u] += counts[u - i]
    return tuple(counts)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by Lentz's continued fraction (DLMF 8.17.22)."""
    if x <= 0 or x >= 1:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    tiny = 1e-300
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1) or tiny)
    fraction = d
    for i in range(1, 300):
        for numerator in (
            i * (b - i) * x / ((a + 2 * i - 1) * (a + 2 * i)),
            -(a + i) * (a + b + i) * x / ((a + 2 * i) * (a + 2 * i + 1)),
        ):
            d = 1 / (1 + numerator * d or tiny)
            c = 1 + numerator / c or tiny
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * fraction / a
