"""How rows are shown: a table for people, JSON, CSV or Parquet for programs, from one description of the columns.

Called by every command that prints rows. The field names for programs are `Column.name` and stay as they are; the
table's look may change. In a table nothing is ever cut: without a terminal it is as wide as it needs to be, in a
narrow one long text gets lines of its own, and where even that does not fit each row becomes a block of lines.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import msgspec

if TYPE_CHECKING:
    from rich.console import Console

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Parquet:
    """Rows go into this file and nothing is printed."""

    file: Path


Format = Literal["table", "json", "csv"] | Parquet

_UNBOUNDED_WIDTH = 10_000
_GAP = "   "


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column.

    name: for programs. value: what they get; a time as `to_the_second` gives it. title: in the table; None leaves the
    column out of it. text: how the table shows it. long: text that gets lines of its own in a narrow terminal. right:
    aligned so.
    """

    name: str
    value: Callable[[Row], Any]
    title: str | None = None
    text: Callable[[Row], str] | None = None
    long: bool = False
    right: bool = False

    def shown(self, row: Row) -> str:
        """The table's text for `row`."""
        if self.text is not None:
            return self.text(row)
        return str(_plain(self.value(row)))


def to_the_second(moment: datetime | None) -> datetime | None:
    """A time as programs get it: UTC, whole seconds."""
    return None if moment is None else moment.astimezone(UTC).replace(microsecond=0)


def as_json(document: object) -> str:
    """Indented JSON of plain values, structs and dataclasses."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


def as_csv(rows: Iterable[Row], columns: Sequence[Column[Row]]) -> str:
    """CSV with a header line; None is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.name for column in columns])
    for row in rows:
        writer.writerow([_plain(column.value(row)) for column in columns])
    return text.getvalue().rstrip("\n")


def _plain(value: object) -> object:
    """A field of text: lists and mappings as JSON, times as JSON has them, None as nothing."""
    if isinstance(value, (list, tuple, dict)):
        return msgspec.json.encode(value).decode()
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%dT%H:%M:%SZ}"
    return "" if value is None else value


def as_objects(rows: Iterable[Row], columns: Sequence[Column[Row]]) -> list[dict[str, Any]]:
    """The rows as JSON objects."""
    return [{column.name: column.value(row) for column in columns} for row in rows]


def as_parquet(rows: Sequence[Row], columns: Sequence[Column[Row]]) -> bytes:
    """A Parquet file; numbers, texts, times and lists keep their types, mappings become JSON. Needs polars."""
    import polars

    def typed(value: object) -> object:
        return list(value) if isinstance(value, tuple) else _plain(value) if isinstance(value, dict) else value

    frame = polars.DataFrame(
        {column.name: [typed(column.value(row)) for row in rows] for column in columns},
        strict=False,
        infer_schema_length=None,
    )
    file = io.BytesIO()
    frame.write_parquet(file)
    return file.getvalue()


def say(text: str = "") -> None:
    """Print to stdout; where its reader has gone, go on without one, so that the exit code stays the command's own."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show(rows: Sequence[Row], columns: Sequence[Column[Row]], form: Format, *, empty: str = "nothing to show") -> None:
    """Print rows to stdout, or write them. `empty` is the sentence for people where there are none (on stderr)."""
    if isinstance(form, Parquet):
        form.file.write_bytes(as_parquet(rows, columns))
    elif form == "json":
        say(as_json(as_objects(rows, columns)))
    elif form == "csv":
        say(as_csv(rows, columns))
    elif rows:
        print_table(rows, columns)
    else:
        print(empty, file=sys.stderr)


def print_table(rows: Sequence[Row], columns: Sequence[Column[Row]]) -> None:
    """Print the rows as a table that fits the terminal without losing a character."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    width = console.width if console.is_terminal else _UNBOUNDED_WIDTH
    shown = [column for column in columns if column.title is not None]
    short = [column for column in shown if not column.long]
    long = [column for column in shown if column.long]
    # rich leaves the program when the reader of stdout goes away: it draws, and we print.
    with console.capture() as drawn:
        if _width(rows, shown) <= width:
            _print_lines(console, rows, shown, None)
        elif len(long) == 1 and _width(rows, short) <= width:
            _print_lines(console, rows, short, long[0], above=shown[0].long)
        else:
            widest = max(len(column.title or "") for column in shown)
            for row in rows:
                for column in shown:
                    console.print(Text(f"{column.title:<{widest}}  {column.shown(row)}"))
                console.print()
    say(drawn.get().rstrip("\n"))


def _widths(rows: Sequence[Row], columns: Sequence[Column[Row]]) -> list[int]:
    return [max(len(text) for text in (column.title or "", *map(column.shown, rows))) for column in columns]


def _width(rows: Sequence[Row], columns: Sequence[Column[Row]]) -> int:
    return sum(_widths(rows, columns)) + len(_GAP) * (len(columns) - 1)


def _print_lines(
    console: Console, rows: Sequence[Row], columns: Sequence[Column[Row]], long: Column[Row] | None, above: bool = True
) -> None:
    """A heading and a line for each row; `long` has lines of its own, above those it belongs to, or below each."""
    from rich.text import Text

    widths = _widths(rows, columns)

    def aligned(texts: Iterable[str]) -> Iterator[str]:
        for text, column, width in zip(texts, columns, widths, strict=True):
            yield text.rjust(width) if column.right else text.ljust(width)

    heading = _GAP.join(aligned(column.title or "" for column in columns))
    console.print(Text(heading.rstrip(), style="bold"))
    console.print("─" * len(heading))
    said = None
    for row in rows:
        if long is not None and above and long.shown(row) != said:
            said = long.shown(row)
            console.print(Text(said, style="dim"))
        line = Text(_GAP).join(
            Text(cell, style=style_of(cell.strip())) for cell in aligned(c.shown(row) for c in columns)
        )
        line.rstrip()
        console.print(line)
        if long is not None and not above:
            console.print(Text(f"    {long.shown(row)}", style="dim"))


_STYLES = {
    "regressed": "bold red",
    "failed": "bold red",
    "wrong": "bold red",
    "hung": "bold red",
    "missing": "bold red",
    "improved": "green",
    "inconclusive": "yellow",
    "insufficient": "yellow",
}


def style_of(word: str) -> str:
    """The colour of a verdict's or an outcome's word; no other text has one."""
    return _STYLES.get(word, "")


def number(value: float | None, digits: int = 1) -> str:
    """A number for people, "" for none."""
    return "" if value is None else f"{value:,.{digits}f}"


def figure(value: float | None) -> str:
    """A number of any metric: six digits, and every digit of what is larger than that."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1e6 else f"{value:,.6g}"


def change(value: float | None) -> str:
    """A relative change for people: 0.123 is +12.3 %."""
    from regress_db.wording import percent

    return "" if value is None else percent(value)
