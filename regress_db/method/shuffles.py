"""How often the whole method cries wolf on a history in which nothing changed: its own nights in another order.

`shuffled_alarms` puts the nights of each settled stretch of every series in a random order, takes the first as the new
night, the next as its re-runs and the rest as its baseline, and judges that night as any other: spreads of the
platform, candidates and their re-runs, Benjamini and Hochberg over all series. Whatever is called slower is a false
alarm. Whole nights move, and all series with them: what a night did to many of them at once stays together.

Pure. Called by `regress_db.calibration`. Next to read: `regress_db.method.comparing`.

Sources: Edgington & Onghena 2007 (permutation of what is exchangeable); Wilson 1927 (the intervals).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regress_db.method.comparing import (
    Comparison,
    Runs,
    SpreadPrior,
    compare,
    decide,
    is_candidate,
    platform_prior,
)

LEAST_NIGHTS = 8
"""A stretch of fewer nights says too little to be shuffled."""

MOST_LEVEL = 0.1
"""No false discovery rate above this is ever proposed, however quiet the history."""

_STEPS = tuple(10 ** (-step / 8) for step in range(49))
"""Levels that are tried, the largest first, over the largest: eight a decade, six decades."""

_Z95 = 1.959964
_OBVIOUS_SD = 0.8
"""New runs this close to the baseline's median, in the smaller of the baseline's own (scaled MAD) and the platform's
standard deviation, have a p-value that no level reaches and are no candidate: they are counted, not computed."""

_MAD_TO_SIGMA = 1.4826
_PRIORS = 20
"""So many times the platform's prior is found anew: it is of so many runs that it hardly differs between shuffles."""


SeriesKey = tuple[str, str, str]
"""Case, platform, phase."""


@dataclass(frozen=True, slots=True)
class NightValues:
    """The run values of one series on one night, in µs. night: its number among all nights."""

    night: int
    values_us: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Settled:
    """A series and its stretches in which nothing changed, each a sequence of nights. floor: relative."""

    key: SeriesKey
    platform: str
    floor: float
    stretches: tuple[tuple[NightValues, ...], ...]

    @property
    def nights(self) -> int:
        """Nights in stretches that are long enough."""
        return sum(len(stretch) for stretch in self.usable)

    @property
    def usable(self) -> tuple[tuple[NightValues, ...], ...]:
        """The stretches that are long enough."""
        return tuple(stretch for stretch in self.stretches if len(stretch) >= LEAST_NIGHTS)


