"""Nodes: how often they are told rightly, on histories of known truth, and how long asking takes beside plain SQL.

    python benchmarks/nodes.py [--seed N] [--histories N] [--series 1000] [--nights 100] [--nodes 8] [--no-large]

First the claims: each scenario is a history of 20 units (40 series) and 30 nights on 8 nodes, unless it says otherwise,
with 1.5 % run noise, 1 % between nights and 0.5 % between allocations of four units. `covered`: share of the 95 %
intervals that hold the truth; `found`: slow nodes called slow; `falsely`: histories in which any other node is called
slow or fast at the level 0.01. Then the time of `node_effects` on series x nights x 3 runs in SQLite, beside a plain
SELECT of the same rows (runs, their values and the machines of their ranks) by the standard library, each in turn.
Without `--seed` the seed is fixed, with `--seed 0` it is fresh; it is printed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import secrets
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from regress_db.method.nodes import node_contrasts
from regress_db.method.nodes_design import NodeRuns

FIXED_SEED = 20261122
LEVEL = 0.01
NIGHT_SD = 0.01
SD = 0.015
OF_AN_ALLOCATION = 4
START = datetime(2026, 1, 1, 2, tzinfo=UTC)

Noise = Callable[[np.random.Generator], float]
NOISES: dict[str, Noise] = {
    "normal": lambda chance: chance.normal(),
    "t3": lambda chance: chance.standard_t(3) / math.sqrt(3),
    "spikes": lambda chance: 0.7 * chance.normal() + 8.0 * (chance.random() < 0.03),
}


@dataclass(frozen=True, slots=True)
class Scenario:
    """effects: log change of runs by node; of several, the largest. node_nights: standard deviation of what a node has
    on one night alone. commit: log change of every second unit in the second half of the nights. wholly: each night has
    one node.
    """

    name: str
    effects: Mapping[int, float] = field(default_factory=dict)
    units: int = 20
    nights: int = 30
    repeats: int = 3
    per_run: int = 1
    noise: str = "normal"
    allocation_sd: float = 0.005
    node_nights: float = 0.0
    commit: float = 0.0
    wholly: bool = False


SLOW = {7: 0.05}
SCENARIOS = (
    Scenario("nothing"),
    Scenario("a node +5 %", SLOW),
    Scenario("a node +5 %, t3", SLOW, noise="t3"),
    Scenario("a node +5 %, 3 % spikes x1.3", SLOW, noise="spikes"),
    Scenario("one run a night", SLOW, repeats=1),
    Scenario("one run a night, 4 cases", SLOW, repeats=1, units=4),
    Scenario("two nodes a run", SLOW, per_run=2),
    Scenario("two nodes a run, +5 % and +10 %", {7: 0.05, 6: 0.1}, per_run=2),
    Scenario("three nodes +5, +8, +10 %", {7: 0.05, 6: 0.1, 5: 0.08}),
    Scenario("allocations differ by 2 %", SLOW, allocation_sd=0.02),
    Scenario("same, one run a night", SLOW, allocation_sd=0.02, repeats=1),
    Scenario("nodes differ by 1 % each night", SLOW, node_nights=0.01),
    Scenario("a commit +20 % on half, half way", SLOW, commit=0.2),
    Scenario("6 nights", SLOW, nights=6),
    Scenario("2 nights", SLOW, nights=2),
    Scenario("one node a night, 60 nights", {7: 0.08}, nights=60, repeats=1, wholly=True),
)


def a_history(chance: np.random.Generator, one: Scenario, hosts: int = 8) -> NodeRuns:
    """Its runs."""
    spread = SD * np.exp(0.4 * chance.normal(size=one.units))
    level = chance.normal(5, 1, one.units)
    noise = NOISES[one.noise]
    rows: list[tuple[float, int, int, int, int]] = []
    machines: dict[tuple[str, ...], int] = {}
    allocation = 0
    for night in range(one.nights):
        of_night = NIGHT_SD * chance.normal()
        of_nodes = one.node_nights * chance.normal(size=hosts)
        for _ in range(one.repeats):
            for first in range(0, one.units, OF_AN_ALLOCATION):
                on = [night * 5 % hosts] if one.wholly else sorted(chance.choice(hosts, one.per_run, replace=False))
                where = machines.setdefault(tuple(f"n{host}" for host in on), len(machines))
                shared = of_night + one.allocation_sd * chance.normal()
                shared += max(one.effects.get(int(host), 0.0) + of_nodes[host] for host in on)
                for unit in range(first, min(first + OF_AN_ALLOCATION, one.units)):
                    code = one.commit * (2 * night >= one.nights and unit % 2)
                    value = level[unit] + shared + code + spread[unit] * noise(chance)
                    rows.append((value, unit, night, allocation, where))
                allocation += 1
    values, *numbers = zip(*rows, strict=True)
    unit, night_of, allocations, wheres = (np.array(column, dtype=np.intp) for column in numbers)
    strata, series = np.arange(one.units, dtype=np.intp) % 2, np.full(one.units, 2, dtype=np.intp)
    return NodeRuns(np.array(values), unit, night_of, allocations, wheres, strata, series, tuple(machines))


def claims(seed: int, histories: int) -> None:
    print(f"{'scenario':34s} {'covered':>8s} {'± sd':>6s} {'half width':>10s} {'found':>6s} {'falsely':>8s} {'ms':>5s}")
    for number, one in enumerate(SCENARIOS):
        chance = np.random.default_rng([seed, number])
        covered = told = found = falsely = 0
        widths: list[float] = []
        taken: list[float] = []
        for _ in range(histories):
            runs = a_history(chance, one)
            start = time.perf_counter()
            contrasts = node_contrasts(runs, LEVEL)
            taken.append(time.perf_counter() - start)
            alarm = False
            for contrast in contrasts:
                truth = one.effects.get(int(contrast.names[0][1:]), 0.0)
                if contrast.low is None or contrast.high is None or contrast.p_value is None:
                    continue
                told += 1
                covered += contrast.low <= truth <= contrast.high
                widths.append((contrast.high - contrast.low) / 2)
                found += bool(truth) and contrast.p_value <= LEVEL
                alarm |= not truth and contrast.p_value <= LEVEL
            falsely += alarm
        slow = len(one.effects) * histories
        shown = f"{found / slow:6.2f}" if slow else "      "
        share = covered / told
        error = math.sqrt(share * (1 - share) / told)
        print(
            f"{one.name:34s} {share:8.3f} {error:6.3f} {statistics.mean(widths):9.2%}  {shown} "
            f"{falsely / histories:8.3f} {1e3 * statistics.median(taken):5.0f}",
            flush=True,
        )


def make(path: Path, cases: int, nights: int, nodes: int, seed: int) -> None:
    """A history with three runs of each case a night, each on one node; of the tables, what the question reads."""
    from harness.case import PHASES, Case
    from regress_db.history import History
    from regress_db.metrics import RUN_VALUE_METRIC

    chance = np.random.default_rng(seed)
    History.open(path).close()
    connection = sqlite3.connect(path)
    made = [
        Case(
            backend=("ep_core", "torch")[one % 2], mode="ll", ranks=8, tokens=16 + one, hidden=7168, topk=8, experts=64
        )
        for one in range(cases)
    ]
    names = ("id", "key", *Case.__struct_fields__)
    connection.executemany(
        f"INSERT INTO cases ({', '.join(names)}) VALUES ({', '.join('?' for _ in names)})",
        [(one + 1, case.key, *(getattr(case, name) for name in names[2:])) for one, case in enumerate(made)],
    )
    connection.execute("INSERT INTO platforms VALUES (1, 'c/gpu x8/nvlink', 'gpu', 8, 'nvlink', 'c')")
    connection.execute("INSERT INTO environments VALUES (1, 'd', 'c', '{}')")
    connection.executemany("INSERT INTO nodes VALUES (?, ?)", [(one + 1, f"n{one + 1}") for one in range(nodes)])
    connection.executemany(
        "INSERT INTO metrics VALUES (?, ?, ?)", [(one + 1, phase, RUN_VALUE_METRIC) for one, phase in enumerate(PHASES)]
    )
    slower = np.where(np.arange(nodes) == nodes - 1, 1.05, 1.0)
    number = 0
    for night in range(nights):
        started = START + timedelta(days=night)
        text = f"{started:%Y-%m-%d %H:%M:%S.%f}"
        connection.execute(
            "INSERT INTO nights (id, name, plan, started_at) VALUES (?, ?, 'p', ?)", (night + 1, f"night{night}", text)
        )
        runs, ranks, values = [], [], []
        for repeat in range(3):
            on = chance.integers(nodes, size=cases)
            us = (100 + np.arange(cases)) * slower[on] * np.exp(0.01 * chance.normal() + SD * chance.normal(size=cases))
            for case in range(cases):
                number += 1
                identity = f"{number:032x}"
                runs.append(
                    (number, identity, case + 1, 1, 1, night + 1, repeat, text, text, "ok", 10, 20, "{}", "[]", "")
                )
                ranks += [(number, rank, int(on[case]) + 1) for rank in range(8)]
                values += [(number, metric, float(us[case]) * metric) for metric in (1, 2)]
        connection.executemany(f"INSERT INTO runs VALUES ({', '.join('?' for _ in runs[0])})", runs)
        connection.executemany("INSERT INTO run_ranks VALUES (?, ?, ?)", ranks)
        connection.executemany("INSERT INTO run_values VALUES (?, ?, ?)", values)
        connection.commit()
    connection.close()


def plain(path: Path) -> int:
    """The same rows by two SELECTs."""
    connection = sqlite3.connect(path)
    rows = connection.execute(
        "SELECT r.id, r.case_id, r.platform_id, r.night_id, r.repeat, v.metric, v.value FROM runs r "
        "JOIN run_values v ON v.run = r.id WHERE r.outcome = 'ok' AND v.metric IN (1, 2)"
    ).fetchall()
    where = connection.execute("SELECT run, min(node_id), max(node_id) FROM run_ranks GROUP BY run").fetchall()
    connection.close()
    return len(rows) + len(where)


def speed(series: int, nights: int, nodes: int, seed: int) -> None:
    from regress_db.history import History
    from regress_db.method import nodes as _  # what is imported once is no part of an answer
    from regress_db.nodes import node_effects

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "history.db"
        make(path, series // 2, nights, nodes, seed)
        with History.open(path) as history:
            times: dict[str, list[float]] = {"plain SELECT": [], "all nights": [], "newest 30 nights": []}
            for _ in range(3):
                for name, ask in (
                    ("plain SELECT", lambda: plain(path)),
                    ("all nights", lambda: len(node_effects(history, since_nights=nights))),
                    ("newest 30 nights", lambda: len(node_effects(history))),
                ):
                    start = time.perf_counter()
                    ask()
                    times[name].append(time.perf_counter() - start)
            slowest = node_effects(history)[0]
    median = {name: statistics.median(taken) for name, taken in times.items()}
    print(f"\n{series} series x {nights} nights x 3 runs on {nodes} nodes, SQLite; median of 3, in turn")
    for name, taken in median.items():
        print(f"{name:18s} {taken:7.2f} s   {taken / median['plain SELECT']:5.1f} x plain SELECT")
    print(f"slowest: {slowest.hostname} {slowest.effect:+.1%} [{slowest.low:+.1%}..{slowest.high:+.1%}], true +5.0 %")
    print(
        json.dumps({"settings": {"series": series, "nights": nights, "nodes": nodes, "seed": seed}, "seconds": median})
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=FIXED_SEED)
    parser.add_argument("--histories", type=int, default=100, help="of each scenario")
    parser.add_argument("--series", type=int, default=1000)
    parser.add_argument("--nights", type=int, default=100)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--no-large", action="store_true", help="leave the time out")
    given = parser.parse_args()
    seed = given.seed or secrets.randbits(32)
    print(f"seed {seed}, {given.histories} histories of each scenario, Python {sys.version.split()[0]}", end=", ")
    print(f"{os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.2f}")
    claims(seed, given.histories)
    if not given.no_large:
        speed(given.series, given.nights, given.nodes, seed)


if __name__ == "__main__":
    main()
