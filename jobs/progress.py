"""How far long work has come: a bar on a terminal, plain lines elsewhere, always on stderr.

Used by `jobs.commands.run` and `jobs.commands.nightly`; stdout stays free for the result.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

Update = Callable[[int, str], None]
"""`update(done, what)`: so many steps are done (more than planned, where some are done again), and what goes on."""


@contextlib.contextmanager
def progress(total: int, title: str) -> Iterator[Update]:
    """Show progress over `total` steps while the block runs."""
    if not sys.stderr.isatty():
        yield _lines(total, title)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # A slow refresh: drawing the bar is work for the machine that is being measured.
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=2, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done, what: bar.update(task, completed=done, description=f"{title}: {what}")


def _lines(total: int, title: str) -> Update:
    """One line on stderr whenever something new is said."""
    said: list[str] = []

    def update(done: int, what: str) -> None:
        if said[-1:] != [what]:
            said[:] = [what]
            come = f"{done} of {total} done" if done <= total else f"{total} done, and {done - total} re-runs"
            print(f"{title}: {what} ({come})", file=sys.stderr, flush=True)

    return update
