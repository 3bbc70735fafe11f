"""View 5: nodes: who is slow, since when."""

from __future__ import annotations

from datetime import datetime

import msgspec

from regress_db.history import History
from regress_db.nodes import NodeEffect, NodeVerdict, node_effects
from regress_db.nodewords import sentences
from regress_db.selection import EVERYTHING, Selection
from regress_db.web.views.shared import Answer


class NodeLine(msgspec.Struct, frozen=True, kw_only=True):
    """A node against the others of its cluster, as in `regress_db.nodes.NodeEffect`. effect: 0.1 is 10 % slower; low,
    high: 95 % interval. since: the night in which it became so, "" where that cannot be told or was always.
    sign: ▲ slow, ▼ fast, = usual, ? cannot tell.
    """

    host: str
    cluster: str
    verdict: NodeVerdict
    sign: str
    effect: float | None
    low: float | None
    high: float | None
    p_value: float | None
    runs: int
    nights: int
    series: int
    last_seen: datetime
    since: str
    alike: list[str]


class NodesView(Answer, frozen=True, kw_only=True, tag="nodes"):
    """Every node that ran something lately, the slowest first; sentences: what that says, in words."""

    nodes: list[NodeLine]
    sentences: list[str]


_SIGNS: dict[NodeVerdict, str] = {"slow": "▲", "fast": "▼", "usual": "=", "cannot tell": "?"}


def gather(history: History, selection: Selection = EVERYTHING, *, cluster: str | None = None) -> NodesView:
    """The nodes of the newest nights, as `epwatch nodes` has them."""
    found = node_effects(history, selection, cluster=cluster)
    return NodesView(nodes=[_line(one) for one in found], sentences=sentences(found))


def _line(one: NodeEffect) -> NodeLine:
    return NodeLine(
        host=one.hostname,
        cluster=one.cluster,
        verdict=one.verdict,
        sign=_SIGNS[one.verdict],
        effect=one.effect,
        low=one.low,
        high=one.high,
        p_value=one.p_value,
        runs=one.runs,
        nights=one.nights,
        series=one.series,
        last_seen=one.last_seen,
        since=one.since,
        alike=list(one.alike),
    )