@dataclass(frozen=True, slots=True)
class Rate:
    """Something that happened `hits` times in `trials`, with its 95 % Wilson interval."""

    hits: int
    trials: int

    @property
    def value(self) -> float:
        """The observed share; 0 without trials."""
        return self.hits / self.trials if self.trials else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true share lies; 0 to 1 without trials."""
        if not self.trials:
            return 0.0, 1.0
        share, weight = self.value, _Z95**2 / self.trials
        middle = (share + weight / 2) / (1 + weight)
        half = math.sqrt(share * (1 - share) * weight + weight**2 / 4) / (1 + weight)
        return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, slots=True)
class Alarms:
    """What `shuffled_alarms` saw.

    shuffles: nights judged. trials: series judged, by key. slower, faster: for every false verdict the smallest level
    at which it would have been given, by shuffle, with the series.
    """

    shuffles: int
    trials: dict[SeriesKey, int]
    slower: tuple[tuple[tuple[SeriesKey, float], ...], ...]
    faster: tuple[tuple[tuple[SeriesKey, float], ...], ...]

    def count(self, level: float) -> int:
        """False alarms at `level`, over all shuffles and series."""
        return sum(needed <= level for night in self.slower for _, needed in night)

    def improvements(self, level: float) -> int:
        """The same of false improvements, which fail no night."""
        return sum(needed <= level for night in self.faster for _, needed in night)

    def nights(self, level: float) -> Rate:
        """Nights with at least one false alarm."""
        return Rate(sum(any(needed <= level for _, needed in night) for night in self.slower), self.shuffles)

    def per_night(self, level: float) -> tuple[float, float, float]:
        """False alarms a night and their 95 % interval: that of the nights with any, times how many those have."""
        rate = self.nights(level)
        each = self.count(level) / rate.hits if rate.hits else 1.0
        low, high = rate.interval
        return rate.value * each, low * each, high * each

    def of_series(self, level: float) -> dict[SeriesKey, Rate]:
        """False alarms of each series."""
        hits: dict[SeriesKey, int] = defaultdict(int)
        for night in self.slower:
            for key, needed in night:
                hits[key] += needed <= level
        return {key: Rate(hits[key], trials) for key, trials in self.trials.items()}

    def level_for(self, budget: float) -> float | None:
        """The largest level whose false alarms a night are within `budget`; None where even the smallest has more.

        Never above the budget itself: at that level theory promises to keep it, and shuffles, which are kinder than
        nights to come, are no ground for more. The estimate decides, not the end of its interval: theory and estimate
        both have to fail before power is given up.
        """
        most = min(budget, MOST_LEVEL)
        return next((most * step for step in _STEPS if self.per_night(most * step)[0] <= budget), None)


_QUIET = Comparison(
    effect=0.0,
    low=0.0,
    high=0.0,
    p_value=1.0,
    error=0.0,
    df=1.0,
    floor=1.0,
    noise_floor=0.0,
    detectable=None,
    runs_needed=None,
    method="none",
    warnings=(),
    new_runs=1,
    baseline_runs=LEAST_NIGHTS,
    candidate=False,
)
"""Stands for a series that is obviously unchanged."""


@dataclass(frozen=True, slots=True)
class _Drawn:
    """One series of a shuffled night: its new runs, what a re-run would have given, and its baseline."""

    series: Settled
    new: Runs
    again: tuple[float, ...]
    base: Runs

    def confirmed(self) -> Runs:
        values = (*self.new.values_us, *self.again)
        return Runs(values, ("new",) * len(values))


def shuffled_alarms(
    series: Sequence[Settled], *, shuffles: int, seed: int, confirmations: int, baseline_nights: int
) -> Alarms:
    """Judge `shuffles` nights of shuffled history.

    confirmations: re-runs of a candidate. baseline_nights: at most so many nights are a baseline. Series without a
    stretch of `LEAST_NIGHTS` are left out.
    """
    chance = np.random.default_rng(seed)
    known = [one for one in series if one.usable]
    nights = 1 + max((night.night for one in known for stretch in one.usable for night in stretch), default=0)
    trials: dict[SeriesKey, int] = defaultdict(int)
    told: dict[str, list[tuple[tuple[SeriesKey, float], ...]]] = {"regressed": [], "improved": []}
    priors: Mapping[str, SpreadPrior] = {}
    for turn in range(shuffles):
        rank = chance.permutation(nights)
        drawn = [_draw(one, rank, chance, confirmations, baseline_nights) for one in known]
        if turn % max(1, shuffles // _PRIORS) == 0:
            priors = _priors(drawn)
        decisions = decide(_judged(drawn, priors, confirmations), level=MOST_LEVEL)
        for one in drawn:
            trials[one.series.key] += 1
        for verdict, nights_told in told.items():
            nights_told.append(
                tuple(
                    (one.series.key, decision.q_value)
                    for one, decision in zip(drawn, decisions, strict=True)
                    if decision.verdict == verdict and decision.q_value is not None
                )
            )
    return Alarms(shuffles, dict(trials), tuple(told["regressed"]), tuple(told["improved"]))


def _draw(
    series: Settled, rank: NDArray[np.int64], chance: np.random.Generator, confirmations: int, baseline_nights: int
) -> _Drawn:
    """A stretch of the series, in the shuffled order of the nights."""
    stretches = series.usable
    place = int(chance.integers(series.nights)) if len(stretches) > 1 else 0
    for chosen in stretches:
        if place < len(chosen):
            break
        place -= len(chosen)
    order = np.argsort(rank[[night.night for night in chosen]])[: 1 + confirmations + baseline_nights]
    new, *rest = (chosen[position] for position in order)
    again = tuple(night.values_us[int(chance.integers(len(night.values_us)))] for night in rest[:confirmations])
    base = rest[confirmations:]
    return _Drawn(
        series=series,
        new=Runs(new.values_us, ("new",) * len(new.values_us)),
        again=again,
        base=Runs(
            tuple(value for night in base for value in night.values_us),
            tuple(str(night.night) for night in base for _ in night.values_us),
        ),
    )


def _priors(drawn: Sequence[_Drawn]) -> dict[str, SpreadPrior]:
    by_platform: dict[str, list[Runs]] = defaultdict(list)
    for one in drawn:
        by_platform[one.series.platform].append(one.base)
    return {platform: platform_prior(bases) for platform, bases in by_platform.items()}


def _judged(drawn: Sequence[_Drawn], priors: Mapping[str, SpreadPrior], confirmations: int) -> list[Comparison]:
    """The comparisons on which the night is decided: of all runs for the candidates, of the new ones for the others."""
    found = []
    for one in drawn:
        prior = priors[one.series.platform]
        if _obvious(one, math.sqrt(prior.variance) if prior.df > 0 else math.inf):
            found.append(_QUIET)
            continue
        comparison = compare(one.new, one.base, floor=one.series.floor, prior=prior, confirmations=confirmations)
        if is_candidate(comparison) and one.again:
            comparison = compare(one.confirmed(), one.base, floor=one.series.floor, prior=prior)
        found.append(comparison)
    return found


def _obvious(one: _Drawn, platform_sd: float) -> bool:
    base = np.log(one.base.values_us)
    centre = np.median(base)
    shift = abs(float(np.median(np.log(one.new.values_us)) - centre))
    own_sd = _MAD_TO_SIGMA * float(np.median(np.abs(base - centre)))
    return shift <= _OBVIOUS_SD * min(own_sd, platform_sd) / math.sqrt(len(one.new.values_us))
