"""Tail probabilities and quantiles that the verdicts need: a thin face over `scipy.special`, and what is not there.

`scipy.stats` has them all, but takes ten times longer to load. Pure. Called by the other modules of this package.
"""

from __future__ import annotations

import math
from functools import lru_cache

from scipy import special

_EXACT_UP_TO = 10_000
"""Pairs of runs up to which U's distribution is counted out; above, the normal approximation is good to 4 digits."""


def normal_cdf(z: float) -> float:
    """P(Z <= z) for a standard normal Z."""
    return float(special.ndtr(z))


def normal_quantile(p: float) -> float:
    """The z with P(Z <= z) = p; infinite at 0 and 1."""
    return float(special.ndtri(p))


def t_upper(t: float, df: float) -> float:
    """P(T > t) for Student's t; an infinite `df` is the normal distribution."""
    return float(special.ndtr(-t) if math.isinf(df) else special.stdtr(df, -t))


@lru_cache(maxsize=4096)
def t_quantile(p: float, df: float) -> float:
    """The t with P(T <= t) = p, for 0 < p < 1."""
    return float(special.ndtri(p) if math.isinf(df) else special.stdtrit(df, p))


def z_of_t(t: float, df: float) -> float:
    """The normal deviate as far out as `t` is among Student's t. Finite for any finite `t`: at most 37.5 from zero."""
    tail = max(t_upper(abs(t), df), 1e-307)
    return math.copysign(-normal_quantile(min(tail, 0.5)), t)


def f_upper(f: float, df_above: float, df_below: float) -> float:
    """P(F > f) for the ratio of two variances; `df_below` may be infinite."""
    if math.isinf(df_below):
        return float(special.chdtrc(df_above, df_above * f))
    return float(special.fdtrc(df_above, df_below, f))


def trigamma_inverse(y: float) -> float:
    """The x > 0 with trigamma(x) = y, by Newton's method on 1/trigamma (Smyth 2004, appendix). Infinite for y <= 0."""
    if y <= 0:
        return math.inf
    if y > 1e7:
        return 1 / math.sqrt(y)
    if y < 1e-6:
        return 1 / y
    x = 0.5 + 1 / y
    for _ in range(50):
        trigamma = float(special.polygamma(1, x))
        step = trigamma * (1 - trigamma / y) / float(special.polygamma(2, x))
        x += step
        if -step / x < 1e-10:
            break
    return x


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
    return normal_cdf((u + 0.5 - n * m / 2) / deviation)


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


def fisher_exact(a: int, b: int, c: int, d: int) -> float:
    """Two-sided p of the table [[a, b], [c, d]] with its margins fixed: all tables no likelier (Fisher 1935)."""
    row, other, column = a + b, c + d, a + c
    total = math.comb(row + other, column)
    ways = [
        math.comb(row, k) * math.comb(other, column - k) for k in range(max(0, column - other), min(row, column) + 1)
    ]
    seen = math.comb(row, a) * math.comb(other, c)
    return sum(one for one in ways if one <= seen) / total
