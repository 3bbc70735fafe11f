"""How long the pages of `epwatch serve` take on a large history, at the server and in the browser.

    python benchmarks/web.py [--series 1000] [--nights 3650] [--quick] [--repeats 15] [--cache FOLDER] [--json]

The history is a lively one of `generated_history.py`, kept in a cache once it is made. `--quick` is 100 series x 200
nights. Each page is asked for within this process (ASGI: what the server itself takes), then from a real `epwatch
serve` over loopback; medians and the middle nine tenths of `--repeats`, after a first one that is told apart, and the
CPU time of the first kind, which is about what a page takes where nobody else has the cores. Pages of
series and runs are of another series or run each time, so that no answer is one that was given before. Beside each is a
plain SELECT of the rows it tells of, on a connection of the same history: the last column is how many times as long the
page takes. Aims at the server: last night with 1,000 series 300 ms, a series of 3,650 nights 150 ms. Then, where
Chromium and Playwright are installed, from navigation to the plot drawn in a new page, which shall take at most 1 s.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

import httpx2
import numpy as np
from generated_history import cached, told
from generated_rows import PLATFORM, Shape, name_of_night, run_id

from regress_db.history import History

FULL = Shape(1000, 3650, small=True, lively=True)
QUICK = Shape(100, 200, small=True, lively=True)
NIGHT_AIM_MS = 300.0
SERIES_AIM_MS = 150.0
DRAWN_AIM_MS = 1000.0
PHASE = "combine"
_NODES_NIGHTS = 30
_START_DEADLINE_S = 60
_DRAWN_DEADLINE_S = 60
_ANSWER_DEADLINE_S = 60.0

Ask = Callable[[str], int]
"""Asks for an address, returns the bytes that come (compressed, as browsers ask for); any but 200 is an error."""


@dataclass(frozen=True, slots=True)
class Page:
    """One question. address: of the how-manieth time it is asked; select: the same rows by plain SQL, and its
    parameters; aim_ms: None where none is set."""

    name: str
    address: Callable[[int], str]
    select: Callable[[int], tuple[str, tuple[object, ...]]]
    aim_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Timed:
    """What asking took, in ms: the first time, then the median, 5th and 95th percentile of the others.

    cpu_ms: median of what this process computed for it.
    """

    first_ms: float
    median_ms: float
    low_ms: float
    high_ms: float
    cpu_ms: float
    bytes: int = 0


def pages(shape: Shape) -> list[Page]:
    """Every page that is measured, newest night, newest runs, another series each time."""
    cases = shape.cases
    newest_run = shape.nights * len(cases)

    def series(form: str) -> Callable[[int], str]:
        return lambda turn: f"/series{form}?" + urlencode({"s": f"{cases[_place(turn)].key}|{PHASE}|{PLATFORM}"})

    def run(form: str) -> Callable[[int], str]:
        return lambda turn: f"/runs/{quote(run_id(newest_run - _place(turn)))}{form}"

    def _place(turn: int) -> int:
        return turn * 7 % len(cases)

    last = name_of_night(shape.nights - 1)
    found = []
    for form, kind in (("", "HTML"), (".json", "JSON")):
        found += [
            Page(f"last night, {kind}", _always(f"/nights/latest{form}"), lambda _: (_NIGHT, (last,)), NIGHT_AIM_MS),
            Page(
                f"a series, {kind}",
                series(form),
                lambda turn: (_SERIES, (cases[_place(turn)].key, PHASE)),
                SERIES_AIM_MS,
            ),
            Page(f"nights, {kind}", _always(f"/nights{form}"), lambda _: (_NIGHTS, ())),
            Page(f"a run, {kind}", run(form), lambda turn: (_RUN, (run_id(newest_run - _place(turn)),))),
            Page(f"nodes, {kind}", _always(f"/nodes{form}"), lambda _: (_NODES, (shape.nights - _NODES_NIGHTS,))),
            Page(f"triage, {kind}", _always(f"/triage{form}"), lambda _: (_TRIAGE, ())),
        ]
    return found


def _always(address: str) -> Callable[[int], str]:
    return lambda _: address


_NIGHT = """
    SELECT c.key, p.key, v.* FROM verdicts v JOIN cases c ON c.id = v.case_id JOIN platforms p ON p.id = v.platform_id
    WHERE v.night_id = (SELECT id FROM nights WHERE name = ?) ORDER BY v.id
