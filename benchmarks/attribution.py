"""Attribution on nights of known truth: what is blamed rightly, what wrongly, and what taking it out is worth.

    python benchmarks/attribution.py [--seed N] [--nights N] [--quick] [--plots FOLDER]

Each night has 150 cases of two phases (300 series), a fifth of them controls that do not run the code under test, one
run each, on one of 8 nodes. The two phases of a case share half of their noise, as runs do. Every scenario is judged
twice: with a code that did not change, and with a new commit. `taken out`: nights of which anything was taken out;
`named`: nights whose findings are exactly the true ones; `left`: root mean square of what a night or node did that is
still in the series under test afterwards (for a commit: what of its slowdown was wrongly taken out), in per cent.
Then the worth: with night effects of 3 %, how many series look slower than by 3.5 standard deviations before and after.
Without `--seed` the seed is fixed, with `--seed 0` it is fresh; it is printed.
"""

from __future__ import annotations

import argparse
import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regress_db.method.attribution import Context, RunShift, SeriesShift, Shared, shared_shifts

FIXED_SEED = 20261122
CASES = 150
CONTROLS = 30
NODES = 8
SD = 0.015
LIMIT_SD = 3.5

Noise = Callable[[np.random.Generator], float]
NOISES: dict[str, Noise] = {
    "Gaussian": lambda chance: chance.normal(),
    "Student t3": lambda chance: chance.standard_t(3) / math.sqrt(3),
    "bimodal": lambda chance: 2.0 * (chance.random() < 0.4) - 0.8 + 0.4 * chance.normal(),
    "3 % spikes": lambda chance: 0.7 * chance.normal() + 8.0 * (chance.random() < 0.03),
}


@dataclass(frozen=True, slots=True)
class Scenario:
    """What was done to a night, as log changes: by each node, by the night to all, by the commit to what runs it (or to
    a part of that), to the controls alone.
    """

    name: str
    nodes: dict[int, float]
    night: float = 0.0
    code: float = 0.0
    code_share: float = 1.0
    controls: float = 0.0
    cases: int = CASES
    control_cases: int = CONTROLS

    def truth(self, code_changed: bool) -> set[str]:
        """Subjects of the findings that are right. A commit is none: it is left to be judged."""
        nodes = {f"gpu{node}" for node in self.nodes}
        night_seen = self.night and (not code_changed or self.control_cases >= 4)
        return nodes | ({"night"} if night_seen or (self.controls and code_changed) else set())


SCENARIOS = (
    Scenario("nothing", {}),
    Scenario("a node +10 %", {3: 0.1}),
    Scenario("a node +3 %", {3: 0.03}),
    Scenario("half the nodes +10 %", {0: 0.1, 1: 0.1, 2: 0.1, 3: 0.1}),
    Scenario("nodes +10 %, -5 %", {1: 0.1, 2: -0.05}),
    Scenario("night +5 %", {}, night=0.05),
    Scenario("night +5 %, node +10 %", {3: 0.1}, night=0.05),
    Scenario("night +5 %, no controls", {}, night=0.05, control_cases=0),
    Scenario("commit +8 %", {}, code=0.08),
    Scenario("commit +8 %, no controls", {}, code=0.08, control_cases=0),
    Scenario("commit +8 % on half", {}, code=0.08, code_share=0.5),
    Scenario("commit +5 %, night +5 %", {}, code=0.05, night=0.05),
    Scenario("controls alone +10 %", {}, controls=0.1),
    Scenario("12 series, night +10 %", {}, night=0.1, cases=6, control_cases=2),
)


def a_night(chance: np.random.Generator, scenario: Scenario, noise: Noise) -> tuple[list[SeriesShift], list[float]]:
    """The night's series, and what node and night did to each."""
    series, done = [], []
    for case in range(scenario.cases):
        under_test = case >= scenario.control_cases
        sd = SD * math.exp(0.4 * chance.normal())
        node = int(chance.integers(NODES))
        of_run = noise(chance)
        by_code = scenario.code * (chance.random() < scenario.code_share) if under_test else scenario.controls
        for phase in ("dispatch", "combine"):
            by_night = scenario.night + scenario.nodes.get(node, 0.0)
            centre = sd * math.sqrt(0.12) * chance.normal()
            change = math.sqrt(0.5) * sd * (of_run + noise(chance)) - centre + by_night + by_code
            label = f"{'ep_core' if under_test else 'torch'} {('ll', 'ht')[case % 2]} {phase}"
            run = RunShift(change, (f"gpu{node}",), f"job{case % 19}", f"run{case}")
            series.append(SeriesShift((case, phase), under_test, label, (run,), sd, stratum=f"{label} {case % 3}"))
            done.append(by_night)
    return series, done


