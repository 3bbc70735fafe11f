"""Verdicts on nights that never were, to be put into words."""

from datetime import UTC, datetime

from jobs.judging import Judged
from regress_db.nightverdict import NightFinding, NightVerdict, SeriesVerdict

KEY = "ep_core/ll/cpu/r2n1/t64/h1024/k4/e16/bf16/exact/uniform@0/phased"
PLATFORM = "local/some-cpu/x2/shared-memory"


def series(verdict="unchanged", **fields):
    """The verdict on one series; fields: what differs from an ordinary one."""
    known = {
        "case": KEY,
        "phase": "dispatch",
        "platform_key": PLATFORM,
        "verdict": verdict,
        "effect": 0.25 if verdict == "regressed" else 0.0,
        "low": 0.2 if verdict == "regressed" else -0.01,
        "high": 0.3 if verdict == "regressed" else 0.01,
        "floor": 0.1,
        "noise_floor": None,
        "detectable": 0.05,
        "runs_needed": 0,
        "p_value": 0.001,
        "shared": None,
        "latency_us": 125.0,
        "bandwidth_gbs": 1.0,
        "baseline_latency_us": 100.0,
        "new_runs": 5,
        "confirmations": 0,
        "baseline_runs": 20,
        "baseline_first": None,
        "baseline_last": None,
        "sentence": f"dispatch of {KEY} is {verdict}.",
    }
    return SeriesVerdict(**(known | fields))


def finding(number=1, **fields):
    known = {"cause": "node", "subject": "node-7", "effect": 0.2, "low": 0.1, "high": 0.3, "series": 2}
    return NightFinding(number=number, sentence=f"finding {number}", **(known | fields))


def night(*of_series, name="20261124-020000-abcd", strict=False, made=None, **fields):
    """A judged night."""
    known = {"plan": "nightly", "baseline": "auto", "judge": "method", "judged_at": datetime(2026, 11, 24, tzinfo=UTC)}
    ordered = tuple(sorted(of_series, key=lambda one: one.badness))
    return Judged(NightVerdict(night=name, series=ordered, **(known | fields)), made, strict)
