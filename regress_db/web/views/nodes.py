"""View 5: nodes: who is slow, since when."""

from __future__ import annotations

from datetime import datetime

import msgspec

from regress_db.nodes import NodeVerdict
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
