"""ReFrame's own results database, filled and asked as `benchmarks/history.py` asks epwatch's history.

    python benchmarks/reframe_history.py [--sessions 1000] [--tests 100] [--json]

A real ReFrame run of a test with three performance variables gives one test case of a report; sessions of many such are
made of it and stored by ReFrame's own storage backend. Questions go to the functions behind `--list-stored-testcases`
and `--performance-compare`, each in a fresh process. Needs the `bench` extra.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

START = 1672538400.0
DAY_S = 86400.0
_TEST = """
import reframe as rfm
import reframe.utility.sanity as sn
from reframe.core.builtins import performance_function, sanity_function


@rfm.simple_test
class Combine(rfm.RunOnlyRegressionTest):
    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    executable = "echo"
    executable_opts = ["ok"]

    @sanity_function
    def check(self):
        return sn.assert_found("ok", self.stdout)

    @performance_function("us")
    def latency_us(self):
        return 100.0

    @performance_function("us")
    def slowest_p50_us(self):
        return 110.0

    @performance_function("GB/s")
    def bandwidth_gbs(self):
        return 12.0
"""


def measure(sessions: int, tests: int) -> dict[str, Any]:
    """Fill a database and ask it; sizes in bytes, times in seconds, memory in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        template = _template(place)
        stored = _ask("store", place, sessions, tests, json.dumps(template))
        size = sum(file.stat().st_size for file in place.glob("results.db*"))
        answers = {name: _ask(name, place) for name in QUESTIONS}
        return {"sessions": sessions, "tests": tests, "size_bytes": size, "store": stored, **answers}


def _template(place: Path) -> dict[str, Any]:
    """The report of a real run of one test."""
    (place / "combine_test.py").write_text(_TEST)
    (place / "config.json").write_text(
        json.dumps({"storage": [{"backend": "sqlite", "sqlite_db_file": str(place / "results.db")}]})
    )
    command = [sys.executable, "-c", "import sys; from reframe.frontend.cli import main; sys.exit(main())"]
    command += ["-c", "combine_test.py", "-r", "--report-file", "report.json", "--prefix", "out"]
    environment = {**os.environ, "RFM_ENABLE_RESULTS_STORAGE": "no"}
    subprocess.run(command, cwd=place, env=environment, check=True, capture_output=True, timeout=120)
    report: dict[str, Any] = json.loads((place / "report.json").read_text())
    return report


def _ask(what: str, place: Path, *arguments: object) -> dict[str, float]:
    """One question in a process of its own."""
    command = [sys.executable, __file__, "--ask", what, str(place), *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _open(place: Path) -> None:
    from reframe.core import config, runtime

    site = config.load_config(str(place / "config.json"))
    site.select_subconfig()
    runtime.init_runtime(site)


def _store(place: Path, sessions: int, tests: int, report: dict[str, Any]) -> int:
    """Session after session, as a nightly would."""
    from reframe.frontend.reporting.storage import StorageBackend

    backend = StorageBackend.default()
    (case,) = report["runs"][0]["testcases"]
    chance = random.Random(1)
    for night in range(sessions):
        one = copy.deepcopy(report)
        identity, began = str(uuid.UUID(int=chance.getrandbits(128), version=4)), START + night * DAY_S
        one["session_info"] |= {
            "uuid": identity,
            "time_start_unix": began,
            "time_end_unix": began + 3600,
            "num_cases": tests,
        }
        one["runs"][0]["num_cases"] = tests
        one["runs"][0]["testcases"] = [
            {
                **case,
                "name": f"Combine_{test}",
                "unique_name": f"Combine_{test}",
                "display_name": f"Combine %size={test}",
                "job_completion_time_unix": began + 30 * test,
                "session_uuid": identity,
                "uuid": f"{identity}:0:{test}",
                "perfvalues": {
                    name: [value[0] * chance.gauss(1, 0.01), *value[1:]] for name, value in case["perfvalues"].items()
                },
            }
            for test in range(tests)
        ]
        backend.store(one)
    return sessions * tests


def _period(first: float, last: float) -> str:
    return ":".join(time.strftime("%Y%m%dT%H%M%S+0000", time.gmtime(moment)) for moment in (first, last))


def _trend(place: Path) -> int:
    """One test through all sessions."""
    from reframe.frontend.reporting import testcase_data

    everything = _period(START - DAY_S, START + 5000 * DAY_S)
    return len(testcase_data(f"{everything}/mean:+job_completion_time_unix/", "^Combine_7$")) - 1


def _compare(place: Path) -> int:
    """The last session against the one before, all tests."""
    from reframe.frontend.reporting import performance_compare
    from reframe.frontend.reporting.storage import StorageBackend
    from reframe.frontend.reporting.utility import parse_query_spec

    last = START + DAY_S * (_sessions(place) - 1)
    sessions = StorageBackend.default().fetch_sessions(parse_query_spec(_period(last - 1.5 * DAY_S, last + DAY_S / 2)))
    newest, before = sorted(sessions, key=lambda one: -one["session_info"]["time_start_unix"])[:2]
    named = f"{newest['session_info']['uuid']}/{before['session_info']['uuid']}"
    return len(performance_compare(f"{named}/mean:/")) - 1


def _everything(place: Path) -> int:
    """All test cases, as whatever looks for change points would read them."""
    from reframe.frontend.reporting.storage import StorageBackend
    from reframe.frontend.reporting.utility import parse_query_spec

    everything = parse_query_spec(_period(START - DAY_S, START + 5000 * DAY_S))
    return sum(len(case["perfvalues"]) for case in StorageBackend.default().fetch_testcases(everything))


def _sessions(place: Path) -> int:
    import sqlite3

    with sqlite3.connect(place / "results.db") as connection:
        (count,) = connection.execute("SELECT count(*) FROM sessions").fetchone()
    return int(count)


QUESTIONS: dict[str, Callable[[Path], int]] = {"trend": _trend, "compare": _compare, "everything": _everything}


def _answer(what: str, place: Path, arguments: list[str]) -> None:
    """In the process of its own: print how long it took, the most memory it had, and how much came back."""
    _open(place)
    start = time.perf_counter()
    if what == "store":
        count = _store(place, int(arguments[0]), int(arguments[1]), json.loads(arguments[2]))
    else:
        count = QUESTIONS[what](place)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "memory_mib": most_memory_mib(), "rows": count}))


def most_memory_mib() -> float:
    """The most this process had in memory. `getrusage` would count that of whoever started it, too."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--tests", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--ask", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ask:
        _answer(arguments.ask[0], Path(arguments.ask[1]), arguments.ask[2:])
        return
    if importlib.util.find_spec("reframe") is None:
        sys.exit("ReFrame is not installed: pip install 'epwatch[bench]'")
    found = measure(arguments.sessions, arguments.tests)
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    print(f"ReFrame, {found['sessions']} sessions x {found['tests']} tests x 3: {found['size_bytes'] / 1e6:.1f} MB")
    for name in ("store", *QUESTIONS):
        one = found[name]
        print(f"{name:<12}{one['seconds']:>9.2f} s {one['memory_mib']:>8.0f} MiB {one['rows']:>9} rows")


if __name__ == "__main__":
    main()
