"""Makes the table of what a scan for changes scores where there is none: `regress_db/method/changepoints_null.py`.

Where nothing changes every order of the points is as likely as any other, so the table is made of random orders. Run
`python benchmarks/detection_null.py --write` after a change to `regress_db.method.changepoints_scan`; without `--write`
it prints how far fresh orders are from the table. Takes about five minutes on one core.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np

from regress_db.method import changepoints_null
from regress_db.method import changepoints_scan as scanning

HERE = Path(changepoints_null.__file__)
SEARCHED = [*range(6, 25), 26, 28, 30, 33, 36, 40, 45, 50, 60, 70, 80, 100, 120, 150, 200, 280, 400, 560, 800, 1130]
SEARCHED += [1600, 2400, 3650, 5000]
RECENT = [*range(4, 31), 33, 36, 40, 45, 50, 56, 63, 71, 80, 90, 100, scanning.RECENT_WINDOW]
WORK = 3e6
"""Points scanned for one size of the table."""


def at_levels(scores: np.ndarray) -> list[float]:
    """For each level the smallest score that is reached or passed with at most this probability.

    inf where even the highest score possible is more probable.
    """
    values, counts = np.unique(np.round(scores, 6), return_counts=True)
    reached = counts[::-1].cumsum()[::-1] / len(scores)
    found = []
    for level in changepoints_null.LEVELS:
        below = np.flatnonzero(reached <= level)
        # An atom that is the largest value there is has all of its probability above the level.
        found.append(float(values[below[0]]) if len(below) else float("inf"))
    return found


def search_scores(chance: np.random.Generator, points: int, work: float) -> np.ndarray:
    """Scores of random orders of so many points."""
    wanted = int(np.clip(work / points, 6_000, 200_000))
    batch = max(1, 200_000 // points)
    return np.concatenate([scanning.highest_scores(chance.random((batch, points))) for _ in range(-(-wanted // batch))])


def recent_scores(chance: np.random.Generator, points: int, work: float) -> np.ndarray:
    """Best scores of the newest points of random orders, which only the newest points' ranks decide."""
    most = min(scanning.MOST_RECENT, points // 2)
    newest = np.stack([chance.permutation(points)[-most:] for _ in range(int(min(work / 60, 400_000)))])
    centred = newest - (points - 1) / 2
    best = np.full(len(newest), -np.inf)
    for recent in range(scanning.LEAST_RECENT, most + 1):
        total = np.abs(centred[:, -recent:].sum(axis=1))
        best = np.maximum(best, scanning.score_of_sums(total, points, recent))
    return best


def literal(table: dict[int, list[float]]) -> str:
    lines = []
    for points, scores in table.items():
        shown = ", ".join("INF" if score == float("inf") else f"{score:.3f}" for score in scores)
        lines.append(f"    {points}: ({shown}),\n")
    return "{\n" + "".join(lines) + "}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seed", type=int, default=2026)
    options.add_argument("--work", type=float, default=WORK, help="points scanned for one size")
    options.add_argument("--write", action="store_true", help="replace the table in the package")
    arguments = options.parse_args()
    chance = np.random.default_rng(arguments.seed)
    search = {points: at_levels(search_scores(chance, points, arguments.work)) for points in SEARCHED}
    recent = {points: at_levels(recent_scores(chance, points, arguments.work)) for points in RECENT}
    if arguments.write:
        text = HERE.read_text()
        for name, table in (("SEARCH_SCORES", search), ("RECENT_SCORES", recent)):
            text = re.sub(rf"({name}: [^=]*= )\{{.*?\n?\}}", lambda m, t=table: m[1] + literal(t), text, flags=re.S)
        HERE.write_text(text)
        return
    for name, table, known in (
        ("search", search, changepoints_null.SEARCH_SCORES),
        ("recent", recent, changepoints_null.RECENT_SCORES),
    ):
        apart = [abs(a - b) for n, row in table.items() for a, b in zip(row, known[n], strict=True) if a < 1e9 > b]
        print(f"{name}: fresh scores are {np.median(apart):.3f} (median), {max(apart):.3f} (most) from the table")


if __name__ == "__main__":
    main()
