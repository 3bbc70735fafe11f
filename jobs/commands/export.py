"""`epwatch export`: the values of the history as one file, for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.options import history_option, selection_options
from jobs.places import open_history
from jobs.tables import say

if TYPE_CHECKING:
    from regress_db.selection import Selection


@click.command()
@click.argument("file", metavar="TO", type=click.Path(path_type=Path, dir_okay=False))
@selection_options
@click.option("--phase", type=click.Choice(["dispatch", "combine"]), help="Only this phase.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Only this metric; may be given again.")
@history_option
def export(file: Path, selection: Selection, phase: Any, metrics: tuple[str, ...], db: str | None) -> None:
    """Write values to the new file TO (.parquet or .csv): one row for each number, with every field of its key.

    CASE and FILTER are as for `epwatch trend`; without any, the whole history is written. The file is there whole or
    not at all; a history larger than memory is no trouble.
    """
    from regress_db.export import export as write

    with open_history(db) as history:
        done = write(history, file, selection, metrics=metrics, phase=phase)
    say(f"{done.values} values of {done.runs} runs are in {file}")
