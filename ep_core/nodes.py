"""Which ranks form a node: those that can map each other's memory. Pure, but for the override in the environment.

Called by `ep_core.rendezvous` and the engines. Next to read: `ep_core.host`.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

OVERRIDE = "EP_RANKS_PER_NODE"


@dataclass(frozen=True)
class Nodes:
    """The nodes of a world, numbered in the order of their first ranks.

    rank: this one. node_of: the node of every rank.
    """

    rank: int
    node_of: tuple[int, ...]

    @classmethod
    def found(cls, rank: int, machines: Sequence[Hashable]) -> Nodes:
        """Ranks of equal `machines` (by rank) are one node, or several of at most `EP_RANKS_PER_NODE` ranks each."""
        most = ranks_per_node()
        kinds: dict[tuple[Hashable, int], int] = {}
        seen: dict[Hashable, int] = {}
        node_of = []
        for machine in machines:
            place = seen[machine] = seen.get(machine, -1) + 1
            node_of.append(kinds.setdefault((machine, place // most if most else 0), len(kinds)))
        return cls(rank, tuple(node_of))

    @property
    def count(self) -> int:
        """How many nodes there are."""
        return max(self.node_of) + 1

    @property
    def mine(self) -> int:
        """The node of this rank."""
        return self.node_of[self.rank]

    @cached_property
    def _ranks(self) -> tuple[tuple[int, ...], ...]:
        return tuple(
            tuple(rank for rank, where in enumerate(self.node_of) if where == node) for node in range(self.count)
        )

    def ranks_of(self, node: int) -> tuple[int, ...]:
        """The ranks of `node`, ascending."""
        return self._ranks[node]

    def same(self, a: int, b: int) -> bool:
        """Whether ranks `a` and `b` are on one node."""
        return self.node_of[a] == self.node_of[b]

    def holder(self, source: int, node: int) -> int:
        """The rank of `node` that receives for its node what `source`, a rank of another, sends there.

        The one of the same index, so that every rank has as much to do; in turn where `node` has fewer ranks.
        """
        index = self.ranks_of(self.node_of[source]).index(source)
        ranks = self.ranks_of(node)
        return ranks[index % len(ranks)]

    def held(self, holder: int) -> tuple[int, ...]:
        """The ranks of other nodes for which `holder` receives, ascending."""
        node = self.node_of[holder]
        return tuple(
            source for source, where in enumerate(self.node_of) if where != node and self.holder(source, node) == holder
        )


def ranks_per_node() -> int | None:
    """The most ranks of a node by `EP_RANKS_PER_NODE`; None where it is not set.

    For tests and experiments: ranks of one machine act as several nodes. Raises `ValueError` for what is no number
    above 0.
    """
    text = os.environ.get(OVERRIDE, "")
    if not text:
        return None
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{OVERRIDE}: wanted a number of ranks above 0, got {text!r}")
    return int(text)
