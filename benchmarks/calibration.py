"""Calibration on histories of known truth: the rate that shuffling finds, and the rate on nights that come after.

    python benchmarks/calibration.py [--seed N] [--histories N] [--series N] [--shuffles N] [--quick] [--plots FOLDER]

For each kind of noise and each of several seeds a history of 60 unchanged nights is made and calibrated as
`epwatch calibrate` does, then as many nights as were shuffled are made by the same generator and judged, each against
the last 30 nights before it. All of their alarms are false. `nominal` is the level; `shuffled`, `replayed` and `real`
are the share of nights with at least one false alarm. The floor is set low (2 %), so that it does not keep alarms down
by itself. The history has re-runs where the first run was slow, as a real one has; they say how alike runs of a night
are.
Without `--seed` the seed is fixed, with `--seed 0` it is fresh; it is printed. `AR(1) 0.5` is what shuffling cannot
see: nights that resemble the nights before them, and whose re-runs resemble them entirely.
"""

from __future__ import annotations

import argparse
import math
import secrets
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regress_db.method.comparing import METHOD, Runs, compare, decide, is_candidate, platform_prior
from regress_db.method.shuffles import (
    Design,
    NightValues,
    Rate,
    Settled,
    level_within,
    night_share,
    replayed_alarms,
    shuffled_alarms,
)

Floats = NDArray[np.float64]

FIXED_SEED = 20261122
BASE_NIGHTS = 30
HISTORY_NIGHTS = 60
RERUNS = 2
FLOOR = 0.02
LEVELS = (0.1, 1 / 30, 0.01, 0.003)
BUDGET = 1 / 30
SLOW_SD = 1.6


def gaussian(chance: np.random.Generator, nights: int, series: int) -> Floats:
    return 0.015 * chance.standard_normal((nights, 1 + RERUNS, series))


def student(chance: np.random.Generator, nights: int, series: int) -> Floats:
    return 0.015 / math.sqrt(3) * chance.standard_t(3, (nights, 1 + RERUNS, series))


def bimodal(chance: np.random.Generator, nights: int, series: int) -> Floats:
    slow = chance.random((nights, 1 + RERUNS, series)) < 0.3
    return 0.01 * chance.standard_normal(slow.shape) + 0.04 * slow


def spikes(chance: np.random.Generator, nights: int, series: int) -> Floats:
    hit = chance.random((nights, 1 + RERUNS, series)) < 0.03
    return 0.01 * chance.standard_normal(hit.shape) + math.log(1.3) * hit


def nights_differ(chance: np.random.Generator, nights: int, series: int) -> Floats:
    """Half of the variance is the night's, each series' own."""
    of_night = chance.standard_normal((nights, 1, series))
    return 0.0106 * (of_night + chance.standard_normal((nights, 1 + RERUNS, series)))


def autocorrelated(chance: np.random.Generator, nights: int, series: int) -> Floats:
    levels = np.zeros((nights, series))
    levels[0] = chance.standard_normal(series)
    for night in range(1, nights):
        levels[night] = 0.5 * levels[night - 1] + math.sqrt(0.75) * chance.standard_normal(series)
    return 0.015 * levels[:, None, :] + 0.002 * chance.standard_normal((nights, 1 + RERUNS, series))


GENERATORS: dict[str, Callable[[np.random.Generator, int, int], Floats]] = {
    "Gaussian 1.5 %": gaussian,
    "Student t3": student,
    "bimodal +4 %": bimodal,
    "3 % spikes x1.3": spikes,
    "night effects": nights_differ,
    "AR(1) 0.5": autocorrelated,
}


def history_of(values: Floats) -> list[Settled]:
    """One run a night of each series."""
    return [
        Settled(
            (f"case {number}", "p", "combine"),
            "p",
            FLOOR,
            (tuple(NightValues(night, (float(value),)) for night, value in enumerate(values[:, 0, number])),),
        )
        for number in range(values.shape[2])
    ]


def share_of(values: Floats) -> float:
    """What the re-runs of slow first runs say of the night's share of the variance."""
    logs = np.log(values)
    centre = np.median(logs[:, 0], axis=0)
    deviates = (logs - centre) / logs[:, 0].std(axis=0)
    slow = deviates[:, 0] > SLOW_SD
    pairs = zip(deviates[:, 0][slow].tolist(), deviates[:, 1:].mean(axis=1)[slow].tolist(), strict=True)
    share = night_share(list(pairs))
    return Design().night_share if share is None else share


def real_alarms(values: Floats, first: int) -> list[list[float]]:
    """For each night from `first` on, the smallest levels at which its false alarms sound."""
    found = []
    for night in range(first, len(values)):
        nights = range(night - BASE_NIGHTS, night)
        bases = [
            Runs(tuple(map(float, values[night - BASE_NIGHTS : night, 0, number])), tuple(map(str, nights)))
            for number in range(values.shape[2])
        ]
        prior = platform_prior(bases)
        comparisons = []
        for number, base in enumerate(bases):
            new = Runs((float(values[night, 0, number]),), ("new",))
            comparison = compare(new, base, floor=FLOOR, prior=prior, confirmations=RERUNS)
            if is_candidate(comparison):
                all_runs = tuple(map(float, values[night, :, number]))
                comparison = compare(Runs(all_runs, ("new",) * len(all_runs)), base, floor=FLOOR, prior=prior)
            comparisons.append(comparison)
        decided = decide(comparisons, level=max(LEVELS))
        found.append([one.q_value for one in decided if one.verdict == "regressed" and one.q_value is not None])
    return found