"""
_SERIES = """
    SELECT r.started_at, n.name, r.run_id, e."commit", e.digest, v.value
    FROM runs r JOIN run_values v ON v.run = r.id JOIN environments e ON e.id = r.environment_id
    LEFT JOIN nights n ON n.id = r.night_id
    WHERE r.case_id = (SELECT id FROM cases WHERE key = ?)
    AND v.metric = (SELECT id FROM metrics WHERE phase = ? AND name = 'latency_us') ORDER BY r.started_at, r.id
"""
_NIGHTS = "SELECT * FROM nights ORDER BY started_at DESC"
_RUN = "SELECT r.*, v.* FROM runs r JOIN run_values v ON v.run = r.id WHERE r.run_id = ?"
_NODES = """
    SELECT r.id, k.node_id, v.value FROM runs r JOIN run_ranks k ON k.run = r.id JOIN run_values v ON v.run = r.id
    WHERE r.night_id > ? AND v.metric IN (SELECT id FROM metrics WHERE name = 'slowest_p50_us')
"""
_TRIAGE = "SELECT * FROM verdicts WHERE verdict = 'regressed' AND night_id = (SELECT max(id) FROM nights)"


def measure(shape: Shape, path: Path, repeats: int) -> list[dict[str, object]]:
    """Every page in process, over loopback, and its rows by plain SQL."""
    found = []
    with sqlite3.connect(path) as connection, in_process(path) as direct, served(path) as (address, over_loopback):
        for page in pages(shape):
            ours = {
                "asgi": _timed(direct, page.address, repeats),
                "http": _timed(over_loopback, page.address, repeats),
                "sql": _timed_select(connection, page, repeats),
            }
            found.append({"page": page.name, "aim_ms": page.aim_ms, **ours})
        drawn = _drawn(address, pages(shape)[1].address, repeats)
    if drawn is not None:
        found.append({"page": "a series, drawn", "aim_ms": DRAWN_AIM_MS, "browser": drawn})
    return found


@contextmanager
def in_process(path: Path) -> Iterator[Ask]:
    """Asks the application itself, without a network."""
    from regress_db.web.app import create_app

    with History.open(path, read_only=True) as history, asyncio.Runner() as runner:
        client = httpx2.AsyncClient(transport=httpx2.ASGITransport(create_app(history)), base_url="http://127.0.0.1")

        def ask(address: str) -> int:
            answer = runner.run(client.get(address))
            answer.raise_for_status()
            return answer.num_bytes_downloaded

        yield ask
        runner.run(client.aclose())


@contextmanager
def served(path: Path) -> Iterator[tuple[str, Ask]]:
    """Asks a real `epwatch serve` over a connection that stays open; also gives the server's address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jobs", "serve", "--db", str(path), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, server)
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=_ANSWER_DEADLINE_S) as client:

            def ask(address: str) -> int:
                answer = client.get(address)
                answer.raise_for_status()
                return answer.num_bytes_downloaded

            yield f"http://127.0.0.1:{port}", ask
    finally:
        server.terminate()
        server.wait()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_DEADLINE_S
    while server.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"epwatch serve did not answer (exit status {server.poll()})")


def _timed(ask: Ask, address: Callable[[int], str], repeats: int) -> Timed:
    taken: list[tuple[float, float]] = []
    size = 0
    for turn in range(repeats + 1):
        where = address(turn)
        with _stopwatch(taken):
            size = ask(where)
    return _summary(taken, size)


def _timed_select(connection: sqlite3.Connection, page: Page, repeats: int) -> Timed:
    taken: list[tuple[float, float]] = []
    for turn in range(repeats + 1):
        select, parameters = page.select(turn)
        with _stopwatch(taken):
            connection.execute(select, parameters).fetchall()
    return _summary(taken)


