"""The values of a history in long form, as one CSV or Parquet file: a row for each number, with all fields of its key.

Written whole or not at all, and in pieces: a history larger than memory is no trouble. Called by `epwatch export`; next
to read: `regress_db.selection` (which runs), `regress_db.frames` (answers that fit memory).
"""

from __future__ import annotations

import csv
import importlib.util
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, select

from harness.case import Phase
from regress_db.backup import new_file
from regress_db.errors import FilterError, MissingLibraryError
from regress_db.filters import CASE_FIELDS
from regress_db.history import History
from regress_db.queries import metric_numbers
from regress_db.schema import CASES, ENVIRONMENTS, METRICS, NIGHTS, PLATFORMS, RUN_VALUES, RUNS
from regress_db.selection import EVERYTHING, Selection

Kind = Literal["text", "int", "float", "time"]

_PLATFORM_FIELDS = ("device_model", "devices_per_node", "interconnect", "cluster")
_NUMBERS = frozenset({"ranks", "nodes", "tokens", "hidden", "topk", "experts", "seed", "devices_per_node", "repeat"})

COLUMNS: dict[str, Kind] = {
    name: "time" if name == "started_at" else "float" if name == "value" else "int" if name in _NUMBERS else "text"
    for name in (
        *("run_id", "started_at", "night", "plan", "repeat", "case", *CASE_FIELDS),
        *("platform", *_PLATFORM_FIELDS, "commit", "environment", "phase", "metric", "value"),
    )
}
"""What stands in each column. night, plan: empty for a run of no night. environment: the digest of all of it."""

FORMS = (".csv", ".parquet")

_ROWS_AT_ONCE = 50_000
_NO_NIGHT = ("", "")

_Row = Sequence[Any]
_Write = Callable[[Sequence[_Row]], None]


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    values: int
    runs: int


def export(
    history: History,
    path: Path,
    selection: Selection = EVERYTHING,
    *,
    metrics: Collection[str] = (),
    phase: Phase | None = None,
) -> Exported:
    """Write the values of the runs in the selection to the new file `path`, oldest run first; `limit` is not heeded.

    One moment of the history, whoever writes meanwhile. metrics: only these; none: all. Raises `FilterError` for a file
    that is neither .csv nor .parquet, `MissingLibraryError` for Parquet without polars, `NotFoundError` for a metric
    that the history does not have, `HistoryError` for a file that is there already or cannot be written.
    """
    if path.suffix not in FORMS:
        raise FilterError(f"{path}: the name is to end in {' or '.join(FORMS)}, which says what is written")
    if path.suffix == ".parquet" and importlib.util.find_spec("polars") is None:
        raise MissingLibraryError("Parquet needs polars, which is not installed: pip install 'epwatch[frames]'")
    values = runs = 0
    last = None
    with history.read() as connection:
        pieces = _pieces(connection, selection, metrics, phase)
        first = next(pieces, [])
        with new_file(path) as partial, _writer(path, partial) as write:
            for piece in _chain(first, pieces):
                write(piece)
                values += len(piece)
                for row in piece:
                    runs += row[0] != last
                    last = row[0]
    return Exported(values, runs)


def _chain(first: Sequence[_Row], rest: Iterator[Sequence[_Row]]) -> Iterator[Sequence[_Row]]:
    yield first
    yield from rest


def _pieces(
    connection: Connection, selection: Selection, metrics: Collection[str], phase: Phase | None
) -> Iterator[Sequence[_Row]]:
    """The rows, run by run in the order of time, some ten thousand at once. What many runs share is looked up here."""
    names = {row.id: (row.phase, row.name) for row in connection.execute(select(*METRICS.c))}
    wanted = [RUN_VALUES.c.metric.in_(_numbers(connection, metrics, phase))] if metrics or phase else []
    case_columns = [CASES.c[name] for name in ("id", "key", *CASE_FIELDS)]
    cases = {row[0]: tuple(row[1:]) for row in connection.execute(select(*case_columns))}
    platform_columns = [PLATFORMS.c[name] for name in ("id", "key", *_PLATFORM_FIELDS)]
    platforms = {row[0]: tuple(row[1:]) for row in connection.execute(select(*platform_columns))}
    nights = {row[0]: (row[1], row[2]) for row in connection.execute(select(NIGHTS.c.id, NIGHTS.c.name, NIGHTS.c.plan))}
    of_environment = select(ENVIRONMENTS.c.id, ENVIRONMENTS.c.commit, ENVIRONMENTS.c.digest)
    environments = {row[0]: (row[1], row[2]) for row in connection.execute(of_environment)}
    rows: Any = connection.execute(
        select(
            *(RUNS.c[name] for name in ("run_id", "started_at", "night_id", "repeat")),
            *(RUNS.c[name] for name in ("case_id", "platform_id", "environment_id")),
            *(RUN_VALUES.c.metric, RUN_VALUES.c.value),
        )
        .join(RUN_VALUES, RUN_VALUES.c.run == RUNS.c.id)
        .where(*wanted, *selection.conditions(connection))
        .order_by(RUNS.c.started_at, RUNS.c.id, RUN_VALUES.c.metric),
        execution_options={"yield_per": _ROWS_AT_ONCE},
    )
    for piece in rows.partitions():
        yield [
            [
                *(run_id, started_at, *nights.get(night, _NO_NIGHT), repeat),
                *cases[case],
                *platforms[platform],
                *environments[environment],
                *names[metric],
                value,
            ]
            for run_id, started_at, night, repeat, case, platform, environment, metric, value in piece
        ]


def _numbers(connection: Connection, metrics: Collection[str], phase: Phase | None) -> list[int]:
    if not metrics:
        return list(connection.execute(select(METRICS.c.id).where(METRICS.c.phase == phase)).scalars())
    return [number for metric in metrics for number in metric_numbers(connection, metric, phase)]


def _writer(path: Path, partial: Path) -> AbstractContextManager[_Write]:
    return _csv(partial) if path.suffix == ".csv" else _parquet(path, partial)


@contextmanager
def _csv(partial: Path) -> Iterator[_Write]:
    with partial.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(COLUMNS)
        place = list(COLUMNS).index("started_at")

        def write(piece: Sequence[_Row]) -> None:
            lines.writerows((*row[:place], _written(row[place]), *row[place + 1 :]) for row in piece)

        yield write


def _written(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"


@contextmanager
def _parquet(path: Path, partial: Path) -> Iterator[_Write]:
    """Pieces go into files of their own, which become one at the end without being in memory together."""
    import polars

    types = {
        "text": polars.String(),
        "int": polars.Int64(),
        "float": polars.Float64(),
        "time": polars.Datetime("us", "UTC"),
    }
    schema = {name: types[kind] for name, kind in COLUMNS.items()}
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        written: list[Path] = []

        def write(piece: Sequence[_Row]) -> None:
            written.append(Path(folder) / f"{len(written):08}.parquet")
            polars.DataFrame(piece, schema=schema, orient="row").write_parquet(written[-1])

        yield write
        polars.scan_parquet(written).sink_parquet(partial, maintain_order=True)
