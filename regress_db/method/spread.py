"""How much runs of one series differ when nothing has changed: its own spread, and what its platform lends it.

A series has few runs, a platform has many series. `platform_prior` learns from all of them how large and how alike
their spreads are, how much of a spread is common to a night, and how far out runs fall; `spread_of` shrinks one series'
variance towards that. Everything is on the log scale of the run value. Pure. Called by `regress_db.method.comparing`.

Sources: Smyth 2004 (moderated variances; `_fit`); Phipson, Lee, Majewski, Alexander & Smyth 2016 (series
that are noisier than their platform keep their own noise); Tukey & McLaughlin 1963 (winsorised squares); Searle,
Casella & McCulloch 1992, chapter 3 (one-way components of variance); Satterthwaite 1946 (degrees of freedom of a sum
of components).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scipy import special

from regress_db.method.distributions import f_upper, trigamma_inverse, z_of_t
from regress_db.method.tails import Tails

LEAST_SD = 0.001
"""Log standard deviation below which no run value is believed to repeat itself."""

UNKNOWN_NIGHT_SHARE = 0.25
"""Share of a run's variance that its night has, where each night has one run and the platform has no say. With 1 + 2
runs against 10 the error so assumed is within a fifth of the true one for any true share from 0 to 0.65."""

_PRIOR_NIGHTS = 10.0
"""As how many nights a share that is not the series' own counts."""

_CLIP = 3.0
_MAD_TO_SD = 1.4826
_LEAST_TO_CLIP = 6
_LEAST_TO_CLIP_BY_PRIOR = 4
_LEAST_POOLED_RUNS = 100
_LEAST_POOLED_SERIES = 3
_LEAST_POOLED_NIGHT_DF = 6
_NOISIER = 0.01
_LEAST_NIGHT_DF = 3


@dataclass(frozen=True, slots=True)
class Runs:
    """Some runs of one series.

    values_us: positive. nights: the night of each run, "" where it has none (such a run stands alone); empty: all of
    one night. Runs of a night share what that night had. `ValueError` for other values or another number of nights.
    """

    values_us: tuple[float, ...]
    nights: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for value in self.values_us:
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"a run's value is {value}, wanted a positive number of µs")
        if self.nights and len(self.nights) != len(self.values_us):
            raise ValueError(
                f"{len(self.values_us)} runs come with {len(self.nights)} nights, wanted one for each or none"
            )

    def logs(self) -> list[float]:
        """Logarithms of the values, in the order given."""
        return [math.log(value) for value in self.values_us]

    def places(self) -> list[list[int]]:
        """Positions of the runs of each night."""
        if not self.nights:
            return [list(range(len(self.values_us)))] if self.values_us else []
        by_night: dict[str, list[int]] = {}
        alone: list[list[int]] = []
        for place, night in enumerate(self.nights):
            if night:
                by_night.setdefault(night, []).append(place)
            else:
                alone.append([place])
        return [*by_night.values(), *alone]

    def night_weight(self) -> float:
        """Variance of the mean of these runs, per unit of variance between nights: 1 for one night, 1/n for n alike."""
        return sum(len(places) ** 2 for places in self.places()) / len(self.values_us) ** 2


@dataclass(frozen=True, slots=True)
class SpreadPrior:
    """What the series of a platform say of one another's spread.

    variance: of one run, log scale squared; df: as how many degrees of freedom it counts (0: they have nothing in
    common); night_share: share of the variance that runs of a night have in common, None where too few nights had
    several runs, and night_share_sd, how uncertain that is; tails: how far out runs fall, None where there are fewer
    than 100; series: how many there were.
    """

    variance: float
    df: float
    night_share: float | None
    tails: Tails | None
    series: int
    night_share_sd: float = 0.0


