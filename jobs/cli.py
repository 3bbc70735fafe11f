"""The command line `epwatch`: one door to all rooms.

Each command lives in `jobs.commands` and is loaded only when it is called, so that `epwatch --help` starts in a moment
and `epwatch trend` never loads torch. Errors a person can mend (`EpwatchError`) are caught here, once, and shown as one
sentence. Exit codes: 0 all well, 1 something regressed, 2 usage or configuration, 3 something planned has no valid
result, 4 something stayed inconclusive (with --strict), 130 interrupted. Next to read: `jobs.commands.nightly`.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NamedTuple

import click

from harness.errors import EpwatchError

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class _Entry(NamedTuple):
    """Where a command lives and the line of help that stands for it until it is loaded."""

    module: str
    attribute: str
    summary: str


COMMANDS: dict[str, _Entry] = {
    "run": _Entry("run", "run", "Measure cases here and now."),
    "nightly": _Entry("nightly", "nightly", "Run a nightly plan, judge it and report."),
    "plan": _Entry("plan", "plan", "Check a nightly plan without running it."),
    "baseline": _Entry("baseline", "baseline", "Set, list, show and retire baselines."),
    "accept": _Entry("accept", "accept", "Say that a change is here to stay."),
    "triage": _Entry("triage", "triage", "List regressions: open, acknowledged, expected, fixed."),
    "ack": _Entry("triage", "ack", "Say that a regression is known: it passes until it gets worse."),
    "note": _Entry("note", "note", "Write a note beside the numbers."),
    "calibrate": _Entry("calibrate", "calibrate", "Find the level that keeps to a plan's false alarms."),
    "trend": _Entry("history", "trend", "Show series through time."),
    "runs": _Entry("history", "runs", "List runs."),
    "nights": _Entry("history", "nights", "List nights."),
    "show": _Entry("history", "show_", "Show one run."),
    "compare": _Entry("history", "compare", "Compare two runs, nights, commits or baselines."),
    "changes": _Entry("changes", "changes", "Show where series changed their level."),
    "tell": _Entry("tell", "tell", "Tell of a judged night again."),
    "nodes": _Entry("nodes", "nodes", "Rank nodes by how slow they make their runs."),
    "serve": _Entry("serve", "serve", "Show the history as a web page."),
    "report": _Entry("history", "report", "Write the HTML report of a night."),
    "export": _Entry("export", "export", "Write values to a Parquet or CSV file."),
    "collect": _Entry("collect", "collect", "Bring records home, and go on with a night that was left."),
    "history": _Entry("upkeep", "history", "Copy, verify, prune and back up the history."),
    "slurm": _Entry("slurm", "slurm", "Run a real Slurm of your own in a folder."),
    "backends": _Entry("listing", "backends", "List the backends and whether they can be used here."),
    "suites": _Entry("listing", "suites", "List the built-in suites."),
    "cases": _Entry("listing", "cases", "List the cases of built-in suites, by key."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; None for a name that is none."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(importlib.import_module(f"jobs.commands.{entry.module}"), entry.attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands in `--help`, without importing one."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"epwatch {version('epwatch')}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 all well, 1 something regressed, 2 usage or configuration, 3 something planned has no valid "
    "result, 4 something stayed inconclusive (with --strict), 130 interrupted.",
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Print the version and leave.",
)
def cli() -> None:
    """The nightly performance watch for expert-parallel dispatch and combine."""


class Terminated(KeyboardInterrupt):
    """The command was told to end by another signal than Ctrl-C's, and ends the same way."""

    exit_code = EXIT_INTERRUPTED


def _end_like_an_interrupt(number: int, _: object) -> None:
    """Signal handler: what is being measured is ended and what was measured is kept, as after Ctrl-C."""
    Terminated.exit_code = 128 + number
    raise Terminated


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; the console script `epwatch`."""
    # What imports leave behind stays until the end: looking for garbage in it every 700 objects, and once more while
    # the interpreter ends, is a fifth of what a short command takes.
    gc.set_threshold(50_000, 20, 100)
    atexit.register(gc.freeze)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end_like_an_interrupt)
    try:
        code = cli.main(args=None if arguments is None else list(arguments), prog_name="epwatch", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as error:
        # click turns the first into the second.
        cause = error.__cause__ or error
        print(f"epwatch: interrupted{': ' if str(cause) else ''}{cause}", file=sys.stderr)
        return cause.exit_code if isinstance(cause, Terminated) else EXIT_INTERRUPTED
    except EpwatchError as error:
        return _fail(str(error), error.exit_code)
    except OSError as error:
        return _fail(f"cannot use {error.filename or 'a file'}: {error.strerror or error}", EXIT_USAGE)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return _fail(
            f"this should not have happened: {type(error).__name__}: {error} ({where.filename}, line {where.lineno}); "
            "EPWATCH_DEBUG=1 shows the whole trace",
            EXIT_USAGE,
        )
    return code if isinstance(code, int) else 0


def _fail(sentence: str, code: int) -> int:
    """Show why the command failed; called while the error is being handled."""
    if os.environ.get("EPWATCH_DEBUG") == "1":
        traceback.print_exc()
    print(f"epwatch: {sentence}", file=sys.stderr)
    return code
