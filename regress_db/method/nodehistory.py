"""What the nodes used explain of a night's changes, by what those nodes did in the nights before.

Pure. Called by `regress_db.verdicts` before `regress_db.method.attribution`, which sees what many series have in common
tonight and is next to read: a night that ran wholly on other nodes than its baseline looks to it like slow code.

The rules, so that a slowdown by a commit is never explained away:

- A node counts by what it did in nights before this one (`regress_db.method.nodes`), significantly, in `LEAST_NIGHTS`
  nights and `LEAST_UNITS` cases at least; and by how it differs from the nodes of the baseline's middle run.
- Of a series no more is taken out than the end of that interval nearest to no difference, nor more than it changed
  itself, nor anything that points the other way. What is left is judged as ever.
- Where the code may differ, and series that do not run it were on the node as well, they have to show at least half of
  the difference: a node that was repaired yesterday explains nothing today.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from regress_db.method.findings import Finding, speed_words

LEAST_NIGHTS = 5
LEAST_UNITS = 4
"""A node that was compared in fewer nights, or in fewer cases, explains nothing."""

_WITNESSED = 0.5
"""The part of a difference that series which do not run the code under test have to show."""


@dataclass(frozen=True, slots=True)
class KnownNode:
    """What is known of nodes that cannot be told apart: mostly one. names: their hosts. effect, low, high: log change
    of their runs against the others'. runs, nights, units: what that rests on.
    """

    names: tuple[str, ...]
    effect: float
    low: float
    high: float
    runs: int
    nights: int
    units: int

    @property
    def subject(self) -> str:
        """What it is called."""
        return " or ".join(self.names)

    @property
    def speed(self) -> str:
        """`8.1 % slower (6.2 % to 9.9 %)`."""
        return speed_words(math.expm1(self.effect), math.expm1(self.low), math.expm1(self.high))


@dataclass(frozen=True, slots=True)
class PlacedSeries:
    """A series of the night: where its runs were and where its baseline's.

    changes: log of each new run's value, less the centre of its baseline. hosts, baseline_hosts: of each run. cluster:
    whose nodes these are. under_test: it runs the code under test.
    """

    series: Hashable
    under_test: bool
    cluster: str
    changes: tuple[float, ...]
    hosts: tuple[tuple[str, ...], ...]
    baseline_hosts: tuple[tuple[str, ...], ...]

    @property
    def shift(self) -> float:
        """How much it changed."""
        return statistics.median(self.changes)


@dataclass(frozen=True, slots=True)
class Explained:
    """What nodes explain. Log changes of each new run, by series: `certain` is taken out before it is judged, `likely`
    before others are looked at for what they have in common.

    whose: number of the series' finding. words: of each series, for its sentence.
    """

    certain: Mapping[Hashable, tuple[float, ...]] = field(default_factory=dict)
    likely: Mapping[Hashable, tuple[float, ...]] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    whose: Mapping[Hashable, int] = field(default_factory=dict)
    words: Mapping[Hashable, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Waited:
    """What a run owes to its nodes (log scale), how uncertain that is, and which node it is; None for none."""

    effect: float
    half: float
    node: KnownNode | None


@dataclass(frozen=True, slots=True)
class _Share:
    """What nodes explain of one series: of each run, and the node that explains most; `away`: it was the baseline's."""

    one: PlacedSeries
    certain: tuple[float, ...]
    likely: tuple[float, ...]
    node: KnownNode
    away: bool


_ELSEWHERE = _Waited(0.0, 0.0, None)

Known = Mapping[tuple[str, str], KnownNode]
"""By cluster and host: the nodes that differ from the others."""


def explained_by_nodes(series: Sequence[PlacedSeries], known: Known, code_may_differ: bool) -> Explained:
    """What the nodes used explain of each series; findings are numbered from 1."""
    usable = {key: node for key, node in known.items() if node.nights >= LEAST_NIGHTS and node.units >= LEAST_UNITS}
    shares = [share for one in series if (share := _share(one, usable)) is not None]
    notes: list[str] = []
    if code_may_differ:
        doubted = _not_witnessed(shares)
        notes = [_doubt(node) for node in doubted.values()]
        shares = [share for share in shares if share.node.names not in doubted]
    shares = [capped for share in shares if (capped := _capped(share)) is not None]
    groups: dict[tuple[tuple[str, ...], bool], list[_Share]] = defaultdict(list)
    for share in shares:
        groups[share.node.names, share.away].append(share)
    ordered = sorted(groups.values(), key=len, reverse=True)
    return Explained(
        certain={share.one.series: share.certain for share in shares},
        likely={share.one.series: share.likely for share in shares},
        findings=tuple(_finding(members, number) for number, members in enumerate(ordered, 1)),
        whose={share.one.series: number for number, members in enumerate(ordered, 1) for share in members},
        words={share.one.series: _words(share) for share in shares},
        notes=tuple(notes),
    )


