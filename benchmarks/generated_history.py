"""A large history made of random numbers, to ask questions of: `benchmarks/history.py` and `benchmarks/web.py` do.

    python benchmarks/generated_history.py [--series 300] [--nights 100] [--small] [--lively] [PATH]

Each night runs each case once and each case has two series, one for a phase. The rows go straight into the schema's
tables in bulk, past `collect`, whose rate `benchmarks/history.py` measures apart. They are those that `collect` would
write: every metric of a record, each rank's median, checks, ranks, planned runs, samples (20 iterations x 8 ranks).
A night has its own 0.5 % of noise, a run 1 %; a fifth of the cases gets 4 % slower half way.

`--small` leaves out what few questions need: three metrics, two ranks and no samples. `--lively` adds what a page has
to show: that fifth of the cases gets 8 % slower, another 8 % faster, one drifts 5 % up, one is three times as noisy; a
node is 4 % slow from some night on; two runs in a thousand fail; in the last night one case in fifty is 12 % slower and
one in a hundred fails. Every night has its verdicts: those of the newest three are `judge_night`'s own, each series
against its own past, and these nights have their samples; those of the nights before compare with the level ten nights
ago, as that is known here, and are as long as real ones.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs
from generated_rows import Rows, Shape, name_of_night, rows_of_nights, shared_rows

from regress_db.history import History
from regress_db.migrate import PACKAGED
from regress_db.verdicts import judge_night

_NIGHTS_AT_ONCE = 25
_CACHE_KIB = 262_144


@dataclass(frozen=True, slots=True)
class Made:
    """What making a history took. judged_s: of the seconds, those for the verdicts of the newest nights."""

    seconds: float
    judged_s: float


def generate(where: str | Path, shape: Shape) -> Made:
    """Make a history of that shape in a new file."""
    start = time.perf_counter()
    History.open(where).close()
    with contextlib.closing(sqlite3.connect(where, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        _insert(connection, shared_rows(shape))
        chance = np.random.default_rng(shape.seed)
        for first in range(0, shape.nights, _NIGHTS_AT_ONCE):
            nights = range(first, min(first + _NIGHTS_AT_ONCE, shape.nights))
            _insert(connection, rows_of_nights(shape, nights, chance))
    measured = time.perf_counter()
    with History.open(where) as history:
        for night in shape.newest:
            judge_night(history, name_of_night(night), baseline="auto")
    end = time.perf_counter()
    return Made(seconds=end - start, judged_s=end - measured)


def cached(shape: Shape, folder: Path | None = None) -> tuple[Path, Made]:
    """A history of that shape from the cache, made where it is not there yet, and what making it took.

    folder: the cache, the user's own (by the XDG rules) without. A history's folder there is named by its settings and
    the schema. Who changes an answer of the history writes to a copy.
    """
    root = folder or platformdirs.user_cache_path("epwatch") / "generated"
    kept = root / f"{shape.name}-schema{PACKAGED.head}"
    told = kept / "made.json"
    if not told.exists():
        root.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{kept.name}.partial-", dir=root))
        try:
            made = generate(partial / "history.db", shape)
            (partial / told.name).write_text(json.dumps(dataclasses.asdict(made)))
            with contextlib.suppress(FileExistsError):
                partial.rename(kept)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return kept / "history.db", Made(**json.loads(told.read_text()))


def _insert(connection: sqlite3.Connection, tables: Iterator[Rows]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for table, columns, rows in tables:
        quoted = ", ".join(f'"{column}"' for column in columns)
        places = ", ".join("?" for _ in columns)
        connection.executemany(f"INSERT INTO {table} ({quoted}) VALUES ({places})", rows)
    connection.execute("COMMIT")


def main() -> None:
    """Make one and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, help="a new file; default: one that is thrown away")
    parser.add_argument("--series", type=int, default=300)
    parser.add_argument("--nights", type=int, default=100)
    parser.add_argument("--small", action="store_true", help="three metrics, two ranks, no samples")
    parser.add_argument("--lively", action="store_true", help="drifts, improvements, a slow node, failures, verdicts")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    shape = Shape(arguments.series, arguments.nights, arguments.small, arguments.lively, arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.path or Path(folder) / "history.db"
        print(told(shape, path, generate(path, shape)))


def told(shape: Shape, path: Path, made: Made) -> str:
    """What was made, how large it is and how long it took, in one line."""
    judging = f", of them {made.judged_s:.1f} s to judge {len(shape.newest)} nights" if shape.newest else ""
    kind = ("small " if shape.small else "") + ("lively " if shape.lively else "")
    return (
        f"{kind}history of {shape.series} series x {shape.nights:,} nights, {shape.values:,} values: "
        f"{size(path) / 1e6:,.1f} MB, made in {made.seconds:.1f} s{judging}"
    )


def size(path: Path) -> int:
    """Bytes of the database and what lies beside it."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


if __name__ == "__main__":
    main()
