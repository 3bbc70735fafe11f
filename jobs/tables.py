"""How rows are shown: a table for people, JSON or CSV for programs, from one description of the columns.

Called by every command that prints rows. The field names of JSON and CSV are `Column.name` and stay as they are; the
table's look may change. In a table nothing is ever cut: without a terminal it is as wide as it needs to be, in a
narrow one long text folds, and where even that does not fit each row becomes a block of lines.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import msgspec

Row = TypeVar("Row")
Format = Literal["table", "json", "csv"]

_FOLDING_WIDTH = 24
_UNBOUNDED_WIDTH = 10_000
_GAP = 3


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column.

    name: in JSON and CSV. value: what JSON and CSV hold. title: in the table; None leaves the column out of it.
    text: how the table shows it. folds: long text that may be broken over lines. right: numbers.
    """

    name: str
    value: Callable[[Row], Any]
    title: str | None = None
    text: Callable[[Row], str] | None = None
    folds: bool = False
    right: bool = False

    def shown(self, row: Row) -> str:
        """The table's text for `row`."""
        if self.text is not None:
            return self.text(row)
        value = self.value(row)
        return "" if value is None else str(value)


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
    """A CSV field: lists and mappings as JSON, None as nothing."""
    if isinstance(value, (list, tuple, dict)):
        return msgspec.json.encode(value).decode()
    return "" if value is None else value


def as_objects(rows: Iterable[Row], columns: Sequence[Column[Row]]) -> list[dict[str, Any]]:
    """The rows as JSON objects."""
    return [{column.name: column.value(row) for column in columns} for row in rows]


def show(rows: Sequence[Row], columns: Sequence[Column[Row]], form: Format, *, empty: str = "nothing to show") -> None:
    """Print rows to stdout. `empty` is the sentence for people where there are none (on stderr)."""
    if form == "json":
        print(as_json(as_objects(rows, columns)))
    elif form == "csv":
        print(as_csv(rows, columns))
    elif rows:
        print_table(rows, columns)
    else:
        print(empty, file=sys.stderr)


def print_table(rows: Sequence[Row], columns: Sequence[Column[Row]]) -> None:
    """Print the rows as a table that fits the terminal without losing a character."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_UNBOUNDED_WIDTH)
    shown = [column for column in columns if column.title is not None]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in shown:
        table.add_column(
            Text(column.title or ""),
            justify="right" if column.right else "left",
            no_wrap=not column.folds,
            overflow="fold",
            min_width=_FOLDING_WIDTH if column.folds else None,
        )
    for row in rows:
        table.add_row(*(Text(column.shown(row), style=style_of(column.shown(row))) for column in shown))
    if _least_width(rows, shown) <= console.width:
        console.print(table)
        return
    widest = max(len(column.title or "") for column in shown)
    for row in rows:
        for column in shown:
            console.print(Text(f"{column.title:<{widest}}  {column.shown(row)}"), soft_wrap=True)
        console.print()


def _least_width(rows: Sequence[Row], columns: Sequence[Column[Row]]) -> int:
    """The narrowest terminal in which only folding columns fold."""
    widths = [
        _FOLDING_WIDTH if column.folds else max(len(text) for text in (column.title or "", *map(column.shown, rows)))
        for column in columns
    ]
    return sum(widths) + _GAP * (len(widths) - 1)


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


def change(value: float | None) -> str:
    """A relative change for people: 0.123 is +12.3 %."""
    return "" if value is None else f"{value:+.1%}".replace("%", " %")
