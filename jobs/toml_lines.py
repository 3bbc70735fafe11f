"""On which line a TOML text gives a field, so that an error can name it: the parser itself does not keep lines.

Pure. A field is a path such as `cases[1].tokens`, list positions from 0, as msgspec names it; `shown` is how people
read it, positions from 1. Called by `jobs.plan` and `jobs.waivers`; next to read: `jobs.toml_words`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_KEY = r"""(?:[\w-]+|"[^"]*"|'[^']*')"""
_KEYS = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_TABLE = re.compile(rf"\s*\[\s*({_KEYS})\s*\]")
_TABLE_OF_ARRAY = re.compile(rf"\s*\[\[\s*({_KEYS})\s*\]\]")
_ASSIGNMENT = re.compile(rf"\s*({_KEYS})\s*=")


def line_of(source: str, field: str) -> int | None:
    """The line (from 1) on which the TOML text gives `field`, else the nearest table or field around it, else None.

    Finds what plans are written with (table headers, arrays of tables, dotted and plain keys); what is inside an inline
    table or a list is found by the line of the field that holds it.
    """
    lines: dict[str, int] = {}
    counts: dict[str, int] = {}
    table = ""
    for number, line in enumerate(source.splitlines(), start=1):
        if found := _TABLE_OF_ARRAY.match(line):
            name = _joined(_split(found[1]), counts)
            counts[name] = counts.get(name, -1) + 1
            table = f"{name}[{counts[name]}]"
        elif found := _TABLE.match(line):
            table = _joined(_split(found[1]), counts)
        elif found := _ASSIGNMENT.match(line):
            for place in _around(f"{table}.{'.'.join(_split(found[1]))}".lstrip(".")):
                lines.setdefault(place, number)
            continue
        else:
            continue
        for place in _around(table):
            lines.setdefault(place, number)
    return next((lines[place] for place in _around(field) if place in lines), None)


def shown(field: str) -> str:
    """The field as people read it: `cases[0].tokens` is `cases[1].tokens`, of the first table."""
    counted = re.sub(r"\[(\d+)\]", lambda position: f"[{int(position[1]) + 1}]", field)
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in counted)


def _split(keys: str) -> list[str]:
    """The names in a dotted key, without their quotes."""
    return [key.strip("\"'") for key in re.findall(_KEY, keys)]


def _joined(names: Sequence[str], counts: dict[str, int]) -> str:
    """The path of a table's header: what lies in an array of tables is in the last table of it so far."""
    path = names[0]
    for name in names[1:]:
        path = f"{path}[{counts[path]}].{name}" if path in counts else f"{path}.{name}"
    return path


def _around(field: str) -> Iterator[str]:
    """The field, and what it lies in, from the inside out: `a[0].b`, `a[0]`; a table of an array is not its array."""
    while field:
        yield field
        last = max(field.rfind("."), field.rfind("["))
        field = field[: max(last, 0)]
