"""`epwatch slurm`: a real Slurm of your own in a folder, for a newcomer or a single machine."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.tables import Column, as_json, print_table, say

if TYPE_CHECKING:
    from jobs.private_slurm.daemons import DaemonStatus
    from jobs.private_slurm.report import NodeReport, SlurmReport

_DEFAULT_FOLDER = Path(".epwatch/slurm")

_folder_option = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=_DEFAULT_FOLDER,
    show_default=True,
    help="Where it lives.",
)
_json_option = click.option("--json", "as_document", is_flag=True, help="Print JSON, for programs.")


@click.group()
def slurm() -> None:
    """Run a real Slurm of your own in a folder.

    It needs no root and no system configuration, only the programs, which on Debian and Ubuntu are in slurmctld,
    slurmd, slurm-client and munge, and for accounting in slurmdbd and mariadb-server-core too.
    """


@slurm.command(short_help="Start a Slurm in a folder.")
@click.option("--nodes", type=int, default=1, show_default=True, metavar="N", help="How many nodes.")
@click.option("--cpus", type=int, metavar="C", help="CPUs of each node. Default: the machine's, shared out.")
@click.option("--memory", type=int, metavar="MB", help="Memory of each node. Default: the machine's, shared out.")
@click.option(
    "--gpus",
    type=int,
    metavar="G",
    help="GPUs of each node; stand-ins on a machine without any. Default: the machine's, shared out.",
)
@click.option("--accounting", is_flag=True, help="With slurmdbd and a database, so that sacct answers.")
@click.option("--foreground", is_flag=True, help="Stay until Ctrl-C, and end it then.")
@_folder_option
@_json_option
def up(
    nodes: int,
    cpus: int | None,
    memory: int | None,
    gpus: int | None,
    accounting: bool,
    foreground: bool,
    folder: Path,
    as_document: bool,
) -> None:
    """Start a Slurm and return when its nodes are idle; it goes on in the background until `epwatch slurm down`."""
    from jobs.private_slurm import PrivateSlurm, SlurmSettings
    from jobs.private_slurm.report import report

    settings = SlurmSettings(nodes=nodes, cpus=cpus, memory_mb=memory, gpus=gpus, accounting=accounting)
    started = PrivateSlurm(settings, folder).start(detached=not foreground)
    try:
        found = report(started)
        say(as_json(found) if as_document else _welcome(found, foreground))
        if foreground:
            started.wait()
    except BaseException as error:
        started.stop()
        if not (foreground and isinstance(error, KeyboardInterrupt)):
            raise


@slurm.command(short_help="End a Slurm, with its jobs.")
@_folder_option
def down(folder: Path) -> None:
    """End a Slurm, with its jobs, and return when nothing of it is left."""
    from jobs.private_slurm import PrivateSlurm
    from jobs.private_slurm.client import NotUpError, end_leftovers

    try:
        PrivateSlurm.attach(folder).stop()
    except NotUpError:
        ended = end_leftovers(folder)
        if not ended:
            raise
        say(f"ended {_counted(ended, 'process')} of a Slurm in {folder} whose supervisor had been killed")
        return
    say(f"the Slurm in {folder} has ended")


@slurm.command(short_help="Show daemons, nodes and jobs.")
@_folder_option
@_json_option
def status(folder: Path, as_document: bool) -> None:
    """Show a Slurm's daemons, nodes and jobs, and whether accounting answers."""
    from jobs.private_slurm import PrivateSlurm
    from jobs.private_slurm.report import report

    found = report(PrivateSlurm.attach(folder))
    if as_document:
        say(as_json(found))
        return
    daemons: list[Column[DaemonStatus]] = [
        Column("daemon", lambda daemon: daemon.name, "daemon"),
        Column("pid", lambda daemon: daemon.pid, "pid", right=True),
        Column("state", lambda daemon: daemon.ended or "up", "state"),
    ]
    nodes: list[Column[NodeReport]] = [
        Column("node", lambda node: node.name, "node"),
        Column("state", lambda node: node.state, "state"),
        Column("cpus", lambda node: node.cpus, "CPUs", right=True),
        Column("memory_mb", lambda node: node.memory_mb, "memory MB", lambda node: f"{node.memory_mb:,}", right=True),
        Column("gpus", lambda node: node.gpus, "GPUs", right=True),
    ]
    print_table(found.daemons, daemons)
    say()
    print_table(found.nodes, nodes)
    say()
    say(f"jobs: {_jobs(found)}")
    say(f"accounting: {_ACCOUNTING[found.accounting]}")
    if found.stand_in_gpus:
        say(f"GPUs: {_STAND_INS}")
    say(f"to use it: export SLURM_CONF={shlex.quote(found.slurm_conf)}")


_ACCOUNTING = {None: "off, so sacct fails", True: "on, sacct answers", False: "on, but it does not answer"}
_STAND_INS = "stand-ins, which jobs are given and nothing can compute on"


def _welcome(found: SlurmReport, foreground: bool) -> str:
    """What there is now, and how to use it."""
    node = found.nodes[0]
    each = f"{_counted(node.cpus, 'CPU')}, {node.memory_mb:,} MB and {_counted(node.gpus, 'GPU')}"
    lines = [
        f"A Slurm of {_counted(len(found.nodes), 'node')} is up in {found.folder}, after {found.boot_s:.1f} s.",
        f"{'It has' if len(found.nodes) == 1 else 'Each has'} {each}. Accounting is {_ACCOUNTING[found.accounting]}.",
    ]
    if found.stand_in_gpus:
        lines.append(f"The GPUs are {_STAND_INS}.")
    ending = "Ctrl-C ends it." if foreground else "`epwatch slurm down` ends it."
    lines += [
        "",
        f"    export SLURM_CONF={shlex.quote(found.slurm_conf)}",
        "    srun hostname",
        "",
        f"`epwatch slurm status` shows it. {ending}",
    ]
    return "\n".join(lines)


def _jobs(found: SlurmReport) -> str:
    if found.jobs is None:
        return "the controller does not answer"
    return ", ".join(f"{number:,} {state.lower()}" for state, number in sorted(found.jobs.items())) or "none"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"
