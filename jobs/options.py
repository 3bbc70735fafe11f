"""Options that several commands share, and the places they stand for.

Used by `jobs.commands`. Importing it loads click and nothing heavy. Next to read: `jobs.tables`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from jobs.tables import Format

Command = TypeVar("Command", bound=Callable[..., Any])


def history_option(command: Command) -> Command:
    """`--db`: the history."""
    return click.option(
        "--db",
        metavar="PATH|URL",
        help="The history: a file, or an SQLAlchemy URL. Default: EPWATCH_DB, the plan, epwatch.toml, the user's data "
        "folder, in this order.",
    )(command)


def spool_option(command: Command) -> Command:
    """`--spool`: the folder of records."""
    return click.option(
        "--spool",
        metavar="FOLDER",
        help="The folder records are written to and ingested from. Default: EPWATCH_SPOOL, the plan, epwatch.toml, "
        "the user's data folder, in this order.",
    )(command)


def format_options(command: Command) -> Command:
    """`--json` and `--csv`; the command gets `form`."""

    def choose(name: Format) -> Callable[[click.Context, click.Parameter, bool], None]:
        def callback(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
            if not wanted:
                ctx.params.setdefault("form", "table")
                return
            if ctx.params.get("form", "table") != "table":
                raise click.UsageError("--json and --csv exclude each other")
            ctx.params["form"] = name

        return callback

    for name, what in (("csv", "CSV with a header line"), ("json", "JSON")):
        command = click.option(
            f"--{name}",
            is_flag=True,
            expose_value=False,
            callback=choose(name),  # type: ignore[arg-type]
            help=f"Print {what}, for programs.",
        )(command)
    return command
