"""New runs of a series against its baseline: the estimate, how sure it is, what could have been seen, and the verdict.

The unit is the run: one number per run (`slowest_p50_us`), compared on the log scale; iterations and ranks are never
pooled as if they were independent. A night is judged in two steps: `compare` each series (and re-run those that
`is_candidate` names, then compare again with all their new runs), then `decide` over all of them together. Pure. Called
by `regress_db.verdicts` and `regress_db.calibration`. Next to read: `spread` (the variance), `tails` (how far out runs
fall), `power` (what could have been seen); `docs/statistics.md` says why, and how well it holds.

Sources: Hodges & Lehmann 1963 (the shift); Mann & Whitney 1947 and Hollander & Wolfe 1999, section 4.3 (the exact test
and its interval); Smyth 2004 (the moderated t); Stouffer et al. 1949 (joining deviates of several runs); Benjamini &
Hochberg 1995 (a night's many series).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from regress_db.method.distributions import normal_cdf, normal_quantile, t_quantile, t_upper, u_cdf, z_of_t
from regress_db.method.multiplicity import q_values
from regress_db.method.power import Stage, detectable
from regress_db.method.spread import LEAST_SD, Runs, Spread, SpreadPrior, platform_prior, spread_of
from regress_db.method.tails import HEAVY_DF, Side, Tails

__all__ = [
    "CONFIDENCE",
    "DEFAULT_LEVEL",
    "LEAST_SPREAD_DF",
    "METHOD",
    "Comparison",
    "Decision",
    "Runs",
    "SpreadPrior",
    "Verdict",
    "compare",
    "decide",
    "is_candidate",
    "platform_prior",
]

METHOD = "moderated-2"
"""Name of the method beside each verdict; another method, or other constants, is another name."""

DEFAULT_LEVEL = 1 / 30
"""False discovery rate of a night: where nothing changed, one night in thirty calls anything regressed or improved."""

CONFIDENCE = 0.90
"""Of the interval that is shown. It must lie between the floors for `unchanged`: two one-sided tests at 5 % (Schuirmann
1987)."""

NOISE_ALPHA = 0.01
"""Two-sided level of one series alone, however few are judged: its critical value is the noise floor."""

CANDIDATE_ALPHA = 0.1
"""Two-sided level at which a slower series is worth re-running."""

LEAST_SPREAD_DF = 2
"""Degrees of freedom the series' own runs must give (three runs of a baseline do)."""

_RANKS_WELL_BELOW = 5
_HODGES_LEHMANN_COST = 1.07
"""Variance of the shift over that of the difference of means on normal runs, 1 to 8 against 3 to 30 (1.01 to 1.12)."""
_TIE = 1e-12
"""Logarithms of equal values scaled alike differ by less."""

