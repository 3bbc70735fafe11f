"""The night gate on runs of known truth: false alarms, power and the stated detectable effect, beside naive rules.

    python benchmarks/gate.py [--seed N] [--trials N] [--nights N] [--floor F] [--quick] [--plots FOLDER] [--json]

Each trial: a baseline of 10 runs on 10 nights, one new run, and two re-runs of the same night where it is a candidate.
`alone`: a series whose platform says nothing; `platform`: with a prior from 300 other series of its kind. Peers see the
same runs. Without `--seed` the seed is fixed, with `--seed 0` it is fresh; it is printed. Aims: false alarms at most
0.5 %, power at +10 % at least 0.95 at 1.5 % noise, the stated detectable effect true within 20 %, at most one night in
30 with a false alarm among 300 series. Nothing in the method was fitted to these generators (`docs/statistics.md`).
"""

from __future__ import annotations

import argparse
import json
import math
import secrets
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regress_db.method.comparing import (
    DEFAULT_LEVEL,
    METHOD,
    Comparison,
    Runs,
    SpreadPrior,
    Verdict,
    compare,
    decide,
    is_candidate,
    platform_prior,
)
from regress_db.method.distributions import t_quantile

Floats = NDArray[np.float64]
Noise = Callable[[np.random.Generator, int, int], Floats]
"""Log run values of `nights` nights of `runs` runs each, float64 [nights, runs]."""

BASE_RUNS = 10
RERUNS = 2
SERIES = 300
ITERATIONS = 50
ITERATION_NOISE = 0.008


def gaussian(rng: np.random.Generator, nights: int, runs: int) -> Floats:
    return 0.015 * rng.standard_normal((nights, runs))


def shared_host(rng: np.random.Generator, nights: int, runs: int) -> Floats:
    return 0.06 * rng.standard_normal((nights, runs))


def heavy(rng: np.random.Generator, nights: int, runs: int) -> Floats:
    return 0.015 * rng.standard_t(3, (nights, runs))


def bimodal(rng: np.random.Generator, nights: int, runs: int) -> Floats:
    return 0.01 * rng.standard_normal((nights, runs)) + math.log(1.04) * (rng.random((nights, runs)) < 0.3)


def spikes(rng: np.random.Generator, nights: int, runs: int) -> Floats:
    return gaussian(rng, nights, runs) + math.log(1.3) * (rng.random((nights, runs)) < 0.03)


def night_effects(rng: np.random.Generator, nights: int, runs: int) -> Floats:
    return 0.0106 * (rng.standard_normal((nights, 1)) + rng.standard_normal((nights, runs)))


def skewed(rng: np.random.Generator, nights: int, runs: int) -> Floats:
    return 0.015 * (rng.gamma(1.0, 1.0, (nights, runs)) - 1)


NOISES: dict[str, Noise] = {
    "Gaussian 1.5 %": gaussian,
    "Gaussian 6 %": shared_host,
    "Student t3, 1.5 %": heavy,
    "bimodal +4 %": bimodal,
    "3 % spikes x1.3": spikes,
    "night effects": night_effects,
    "exponential": skewed,
}


@dataclass(frozen=True, slots=True)
class Trial:
    """One series on one night: its baseline, its first run and the re-runs it would get."""

    base: Runs
    first: Runs
    all_new: Runs


@dataclass(frozen=True, slots=True)
class Setting:
    """What is asked: relative floor, false discovery rate, and how many series are judged together."""

    floor: float
    level: float = DEFAULT_LEVEL
    family: int = 1


def draw(noise: Noise, rng: np.random.Generator, change: float = 0.0) -> Trial:
    """A trial whose new runs are slower by `change`."""
    base = 100 * np.exp(noise(rng, BASE_RUNS, 1)[:, 0])
    new = 100 * (1 + change) * np.exp(noise(rng, 1, 1 + RERUNS)[0])
    nights = tuple(f"night {number}" for number in range(BASE_RUNS))
    values = tuple(new.tolist())
    tonight = ("tonight",) * len(values)
    return Trial(Runs(tuple(base.tolist()), nights), Runs(values[:1], tonight[:1]), Runs(values, tonight))


def priors_baselines(noise: Noise, rng: np.random.Generator, runs: int) -> list[Runs]:
    """Baselines of the other series of the platform, `runs` a night."""
    nights = tuple(f"night {number}" for number in range(BASE_RUNS) for _ in range(runs))
    return [Runs(tuple((100 * np.exp(noise(rng, BASE_RUNS, runs))).ravel().tolist()), nights) for _ in range(SERIES)]


