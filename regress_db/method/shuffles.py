"""How often the whole method cries wolf on a history in which nothing changed, by judging its own nights again.

`shuffled_alarms` puts the nights of each settled stretch of every series in a random order, takes the first as the new
night and those after it as its baseline, and judges that night as any other: spreads of the platform, candidates and
their re-runs, Benjamini and Hochberg over all series. Whatever is called slower is a false alarm. Whole nights move,
and all series with them: what a night did to many of them at once stays together. `replayed_alarms` does the same in
the order in which the nights were: few nights, but they resemble those just before them as nights to come will.

A re-run resembles its night, and a night of the past has no re-runs to spare: they are made of runs of other nights,
drawn towards the new night by the share of the variance that is a night's. `night_share` finds it in nights that have
several runs, such as those on which something was measured again.

Pure. Called by `regress_db.calibration`. Next to read: `regress_db.method.comparing`.

Sources: Edgington & Onghena 2007 (permutation of what is exchangeable); Wilson 1927 (the intervals).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
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
from regress_db.method.spread import UNKNOWN_NIGHT_SHARE

LEAST_NIGHTS = 8
"""A stretch of fewer nights says too little to be shuffled."""

MOST_LEVEL = 0.1
"""No false discovery rate above this is ever proposed, however quiet the history."""

_LEAST_PAIRS = 30.0
"""Sum of squares of first runs (in standard deviations) that it takes to know the share."""

_CLIP = 3.0
_MOST_SHARE = 0.95

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
    """What the nights that were judged said.

    judged: how many nights. trials: of how many of them each series was part. slower, faster: for every false verdict
    the smallest level at which it would have been given, by night, with the series.
    """

    judged: int
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
        return Rate(sum(any(needed <= level for _, needed in night) for night in self.slower), self.judged)

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


def level_within(budget: float, shuffled: Alarms, replayed: Alarms) -> float | None:
    """The largest level whose false alarms a night are within `budget`; None where even the smallest has more.

    The shuffles' estimate decides, and the nights in their own order must not contradict it (the lower end of their
    interval has to be within the budget too). Never above the budget itself: at that level theory promises to keep it,
    and a history without alarms is no ground for more.
    """
    most = min(budget, MOST_LEVEL)
    for step in _STEPS:
        level = most * step
        if shuffled.per_night(level)[0] <= budget and replayed.per_night(level)[1] <= budget:
            return level
    return None


def night_share(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Share of a run's variance that is its night's, a standard error taken high; None where the pairs are too few.

    pairs: for a series and night, the first run and the mean of the night's other runs, in standard deviations from the
    series' centre. It is the slope of the second on the first, which measuring again only after a slow first run does
    not bias; values beyond 3 are pulled in, so that a spike is no night.
    """
    first, again = (np.clip([pair[place] for pair in pairs], -_CLIP, _CLIP) for place in (0, 1))
    squares = float(first @ first)
    if squares < _LEAST_PAIRS:
        return None
    slope = float(first @ again) / squares
    error = math.sqrt(float(np.mean((again - slope * first) ** 2)) / squares)
    return min(max(slope + error, 0.0), _MOST_SHARE)


@dataclass(frozen=True, slots=True)
class Design:
    """How nights are judged. confirmations: re-runs of a candidate. baseline_nights: at most so many are a baseline.
    night_share: share of a run's variance that is its night's; by default what the comparison takes it to be.
    """

    confirmations: int = 2
    baseline_nights: int = 30
    night_share: float = UNKNOWN_NIGHT_SHARE


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
    """One series of a night: its new runs, with what re-runs would have given, and its baseline."""

    series: Settled
    new: Runs
    confirmed: Runs
    base: Runs


def shuffled_alarms(series: Sequence[Settled], design: Design, *, shuffles: int, seed: int) -> Alarms:
    """Judge `shuffles` nights of shuffled history. Series without a stretch of `LEAST_NIGHTS` are left out."""
    chance = np.random.default_rng(seed)
    known = [one for one in series if one.usable]
    nights = 1 + max((night.night for one in known for stretch in one.usable for night in stretch), default=0)

    def night() -> list[_Drawn]:
        rank = chance.permutation(nights)
        return [_shuffled(one, rank, design, chance) for one in known]

    return _judge((night() for _ in range(shuffles)), design, shuffles)


def replayed_alarms(series: Sequence[Settled], design: Design, *, newest: int, seed: int) -> Alarms:
    """Judge the `newest` nights of the history as they came. Only series with `LEAST_NIGHTS` - 1 nights before one at
    the same level are part of it. seed: of the re-runs.
    """
    chance = np.random.default_rng(seed)
    by_night: dict[int, list[tuple[Settled, tuple[NightValues, ...], int]]] = defaultdict(list)
    for one in series:
        for stretch in one.usable:
            for place in range(LEAST_NIGHTS - 1, len(stretch)):
                by_night[stretch[place].night].append((one, stretch, place))

    def night(number: int) -> list[_Drawn]:
        return [
            _drawn(
                one,
                stretch[place],
                stretch[max(0, place - design.baseline_nights) : place],
                [stretch[other] for other in chance.choice(place, design.confirmations + 1)],
                design,
                chance,
            )
            for one, stretch, place in by_night[number]
        ]

    chosen = sorted(by_night)[-newest:]
    return _judge((night(number) for number in chosen), design, len(chosen))