@contextmanager
def _stopwatch(taken: list[tuple[float, float]]) -> Iterator[None]:
    """Adds seconds on the wall and of this process's CPU."""
    start, computed = time.perf_counter(), time.process_time()
    yield
    taken.append((time.perf_counter() - start, time.process_time() - computed))


def _summary(taken_s: list[tuple[float, float]], size: int = 0) -> Timed:
    wall = [1e3 * one for one, _ in taken_s]
    low, high = np.percentile(wall[1:], (5, 95)).tolist()
    computed = statistics.median(1e3 * one for _, one in taken_s[1:])
    return Timed(wall[0], statistics.median(wall[1:]), low, high, computed, size)


def _drawn(server: str, address: Callable[[int], str], repeats: int) -> Timed | None:
    """From navigation to the plot drawn, by the page's own mark, each in a new page of one Chromium."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        return None
    if program is None:
        return None
    taken: list[tuple[float, float]] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        for turn in range(repeats + 1):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(server + address(turn), timeout=1e3 * _DRAWN_DEADLINE_S)
            page.wait_for_function(f"() => {_MARK}.length > 0", timeout=1e3 * _DRAWN_DEADLINE_S)
            drawn_ms = page.evaluate(f"() => {{ const [m] = {_MARK}; return m.startTime + m.duration; }}")
            taken.append((drawn_ms / 1e3, 0.0))
            page.close()
        browser.close()
    return _summary(taken)


_MARK = "performance.getEntriesByName('epwatch:drawn')"


def report(found: list[dict[str, object]]) -> None:
    """The table."""
    print(
        f"\n{'page':<18}{'first':>9}{'in process':>12}{'5-95 %':>13}{'CPU':>10}{'loopback':>10}{'5-95 %':>13}", end=""
    )
    print(f"{'kB':>7}{'SELECT':>9}{'CPU':>9}{'times':>7}  aim")
    for row in found:
        aim = "" if row["aim_ms"] is None else f"{row['aim_ms']:.0f} ms"
        timed = {name: one for name, one in row.items() if isinstance(one, Timed)}
        if "browser" in timed:
            drawn = timed["browser"]
            print(f"{row['page']:<18}{drawn.first_ms:>6.0f} ms{'':>35}{_median(drawn)}{'':>32}  {aim}")
            continue
        direct, loopback, plain = timed["asgi"], timed["http"], timed["sql"]
        print(f"{row['page']:<18}{direct.first_ms:>6.0f} ms{_median(direct, 9)}{direct.cpu_ms:>7.0f} ms", end="")
        print(
            f"{_median(loopback)}{loopback.bytes / 1e3:>7.0f}{plain.median_ms:>6.1f} ms{plain.cpu_ms:>6.1f} ms", end=""
        )
        print(f"{direct.median_ms / plain.median_ms:>7.1f}  {aim}")


def _median(one: Timed, width: int = 7) -> str:
    between = f"{one.low_ms:.0f}-{one.high_ms:.0f}"
    return f"{one.median_ms:>{width}.1f} ms{between:>13}"


def main() -> None:
    """Make or find the history, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=FULL.series)
    parser.add_argument("--nights", type=int, default=FULL.nights)
    parser.add_argument("--quick", action="store_true", help="100 series x 200 nights")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--cache", type=Path, help="where generated histories are kept; default: the user's cache")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    asked = dataclasses.replace(FULL, series=arguments.series, nights=arguments.nights)
    shape = QUICK if arguments.quick else asked
    path, made = cached(shape, arguments.cache)
    found = measure(shape, path, arguments.repeats)
    if arguments.json:
        print(json.dumps({"shape": shape.name, "pages": found}, default=dataclasses.asdict, indent=1))
        return
    print(told(shape, path, made))
    report(found)
    print(f"\n{os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.2f}, Python {sys.version.split()[0]}, ", end="")
    print(f"SQLite {sqlite3.sqlite_version}")


if __name__ == "__main__":
    main()
