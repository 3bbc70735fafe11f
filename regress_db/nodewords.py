"""What is told of nodes in plain words: each that stands out, then how many do not.

Pure. Called by `epwatch nodes` and by the web page; next to read: `regress_db.nodes`.
"""

from __future__ import annotations

from collections.abc import Sequence

from regress_db.nodes import NodeEffect

_NAMED = 5


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