@dataclass(frozen=True, slots=True)
class Spread:
    """Spread of one run of a series: its variance (log scale squared) after shrinkage, and the night's part of it.

    share_sd: how uncertain the share is; own_df, prior_df: degrees of freedom of its runs and of the platform;
    night_known: whether `night_share` comes from data, its own or the platform's.
    """

    variance: float
    night_share: float
    share_sd: float
    own_df: float
    prior_df: float
    night_known: bool

    def variance_of_difference(self, night_weight: float, run_weight: float) -> float:
        """Variance of a difference that holds so many units of night variance and of run variance."""
        return self.variance * (self.night_share * night_weight + (1 - self.night_share) * run_weight)

    def df_of_difference(self, night_weight: float, run_weight: float) -> float:
        """Its degrees of freedom: 2 over the relative variance of that estimate, which has two parts: the spread's and,
        by the delta method, the share's, which matters the more the less alike both weights are.
        """
        units = self.night_share * night_weight + (1 - self.night_share) * run_weight
        of_share = ((night_weight - run_weight) * self.share_sd / units) ** 2
        return 1 / (1 / (self.own_df + self.prior_df) + of_share / 2)


@dataclass(frozen=True, slots=True)
class _Squares:
    """Sums of squares of one group of runs within and between its nights, after clipping, and their degrees of freedom.

    size: runs a night, corrected for unequal nights (Searle, Casella & McCulloch 1992, section 3.6).
    """

    within: float
    within_df: float
    between: float
    between_df: float
    size: float


def _together(groups: Sequence[_Squares]) -> _Squares:
    """The squares of groups that each have a level of their own."""
    between_df = sum(one.between_df for one in groups)
    return _Squares(
        sum(one.within for one in groups),
        sum(one.within_df for one in groups),
        sum(one.between for one in groups),
        between_df,
        sum(one.size * one.between_df for one in groups) / between_df if between_df else 1.0,
    )


def _variance(squares: _Squares, share: float) -> tuple[float, float]:
    """Variance of one run, and its degrees of freedom.

    With nights enough, the sum of both components by the method of moments, MSW (1 - 1/size) + MSB / size, which needs
    no share (degrees of freedom: Satterthwaite). With fewer, all squares in units of what the share makes of them.
    """
    within_df, between_df, size = squares.within_df, squares.between_df, squares.size
    if between_df < _LEAST_NIGHT_DF:
        total = squares.within / (1 - share) + squares.between / (1 - share + share * size)
        return max(total / (within_df + between_df), LEAST_SD**2), within_df + between_df
    of_nights = squares.between / between_df / size
    of_runs = squares.within / within_df * (1 - 1 / size) if within_df else 0.0
    variance = of_nights + of_runs
    if variance <= LEAST_SD**2:
        return LEAST_SD**2, within_df + between_df
    return variance, variance**2 / (of_nights**2 / between_df + (of_runs**2 / within_df if within_df else 0.0))


