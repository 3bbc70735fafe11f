"""How large a history is and how long its answers take, beside plain SQL and beside ReFrame's results database.

    python benchmarks/history.py [--series 300] [--nights 1000] [--large] [--no-reframe] [--json]

The history is made by `generated_history.py`: what `collect` would write for one run of each case a night. Every
question is asked in a fresh process, which says how long the first answer took, the median of some more, and the most
memory it had. `--large` is 1,000 series x 3,650 nights, with three metrics and without samples. The comparison with
ReFrame is on the same 1,000 nights x 100 x 3 values for both; it is left out where the `bench` extra is not installed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import reframe_history

if TYPE_CHECKING:
    from generated_rows import Shape

PHASE = "combine"
REPEATS = {"trend": 15, "plain SQL": 15, "compare": 5, "night's verdict": 1}
AIMS = {"trend": "10 ms", "night's verdict": "1 s", "change points": "30 s", "epwatch trend": "0.3 s"}
INGESTED = 500


def ask_trend(path: Path) -> Callable[[], int]:
    """One series through all nights."""
    from regress_db.history import History
    from regress_db.queries import trend
    from regress_db.selection import Selection

    history = History.open(path, create=False)
    key = _a_case(path)
    return lambda: len(trend(history, Selection.of(f"case={key}"), phase=PHASE))


def ask_plain(path: Path) -> Callable[[], int]:
    """The same rows and columns by one select of the standard library's sqlite3."""
    connection = sqlite3.connect(path)
    (case,) = connection.execute("SELECT id FROM cases WHERE key = ?", (_a_case(path),)).fetchone()
    (metric,) = connection.execute(
        "SELECT id FROM metrics WHERE phase = ? AND name = 'latency_us'", (PHASE,)
    ).fetchone()
    select = """
        SELECT c.key, p.key, v.metric, r.started_at, n.name, r.run_id, e."commit", substr(e.digest, 1, 12), v.value
        FROM runs r JOIN run_values v ON v.run = r.id JOIN cases c ON c.id = r.case_id
        JOIN platforms p ON p.id = r.platform_id JOIN environments e ON e.id = r.environment_id
        LEFT JOIN nights n ON n.id = r.night_id WHERE r.case_id = ? AND v.metric = ? ORDER BY r.started_at, r.id
    """
    return lambda: len(connection.execute(select, (case, metric)).fetchall())


def ask_everything(path: Path) -> Callable[[], int]:
    """One metric of one phase of every run there is, as rows."""
    from regress_db.history import History
    from regress_db.queries import trend

    history = History.open(path, create=False)
    return lambda: len(trend(history, phase=PHASE))


def ask_compare(path: Path) -> Callable[[], int]:
    """The newest night against the one before, every series."""
    from regress_db import History

    history = History.open(path, create=False)
    newest, before = (line.night for line in history.nights(2))
    return lambda: len(history.compare(f"night:{before}", f"night:{newest}"))


def ask_verdict(path: Path) -> Callable[[], int]:
    """The whole newest night judged against each series' own past."""
    from regress_db.history import History
    from regress_db.verdicts import judge_night

    history = History.open(path, create=False)
    return lambda: len(judge_night(history, "latest", baseline="auto", keep=False).series)


def ask_changes(path: Path) -> Callable[[], int]:
    """Change points over everything, looked for anew."""
    from regress_db.changes import changes
    from regress_db.history import History

    history = History.open(path, create=False)
    return lambda: len(changes(history))


QUESTIONS: dict[str, Callable[[Path], Callable[[], int]]] = {
    "trend": ask_trend,
    "plain SQL": ask_plain,
    "everything": ask_everything,
    "compare": ask_compare,
    "night's verdict": ask_verdict,
    "change points": ask_changes,
}


def measure(shape: Shape, folder: Path) -> dict[str, Any]:
    """Make a history of that shape and ask it everything."""
    from generated_history import generate, size

    path = folder / "history.db"
    made = generate(path, shape)
    return {
        "shape": dataclasses.asdict(shape) | {"values": shape.values},
        "generated_s": made.seconds,
        "size_bytes": size(path),
        "bytes_by_table": _bytes_by_table(path),
        "answers": {name: _ask(name, path) for name in QUESTIONS},
        "start_s": _start(path),
    }