def context(code_changed: bool) -> Context:
    return Context("a" * 40, ("b" if code_changed else "a") * 40, (), "cluster", "night")


def blamed(shared: Shared) -> set[str]:
    return {"night" if one.cause != "node" else one.subject for one in shared.findings}


def table(seed: int, nights: int) -> None:
    print(f"{'scenario':26s} {'noise':11s} {'code':5s} {'taken out':>9s} {'named':>6s} {'left':>7s}")
    for scenario in SCENARIOS:
        for noise in NOISES if scenario.name in ("nothing", "a node +10 %", "night +5 %") else ("Gaussian",):
            for code_changed in (False, True):
                if scenario.code and not code_changed:
                    continue
                chance = np.random.default_rng([seed, len(scenario.name), len(noise)])
                taken = named = 0
                left: list[float] = []
                for _ in range(nights):
                    series, done = a_night(chance, scenario, NOISES[noise])
                    shared = shared_shifts(series, context(code_changed))
                    taken += any(shared.removed.values())
                    named += blamed(shared) == scenario.truth(code_changed)
                    left += [
                        by_night - shared.removed[one.series]
                        for one, by_night in zip(series, done, strict=True)
                        if one.under_test
                    ]
                rms = 100 * math.sqrt(float(np.mean(np.square(left))))
                changed = "new" if code_changed else "same"
                shares = f"{taken / nights:9.3f} {named / nights:6.3f}"
                print(f"{scenario.name:26s} {noise:11s} {changed:5s} {shares} {rms:7.2f}", flush=True)


def worth(seed: int, nights: int) -> list[tuple[float, float, float]]:
    """Share of unchanged series beyond the limit, before and after, by the spread of night effects."""
    print(f"\nshare of series beyond {LIMIT_SD} sd, none of which changed")
    print(f"{'night effect sd':>15s} {'before':>8s} {'after':>8s}")
    found = []
    for spread in (0.0, 0.01, 0.02, 0.03, 0.05):
        chance = np.random.default_rng([seed, int(1000 * spread)])
        before = after = total = 0
        for _ in range(nights):
            scenario = Scenario("a night", {}, night=spread * chance.normal())
            series, _done = a_night(chance, scenario, NOISES["Gaussian"])
            shared = shared_shifts(series, context(code_changed=True))
            before += beyond(series, {})
            after += beyond(series, shared.removed)
            total += len(series)
        found.append((spread, before / total, after / total))
        print(f"{spread:15.3f} {before / total:8.4f} {after / total:8.4f}")
    return found


def beyond(series: Sequence[SeriesShift], removed: object) -> int:
    taken = removed if isinstance(removed, dict) else {}
    return sum(one.runs[0].change - taken.get(one.series, 0.0) > LIMIT_SD * one.sd for one in series)


def plot(found: Sequence[tuple[float, float, float]], folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    spreads = [100 * one[0] for one in found]
    axis.plot(spreads, [100 * one[1] for one in found], "s-", label="as measured")
    axis.plot(spreads, [100 * one[2] for one in found], "o-", label="shared part taken out")
    axis.set(
        xlabel="standard deviation between nights, %",
        ylabel=f"unchanged series beyond {LIMIT_SD} sd, %",
    )
    axis.legend()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "attribution.png", dpi=80)
    print(f"wrote {folder / 'attribution.png'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=FIXED_SEED)
    parser.add_argument("--nights", type=int, default=100, help="of each scenario")
    parser.add_argument("--quick", action="store_true", help="20 nights of each")
    parser.add_argument("--plots", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    seed = given.seed or secrets.randbits(32)
    nights = 20 if given.quick else given.nights
    print(f"seed {seed}, {nights} nights of each scenario, {2 * CASES} series, run noise {SD:.1%}, {NODES} nodes")
    start = time.perf_counter()
    table(seed, nights)
    found = worth(seed, nights)
    print(f"took {time.perf_counter() - start:.0f} s")
    if given.plots is not None:
        plot(found, given.plots)


if __name__ == "__main__":
    main()
