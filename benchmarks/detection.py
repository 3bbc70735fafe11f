"""How well changes are found, beside three published detectors: false alarms, hits, delay, speed.

    python benchmarks/detection.py            a few minutes on two cores
    python benchmarks/detection.py --quick    a minute
    python benchmarks/detection.py --seed 7   fresh series; --plots docs/images draws what docs/statistics.md shows

The peers run as published: Apache Otava's `Series.analyze` with its defaults, asv's `detect_steps`, ruptures' PELT with
the l2 cost and a penalty of 3 log n on series divided by their median absolute deviation of differences. Ours is
`regress_db.method.changepoints.detect` with the floor that `epwatch changes` has. A hit is a change found within
TOLERANCE points of the true one (1 where it is among the last five); a false alarm is any change in a series that has
none (of ours: steps and drifts, as the command shows). Delay is the night on which a step is first reported, looking
again every night.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from detection_data import HARDER, NOISE, TYPICAL_US, stepped

from regress_db.changes import DEFAULT_FLOOR, DEFAULT_KINDS
from regress_db.method.changepoints import DEFAULT_LEVEL, detect

POINTS = 100
TOLERANCE = 5
TOLERANCE_AT_THE_END = 1

Detector = Callable[[np.ndarray], list[int]]


def ours(values: np.ndarray) -> list[int]:
    return [change.index for change in detect(values, floor=DEFAULT_FLOOR) if change.kind in DEFAULT_KINDS]


def otava(values: np.ndarray) -> list[int]:
    from otava.series import AnalysisOptions, Metric, Series

    times = [60 * place for place in range(len(values))]
    series = Series("case", None, times, {"us": Metric(1, 1.0)}, {"us": list(map(float, values))}, {})
    return [change.index for change in series.analyze(AnalysisOptions()).change_points["us"]]


def asv(values: np.ndarray) -> list[int]:
    from asv.step_detect import detect_steps

    return [step[0] for step in detect_steps(list(map(float, values)))[1:]]


def pelt(values: np.ndarray) -> list[int]:
    import ruptures

    scale = np.median(np.abs(np.diff(values))) * 1.4826 / np.sqrt(2) or 1.0
    found = ruptures.Pelt(model="l2", min_size=2, jump=1).fit(values[:, None] / scale)
    return list(found.predict(pen=3 * np.log(len(values))))[:-1]


DETECTORS: dict[str, Detector] = {"epwatch": ours, "Otava": otava, "asv": asv, "PELT": pelt}

STEPS: list[tuple[str, str, int, float]] = [
    ("+2 % at 60", "Gaussian 1 %", 60, 0.02),
    ("+5 % at 60", "Gaussian 1 %", 60, 0.05),
    ("-5 % at 60", "Gaussian 1 %", 60, -0.05),
    ("+5 % in the last 5", "Gaussian 1 %", 95, 0.05),
    ("+10 % in the last 2", "Gaussian 1 %", 98, 0.10),
    ("+10 % in the last 2", "Student t3", 98, 0.10),
    ("+5 % at 60", "Student t3", 60, 0.05),
    ("+5 % at 60", "AR(1) 0.5", 60, 0.05),
    ("+5 % at 60", "bimodal +4 %", 60, 0.05),
    ("+5 % at 60", "3 % spikes x1.3", 60, 0.05),
    ("+5 % in the last 5", "AR(1) 0.5", 95, 0.05),
]


def alarms(detector: Detector, name: str, seed: int, count: int) -> tuple[float, float]:
    """False alarms per series, and the share of series with any."""
    chance = np.random.default_rng([seed, *name.encode()])
    noise = {**NOISE, **HARDER}[name]
    found = [len(detector(noise(chance, POINTS))) for _ in range(count)]
    return float(np.mean(found)), float(np.mean(np.array(found) > 0))


def hits(detector: Detector, noise: str, at: int, change: float, seed: int, count: int) -> float:
    """Share of series in which the step was found where it is."""
    chance = np.random.default_rng([seed, at, *noise.encode()])
    near = TOLERANCE_AT_THE_END if at >= POINTS - 5 else TOLERANCE
    series = [stepped(NOISE[noise](chance, POINTS), at, change) for _ in range(count)]
    return float(np.mean([any(abs(place - at) <= near for place in detector(values)) for values in series]))


def delays(detector: Detector, change: float, seed: int, count: int, nights: int = 15) -> list[int]:
    """Nights from the first slow run until a step within two points of it is reported; `nights` + 1 for never."""
    chance = np.random.default_rng([seed, 1])
    found = []
    for _ in range(count):
        values = stepped(NOISE["Gaussian 1 %"](chance, POINTS), 80, change)
        said = (
            night for night in range(1, nights + 1) if any(abs(at - 80) <= 2 for at in detector(values[: 80 + night]))
        )
        found.append(next(said, nights + 1))
    return found


def milliseconds(detector: Detector, points: int, seed: int, repeats: int = 3) -> float:
    """Of one series, the median of a few, after one to warm up."""
    chance = np.random.default_rng([seed, points])
    taken = []
    for _ in range(repeats + 1):
        values = stepped(NOISE["Gaussian 1 %"](chance, points), points // 2, 0.05)
        begun = time.perf_counter()
        detector(values)
        taken.append(1e3 * (time.perf_counter() - begun))
    return float(np.median(taken[1:]))


def print_alarms(detectors: dict[str, Detector], names: list[str], seed: int, ours_count: int, count: int) -> None:
    print(f"{'false alarms a series (series with any)':<44}" + "".join(f"{name:>18}" for name in detectors))
    for name in names:
        cells = []
        for of, detector in detectors.items():
            mean, share = alarms(detector, name, seed, ours_count if of == "epwatch" else count)
            cells.append(f"{mean:>9.3f} ({share:.3f})")
        print(f"  {name:<42}" + "".join(f"{cell:>18}" for cell in cells), flush=True)


def plots(folder: Path, seed: int, count: int) -> None:
    """How p-values are spread where nothing changes, and the share of steps found by place and size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    levels = np.geomspace(0.002, 0.2, 20)
    figure, axes = pyplot.subplots(figsize=(5, 4))
    for name in ("Gaussian 1 %", "Student t3", "bimodal +4 %", "AR(1) 0.5", "AR(1) 0.9", "slow wave under noise"):
        chance = np.random.default_rng([seed, *name.encode()])
        noise = {**NOISE, **HARDER}[name]
        lowest = []
        for _ in range(count):
            found = [one.p_value for one in detect(noise(chance, POINTS), level=0.2) if one.kind in DEFAULT_KINDS]
            lowest.append(min(found, default=1.0))
        axes.plot(levels, [np.mean(np.array(lowest) <= level) for level in levels], label=name)
    axes.plot(levels, levels, "k:", label="as promised, or below")
    axes.set(xscale="log", yscale="log", xlabel="level", ylabel="share of unchanged series with a change")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(folder / "changes_calibration.png", dpi=90)
    figure, axes = pyplot.subplots(figsize=(5, 4))
    places = [5, 10, 20, 40, 60, 80, 90, 95, 97, 98]
    for change in (0.01, 0.02, 0.03, 0.05, 0.1):
        shares = [hits(ours, "Gaussian 1 %", place, change, seed, max(20, count // 10)) for place in places]
        axes.plot(places, shares, marker=".", label=f"+{100 * change:.0f} %")
    axes.set(xlabel=f"first slow run, of {POINTS}", ylabel="share found where it is (noise 1 %)")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(folder / "changes_power.png", dpi=90)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="a minute: fewer series")
    options.add_argument("--seed", type=int, default=2026)
    options.add_argument("--alone", action="store_true", help="without the peers")
    options.add_argument("--plots", type=Path, metavar="FOLDER", help="draw the figures into FOLDER instead")
    arguments = options.parse_args()
    warnings.simplefilter("ignore")
    if arguments.plots:
        plots(arguments.plots, arguments.seed, 100 if arguments.quick else 1000)
        return
    ours_count, count = (200, 15) if arguments.quick else (1000, 200)
    detectors = {"epwatch": ours} if arguments.alone else DETECTORS
    print(
        f"{POINTS} points around {TYPICAL_US:.0f} µs, level {DEFAULT_LEVEL}, floor {DEFAULT_FLOOR:.0%}, seed "
        f"{arguments.seed}, {ours_count} series a line ({count} for the peers), Python {sys.version.split()[0]}\n"
    )
    print_alarms(detectors, list(NOISE), arguments.seed, ours_count, count)
    print("\nmade to break the method")
    print_alarms(detectors, list(HARDER), arguments.seed, ours_count, count)
    print(f"\n{'hits':<44}" + "".join(f"{name:>18}" for name in detectors))
    for what, noise, at, change in STEPS:
        rates = [
            hits(detector, noise, at, change, arguments.seed, max(count, ours_count // 3) if of == "epwatch" else count)
            for of, detector in detectors.items()
        ]
        print(f"  {what + ', ' + noise:<42}" + "".join(f"{rate:>18.3f}" for rate in rates), flush=True)
    print(f"\n{'delay in nights: median, nine in ten':<44}" + "".join(f"{name:>18}" for name in detectors))
    for change in (0.03, 0.05, 0.10):
        cells = []
        for detector in detectors.values():
            waited = delays(detector, change, arguments.seed, max(10, count // 8))
            cells.append(f"{np.median(waited):.0f}, {np.quantile(waited, 0.9, method='higher'):.0f}")
        print(f"  +{100 * change:.0f} % at 80, Gaussian 1 %".ljust(44) + "".join(f"{cell:>18}" for cell in cells))
    print(f"\n{'milliseconds a series':<44}" + "".join(f"{name:>18}" for name in detectors))
    for points in (100, 1000):
        taken = {of: milliseconds(detector, points, arguments.seed) for of, detector in detectors.items()}
        cells = [f"{of_one:.1f} (x{of_one / taken['epwatch']:.1f})" for of_one in taken.values()]
        print(f"  {points} points".ljust(44) + "".join(f"{cell:>18}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
