"""Verdicts in plain words with numbers: one sentence that the table, the report and the pytest gate all show.

Pure. Called by `regress_db.verdicts`; the formats of single numbers are used by the pages of `regress_db.web` as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regress_db.method.modes import Modes, ModesCompared
    from regress_db.nightverdict import SeriesVerdict

AUTO = "auto"
"""In place of a baseline's name: each series is judged against its own past, since the last accepted change."""

SIGNS = {
    "regressed": "▲",
    "improved": "▼",
    "unchanged": "=",
    "inconclusive": "?",
    "insufficient": "–",
    "wrong": "✗",
    "hung": "✗",
    "failed": "✗",
    "missing": "∅",
}
"""Each verdict's sign, so that no reader depends on colour."""

BEYOND_TELLING = 10.0
"""A relative change above which a number says no more than "very large"."""


def percent(change: float) -> str:
    """A relative change as a signed percentage with a sensible number of digits: `+3.1 %`."""
    value = round(change * 100, 1) + 0.0
    return f"{value:+.0f} %" if abs(value) >= 99.5 else f"{value:+z.1f} %"


def size(change: float) -> str:
    """A relative change without its sign, such as a floor: `10 %`; what is beyond telling, as `> 1000 %`."""
    if change > BEYOND_TELLING:
        return f"> {BEYOND_TELLING * 100:.0f} %"
    value = change * 100
    return f"{value:.0f} %" if value >= 99.5 else f"{value:.3g} %"


def latency(value_us: float) -> str:
    """A latency with four significant digits and its unit."""
    if value_us >= 1e6:
        return f"{value_us / 1e6:.4g} s"
    if value_us >= 1e4:
        return f"{value_us / 1e3:.4g} ms"
    return f"{value_us:.4g} µs"


def interval(low: float, high: float) -> str:
    """An interval of relative changes: `+1.0 % to +5.2 %`."""
    return f"{percent(low)} to {percent(high)}"


def runs(count: int) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} run" if count == 1 else f"{count} runs"


def sentence_of(
    said: SeriesVerdict,
    *,
    baseline: str | None,
    since: str,
    planned_runs: int,
    bad_runs: int,
    reason: str,
    blamed: str,
    nodes: str = "",
) -> str:
    """The verdict on one series in words.

    since: from when on its own past is its baseline, "" where that has no beginning. reason: of a run that gave no
    number; blamed: what its cause names; nodes: what its nodes explain; each "" where there is none.
    """
    subject = f"{said.phase} of {said.case}"
    if said.verdict in {"wrong", "hung", "failed", "missing"}:
        return f"{subject} {_no_number(said.verdict, bad_runs, planned_runs, reason)}"
    measured = "" if said.latency_us is None else f" ({latency(said.latency_us)}, {runs(said.new_runs)})"
    own = baseline == AUTO
    if said.verdict == "insufficient":
        if baseline is None:
            return f"{subject} was measured{measured} but there is no baseline to judge it by."
        whose = "its own past" if own else f"baseline {baseline!r}"
        held = runs(said.baseline_runs)
        return f"{subject} was measured{measured} but {whose} has {held} of it, too few to say anything."
    confirmed = f", {said.confirmations} of them re-runs" if said.confirmations else ""
    whose = f"of its own past{f' {since}' if since else ''}" if own else f"of baseline {baseline!r}"
    whose_is_it = "that its nodes explain" if nodes else "that it has in common with others"
    common = f", {percent(said.shared)} {whose_is_it} taken out" if said.shared else ""
    compared = (
        f"{latency(said.latency_us or 0.0)} against {latency(said.baseline_latency_us or 0.0)}; run medians "
        f"{percent(said.effect or 0.0)}, interval {interval(said.low or 0.0, said.high or 0.0)}{common}; "
        f"{runs(said.new_runs)}{confirmed} against {said.baseline_runs} {whose}{f'; {nodes}' if nodes else ''}"
    )
    counts = _what_counts(said)
    match said.verdict:
        case "regressed":
            why = f"; put down to {_cause(said, blamed)}" if said.cause else ""
            return f"{subject} got slower: {compared}; {counts}{why}."
        case "improved":
            return f"{subject} got faster: {compared}."
        case "unchanged":
            return f"{subject} is unchanged: {compared}; {_seen(said)}."
        case _:
            return f"{subject} cannot be decided: {compared}; {counts}; {_seen(said)}."


def _what_counts(said: SeriesVerdict) -> str:
    """The floor that was used, and where it comes from."""
    if said.noise_floor is not None and said.noise_floor > said.floor:
        return f"the smallest change that counts is {size(said.noise_floor)}, for its noise (asked: {size(said.floor)})"
    return f"the smallest change that counts is {size(said.floor)}"


def _seen(said: SeriesVerdict) -> str:
    """What could have been seen, and what would see the floor."""
    if (said.detectable or 0.0) > BEYOND_TELLING:
        return "its runs vary so much that hardly any slowing could have been seen"
    seen = f"a slowing of {size(said.detectable or 0.0)} or more would most likely have been seen"
    if said.runs_needed is None:
        return f"{seen}; more runs a night would not see {size(said.floor)}, a longer baseline might"
    if said.runs_needed:
        return f"{seen}; {runs(said.runs_needed)} more would see {size(said.floor)}"
    return seen


def _cause(said: SeriesVerdict, blamed: str) -> str:
    names = {"code": "the code", "night": "the night", "node": "a node", "environment": "the environment"}
    return f"{names[said.cause or 'code']}{f', {blamed}' if blamed else ''}"


def modes_words(modes: Modes, compared: ModesCompared) -> str:
    """What a series with two levels did, as proportions and locations."""
    told = (
        f"its runs have two levels, {latency(modes.fast_us)} and {latency(modes.slow_us)}: {compared.new_slow} of "
        f"{compared.new_runs} were at the slow one, {compared.base_slow} of {compared.base_runs} before "
        f"(p = {compared.proportion_p:.2g})"
    )
    moved = [
        f"the {which} level moved by {percent(change)}"
        for which, change in (("fast", compared.fast_change), ("slow", compared.slow_change))
        if change is not None
    ]
    return ", ".join([told, *moved])


def _no_number(verdict: str, bad: int, planned: int, reason: str) -> str:
    because = f": {reason.rstrip('.')}" if reason else ""
    whose = "its only run" if planned == 1 else f"{bad} of its {planned} runs"
    match verdict:
        case "wrong":
            said = f"gave wrong answers in {whose}"
        case "hung":
            said = f"hung in {whose}"
        case "failed":
            said = f"failed in {whose}"
        case _:
            said = f"has no result of {whose}"
    return f"{said}{because}."
