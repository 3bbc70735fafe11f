"""Verdicts in plain words with numbers: one sentence that the table, the report and the pytest gate all show.

Pure. Called by `regress_db.verdicts`; the formats of single numbers are used by `regress_db.report` as well.
"""

from __future__ import annotations

from regress_db.judge import Judgement


def percent(change: float) -> str:
    """A relative change as a signed percentage with a sensible number of digits: `+3.1 %`."""
    value = round(change * 100, 1) + 0.0
    return f"{value:+.0f} %" if abs(value) >= 99.5 else f"{value:+z.1f} %"


def size(change: float) -> str:
    """A relative change without its sign, such as a floor: `10 %`."""
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
    *,
    case: str,
    phase: str,
    verdict: str,
    judgement: Judgement,
    floor: float,
    latency_us: float | None,
    baseline_latency_us: float | None,
    new_runs: int,
    baseline_runs: int,
    planned_runs: int,
    bad_runs: int,
    baseline: str | None,
    reason: str,
) -> str:
    """The verdict on one series in words. `reason`: of a run that gave no number, "" where none is known."""
    subject = f"{phase} of {case}"
    if verdict in {"wrong", "hung", "failed", "missing"}:
        return f"{subject} {_no_number(verdict, bad_runs, planned_runs, reason)}"
    measured = "" if latency_us is None else f" ({latency(latency_us)}, {runs(new_runs)})"
    if verdict == "insufficient":
        if baseline is None:
            return f"{subject} was measured{measured} but there is no baseline to judge it by."
        return (
            f"{subject} was measured{measured} but baseline {baseline!r} has {runs(baseline_runs)} of it, too few to "
            "say anything."
        )
    compared = (
        f"{latency(latency_us or 0.0)} against {latency(baseline_latency_us or 0.0)}; run medians "
        f"{percent(judgement.effect or 0.0)}, interval {interval(judgement.low or 0.0, judgement.high or 0.0)}; "
        f"{runs(new_runs)} against {baseline_runs} of baseline {baseline!r}"
    )
    seen = f"a slowing of {size(judgement.detectable or 0.0)} or more would most likely have been seen"
    match verdict:
        case "regressed":
            return f"{subject} got slower: {compared}; the smallest change that counts is {size(floor)}."
        case "improved":
            return f"{subject} got faster: {compared}."
        case "unchanged":
            return f"{subject} is unchanged: {compared}; {seen}."
        case _:
            return f"{subject} cannot be decided: {compared}; the smallest change that counts is {size(floor)}; {seen}."


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