def _limit(logs: Sequence[float], scale: float) -> float | None:
    """How far from their median values count as they are: `_CLIP` robust standard deviations.

    None where there are too few to say, and where more than one in ten lie farther out (one, of fewer than twenty):
    those are no outliers but how the series is, such as its second mode.
    """
    if len(logs) < (_LEAST_TO_CLIP_BY_PRIOR if scale > 0 else _LEAST_TO_CLIP):
        return None
    centre = statistics.median(logs)
    limit = _CLIP * max(_MAD_TO_SD * statistics.median([abs(value - centre) for value in logs]), scale)
    beyond = sum(abs(value - centre) > limit for value in logs)
    return limit if limit > 0 and beyond <= max(1, len(logs) // 10) else None


def _clipped(logs: Sequence[float], limit: float | None) -> list[float]:
    if limit is None:
        return list(logs)
    centre = statistics.median(logs)
    return [min(max(value, centre - limit), centre + limit) for value in logs]


def _squares(runs: Runs, limit: float | None, cost: bool = True) -> _Squares:
    """cost: whether the limit is these runs' own, so that clipping takes its share of normal ones too."""
    logs = _clipped(runs.logs(), limit)
    count = len(logs)
    centre = sum(logs) / count
    nights = runs.places()
    within = between = 0.0
    for places in nights:
        mean = sum(logs[place] for place in places) / len(places)
        within += sum((logs[place] - mean) ** 2 for place in places)
        between += len(places) * (mean - centre) ** 2
    # On normal runs, clipping takes 1/(2n) of the squares and a tenth of the degrees of freedom (benchmarks/gate.py).
    costs = cost and limit is not None
    kept = 0.9 if costs else 1.0
    gain = kept * (1 + 0.5 / count) if costs else 1.0
    between_df = len(nights) - 1
    size = (count - sum(len(places) ** 2 for places in nights) / count) / between_df if between_df else 1.0
    return _Squares(within * gain, (count - len(nights)) * kept, between * gain, between_df * kept, size)


def _share(squares: _Squares) -> float:
    """Night share by the method of moments, kept between 0 and 0.95."""
    of_runs = squares.within / squares.within_df
    of_nights = max(0.0, squares.between / squares.between_df - of_runs) / squares.size
    return min(0.95, of_nights / (of_nights + of_runs)) if of_nights > 0 else 0.0


def spread_of(new: Runs, base: Runs, earlier: Sequence[Runs], prior: SpreadPrior | None) -> Spread:
    """The series' spread from its baseline, its earlier segments (each about its own level) and what new runs of one
    night differ by (clipped as the baseline is), shrunk to the platform's.

    A series that is noisier than its platform has series (beyond 1 %) is shrunk the less the noisier it is. There must
    be at least one degree of freedom in all. ValueError: there is none.
    """
    scale = math.sqrt(prior.variance) if prior is not None and prior.df > 0 else 0.0
    segments = [runs for runs in (base, *earlier) if runs.values_us]
    limits = [_limit(runs.logs(), scale) for runs in segments]
    old = [_squares(runs, limit) for runs, limit in zip(segments, limits, strict=True)]
    share, share_sd, known = _night_share(old, prior)
    beside = replace(_squares(new, limits[0], cost=False), between=0.0, between_df=0.0)
    squares = _together([*old, beside])
    if squares.within_df + squares.between_df <= 0:
        raise ValueError("one run of a series has no spread")
    variance, own_df = _variance(squares, share)
    prior_df = 0.0
    if prior is not None and prior.df > 0:
        noisier = f_upper(variance / prior.variance, own_df, prior.df)
        prior_df = prior.df * min(1.0, noisier / _NOISIER)
        variance = (own_df * variance + prior_df * prior.variance) / (own_df + prior_df)
    return Spread(variance, share, share_sd, own_df, prior_df, known)


def _night_share(old: Sequence[_Squares], prior: SpreadPrior | None) -> tuple[float, float, bool]:
    """The share, its standard deviation, and whether data say so: the series' own, weighed against the platform's."""
    platform = None if prior is None else prior.night_share
    squares = _together(old)
    if squares.between_df == 0 and platform is None:
        return 0.0, 0.0, False
    expected = doubt = UNKNOWN_NIGHT_SHARE
    if prior is not None and platform is not None:
        expected, doubt = platform, prior.night_share_sd
    weight = min(squares.between_df, squares.within_df) if squares.within > 0 else 0.0
    own = _share(squares) if weight > 0 else 0.0
    share = (weight * own + _PRIOR_NIGHTS * expected) / (weight + _PRIOR_NIGHTS)
    nights = weight + (0.0 if platform is None else _PRIOR_NIGHTS)
    of_nights = share * (1 - share) * math.sqrt(2 / nights) if nights else 0.0
    return share, math.hypot(of_nights, doubt * _PRIOR_NIGHTS / (weight + _PRIOR_NIGHTS)), nights > 0


def platform_prior(baselines: Sequence[Runs]) -> SpreadPrior:
    """What these baselines of one platform say together. Those of fewer than three runs say nothing; with fewer than
    three series that do, the prior counts for nothing (df 0).
    """
    usable = [runs for runs in baselines if len(runs.values_us) >= 3]
    squares = [_squares(runs, _limit(runs.logs(), 0.0)) for runs in usable]
    share, share_sd = _pooled_share(squares)
    estimates = [_variance(one, share or 0.0) for one in squares]
    if len(usable) < _LEAST_POOLED_SERIES:
        return SpreadPrior(LEAST_SD**2, 0.0, share, None, len(usable), share_sd)
    variance, df = _fit([variance for variance, _ in estimates], [df for _, df in estimates])
    deviates = [z for runs in usable for z in _left_out(runs, variance, df)]
    tails = Tails.of(deviates) if len(deviates) >= _LEAST_POOLED_RUNS else None
    return SpreadPrior(variance, df, share, tails, len(usable), share_sd)


def _pooled_share(squares: Sequence[_Squares]) -> tuple[float | None, float]:
    """The share of all series together, each in units of its own variance, so that a noisy one does not speak for all;
    and its standard deviation, by the delta method from that of the ratio of both mean squares. None: too few nights.
    """
    scaled = []
    for one in squares:
        variance = (one.within + one.between) / (one.within_df + one.between_df)
        if variance > LEAST_SD**2 and one.within_df > 0 and one.between_df > 0:
            scaled.append(replace(one, within=one.within / variance, between=one.between / variance))
    pooled = _together(scaled)
    if min(pooled.within_df, pooled.between_df) < _LEAST_POOLED_NIGHT_DF:
        return None, 0.0
    ratio = max(1.0, pooled.between / pooled.between_df / (pooled.within / pooled.within_df))
    of_ratio = ratio * math.sqrt(2 / pooled.between_df + 2 / pooled.within_df)
    return _share(pooled), of_ratio * pooled.size / (ratio - 1 + pooled.size) ** 2


def _fit(variances: Sequence[float], dfs: Sequence[float]) -> tuple[float, float]:
    """Scale and degrees of freedom of the scaled inverse chi-square that the true variances come from.

    By the first two moments of log s² (Smyth 2004, section 6.2), after values farther than 2.5 robust standard
    deviations from the median are pulled in, so that a few wild series do not make all of them unlike. Never more
    degrees of freedom than all series have together.
    """
    logs = [
        math.log(variance) - float(special.digamma(df / 2)) + math.log(df / 2)
        for variance, df in zip(variances, dfs, strict=True)
    ]
    centre = statistics.median(logs)
    limit = 2.5 * _MAD_TO_SD * statistics.median([abs(value - centre) for value in logs])
    logs = [min(max(value, centre - limit), centre + limit) for value in logs]
    mean = sum(logs) / len(logs)
    expected = sum(float(special.polygamma(1, df / 2)) for df in dfs) / len(dfs)
    excess = sum((value - mean) ** 2 for value in logs) / (len(logs) - 1) - expected
    prior_df = min(2 * trigamma_inverse(excess), sum(dfs))
    variance = math.exp(mean + float(special.digamma(prior_df / 2)) - math.log(prior_df / 2))
    return max(variance, LEAST_SD**2), prior_df


def _left_out(runs: Runs, prior_variance: float, prior_df: float) -> list[float]:
    """Normal deviate of each run from the others of its series, as if it were new."""
    count = len(runs.values_us)
    if count < _LEAST_TO_CLIP_BY_PRIOR:
        return []
    logs = runs.logs()
    clipped = _clipped(logs, _limit(logs, math.sqrt(prior_variance) if prior_df > 0 else 0.0))
    total = sum(clipped)
    centre = total / count
    squares = sum((value - centre) ** 2 for value in clipped)
    own_df = count - 2
    deviates = []
    for raw, value in zip(logs, clipped, strict=True):
        rest = max(squares - (value - centre) ** 2 * count / (count - 1), own_df * LEAST_SD**2)
        others = rest / own_df
        weight = (
            prior_df * min(1.0, f_upper(others / prior_variance, own_df, prior_df) / _NOISIER) if prior_df > 0 else 0.0
        )
        variance = (rest + weight * prior_variance) / (own_df + weight)
        t = (raw - (total - value) / (count - 1)) / math.sqrt(variance * count / (count - 1))
        deviates.append(z_of_t(t, own_df + weight))
    return deviates
