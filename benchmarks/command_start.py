"""How long the command line takes to start, beside what cannot be saved: Python itself and SQLAlchemy's import.

    python benchmarks/command_start.py [--repeats N] [--json]

Each round starts every command once, in shuffled order, so that all see the same machine; the figures are medians of
wall time over rounds. `trend` reads a history of its own with nothing in it. Aim: below 0.3 s for each `epwatch` line.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def commands(history: Path) -> dict[str, list[str]]:
    """What is timed, by name; the first is what ratios are of."""
    epwatch = [sys.executable, "-c", "import sys; from jobs.cli import main; sys.exit(main())"]
    return {
        "python -c pass": [sys.executable, "-c", "pass"],
        'python -c "import sqlalchemy.orm"': [sys.executable, "-c", "import sqlalchemy.orm"],
        "epwatch --version": [*epwatch, "--version"],
        "epwatch --help": [*epwatch, "--help"],
        "epwatch trend": [*epwatch, "trend", "--db", str(history)],
    }


def measure(rounds: int) -> dict[str, float]:
    """Name to median seconds."""
    with tempfile.TemporaryDirectory() as folder:
        history = Path(folder) / "history.db"
        make = "import sys; from regress_db.history import History; History.open(sys.argv[1]).close()"
        subprocess.run([sys.executable, "-c", make, str(history)], check=True)
        timed = commands(history)
        taken: dict[str, list[float]] = {name: [] for name in timed}
        for round_ in range(rounds + 1):
            for name, command in random.Random(round_).sample(sorted(timed.items()), len(timed)):
                start = time.perf_counter()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                if round_:  # the first round only warms the page cache
                    taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="rounds")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    medians = measure(arguments.repeats)
    bare = medians["python -c pass"]
    load = os.getloadavg()[0]
    if arguments.json:
        print(json.dumps({"median_s": medians, "load_average": load, "rounds": arguments.repeats}, indent=1))
        return
    print(f"{'command':<36}{'median s':>10}{'x bare python':>15}")
    for name, seconds in medians.items():
        print(f"{name:<36}{seconds:>10.3f}{seconds / bare:>15.1f}")
    machine = f"{os.cpu_count()} CPUs, load average {load:.2f}, Python {sys.version.split()[0]}"
    print(f"\n{arguments.repeats} rounds, {machine}")


if __name__ == "__main__":
    main()
