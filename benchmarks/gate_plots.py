"""The calibration plots of `docs/statistics.md`, drawn by `benchmarks/gate.py --plots FOLDER`.

`gate_p_values.png`: null p-values of three new runs against ten, against what they should be, per noise: a line below
the diagonal is an optimistic test. `gate_power.png`: how often a change is called regressed, by its size in units of
what was stated as detectable: all curves should pass 0.8 at 1.
"""

from __future__ import annotations

from pathlib import Path

import gate
import matplotlib as mpl
import numpy as np

mpl.use("Agg")

from matplotlib import pyplot as plt

TRIALS = 4000
"""Of each noise, for p-values; a fifth of it for each point of a power curve."""

SCALES = np.linspace(0.4, 1.6, 9)


def plot(folder: Path, seed: int) -> None:
    """Write both pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    p_values, power = (
        plt.subplots(1, 2, figsize=(10, 4.6), sharey=True),
        plt.subplots(1, 2, figsize=(10, 4), sharey=True),
    )
    for index, (name, noise) in enumerate(gate.NOISES.items()):
        rng = np.random.default_rng([seed, index])
        runs = 2 if noise is gate.night_effects else 1
        prior = gate.platform_prior(gate.priors_baselines(noise, rng, runs))
        for side, given in enumerate((None, prior)):
            found = np.sort([_p_value(gate.draw(noise, rng), given) for _ in range(TRIALS)])
            p_values[1][side].plot((np.arange(TRIALS) + 0.5) / TRIALS, found, label=name, linewidth=1.2)
            power[1][side].plot(SCALES, _power(noise, rng, given), label=name, linewidth=1.2, marker=".")
    for side, title in enumerate(("a series alone", "with its platform")):
        axes = p_values[1][side]
        axes.plot([1e-4, 1], [1e-4, 1], color="black", linewidth=0.8, linestyle="--")
        axes.set(xscale="log", yscale="log", xlim=(2e-4, 1), ylim=(1e-5, 1), title=title)
        axes.set(xlabel="expected p-value where nothing changed")
        axes = power[1][side]
        axes.axhline(0.8, color="black", linewidth=0.8, linestyle="--")
        axes.axvline(1, color="black", linewidth=0.8, linestyle="--")
        axes.set(xlabel="change / stated detectable change", title=title, ylim=(0, 1.02))
    p_values[1][0].set_ylabel("p-value found (below the line: optimistic)")
    power[1][0].set_ylabel("share called regressed")
    for (figure, axes), file in ((p_values, "gate_p_values.png"), (power, "gate_power.png")):
        axes[0].legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(folder / file, dpi=80)


def _p_value(trial: gate.Trial, prior: gate.SpreadPrior | None) -> float:
    return gate.compare(trial.all_new, trial.base, floor=0.05, prior=prior).p_value or 0.0


def _power(noise: gate.Noise, rng: np.random.Generator, prior: gate.SpreadPrior | None) -> list[float]:
    """At each of `SCALES`, the changes in units of each trial's own stated one."""
    setting = gate.Setting(0.05)
    trials = [gate.draw(noise, rng) for _ in range(TRIALS // 5)]
    stated = [
        gate.compare(one.first, one.base, floor=0.05, prior=prior, confirmations=gate.RERUNS).detectable or 0.0
        for one in trials
    ]
    return [
        gate.rate(
            gate.verdicts(
                [gate.shifted(one, scale * mde) for one, mde in zip(trials, stated, strict=True)], prior, setting
            ),
            "regressed",
        )
        for scale in SCALES.tolist()
    ]
