"""How new runs are compared with a baseline's: the method is one value, and another is one class.

Pure. The unit is the run: one number per run (`slowest_p50_us`), never iterations or ranks pooled as if they were
independent. Called by `regress_db.verdicts`; the distributions are in `regress_db.distributions`.

Sources: Hodges & Lehmann 1963 (the shift); Hollander & Wolfe 1999, section 4.3 (its interval, by inverting the rank
test); Hahn & Meeker 1991, section 4.7 (the t interval for the next few values); Rousseeuw & Croux 1993 (the MAD as a
scale); Lehmann 1975, section 2.4 (the rank test's efficiency, for its power).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from regress_db.distributions import t_cdf, t_quantile, u_cdf

Comparison = Literal["regressed", "improved", "unchanged", "inconclusive", "insufficient"]

LEAST_BASELINE_RUNS = 3
LEAST_RANKED_RUNS = 3
_MAD_TO_SIGMA = 1.4826
_RANK_EFFICIENCY = 3 / math.pi
_TIE = 1e-12
"""Logarithms of equal values scaled alike differ by less."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a method says. Changes are relative: 0.1 is ten per cent slower, -0.1 ten per cent faster.

    effect: the estimated change; low, high: its interval; detectable: the smallest slowing that would have been called
    regressed four times in five (None, like the interval, where there are too few runs); p_value: of no change at all,
    two-sided; method: which interval it is; warnings: what a reader should know.
    """

    verdict: Comparison
    effect: float | None
    low: float | None
    high: float | None
    detectable: float | None
    p_value: float | None
    method: str
    warnings: tuple[str, ...] = ()


class Judge(Protocol):
    """A method of comparison."""

    @property
    def name(self) -> str:
        """Short and stable: it stands beside each verdict in the history."""

    def judge(self, new_us: Sequence[float], baseline_us: Sequence[float], floor: float) -> Judgement:
        """Compare the new runs' values with the baseline's, all in µs and positive, at least one new.

        floor: the smallest relative change worth a verdict (0.05: five per cent). `ValueError` for other inputs.
        """


@dataclass(frozen=True, slots=True)
class RobustJudge:
    """Hodges-Lehmann shift of the logarithms, with an interval from ranks where there are runs enough for the
    confidence, else from Student's t.

    regressed: the interval lies above zero and the estimate is at least the floor; improved: the mirror image;
    unchanged: the whole interval lies between the floors; inconclusive: anything else. The floor is taken on the log
    scale, so that a change and its inverse are treated alike.

    The t interval's scale is the larger of the standard deviation and 1.4826 MAD, about each group's own centre: with
    so few runs a MAD alone is often far too small. It is the baseline's alone where there is one new run.
    """

    confidence: float = 0.99
    power: float = 0.8
    name: str = "robust-1"

    def judge(self, new_us: Sequence[float], baseline_us: Sequence[float], floor: float) -> Judgement:
        """See `Judge.judge`."""
        new, base = _logarithms(new_us, "new"), _logarithms(baseline_us, "baseline")
        if not new:
            raise ValueError("there is no new run to judge")
        if not 0 < floor < math.inf:
            raise ValueError(f"floor is {floor}, wanted a number above 0")
        if len(base) < LEAST_BASELINE_RUNS:
            effect = math.expm1(_shift(new, base)[0]) if base else None
            need = f"the baseline has {len(base)} runs of this series, at least {LEAST_BASELINE_RUNS} are needed"
            return Judgement("insufficient", effect, None, None, None, None, "none", (need,))
        shift, differences = _shift(new, base)
        scale, df = _scale(new, base)
        error = scale * math.sqrt(1 / len(new) + 1 / len(base))
        kept_out = _ranks_outside(len(new), len(base), 1 - self.confidence)
        warnings: tuple[str, ...] = ()
        if kept_out is None:
            method = "t"
            half = t_quantile((1 + self.confidence) / 2, df) * error
            low, high = shift - half, shift + half
            p_value = _t_p_value(shift, error, df)
            warnings = (f"{len(new)} new and {len(base)} baseline runs are too few for ranks: a t interval is used",)
        else:
            method = "ranks"
            low, high = differences[kept_out], differences[-1 - kept_out]
            half = (high - low) / 2
            p_value = _rank_p_value(differences, len(new), len(base))
            error /= math.sqrt(_RANK_EFFICIENCY)
        if scale == 0:
            warnings += ("all runs of a group have one value: the interval says nothing of the noise",)
        least = math.log1p(floor)
        detectable = max(half, least) + t_quantile(self.power, df) * error
        return Judgement(
            _classify(shift, low, high, least),
            math.expm1(shift),
            math.expm1(low),
            math.expm1(high),
            math.expm1(detectable),
            p_value,
            method,
            warnings,
        )


DEFAULT_JUDGE: Judge = RobustJudge()


def _logarithms(values_us: Sequence[float], what: str) -> list[float]:
    for value in values_us:
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"a {what} run's value is {value}, wanted a positive number of µs")
    return sorted(math.log(value) for value in values_us)


def _shift(new: Sequence[float], base: Sequence[float]) -> tuple[float, list[float]]:
    """The Hodges-Lehmann shift, and all pairwise differences in order."""
    differences = sorted(of_new - of_base for of_new in new for of_base in base)
    return statistics.median(differences), differences


def _scale(new: Sequence[float], base: Sequence[float]) -> tuple[float, int]:
    """Spread of one run on the log scale, and its degrees of freedom."""
    groups = [base] if len(new) == 1 else [base, new]
    df = sum(len(group) - 1 for group in groups)
    squares = sum((value - statistics.fmean(group)) ** 2 for group in groups for value in group)
    distances = [abs(value - statistics.median(group)) for group in groups for value in group]
    return max(math.sqrt(squares / df), _MAD_TO_SIGMA * statistics.median(distances)), df


def _ranks_outside(n: int, m: int, alpha: float) -> int | None:
    """How many of the ordered differences lie outside the interval at each end; None where all would not be enough.

    The interval from the (k+1)-th smallest to the (k+1)-th largest difference misses the shift with probability
    2 P(U <= k).
    """
    if n < LEAST_RANKED_RUNS or 2 * u_cdf(0, n, m) > alpha:
        return None
    inside, outside = 0, (n * m - 1) // 2
    while inside < outside:
        middle = (inside + outside + 1) // 2
        if 2 * u_cdf(middle, n, m) <= alpha:
            inside = middle
        else:
            outside = middle - 1
    return inside


def _rank_p_value(differences: Sequence[float], n: int, m: int) -> float:
    """Two-sided; ties are counted against a difference."""
    above = sum(difference > _TIE for difference in differences)
    below = sum(difference < -_TIE for difference in differences)
    fewer = n * m - max(above, below)
    return min(1.0, 2 * u_cdf(fewer, n, m))


def _t_p_value(shift: float, error: float, df: int) -> float:
    if error == 0:
        return 1.0 if shift == 0 else 0.0
    return 2 * t_cdf(-abs(shift) / error, df)


def _classify(shift: float, low: float, high: float, least: float) -> Comparison:
    """All on the log scale; `least` is the floor."""
    if low > 0 and shift >= least:
        return "regressed"
    if high < 0 and shift <= -least:
        return "improved"
    if -least < low and high < least:
        return "unchanged"
    return "inconclusive"