def told(rate: Rate) -> str:
    low, high = rate.interval
    return f"{rate.value:6.3f} ({low:.3f} to {high:.3f})"


def measure(seed: int, histories: int, series: int, shuffles: int) -> dict[str, dict[float, tuple[Rate, ...]]]:
    """Shuffled and real rates by generator and level, over all histories."""
    found: dict[str, dict[float, tuple[Rate, ...]]] = {}
    print(f"{'generator':16s} {'nominal':>8s}   {'shuffled':26s} {'replayed':26s} real")
    for name, generate in GENERATORS.items():
        seen: dict[float, list[int]] = defaultdict(lambda: [0, 0, 0])
        calibrated = [0, 0]
        levels = []
        replays = 0
        shares: list[float] = []
        for turn in range(histories):
            chance = np.random.default_rng([seed, turn, len(name)])
            values = 100 * np.exp(generate(chance, HISTORY_NIGHTS + shuffles, series))
            shares.append(share_of(values[:HISTORY_NIGHTS]))
            design = Design(confirmations=RERUNS, baseline_nights=BASE_NIGHTS, night_share=shares[-1])
            past = history_of(values[:HISTORY_NIGHTS])
            alarms = shuffled_alarms(past, design, shuffles=shuffles, seed=seed + turn)
            replayed = replayed_alarms(past, design, newest=HISTORY_NIGHTS, seed=seed + turn)
            real = real_alarms(values, HISTORY_NIGHTS)
            for level in LEVELS:
                seen[level][0] += alarms.nights(level).hits
                seen[level][1] += replayed.nights(level).hits
                seen[level][2] += sum(any(needed <= level for needed in night) for night in real)
            level = level_within(BUDGET, alarms, replayed)
            levels.append(level or 0.0)
            replays += replayed.judged
            calibrated[0] += sum(needed <= (level or 0.0) for night in real for needed in night)
            calibrated[1] += len(real)
        trials = histories * shuffles
        counts = (trials, replays, trials)
        found[name] = {level: tuple(map(Rate, seen[level], counts)) for level in LEVELS}
        for level, rates in found[name].items():
            print(f"{name:16s} {level:8.4f}   {' '.join(f'{told(rate):26s}' for rate in rates)}".rstrip())
        print(
            f"{'':16s} calibrated to {BUDGET:.4f} alarms a night: levels {min(levels):.2g} to {max(levels):.2g}, "
            f"real alarms a night {calibrated[0] / calibrated[1]:.4f}, night's share taken as {np.mean(shares):.2f}"
        )
    return found


def plot(found: dict[str, dict[float, tuple[Rate, ...]]], folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(9, 5.4), sharex=True, sharey=True, layout="constrained")
    least = 1e-3
    for axis, (name, by_level) in zip(axes.flat, found.items(), strict=True):
        levels = list(by_level)
        axis.plot([least, 0.2], [least, 0.2], color="0.7", linewidth=1, label="nominal")
        for place, (label, mark) in enumerate((("shuffled", "o"), ("replayed", "^"), ("nights to come", "s"))):
            rates = [by_level[level][place] for level in levels]
            shown = [max(rate.value, least) for rate in rates]
            ends = [
                [max(value - max(rate.interval[0], least), 0.0) for value, rate in zip(shown, rates, strict=True)],
                [max(rate.interval[1] - value, 0.0) for value, rate in zip(shown, rates, strict=True)],
            ]
            at = [level * (0.9 + 0.1 * place) for level in levels]
            axis.errorbar(at, shown, yerr=ends, fmt=mark, markersize=4, linewidth=1, label=label)
        axis.set(title=name, xscale="log", yscale="log", xlim=(least, 0.2), ylim=(least / 1.3, 0.4))
    axes[0][0].legend(fontsize=8)
    figure.supxlabel("level (nominal share of unchanged nights with a false alarm)")
    figure.supylabel("observed share, 95 % intervals")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "calibration.png", dpi=80)
    print(f"wrote {folder / 'calibration.png'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=FIXED_SEED)
    parser.add_argument("--histories", type=int, default=4)
    parser.add_argument("--series", type=int, default=60)
    parser.add_argument("--shuffles", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="one history of 30 series, 100 shuffles")
    parser.add_argument("--plots", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    if given.quick:
        given.histories, given.series, given.shuffles = 1, 30, 100
    seed = given.seed or secrets.randbits(32)
    print(
        f"method {METHOD}, seed {seed}, {given.histories} histories of {HISTORY_NIGHTS} nights and {given.series} "
        f"series, {given.shuffles} shuffles each, floor {FLOOR:.0%}"
    )
    start = time.perf_counter()
    found = measure(seed, given.histories, given.series, given.shuffles)
    print(f"took {time.perf_counter() - start:.0f} s")
    if given.plots is not None:
        plot(found, given.plots)


if __name__ == "__main__":
    main()