def judged(trial: Trial, prior: SpreadPrior | None, setting: Setting) -> Comparison:
    """The comparison that stands after the re-runs, as the nightly makes it."""
    options = {"floor": setting.floor, "prior": prior, "level": setting.level, "family": setting.family}
    first = compare(trial.first, trial.base, confirmations=RERUNS, **options)  # type: ignore[arg-type]
    return compare(trial.all_new, trial.base, **options) if is_candidate(first) else first  # type: ignore[arg-type]


def verdicts(trials: Sequence[Trial], prior: SpreadPrior | None, setting: Setting) -> list[Verdict]:
    """Each trial on a night of its own."""
    return [decide([judged(trial, prior, setting)], setting.level)[0].verdict for trial in trials]


def rate(said: Sequence[str], word: str) -> float:
    return sum(one == word for one in said) / len(said)


def peer_rates(trials: Sequence[Trial], rng: np.random.Generator) -> dict[str, float]:
    """How often each naive rule calls a trial slower."""
    calls: dict[str, list[bool]] = {}
    for trial in trials:
        base, new = np.log(trial.base.values_us), np.log(trial.all_new.values_us)
        limit = float(np.median(base)) + math.log(1.05)
        bound = float(base.mean() + t_quantile(0.99, BASE_RUNS - 1) * base.std(ddof=1) * math.sqrt(1 + 1 / BASE_RUNS))
        rules = {"+5 % over median": limit, "t prediction .99": bound}
        for name, least in rules.items():
            calls.setdefault(name, []).append(bool(new[0] > least))
            calls.setdefault(f"{name}, median of 3", []).append(bool(new[0] > least and np.median(new) > least))
        old = (base[:, None] + ITERATION_NOISE * rng.standard_normal((BASE_RUNS, ITERATIONS))).ravel()
        now = new[0] + ITERATION_NOISE * rng.standard_normal(ITERATIONS)
        error = math.sqrt(old.var(ddof=1) / old.size + now.var(ddof=1) / now.size)
        calls.setdefault("Welch, iterations pooled, p < .001", []).append(
            bool((now.mean() - old.mean()) / error > 3.29)
        )
    return {name: sum(said) / len(said) for name, said in calls.items()}


def null_nights(noise: Noise, rng: np.random.Generator, nights: int, floor: float) -> tuple[float, float]:
    """Nights with a false regression, and with any false change, among 300 series where nothing changed; as shares."""
    slower = any_change = 0
    for _ in range(nights):
        trials = [draw(noise, rng) for _ in range(SERIES)]
        prior = platform_prior([trial.base for trial in trials])
        setting = Setting(floor, family=SERIES)
        said = [one.verdict for one in decide([judged(trial, prior, setting) for trial in trials], setting.level)]
        slower += "regressed" in said
        any_change += "regressed" in said or "improved" in said
    return slower / nights, any_change / nights


@dataclass(frozen=True, slots=True)
class Detectable:
    """How true the stated detectable effect is. stated: median over trials; power: real power of a change of each
    trial's own stated size; ratio: the change that is really called regressed four times in five, over the stated.
    """

    stated: float
    power: float
    ratio: float