def _waited(cluster: str, hosts: Sequence[str], known: Known) -> _Waited:
    """A run on several displaced nodes waits for the slowest."""
    there = [node for host in hosts if (node := known.get((cluster, host))) is not None]
    if not there:
        return _ELSEWHERE
    node = max(there, key=lambda one: one.effect)
    return _Waited(node.effect, node.effect - node.low, node)


def _share(one: PlacedSeries, known: Known) -> _Share | None:
    """What nodes say this series should have changed by; None where they say nothing."""
    new = [_waited(one.cluster, hosts, known) for hosts in one.hosts]
    old = sorted((_waited(one.cluster, hosts, known) for hosts in one.baseline_hosts), key=lambda run: run.effect)
    if not old:
        return None
    usual = statistics.median(run.effect for run in new)
    base = min(old[(len(old) - 1) // 2], old[len(old) // 2], key=lambda run: abs(usual - run.effect))
    likely = tuple(run.effect - base.effect for run in new)
    certain = tuple(
        _nearest_zero(expected, math.hypot(run.half, base.half)) for expected, run in zip(likely, new, strict=True)
    )
    if not statistics.median(certain):
        return None
    farthest = max(new, key=lambda run: abs(run.effect - base.effect)).node
    node = farthest or base.node
    return None if node is None else _Share(one, certain, likely, node, away=farthest is None)


def _nearest_zero(expected: float, half: float) -> float:
    return math.copysign(max(abs(expected) - half, 0.0), expected)


def _capped(share: _Share) -> _Share | None:
    """No more than the series changed itself, in the same direction; None where that is nothing."""
    shift = share.one.shift

    def cap(value: float) -> float:
        return math.copysign(min(abs(value), abs(shift)), value) if value * shift > 0 else 0.0

    certain, likely = tuple(map(cap, share.certain)), tuple(map(cap, share.likely))
    if not statistics.median(certain):
        return None
    return _Share(share.one, certain, likely, share.node, share.away)


def _not_witnessed(shares: Sequence[_Share]) -> dict[tuple[str, ...], KnownNode]:
    """Nodes that what does not run the code under test was on tonight, without showing their difference."""
    shown: dict[tuple[str, ...], list[float]] = defaultdict(list)
    nodes: dict[tuple[str, ...], KnownNode] = {}
    for share in shares:
        expected = statistics.median(share.likely)
        if not share.one.under_test and expected:
            shown[share.node.names].append(share.one.shift / expected)
            nodes[share.node.names] = share.node
    return {names: nodes[names] for names, parts in shown.items() if statistics.median(parts) < _WITNESSED}


def _doubt(node: KnownNode) -> str:
    return (
        f"the runs of {node.subject} were {node.speed} than those of other nodes in the nights before, but tonight not "
        "those of series that do not run the code under test: nothing was taken out for it"
    )


def _percent(change: float) -> str:
    return f"{math.expm1(change) * 100:+.1f} %"


def _words(share: _Share) -> str:
    ran = "its baseline ran" if share.away else "it ran"
    explained, taken = (_percent(statistics.median(part)) for part in (share.likely, share.certain))
    return (
        f"{ran} on {share.node.subject}, which makes its runs {share.node.speed} than other nodes do: that explains "
        f"{explained} of {_percent(share.one.shift)}, of which {taken} is certain and taken out"
    )


def _finding(members: Sequence[_Share], number: int) -> Finding:
    node = members[0].node
    where = "elsewhere tonight and mostly on it before" if members[0].away else "on it tonight and mostly not before"
    who = "the series that ran" if len(members) == 1 else f"the {len(members)} series that ran"
    taken = statistics.median(statistics.median(share.certain) for share in members)
    sentence = (
        f"{node.subject} is {'slow' if node.effect > 0 else 'fast'}: in {node.nights} nights before this one its "
        f"{node.runs} runs were {node.speed} than those on other nodes; {_percent(taken)} is out of {who} {where}."
    )
    effect, low, high = (math.expm1(value) for value in (node.effect, node.low, node.high))
    series = tuple(share.one.series for share in members)
    return Finding(number, "node", node.subject, effect, low, high, series, sentence)
