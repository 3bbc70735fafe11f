"""On which line a TOML text gives a field, so that an error can name it: the parser itself does not keep lines.

Pure. Called by `jobs.plan`.
"""

from __future__ import annotations

import re


def line_of(source: str, field: str) -> int | None:
    """The line (from 1) on which the TOML text gives `field`, else that of its table's header, else None.

    field: dotted, list positions in brackets, e.g. `cases[1].tokens`. Finds what plans are written with (table
    headers, arrays of tables, `key = value`); a key inside an inline table is found by its table's line.
    """
    table, _, key = field.rpartition(".") if "." in field else (field, "", "")
    table, key = _without_position(table), re.sub(r"\[.*", "", key)
    counts: dict[str, int] = {}
    current, header_line = "", None
    for number, line in enumerate(source.splitlines(), start=1):
        text = line.strip()
        if header := re.match(r"\[\[\s*([\w.]+)\s*\]\]", text):
            position = counts[header[1]] = counts.get(header[1], -1) + 1
            current = f"{header[1]}[{position}]"
        elif header := re.match(r"\[\s*([\w.]+)\s*\]", text):
            current = header[1]
        if current != table:
            continue
        header_line = header_line or number
        if key and re.match(rf"[\"']?{re.escape(key)}[\"']?\s*=", text):
            return number
    return header_line


def _without_position(table: str) -> str:
    """`cases[0].exclude[1]` lies in the table `cases[0]`; `cases[0]` is a table itself."""
    found = re.match(r"\w+(\[\d+\])?", table)
    return found[0] if found else table
