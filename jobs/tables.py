"""How rows are shown: a table for people, JSON, CSV or Parquet for programs, from one description of the columns.

Called by every command that prints rows. The field names for programs are `Column.name` and stay as they are; the
table's look may change. In a table nothing is ever cut: without a terminal it is as wide as it needs to be, in a
narrow one long text gets lines of its own, and where even that does not fit each row becomes a block of lines.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import click
import msgspec

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
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _UNBOUNDED_WIDTH
    shown = [column for column in columns if column.title is not None]
    cells = [[visible(column.shown(row)) for column in shown] for row in rows]
    widths = [
        max(len(text) for text in (column.title or "", *(row[place] for row in cells)))
        for place, column in enumerate(shown)
    ]
    long = [place for place, column in enumerate(shown) if column.long]
    short = [place for place, column in enumerate(shown) if not column.long]
    if _sum(widths) <= width:
        lines = _table(cells, shown, widths, range(len(shown)), None)
    elif len(long) == 1 and _sum([widths[place] for place in short]) <= width:
        lines = _table(cells, shown, widths, short, long[0])
    else:
        lines = _blocks(cells, shown)
    say("\n".join(lines))


def _sum(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _table(
    cells: Sequence[Sequence[str]],
    columns: Sequence[Column[Row]],
    widths: Sequence[int],
    places: Sequence[int],
    long: int | None,
) -> Iterator[str]:
    """A heading and a line for each row, of the columns at `places`; the one at `long` has lines of its own.

    These stand above those they belong to, once, where it is the first column, else below each.
    """

    def line(texts: Sequence[str], styled: bool) -> str:
        aligned = [
            (text.rjust if columns[place].right else text.ljust)(widths[place])
            for place, text in zip(places, texts, strict=True)
        ]
        aligned[-1] = aligned[-1].rstrip()
        return _GAP.join(_styled(text, **_STYLES.get(text.strip(), {})) if styled else text for text in aligned)

    yield _styled(line([columns[place].title or "" for place in places], styled=False).rstrip(), bold=True)
    yield "─" * _sum([widths[place] for place in places])
    said = None
    for row in cells:
        if long == 0 and row[long] != said:
            said = row[long]
            yield _styled(said, dim=True)
        yield line([row[place] for place in places], styled=True).rstrip()
        if long:
            yield _styled(f"    {row[long]}", dim=True)


def _blocks(cells: Sequence[Sequence[str]], columns: Sequence[Column[Row]]) -> Iterator[str]:
    """A block of lines for each row."""
    widest = max(len(column.title or "") for column in columns)
    for number_, row in enumerate(cells):
        if number_:
            yield ""
        for column, text in zip(columns, row, strict=True):
            yield f"{column.title:<{widest}}  {text}".rstrip()


_BAD: dict[str, Any] = {"fg": "red", "bold": True}
_STYLES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("regressed", "failed", "wrong", "hung", "missing"), _BAD),
    "improved": {"fg": "green"},
    "inconclusive": {"fg": "yellow"},
    "insufficient": {"fg": "yellow"},
}
"""The look of a verdict's or an outcome's word; no other text has one."""


def _styled(text: str, **style: Any) -> str:
    """The text in colour, on a terminal that has it and whose user wants it."""
    return click.style(text, **style) if style and has_colours() else text


def has_colours() -> bool:
    """Whether stdout is a terminal that has colours, and its user wants them."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def visible(text: str) -> str:
    """The text in one line, with what would move the cursor or change colours made visible."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


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