Verdict = Literal["regressed", "improved", "unchanged", "inconclusive", "insufficient"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is known of one series tonight. Changes are relative: 0.1 is ten per cent slower, -0.1 ten per cent faster.

    effect: the estimated change, the shared part taken out; low, high: its 90 % interval; p_value: of no change,
    two-sided; error: standard deviation of the estimate, log scale; df: its degrees of freedom; floor: the smallest
    change that was asked for; noise_floor: the smallest estimate that the noise supports; detectable: the smallest
    slowing that the whole rule calls regressed four times in five; runs_needed: how many new runs more, beyond these
    and the planned confirmations, until noise no longer hides a change of the size of the floor four times in five (0:
    none; None: no number would, or it is not known); method: `ranks`, `t` or `none`; warnings: what a reader should
    know; candidate: see `is_candidate`. Everything that needs a spread is None where there is none.
    """

    effect: float | None
    low: float | None
    high: float | None
    p_value: float | None
    error: float | None
    df: float | None
    floor: float
    noise_floor: float | None
    detectable: float | None
    runs_needed: int | None
    method: str
    warnings: tuple[str, ...]
    new_runs: int
    baseline_runs: int
    candidate: bool

    @property
    def effective_floor(self) -> float:
        """The larger of what was asked for and what the noise supports, relative."""
        return max(self.floor, self.noise_floor or 0.0)


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict on one series, with its p-value adjusted for all that were judged with it (None: no p-value)."""

    verdict: Verdict
    q_value: float | None


def is_candidate(comparison: Comparison) -> bool:
    """Whether a slower series is worth re-running before it may be called regressed: half the floor and more, and
    slower than the baseline at `CANDIDATE_ALPHA` by the plain moderated t. Faster ones are never re-run.
    """
    return comparison.candidate


def decide(comparisons: Sequence[Comparison], level: float = DEFAULT_LEVEL) -> list[Decision]:
    """Verdicts over one night, in the order given; `level` is the false discovery rate.

    regressed: rejected by Benjamini and Hochberg over the night, the estimate at least the effective floor, the
    interval above zero, and p at most `NOISE_ALPHA`; improved: the mirror image; unchanged: the interval lies between
    the asked floors (taken on the log scale); insufficient: too few runs; inconclusive: all else.

    Give the comparison of *all* new runs for a series that was re-run. The error rate holds whatever made it a
    candidate: the p-value of all runs is valid for a series that always has them, and looking only at some of those can
    only take rejections away. A series that was no candidate cannot be rejected at a level up to `CANDIDATE_ALPHA`
    and above its floor, so its own p-value stands for it without harm.
    """
    places = [place for place, one in enumerate(comparisons) if one.p_value is not None]
    adjusted: list[float | None] = [None] * len(comparisons)
    for place, q in zip(places, q_values([comparisons[place].p_value or 0.0 for place in places]), strict=True):
        adjusted[place] = q
    return [Decision(_verdict(one, q, level), q) for one, q in zip(comparisons, adjusted, strict=True)]


def _verdict(one: Comparison, q_value: float | None, level: float) -> Verdict:
    if q_value is None or one.p_value is None or one.effect is None or one.low is None or one.high is None:
        return "insufficient"
    low, high, least = math.log1p(one.low), math.log1p(one.high), math.log1p(one.floor)
    if (
        q_value <= level
        and one.p_value <= NOISE_ALPHA
        and abs(math.log1p(one.effect)) >= math.log1p(one.effective_floor)
    ):
        if low > 0:
            return "regressed"
        if high < 0:
            return "improved"
    return "unchanged" if -least < low and high < least else "inconclusive"


def compare(
    new: Runs,
    base: Runs,
    *,
    floor: float,
    prior: SpreadPrior | None = None,
    earlier: Sequence[Runs] = (),
    confirmations: int = 0,
    level: float = DEFAULT_LEVEL,
    family: int = 1,
    shared: float = 0.0,
) -> Comparison:
    """Compare new runs with the baseline of their series.

    floor: the smallest relative change worth a verdict (0.05: five per cent). prior: what the platform says of spreads.
    earlier: runs of the series at other levels: they lend their spread. confirmations: how many re-runs a candidate
    would get from here. level, family: the night's false discovery rate and how many series are judged with this one
    (for what could be seen: the change is taken to be the only one). shared: log change common to many series tonight,
    taken out of the new runs. `ValueError` for no new run, or numbers out of range.
    """
    _check(new, floor, confirmations, level, family, shared)
    warnings: list[str] = []
    n, m = len(new.values_us), len(base.values_us)
    if shared:
        new = Runs(tuple(value * math.exp(-shared) for value in new.values_us), new.nights)
    differences = _differences(new, base)
    own_df = max(m - 1, 0) + sum(max(len(runs.values_us) - 1, 0) for runs in earlier)
    if m == 0 or own_df < LEAST_SPREAD_DF:
        effect = math.expm1(float(np.median(differences))) if m else None
        return _insufficient(effect, floor, n, m)
    shift = float(np.median(differences))
    spread = spread_of(new, base, earlier, prior)
    if spread.own_df > 0 and spread.variance <= LEAST_SD**2 * 1.0000001:
        warnings.append(f"the runs hardly differ: their spread is taken as {LEAST_SD:.1%}")
    if not spread.night_known:
        warnings.append(_about_nights(spread))
    design = _Design(spread, new.night_weight(), base.night_weight(), m, None if prior is None else prior.tails)
    look = design.with_runs(n)
    strict = min(NOISE_ALPHA, level / family)
    kept_out = _ranks_outside(n, m, 1 - CONFIDENCE) if _by_ranks(new, base, spread, strict) else None
    if kept_out is None:
        method = "t"
        p_value = look.p_value(shift, _deviates(new, base, spread, look))
        low, high = shift - look.half(1 - CONFIDENCE, 1), shift + look.half(1 - CONFIDENCE, -1)
        noise = look.half(NOISE_ALPHA, 1)
    else:
        method = "ranks"
        p_value = _rank_p_value(differences, n, m)
        low, high = float(differences[kept_out]), float(differences[-1 - kept_out])
        edge = _ranks_outside(n, m, NOISE_ALPHA) or 0
        noise = float(shift - differences[edge] if shift >= 0 else differences[-1 - edge] - shift)
    least = math.log1p(floor)
    first = Stage(max(least / 2, t_quantile(1 - CANDIDATE_ALPHA / 2, look.df) * look.error), look.error)
    last = design.with_runs(n + confirmations)
    final = Stage(max(least, last.half(strict, 1)), last.error)
    return Comparison(
        effect=math.expm1(shift),
        low=math.expm1(low),
        high=math.expm1(high),
        p_value=p_value,
        error=look.error,
        df=look.df,
        floor=floor,
        noise_floor=math.expm1(noise),
        detectable=math.expm1(detectable(final, last.df, first if confirmations else None)),
        runs_needed=_runs_needed(design, n + confirmations, least, strict),
        method=method,
        warnings=tuple(warnings),
        new_runs=n,
        baseline_runs=m,
        candidate=shift >= first.least,
    )


def _check(new: Runs, floor: float, confirmations: int, level: float, family: int, shared: float) -> None:
    if not new.values_us:
        raise ValueError("there is no new run to judge")
    if not 0 <= floor < math.inf:
        raise ValueError(f"floor is {floor}, wanted a number of at least 0")
    if confirmations < 0 or family < 1:
        raise ValueError(f"{confirmations} confirmations in a family of {family}: wanted at least 0 and at least 1")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, wanted a number between 0 and 1")
    if not math.isfinite(shared):
        raise ValueError(f"the shared change is {shared}, wanted a finite number")


def _insufficient(effect: float | None, floor: float, n: int, m: int) -> Comparison:
    need = f"the baseline has {m} runs of this series, {LEAST_SPREAD_DF + 1} are needed"
    return Comparison(
        effect, None, None, None, None, None, floor, None, None, None, "none", (need,), n, m, candidate=False
    )


def _about_nights(spread: Spread) -> str:
    if spread.night_share == 0:
        return "the baseline is of one night: it cannot show how much nights differ, and none is allowed for"
    return f"no night has several runs: {spread.night_share:.0%} of the variance is taken to be common to a night"


@dataclass(frozen=True, slots=True)
class _Look:
    """The estimate's error at some number of new runs, and how extreme it must be.

    error: log sd; single: that of one new run alone; df: degrees of freedom of the spread; tail_df: those of the test,
    fewer where no platform says how far out runs fall.
    """

    error: float
    single: float
    df: float
    tail_df: float
    tails: Tails | None

    def half(self, alpha: float, side: Side) -> float:
        """How far from zero on that side the estimate must be at two-sided level `alpha`.

        With the platform's tails, Student's quantile is stretched by as much as runs fall farther out than normal ones
        where new runs that are all alike would have to fall.
        """
        quantile = t_quantile(1 - alpha / 2, self.tail_df)
        if self.tails is not None:
            ratio = self.error / self.single
            z = -normal_quantile(alpha / 2) * ratio
            quantile *= max(1.0, self.tails.quantile(normal_cdf(-z), side) / z)
        return quantile * self.error

    def p_value(self, shift: float, deviates: Sequence[float]) -> float:
        """Two-sided: the larger of the t test's and, with the platform's tails, of the new runs' joined ranks there."""
        p_value = 2 * t_upper(abs(shift) / self.error, self.tail_df)
        if self.tails is not None:
            side: Side = 1 if shift > 0 else -1
            scores = [-normal_quantile(self.tails.upper(side * z, side)) for z in deviates]
            joined = sum(scores) / len(scores) * self.single / self.error
            p_value = max(p_value, 2 * normal_cdf(-joined))
        return min(1.0, p_value)


@dataclass(frozen=True, slots=True)
class _Design:
    """What the estimate's error depends on but for the number of new runs. new_nights, base_nights: night weights."""

    spread: Spread
    new_nights: float
    base_nights: float
    base_runs: int
    tails: Tails | None

    def with_runs(self, count: int) -> _Look:
        """With `count` new runs, on as many nights as the new runs now have."""
        spread, nights, runs = self.spread, self.new_nights + self.base_nights, 1 / self.base_runs
        error = math.sqrt(_HODGES_LEHMANN_COST * spread.variance_of_difference(nights, runs + 1 / count))
        single = math.sqrt(_HODGES_LEHMANN_COST * spread.variance_of_difference(1 + self.base_nights, runs + 1))
        df = spread.df_of_difference(nights, runs + 1 / count)
        # A shift of n runs is far out only if half of them and more are: its tail index is that many times one run's.
        tail_df = 1 / (1 / df + 1 / (HEAVY_DF * ((count + 1) // 2))) if self.tails is None else df
        return _Look(error, single, df, tail_df, self.tails)


def _deviates(new: Runs, base: Runs, spread: Spread, look: _Look) -> list[float]:
    """Normal deviate of each new run from the baseline's median."""
    centre = float(np.median(base.logs()))
    return [z_of_t((value - centre) / look.single, look.df) for value in new.logs()]


def _differences(new: Runs, base: Runs) -> NDArray[np.float64]:
    """All differences of logarithms, new - base, ascending, float64 [new runs * baseline runs]."""
    return np.sort(np.subtract.outer(np.array(new.logs()), np.array(base.logs())), axis=None)


def _runs_needed(design: _Design, planned: int, least: float, alpha: float) -> int | None:
    def seen(count: int) -> bool:
        look = design.with_runs(count)
        return detectable(Stage(look.half(alpha, 1), look.error), look.df) <= least

    if seen(planned):
        return 0
    most = planned
    while not seen(most):
        most *= 2
        if most > 1000:
            return None
    low = most // 2
    while most - low > 1:
        middle = (low + most) // 2
        low, most = (low, middle) if seen(middle) else (middle, most)
    return most - planned


def _by_ranks(new: Runs, base: Runs, spread: Spread, strict: float) -> bool:
    """Whether the exact test is used: fixed by the numbers of runs, their nights and the level, never by the values.

    Its smallest p must lie well below what could be asked of one series, and all runs must be exchangeable: no part of
    the variance is a night's, or each run has a night of its own.
    """
    n, m = len(new.values_us), len(base.values_us)
    apart = len(new.places()) == n and len(base.places()) == m
    if spread.night_share > 0 and not apart:
        return False
    return 2 / math.comb(n + m, n) <= strict / _RANKS_WELL_BELOW


def _ranks_outside(n: int, m: int, alpha: float) -> int | None:
    """How many of the ordered differences lie outside the interval at each end; None where all would not be enough.

    The interval from the (k+1)-th smallest to the (k+1)-th largest difference misses the shift with probability
    2 P(U <= k).
    """
    if 2 * u_cdf(0, n, m) > alpha:
        return None
    inside, outside = 0, (n * m - 1) // 2
    while inside < outside:
        middle = (inside + outside + 1) // 2
        if 2 * u_cdf(middle, n, m) <= alpha:
            inside = middle
        else:
            outside = middle - 1
    return inside


def _rank_p_value(differences: NDArray[np.float64], n: int, m: int) -> float:
    """Two-sided; ties are counted against a difference."""
    above = int((differences > _TIE).sum())
    below = int((differences < -_TIE).sum())
    return min(1.0, 2 * u_cdf(n * m - max(above, below), n, m))