def ingest_rate(folder: Path) -> float:
    """Records a second through `collect`, from files in a spool to the end of the last commit."""
    from harness import record as records
    from harness.stats import summarise
    from regress_db.history import History
    from regress_db.ingest import collect

    spool = folder / "spool"
    spool.mkdir()
    chance = random.Random(1)
    for number in range(INGESTED):
        records.write(_record(number, chance, summarise), spool)
    with History.open(folder / "ingested.db") as history:
        start = time.perf_counter()
        done = collect(history, spool)
        taken = time.perf_counter() - start
    assert len(done.accepted) == INGESTED, done.quarantined
    return INGESTED / taken


def _record(number: int, chance: random.Random, summarise: Callable[..., Any]) -> Any:
    """A run of 8 ranks x 20 iterations that the harness could have written."""
    from generated_rows import ITERATIONS, START, Shape

    from harness import record as records

    case = Shape(300, 1).cases[number % 150]
    started = START + timedelta(seconds=30 * number)
    phases = []
    for phase, name in (("dispatch", "recv"), ("combine", "send")):
        times = [[100 * chance.gauss(1, 0.02) for _ in range(ITERATIONS)] for _ in range(case.ranks)]
        stats = summarise(times, 1)
        gbs = 1e6 / stats.latency_us / 1e3
        traffic = records.Traffic(
            bytes_per_rank={name: 1e6},
            headline=name,
            per_rank_gbs={name: gbs},
            aggregate_gbs=gbs * case.ranks,
            wire_bytes_per_rank=8e5,
        )
        phases.append(
            records.PhaseResult(phase=phase, samples_us=times, leading_dropped=1, stats=stats, traffic=traffic)
        )
    return records.Record(
        run_id=records.new_run_id(),
        case=case,
        platform=records.Platform(
            device_model="Some GPU 3000", devices_per_node=8, interconnect="nvlink", cluster="generated"
        ),
        environment=records.Environment(
            code={"commit": "c" * 40}, versions={"torch": "2.13.0"}, variables={}, topology={"numa_nodes": "2"}
        ),
        nodes=[records.Node(hostname="gpu01", ranks=list(range(case.ranks)))],
        started_at=started.isoformat(),
        ended_at=(started + timedelta(seconds=20)).isoformat(),
        warmup=10,
        iters=ITERATIONS,
        outcome="ok",
        checks=[records.Check(when=when, passed=True, rows=4096) for when in ("before", "after")],
        phases=phases,
        night=f"night-{number // 150}",
        repeat=0,
    )


def _a_case(path: Path) -> str:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (key,) = connection.execute("SELECT key FROM cases WHERE id = (SELECT max(id) / 2 FROM cases)").fetchone()
    return str(key)


