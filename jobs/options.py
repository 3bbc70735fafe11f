"""Options that several commands share, and the places they stand for.

Used by `jobs.commands`. Importing it loads click and nothing heavy. Next to read: `jobs.tables`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from jobs.tables import Format, Parquet

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


def judging_options(command: Command) -> Command:
    """What a night is judged against, how strictly, and where its report goes; the command gets `baseline`, `strict`,
    `report_path` and `no_report`.
    """
    options = [
        click.option("--baseline", metavar="NAME", help="Judge against this baseline, whatever the plan says."),
        click.option("--strict", is_flag=True, help="Exit 4 where a series stayed inconclusive."),
        click.option(
            "--report", "report_path", metavar="PATH", help="Where the HTML report goes, instead of the plan's place."
        ),
        click.option("--no-report", is_flag=True, help="Write no HTML report."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def selection_options(command: Command) -> Command:
    """What chooses runs: patterns, filters and times; the command gets `selection`, without a limit."""

    @functools.wraps(command)
    def with_selection(
        texts: tuple[str, ...],
        more: tuple[str, ...],
        since: str | None,
        until: str | None,
        at: str | None,
        **rest: Any,
    ) -> Any:
        from regress_db.selection import Selection

        words = [word for text in more for word in text.split()]
        return command(selection=Selection.of(*texts, *words, since=since, until=until, at=at), **rest)

    options = [
        click.argument("texts", nargs=-1, metavar="[CASE|FILTER]..."),
        click.option(
            "--case",
            "more",
            multiple=True,
            metavar="TEXT",
            help="CASE and FILTER in one text: 'mode=ll ranks=16 dtype=*'; the same as the arguments.",
        ),
        click.option("--since", metavar="TIME", help="Only runs from then on: 2026-11-22, 2026-11-22T02:00, 7d, 36h."),
        click.option("--until", metavar="TIME", help="Only runs before then."),
        click.option("--at", metavar="COMMIT", help="Only runs of code under test at this commit; its head will do."),
    ]
    for option in reversed(options):
        with_selection = option(with_selection)
    return with_selection  # type: ignore[return-value]


def _parquet(file: Path) -> Parquet:
    """Where Parquet goes. What would stop it is found out before the command does its work."""
    import importlib.util

    if importlib.util.find_spec("polars") is None:
        raise click.UsageError("--parquet needs polars, which is not installed: pip install 'epwatch[frames]'")
    if not file.parent.is_dir():
        raise click.UsageError(f"--parquet {file}: there is no folder {file.parent}")
    return Parquet(file)


def format_options(command: Command) -> Command:
    """`--json`, `--csv` and `--parquet`; the command gets `form`."""

    def choose(as_form: Callable[[Any], Format]) -> Callable[[click.Context, click.Parameter, Any], None]:
        def callback(ctx: click.Context, _: click.Parameter, wanted: Any) -> None:
            if not wanted:
                ctx.params.setdefault("form", "table")
                return
            if ctx.params.get("form", "table") != "table":
                raise click.UsageError("--json, --csv and --parquet exclude each other")
            ctx.params["form"] = as_form(wanted)

        return callback

    command = click.option(
        "--parquet",
        type=click.Path(path_type=Path, dir_okay=False, writable=True),
        metavar="FILE",
        expose_value=False,
        callback=choose(_parquet),
        help="Write a Parquet file, for programs.",
    )(command)
    for name, what in (("csv", "CSV with a header line"), ("json", "JSON")):
        command = click.option(
            f"--{name}",
            is_flag=True,
            expose_value=False,
            callback=choose(lambda _, name=name: name),  # type: ignore[misc]
            help=f"Print {what}, for programs.",
        )(command)
    return command
