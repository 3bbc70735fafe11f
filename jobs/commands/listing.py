"""`epwatch backends`, `suites` and `cases`: what there is to measure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from jobs.options import format_options
from jobs.tables import Column, Format, show

if TYPE_CHECKING:
    from harness.case import Case


@click.command()
@format_options
def backends(form: Format) -> None:
    """List the backends and whether they can be used here, with the reason where not."""
    from harness.backends import availability, names

    columns: list[Column[tuple[str, str | None]]] = [
        Column("backend", lambda row: row[0], "backend"),
        Column("usable", lambda row: row[1] is None, "usable here", lambda row: "no" if row[1] else "yes"),
        Column("reason", lambda row: row[1], "why not", long=True),
    ]
    show([(name, availability(name)) for name in names()], columns, form)


@click.command()
@format_options
def suites(form: Format) -> None:
    """List the built-in suites."""
    from harness.suites import SUITES

    columns: list[Column[tuple[str, list[Case]]]] = [
        Column("suite", lambda row: row[0], "suite"),
        Column("cases", lambda row: len(row[1]), "cases", right=True),
        Column("ranks", lambda row: sorted({case.ranks for case in row[1]}), "ranks"),
    ]
    show([(name, list(cases)) for name, cases in SUITES.items()], columns, form)


@click.command()
@click.option("--suite", "names", multiple=True, metavar="NAME", help="Only this suite; repeat for more.")
@format_options
def cases(names: tuple[str, ...], form: Format) -> None:
    """List the cases of built-in suites, by key."""
    from jobs.selection import suite_cases

    columns: list[Column[tuple[str, Case]]] = [
        Column("suite", lambda row: row[0], "suite"),
        Column("case", lambda row: row[1].key, "case", long=True),
    ]
    show(suite_cases(names), columns, form)