def _bytes_by_table(path: Path) -> dict[str, int]:
    """Bytes of the pages of each table and index; nothing where this SQLite cannot tell."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        try:
            return dict(connection.execute("SELECT name, sum(pgsize) FROM dbstat GROUP BY name ORDER BY 2 DESC"))
        except sqlite3.OperationalError:
            return {}


def _ask(name: str, path: Path) -> dict[str, Any]:
    """One question in a process of its own."""
    command = [sys.executable, __file__, "--ask", name, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no reason"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _answer(name: str, path: Path) -> None:
    """In the process of its own."""
    question = QUESTIONS[name](path)
    taken = []
    for _ in range(1 + REPEATS.get(name, 0)):
        start = time.perf_counter()
        rows = question()
        taken.append(time.perf_counter() - start)
    median = statistics.median(taken[1:] or taken)
    memory = reframe_history.most_memory_mib()
    print(json.dumps({"first_s": taken[0], "median_s": median, "memory_mib": memory, "rows": rows}))


def _start(path: Path) -> float:
    """Median wall time of `epwatch trend` for one series, twenty runs."""
    code = "import sys; from jobs.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "trend", f"case={_a_case(path)}", "--limit", "10", "--db", str(path)]
    taken = []
    for _ in range(11):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def report(found: dict[str, Any]) -> None:
    """The table of one history."""
    shape = found["shape"]
    print(f"\n{shape['series']} series x {shape['nights']} nights, {shape['values']:,} values", end="")
    print(", three metrics, no samples" if shape["small"] else ", every metric, samples of 20 x 8")
    print(f"database {found['size_bytes'] / 1e6:.1f} MB, made in bulk in {found['generated_s']:.0f} s")
    tables = found["bytes_by_table"]
    if tables:
        pairs = shape["series"] * shape["nights"]
        print(f"bytes per value {tables['run_values'] / shape['values']:.1f}", end="")
        print(f"; per run and series: {found['size_bytes'] / pairs:.0f}, of it samples {_samples(tables) / pairs:.0f}")
    print(f"{'question':<18}{'first':>10}{'median':>10}{'memory':>10}{'rows':>9}  aim")
    for name, one in found["answers"].items():
        if "failed" in one:
            print(f"{name:<18}  not answered: {one['failed']}")
            continue
        times = "".join(f"{1e3 * one[key]:>7.1f} ms" for key in ("first_s", "median_s"))
        print(f"{name:<18}{times}{one['memory_mib']:>6.0f} MiB{one['rows']:>9}  {AIMS.get(name, '')}")
    if all("failed" not in found["answers"][name] for name in ("trend", "plain SQL")):
        ratio = found["answers"]["trend"]["median_s"] / found["answers"]["plain SQL"]["median_s"]
        print(f"{'trend / plain SQL':<18}{'':>10}{ratio:>10.1f}")
    print(f"{'epwatch trend':<18}{'':>10}{1e3 * found['start_s']:>7.1f} ms{'':>19}  {AIMS['epwatch trend']}")


def _samples(tables: dict[str, int]) -> int:
    return sum(count for name, count in tables.items() if "samples" in name)


def report_reframe(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Both on the same numbers, and the ratios. ReFrame's answers are those of a fresh process, hence ours too."""
    print(f"\nthe same {theirs['sessions']} nights x {theirs['tests']} x 3 values beside ReFrame's results database")
    print(f"{'':<18}{'epwatch':>12}{'ReFrame':>12}{'ratio':>9}{'memory, MiB':>20}")
    print(f"{'database, MB':<18}{ours['size_bytes'] / 1e6:>12.1f}{theirs['size_bytes'] / 1e6:>12.1f}", end="")
    print(f"{theirs['size_bytes'] / ours['size_bytes']:>9.0f}")
    for name in ("trend", "compare", "everything"):
        one, other = ours["answers"][name], theirs[name]
        print(f"{name + ', s':<18}{one['first_s']:>12.4f}{other['seconds']:>12.2f}", end="")
        ratio = other["seconds"] / one["first_s"]
        print(f"{ratio:>9.0f}{one['memory_mib']:>11.0f} / {other['memory_mib']:.0f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=300)
    parser.add_argument("--nights", type=int, default=1000)
    parser.add_argument("--large", action="store_true", help="1,000 series x 3,650 nights as well")
    parser.add_argument("--no-reframe", action="store_true", help="leave ReFrame out")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--ask", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ask:
        _answer(arguments.ask[0], Path(arguments.ask[1]))
        return
    from generated_rows import Shape  # numpy, which no question needs, stays out of the processes that answer

    shapes = [Shape(arguments.series, arguments.nights)]
    shapes += [Shape(1000, 3650, small=True)] * arguments.large
    histories = []
    for shape in shapes:
        with tempfile.TemporaryDirectory() as folder:
            histories.append(measure(shape, Path(folder)))
    with tempfile.TemporaryDirectory() as folder:
        rate = ingest_rate(Path(folder))
    found: dict[str, Any] = {"histories": histories, "records_per_s": rate, "load_average": os.getloadavg()[0]}
    if not arguments.no_reframe and importlib.util.find_spec("reframe"):
        with tempfile.TemporaryDirectory() as folder:
            found["same_as_reframe"] = measure(Shape(100, 1000, small=True), Path(folder))
        found["reframe"] = reframe_history.measure(1000, 100)
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    for one in histories:
        report(one)
    print(f"\ncollect: {rate:.0f} records/s of 8 ranks x 20 iterations, from files in a spool")
    if "reframe" in found:
        report_reframe(found["same_as_reframe"], found["reframe"])
    print(f"\n{os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.2f}, Python {sys.version.split()[0]}, ", end="")
    print(f"SQLite {sqlite3.sqlite_version}")


if __name__ == "__main__":
    main()