def _judge(nights: Iterable[list[_Drawn]], design: Design, count: int) -> Alarms:
    trials: dict[SeriesKey, int] = defaultdict(int)
    told: dict[str, list[tuple[tuple[SeriesKey, float], ...]]] = {"regressed": [], "improved": []}
    priors: dict[str, SpreadPrior] = {}
    for turn, drawn in enumerate(nights):
        if turn % max(1, count // _PRIORS) == 0:
            priors = {}
        _add_priors(priors, drawn)
        decisions = decide(_compared(drawn, priors, design), level=MOST_LEVEL)
        for one in drawn:
            trials[one.series.key] += 1
        for verdict, of_nights in told.items():
            of_nights.append(
                tuple(
                    (one.series.key, decision.q_value)
                    for one, decision in zip(drawn, decisions, strict=True)
                    if decision.verdict == verdict and decision.q_value is not None
                )
            )
    return Alarms(count, dict(trials), tuple(told["regressed"]), tuple(told["improved"]))


def _shuffled(series: Settled, rank: NDArray[np.int64], design: Design, chance: np.random.Generator) -> _Drawn:
    """A stretch of the series, in the shuffled order of the nights."""
    stretches = series.usable
    place = int(chance.integers(series.nights)) if len(stretches) > 1 else 0
    for chosen in stretches:
        if place < len(chosen):
            break
        place -= len(chosen)
    new, *rest = (chosen[position] for position in np.argsort(rank[[night.night for night in chosen]]))
    kept_back = design.confirmations + 1
    base = rest[:-kept_back][: design.baseline_nights]
    return _drawn(series, new, base, rest[-kept_back:], design, chance)


def _drawn(
    series: Settled,
    new: NightValues,
    base: Sequence[NightValues],
    others: Sequence[NightValues],
    design: Design,
    chance: np.random.Generator,
) -> _Drawn:
    """others: one night more than there are re-runs, of which they are made."""
    values = tuple(value for night in base for value in night.values_us)
    picked = np.log([night.values_us[int(chance.integers(len(night.values_us)))] for night in others])
    confirmed = (*new.values_us, *_re_runs(np.log(new.values_us), picked, float(np.median(np.log(values))), design))
    return _Drawn(
        series=series,
        new=Runs(new.values_us, ("new",) * len(new.values_us)),
        confirmed=Runs(confirmed, ("new",) * len(confirmed)),
        base=Runs(values, tuple(str(night.night) for night in base for _ in night.values_us)),
    )


def _re_runs(new: NDArray[np.float64], others: NDArray[np.float64], centre: float, design: Design) -> tuple[float, ...]:
    """Values (µs) of re-runs of a night whose runs gave `new` (logs), made of runs of other nights (logs).

    Mean, variance and covariance are those of further runs of the night, were all of it normal: what of the night is
    known from its runs, what is not (common to all re-runs), and each re-run's own part.
    """
    share, count = design.night_share, len(new)
    known = count * share / (1 + (count - 1) * share)
    of_night = known * float(np.mean(new) - centre) + math.sqrt(share * (1 - known)) * float(others[0] - centre)
    own = math.sqrt(1 - share) * (others[1:] - centre)
    return tuple(map(float, np.exp(centre + of_night + own)))


def _add_priors(priors: dict[str, SpreadPrior], drawn: Sequence[_Drawn]) -> None:
    """Priors of the platforms that have none yet."""
    by_platform: dict[str, list[Runs]] = defaultdict(list)
    for one in drawn:
        if one.series.platform not in priors:
            by_platform[one.series.platform].append(one.base)
    priors.update({platform: platform_prior(bases) for platform, bases in by_platform.items()})


def _compared(drawn: Sequence[_Drawn], priors: Mapping[str, SpreadPrior], design: Design) -> list[Comparison]:
    """The comparisons on which the night is decided: of all runs for the candidates, of the new ones for the others."""
    found = []
    for one in drawn:
        prior = priors[one.series.platform]
        if _obvious(one, math.sqrt(prior.variance) if prior.df > 0 else math.inf):
            found.append(_QUIET)
            continue
        comparison = compare(one.new, one.base, floor=one.series.floor, prior=prior, confirmations=design.confirmations)
        if is_candidate(comparison) and design.confirmations:
            comparison = compare(one.confirmed, one.base, floor=one.series.floor, prior=prior)
        found.append(comparison)
    return found


def _obvious(one: _Drawn, platform_sd: float) -> bool:
    base = np.log(one.base.values_us)
    centre = np.median(base)
    shift = abs(float(np.median(np.log(one.new.values_us)) - centre))
    own_sd = _MAD_TO_SIGMA * float(np.median(np.abs(base - centre)))
    return shift <= _OBVIOUS_SD * min(own_sd, platform_sd) / math.sqrt(len(one.new.values_us))