def check_detectable(
    noise: Noise, rng: np.random.Generator, trials: int, prior: SpreadPrior | None, setting: Setting
) -> Detectable:
    """By shifting the new runs of fresh null trials. The whole rule holds: re-runs, floor, and the family's level."""
    strict = Setting(setting.floor, setting.level / setting.family, 1) if setting.family > 1 else setting
    drawn = [draw(noise, rng) for _ in range(trials)]
    own: list[float] = []
    for trial in drawn:
        first = compare(
            trial.first,
            trial.base,
            floor=setting.floor,
            prior=prior,
            confirmations=RERUNS,
            level=setting.level,
            family=setting.family,
        )
        own.append(first.detectable or math.nan)
    moved = [shifted(trial, change) for trial, change in zip(drawn, own, strict=True)]
    power = rate(verdicts(moved, prior, strict), "regressed")
    stated = statistics.median(own)
    scales = np.linspace(0.6, 1.5, 10)
    some = drawn[: max(200, trials // 4)]
    powers = [
        rate(verdicts([shifted(one, stated * scale) for one in some], prior, strict), "regressed") for scale in scales
    ]
    return Detectable(stated, power, float(np.interp(0.8, np.maximum.accumulate(powers), scales)))


def shifted(trial: Trial, change: float) -> Trial:
    """The trial with its new runs slower by `change`."""
    values = tuple(value * (1 + change) for value in trial.all_new.values_us)
    return Trial(trial.base, Runs(values[:1], trial.first.nights), Runs(values, trial.all_new.nights))


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: shares of trials."""

    noise: str
    prior: str
    false_regressed: float
    false_improved: float
    power_10: float
    rerun: float
    unchanged: float
    detectable: Detectable


def row(
    name: str, prior_name: str, prior: SpreadPrior | None, rng: np.random.Generator, trials: int, floor: float
) -> Row:
    """Everything about one noise with one prior."""
    noise, setting = NOISES[name], Setting(floor)
    null = [draw(noise, rng) for _ in range(trials)]
    said = verdicts(null, prior, setting)
    slower = verdicts([draw(noise, rng, 0.1) for _ in range(max(300, trials // 4))], prior, setting)
    some = null[:500]
    rerun = statistics.fmean(is_candidate(compare(one.first, one.base, floor=floor, prior=prior)) for one in some)
    return Row(
        name,
        prior_name,
        rate(said, "regressed"),
        rate(said, "improved"),
        rate(slower, "regressed"),
        rerun,
        rate(said, "unchanged"),
        check_detectable(noise, rng, max(400, trials // 4), prior, setting),
    )


def main() -> None:
    """Print the tables, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=20260101, help="0: a fresh one")
    parser.add_argument("--trials", type=int, default=4000, help="of each noise")
    parser.add_argument("--nights", type=int, default=60, help="of 300 series, of each noise")
    parser.add_argument("--floor", type=float, default=0.05, help="relative")
    parser.add_argument("--quick", action="store_true", help="a tenth of it")
    parser.add_argument("--plots", type=Path, help="folder for the calibration plots, instead of the tables")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    seed = arguments.seed or secrets.randbelow(2**31)
    if arguments.plots is not None:
        from gate_plots import plot

        plot(arguments.plots, seed)
        return
    part = 10 if arguments.quick else 1
    trials, nights = arguments.trials // part, max(3, arguments.nights // part)
    started = time.perf_counter()
    rows: list[Row] = []
    peers: dict[str, dict[str, float]] = {}
    whole: dict[str, tuple[float, float]] = {}
    if not arguments.json:
        print(f"method {METHOD}, seed {seed}, floor {arguments.floor:.0%}, level 1/30, {trials} trials")
        print(f"{'noise':18} {'prior':9} false: slower faster  +10 % seen  re-run  unchanged | ", end="")
        print("stated  power there  real/stated")
    for index, (name, noise) in enumerate(NOISES.items()):
        rng = np.random.default_rng([seed, index])
        runs = 2 if noise is night_effects else 1
        prior = platform_prior(priors_baselines(noise, rng, runs))
        for prior_name, one in (("alone", None), ("platform", prior)):
            rows.append(row(name, prior_name, one, rng, trials, arguments.floor))
            if not arguments.json:
                print_row(rows[-1])
        peers[name] = peer_rates([draw(noise, rng) for _ in range(trials)], rng)
        whole[name] = null_nights(noise, rng, nights, arguments.floor)
    if arguments.json:
        json.dump({"seed": seed, "rows": [asdict(one) for one in rows], "peers": peers, "nights": whole}, sys.stdout)
        return
    print(f"\nFalse alarms of naive rules on the same kinds of run\n{'':18} " + "  ".join(next(iter(peers.values()))))
    for name, rates in peers.items():
        print(f"{name:18} " + "  ".join(f"{share:{len(rule)}.1%}" for rule, share in rates.items()))
    print(
        f"\n{nights} nights of {SERIES} series where nothing changed: nights with a false regression, with any change"
    )
    for name, (slower, any_change) in whole.items():
        print(f"{name:18} {slower:6.1%} {any_change:6.1%}")
    print(f"\n{time.perf_counter() - started:.0f} s")


def print_row(one: Row) -> None:
    """One line."""
    mde = one.detectable
    print(
        f"{one.noise:18} {one.prior:9} {one.false_regressed:13.2%} {one.false_improved:6.2%} {one.power_10:11.1%} "
        f"{one.rerun:7.1%} {one.unchanged:10.1%} | {mde.stated:6.1%} {mde.power:12.1%} {mde.ratio:12.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
