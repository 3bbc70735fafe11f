"""What no plan can say, though each field by itself has the right type: every section but the clusters and the cases.

Pure and torch-free. Called by `jobs.plan`, which turns a complaint into a sentence with a line. Next to read:
`jobs.plan_clusters`, the same for clusters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from jobs.plan_clusters import NAME, NAME_WORDS, Complaint
from jobs.plan_sections import DEFAULT_CASE_S, DEFAULT_JOB_S, MeasureSection, PlanFile
from jobs.plan_tell import BRACES_WORDS, check_tell, has_other_braces

MOST_CONFIRMATIONS = 2
MOST_REPEATS = 1000
MOST_RUNS = 100_000
"""Of one night: what a plan that means what it says stays far below."""
NIGHTS_A_MONTH = 30


def sections_complaint(written: PlanFile) -> Complaint | None:
    """What is wrong with the sections, None where nothing is."""
    return next(_complaints(written), None)


def floor_complaint(floor: float) -> str | None:
    """What is wrong with a floor, None where nothing is."""
    if 0 < floor <= 10:
        return None
    return f"is {floor}, wanted a relative change above 0 and at most 10 (0.1 is 10 %)"


def fitted(measure: MeasureSection, given: Mapping[str, object]) -> MeasureSection:
    """The section with those expected times that are not `given` brought down to what a job may take at all."""
    shorter = {
        field: min(default, measure.job_deadline_s)
        for field, default in (("job_s", DEFAULT_JOB_S), ("case_s", DEFAULT_CASE_S))
        if field not in given
    }
    return msgspec.structs.replace(measure, **shorter)


def _complaints(written: PlanFile) -> Iterator[Complaint]:
    plan, baseline, verdict = written.plan, written.baseline, written.verdict
    if not NAME.fullmatch(plan.name):
        yield "plan.name", f"{plan.name!r} is not a name: {NAME_WORDS}"
    if not 0 <= plan.resume_within_h < 1e6:
        yield "plan.resume_within_h", f"is {plan.resume_within_h}, wanted hours from 0 on"
    yield from _measure_complaints(written.measure)
    if wrong := floor_complaint(verdict.floor):
        yield "verdict.floor", wrong
    if baseline.policy == "named" and not baseline.name:
        yield "baseline.policy", 'is "named", but there is no baseline.name'
    if baseline.policy in ("none", "auto") and baseline.name:
        yield "baseline.name", f'is given, but baseline.policy is "{baseline.policy}"'
    if not 0 <= verdict.confirmations <= MOST_CONFIRMATIONS:
        yield "verdict.confirmations", f"is {verdict.confirmations}, wanted 0 to {MOST_CONFIRMATIONS}"
    if not 0 < verdict.false_alarms_a_month < NIGHTS_A_MONTH:
        yield (
            "verdict.false_alarms_a_month",
            f"is {verdict.false_alarms_a_month}, wanted a number above 0 and below {NIGHTS_A_MONTH}",
        )
    if has_other_braces(plan.report):
        yield "plan.report", BRACES_WORDS
    if told := check_tell(written.tell):
        yield told
    if not written.cases:
        yield "cases", "is empty: a plan measures something"


def _measure_complaints(measure: MeasureSection) -> Iterator[Complaint]:
    if not 1 <= measure.repeats <= MOST_REPEATS:
        yield "measure.repeats", f"is {measure.repeats}, wanted at least 1 and at most {MOST_REPEATS}"
    for field, least in (("warmup", 0), ("iters", 2), ("tries", 1)):
        if getattr(measure, field) < least:
            yield f"measure.{field}", f"is {getattr(measure, field)}, wanted at least {least}"
    for field in ("deadline_s", "heartbeat_s", "job_deadline_s", "job_s", "case_s"):
        if not 0 < getattr(measure, field) < 1e6:
            yield f"measure.{field}", f"is {getattr(measure, field)}, wanted seconds above 0 and below 1e6"
    for field in ("job_s", "case_s"):
        if getattr(measure, field) > measure.job_deadline_s:
            yield (
                f"measure.{field}",
                f"is {getattr(measure, field):g}, more than measure.job_deadline_s ({measure.job_deadline_s:g} s): "
                "jobs would be ended before they are through",
            )
