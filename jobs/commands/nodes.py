"""`epwatch nodes`: which nodes make their runs slow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from jobs.options import format_options, history_option, selection_options
from jobs.places import open_history
from jobs.tables import Column, Format, change, say, show, to_the_second

if TYPE_CHECKING:
    from regress_db.nodes import NodeEffect
    from regress_db.selection import Selection

_NAMED = 5


@click.command()
@selection_options
@click.option("--cluster", metavar="NAME", help="Only the nodes of this cluster.")
@click.option(
    "--level",
    type=click.FloatRange(0, 0.5, min_open=True),
    default=0.01,
    show_default=True,
    help="The chance that any node of a cluster is called slow or fast where none is.",
)
@history_option
@format_options
def nodes(selection: Selection, cluster: str | None, level: float, db: str | None, form: Format) -> None:
    """Rank nodes by how slow they make their runs against other nodes, slowest first.

    The newest 30 nights of each cluster are looked at, unless --since says otherwise. CASE and FILTER are those of
    `epwatch trend`, and so is --at. A run is compared with runs of the same series and night on other nodes, or, where
    there are none, with those of like series, each against its own level: neither a commit nor a night counts as a
    node's. Intervals are 95 %.
    """
    from regress_db.nodes import node_effects

    with open_history(db) as history:
        found = node_effects(history, selection, cluster=cluster, level=level)
    columns: list[Column[NodeEffect]] = [
        Column("hostname", lambda row: row.hostname, "node"),
        Column("cluster", lambda row: row.cluster, "cluster"),
        Column("effect", lambda row: row.effect, "slower by", lambda row: change(row.effect), right=True),
        Column("low", lambda row: row.low, "from", lambda row: change(row.low), right=True),
        Column("high", lambda row: row.high, "to", lambda row: change(row.high), right=True),
        Column("p_value", lambda row: row.p_value, "p", _p_value, right=True),
        Column("verdict", lambda row: row.verdict, "verdict"),
        Column("since", lambda row: row.since, "since night"),
        Column("runs", lambda row: row.runs, "runs", right=True),
        Column("nights", lambda row: row.nights, "nights", right=True),
        Column("series", lambda row: row.series, "series", right=True),
        Column("last_seen", lambda row: to_the_second(row.last_seen), "last run (UTC)"),
        Column("alike", lambda row: list(row.alike), "cannot be told from", lambda row: ", ".join(row.alike)),
    ]
    show(found, columns, form, empty="no run matches")
    if form == "table" and found:
        say()
        for sentence in sentences(found):
            say(sentence)


def _p_value(row: NodeEffect) -> str:
    return "" if row.p_value is None else f"{row.p_value:.1g}"


def sentences(found: Sequence[NodeEffect]) -> list[str]:
    """What the table says, in plain words: each node that stands out, then how many do not."""
    told = [_about(one) for one in found if one.verdict == "slow"]
    told += [_about(one) for one in found if one.verdict == "fast"]
    if not told:
        told.append("No node stands out from the others.")
    usual = [one.hostname for one in found if one.verdict == "usual"]
    if usual:
        told.append(f"{_listed(usual)} {'is' if len(usual) == 1 else 'are'} as fast as others, within 10 %.")
    alone = [one.hostname for one in found if one.effect is None]
    if alone:
        told.append(f"Of {_listed(alone)} nothing can be told: no run there can be compared with one on another node.")
    vague = [one.hostname for one in found if one.verdict == "cannot tell" and one.effect is not None]
    if vague:
        told.append(f"Of {_listed(vague)} too little is known: a difference of 10 % cannot be ruled out.")
    return told


def _about(one: NodeEffect) -> str:
    low, high = sorted((abs(one.low or 0.0), abs(one.high or 0.0)))
    speed = f"{abs(one.effect or 0.0) * 100:.1f} % {one.verdict}er ({low * 100:.1f} % to {high * 100:.1f} %)"
    since = f", since night {one.since}" if one.since else ""
    alike = f"; it cannot be told from {_listed(one.alike)}, which had its runs with it" if one.alike else ""
    return (
        f"{one.hostname} ({one.cluster}) makes its runs {speed} than other nodes do{since}, by {one.runs} runs of "
        f"{one.series} series in {one.nights} {'night' if one.nights == 1 else 'nights'}{alike}."
    )


def _listed(names: Sequence[str]) -> str:
    """`a, b and c`, or `a, b, c, d, e and 4 more`."""
    if len(names) > _NAMED:
        return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
