"""How far long work has come: a bar on a terminal, plain lines elsewhere, always on stderr.

`progress` is for a number of steps, `live` for the jobs of a night. Used by `jobs.commands.run` and
`jobs.commands.nightly`; stdout stays free for the result.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from jobs.nightly import Night

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


@contextlib.contextmanager
def live(night: Night) -> Iterator[Update]:
    """Show every job of the night, drawn anew at each look; lines of changes where there is no terminal."""
    if not sys.stderr.isatty():
        yield _job_lines(night)
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as screen:
        yield lambda done, what: screen.update(_jobs_table(night, done, what), refresh=True)


def _jobs_table(night: Night, done: int, what: str) -> RenderableType:
    """The jobs as a table that fits the terminal: what runs and waits first, and how much is left out."""
    import shutil

    from rich.table import Table
    from rich.text import Text

    order = {"failed": 0, "running": 1, "pending": 2, "to be submitted": 3, "done": 4}
    views = sorted(night.views(), key=lambda view: order[view.state])
    room = max(3, shutil.get_terminal_size().lines - 6)
    total = sum(view.total for view in views)
    left_out = f", {len(views) - room} more jobs" if len(views) > room else ""
    table = Table(
        "job", "state", "runs", "nodes", "why", title=f"{night.name}: {done} of {total} runs, {what}", caption=left_out
    )
    for view in views[:room]:
        # Text, not str: what comes from a host's name or a log is no markup.
        cells = (view.job, view.state, f"{view.done}/{view.total}", ",".join(view.hosts), view.words)
        table.add_row(*map(Text, cells))
    return table


def _job_lines(night: Night) -> Update:
    """A line on stderr for each job whose state has changed."""
    said: dict[str, tuple[str, int, str]] = {}

    def update(done: int, what: str) -> None:
        for view in night.views():
            now = (view.state, view.attempt, view.words)
            if said.get(view.job) != now:
                said[view.job] = now
                on = f" on {','.join(view.hosts)}" if view.hosts else ""
                why = f": {view.words}" if view.words else ""
                print(f"{night.name}: {view.job} {view.state}{on}{why}", file=sys.stderr, flush=True)

    return update


def _lines(total: int, title: str) -> Update:
    """One line on stderr whenever something new is said."""
    said: list[str] = []

    def update(done: int, what: str) -> None:
        if said[-1:] != [what]:
            said[:] = [what]
            come = f"{done} of {total} done" if done <= total else f"{total} done, and {done - total} re-runs"
            print(f"{title}: {what} ({come})", file=sys.stderr, flush=True)

    return update
