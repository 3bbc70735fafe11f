"""Judging: what was planned, what came back and what is known of its past, made into one verdict per case and phase.

`judge_night` judges a night and stores what it says; `judge_runs` judges any runs and stores nothing. The steps: gather
the runs; find what each series is compared with; take out what their nodes explain and what many series have in common
and no commit can have done; compare; decide over the whole night; put what moved together into findings; apply waivers.
What gave no number is never a pass: one failed or missing run of a case decides both of its phases.

Next to read: `regress_db.method.comparing` (the comparison), `regress_db.explaining` (whose fault it is),
`regress_db.automatic` (the past), `regress_db.nightverdict` (what comes out).
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import Connection, select

from harness.case import PHASES, Case
from regress_db import lookup
from regress_db.environments import Difference, differences, flatten
from regress_db.explaining import TakenOut, taken_out
from regress_db.facts import AA, CONFIRMATION, RunFacts, facts_of_night, facts_of_runs
from regress_db.history import History
from regress_db.judged import Known, Pasts, Series, automatic_pasts, groups, named_pasts
from regress_db.metrics import BANDWIDTH_METRIC, RUN_VALUE_METRIC
from regress_db.nightverdict import (
    NO_NUMBER,
    Cause,
    NightFinding,
    NightVerdict,
    SeriesVerdict,
    Verdict,
    store,
    with_acknowledged,
    worst_first,
)
from regress_db.schema import ENVIRONMENTS
from regress_db.waivers import Waiver, tolerated
from regress_db.wording import AUTO, modes_words, sentence_of

if TYPE_CHECKING:
    from regress_db.method.attribution import Context, Finding, Shared
    from regress_db.method.comparing import Comparison, Decision

Floor = float | Mapping[str, float] | Callable[[Case], float]
"""The smallest relative change worth a verdict: one for all, by case key (`""`: for the others), or a function."""

_DEFAULT_FLOOR = 0.05
_DEFAULT_CONTROLS = ("torch",)


@dataclass(frozen=True, slots=True)
class Rules:
    """How a night is judged.

    floor: see `Floor`. level: the false discovery rate over the night, None for the method's own (one false alarm a
    month). confirmations: how many runs a candidate may still get before it is believed, beyond those it was first
    measured with. controls: backends that
    do not run the code under test, hence cannot be slowed by a commit. waivers: slowings that are tolerated.
    """

    floor: Floor = _DEFAULT_FLOOR
    level: float | None = None
    confirmations: int = 0
    controls: tuple[str, ...] = _DEFAULT_CONTROLS
    waivers: tuple[Waiver, ...] = ()

    def floor_of(self, case: str) -> float:
        """The floor of this case."""
        if isinstance(self.floor, Mapping):
            return self.floor.get(case, self.floor.get("", _DEFAULT_FLOOR))
        if callable(self.floor):
            return self.floor(Case.parse(case))
        return self.floor


_RULES = Rules()


def judge_night(
    history: History,
    night_id: str,
    *,
    baseline: str | None,
    rules: Rules = _RULES,
    keep: bool = True,
) -> NightVerdict:
    """Judge every planned case of the night (and any other run of it); what people acknowledged is marked.

    baseline: name of a live baseline; `auto`: each series' own past; None: everything that ran is `insufficient`. A
    night's own runs are never their own baseline. keep: store the verdicts as those of the night, in place of earlier
    ones. Raises `NotFoundError` for an unknown night or baseline.
    """
    with history.write() if keep else history.read() as connection:
        night = lookup.night(connection, night_id)
        base = None if baseline in (None, AUTO) else lookup.live_baseline(connection, str(baseline))
        facts = facts_of_night(connection, night.id)
        of_night = [one for one in facts if one.purpose != AA or one.outcome != "ok"]
        known = (
            automatic_pasts(connection, night, of_night) if baseline == AUTO else named_pasts(connection, base, facts)
        )
        said = _judge(connection, of_night, known, baseline, rules, night.name, night.started_at)
        halves = _standing_check(facts, rules)
        verdict = replace(said, plan=night.plan, aa_series=halves and halves[0], aa_alarms=halves and halves[1])
        if keep:
            store(connection, night.id, verdict, None if base is None else base.id)
        return with_acknowledged(connection, verdict, night.started_at)


def judge_runs(
    history: History, run_ids: Sequence[str], *, baseline: str, rules: Rules = _RULES
) -> tuple[SeriesVerdict, ...]:
    """Judge these runs (whole ids) against a named baseline, worst first; nothing is stored, nothing acknowledged
    counts. A run id the history does
    not have is a `NotFoundError`: `judge_night` knows what was planned, this does not.
    """
    with history.read() as connection:
        base = lookup.live_baseline(connection, baseline)
        facts = facts_of_runs(connection, [lookup.run(connection, run_id)[0] for run_id in run_ids])
        return _judge(connection, facts, named_pasts(connection, base, facts), baseline, rules).series


def _judge(
    connection: Connection,
    facts: Sequence[RunFacts],
    known: Pasts,
    baseline: str | None,
    rules: Rules,
    night: str = "",
    started_at: datetime | None = None,
) -> NightVerdict:
    from regress_db.method.attribution import Changed, group
    from regress_db.method.comparing import DEFAULT_LEVEL, METHOD, decide, is_candidate

    level = DEFAULT_LEVEL if rules.level is None else rules.level
    all_series = [
        Series(case, platform, phase, runs, known.get((case, platform, phase), Known()), rules.floor_of(case))
        for (case, platform), runs in groups(facts).items()
        for phase in PHASES
    ]
    comparable = [one for one in all_series if one.new]
    context = _context(connection, comparable, night)
    taken = taken_out(connection, comparable, context, rules.controls, started_at)
    shared = taken.shared
    comparisons = _compare(comparable, shared, rules, level)
    decisions = decide(comparisons, level)
    of_series = {
        one.key: (comparison, decision)
        for one, comparison, decision in zip(comparable, comparisons, decisions, strict=True)
    }
    changed = [
        Changed(one.key, one.family, found.effect, found.low, found.high, one.backend not in rules.controls)
        for one, found, decision in zip(comparable, comparisons, decisions, strict=True)
        if decision.verdict in ("regressed", "improved") and all(run.outcome == "ok" for run in one.runs)
        if found.effect is not None and found.low is not None and found.high is not None
    ]
    code, numbers = group(changed, context, len(shared.findings) + 1, shared.witness)
    findings = {finding.number: finding for finding in (*shared.findings, *code)}
    whose = dict(taken.whose) | dict(numbers)
    said = [
        _say(one, of_series.get(one.key), is_candidate, taken, findings.get(whose.get(one.key, 0)), baseline, rules)
        for one in all_series
    ]
    return NightVerdict(
        night=night,
        plan="",
        baseline=baseline,
        judge=METHOD,
        judged_at=datetime.now(UTC),
        series=worst_first(said),
        findings=tuple(_kept(finding) for finding in findings.values()),
        level=level,
        remarks=shared.notes,
    )


def _compare(series: Sequence[Series], shared: Shared, rules: Rules, level: float) -> list[Comparison]:
    from regress_db.method.comparing import compare, platform_prior

    by_platform: dict[str, list[Series]] = defaultdict(list)
    for one in series:
        by_platform[one.platform].append(one)
    priors = {
        platform: platform_prior([one.compared(one.known.level) for one in members if one.known.level])
        for platform, members in by_platform.items()
    }
    return [
        compare(
            one.compared(one.new, shared.removed_runs.get(one.key)),
            one.compared(one.known.level),
            floor=one.floor,
            prior=priors[one.platform],
            earlier=[one.compared(segment) for segment in one.known.earlier],
            confirmations=one.runs_to_come(rules.confirmations),
            level=level,
            family=len(series),
        )
        for one in series
    ]


def _standing_check(facts: Sequence[RunFacts], rules: Rules) -> tuple[int, int] | None:
    """How many series the two halves of an A/A night could be compared in, and in how many they differed."""
    if not any(one.purpose == AA for one in facts):
        return None
    from regress_db.method.comparing import DEFAULT_LEVEL, decide

    first: dict[tuple[str, str], list[RunFacts]] = defaultdict(list)
    again: dict[tuple[str, str], list[RunFacts]] = defaultdict(list)
    for one in facts:
        if one.outcome == "ok" and one.purpose != CONFIRMATION:
            (again if one.purpose == AA else first)[one.case, one.platform].append(one)
    series = [
        Series(case, platform, phase, runs, Known(level=first[case, platform]), rules.floor_of(case))
        for (case, platform), runs in again.items()
        for phase in PHASES
        if first[case, platform]
    ]
    level = DEFAULT_LEVEL if rules.level is None else rules.level
    decisions = decide(_compare(series, _nothing_shared(), rules, level), level)
    told = [decision.verdict for decision in decisions if decision.verdict != "insufficient"]
    return len(told), sum(verdict in ("regressed", "improved") for verdict in told)


def _nothing_shared() -> Shared:
    from regress_db.method.attribution import Shared

    return Shared(removed={}, findings=())


def _context(connection: Connection, series: Sequence[Series], night: str) -> Context:
    """What may explain a change of the whole night: the commit, the environment, the cluster."""
    from regress_db.method.attribution import Context

    new = Counter(run.environment for one in series for run in one.new)
    base = Counter(run.environment for one in series for run in one.known.level)
    before, after = (_usual(connection, counts) for counts in (base, new))
    clusters = Counter(run.cluster for one in series for run in one.new)
    changes: tuple[Difference, ...] = ()
    if before and after:
        changes = tuple(one for one in differences(before, after) if not one.name.startswith("code."))
    return Context(
        commit_before=_commit(before),
        commit_after=_commit(after),
        environment_changes=changes,
        cluster=clusters.most_common(1)[0][0] if clusters else "",
        night=night,
    )


def _commit(environment: Mapping[str, str]) -> str:
    """The commit that was measured, "" where it is not known or was changed without one."""
    clean = environment.get("code.dirty") not in ("yes", "unknown")
    return environment.get("code.commit", "") if clean else ""


def _usual(connection: Connection, counts: Counter[int]) -> dict[str, str]:
    """The environment most runs had, flat; empty where there is no run."""
    if not counts:
        return {}
    number = counts.most_common(1)[0][0]
    return flatten(connection.execute(select(ENVIRONMENTS.c.content).where(ENVIRONMENTS.c.id == number)).scalar_one())


def _say(
    one: Series,
    found: tuple[Comparison, Decision] | None,
    is_candidate: Callable[[Comparison], bool],
    taken: TakenOut,
    finding: Finding | None,
    baseline: str | None,
    rules: Rules,
) -> SeriesVerdict:
    comparison, decision = found or (None, None)
    new, old = one.new, one.known.level
    bad = [run for run in one.runs if run.outcome != "ok"]
    silent = sum(run.outcome == "ok" and (one.phase, RUN_VALUE_METRIC) not in run.values for run in one.runs)
    verdict: Verdict = "insufficient" if decision is None else decision.verdict
    if bad or silent:
        verdict = next((kind for kind in NO_NUMBER if any(run.outcome == kind for run in bad)), "missing")
    alike = [run for run in bad if run.outcome == verdict]
    removed = taken.shared.removed.get(one.key, 0.0)
    cause: Cause | None = None
    if finding is not None and (verdict in ("regressed", "improved") or removed):
        cause = finding.cause
    said = SeriesVerdict(
        case=one.case,
        phase=one.phase,
        platform_key=one.platform,
        verdict=verdict,
        effect=None if comparison is None else comparison.effect,
        low=None if comparison is None else comparison.low,
        high=None if comparison is None else comparison.high,
        floor=one.floor,
        noise_floor=None if comparison is None else comparison.noise_floor,
        detectable=None if comparison is None else comparison.detectable,
        runs_needed=None if comparison is None else comparison.runs_needed,
        p_value=None if comparison is None else comparison.p_value,
        shared=math.expm1(removed) if removed else None,
        latency_us=_median(new, one.phase, "latency_us"),
        bandwidth_gbs=_median(new, one.phase, BANDWIDTH_METRIC),
        baseline_latency_us=_median(old, one.phase, "latency_us"),
        new_runs=len(new),
        confirmations=sum(run.purpose == CONFIRMATION for run in new),
        baseline_runs=len(old),
        baseline_first=old[0].run_id if old else None,
        baseline_last=old[-1].run_id if old else None,
        sentence="",
        cause=cause,
        finding=None if cause is None or finding is None else finding.number,
        warnings=tuple(text for text in (*(comparison.warnings if comparison else ()), _modes(one)) if text),
        candidate=comparison is not None and not bad and not silent and is_candidate(comparison),
    )
    sentence = sentence_of(
        said,
        baseline=baseline,
        since=one.known.since,
        planned_runs=len(one.runs),
        bad_runs=len(alike) + silent * (verdict == "missing"),
        reason=next((run.why for run in alike if run.why), ""),
        blamed=finding.subject if finding is not None and cause is not None else "",
        nodes=taken.words.get(one.key, ""),
    )
    return tolerated(replace(said, sentence=sentence), rules.waivers, datetime.now(UTC).date())


def _modes(one: Series) -> str:
    """What is to be said of a series with two levels, "" of any other."""
    from regress_db.method.modes import compare_modes, two_modes

    new, base = one.values(one.new), one.values(one.known.level)
    found = two_modes(base) if new else None
    return "" if found is None else modes_words(found, compare_modes(new, base, found))


def _median(runs: Sequence[RunFacts], phase: str, metric: str) -> float | None:
    values = [run.values[phase, metric] for run in runs if (phase, metric) in run.values]
    return statistics.median(values) if values else None


def _kept(finding: Finding) -> NightFinding:
    return NightFinding(
        number=finding.number,
        cause=finding.cause,
        subject=finding.subject,
        effect=finding.effect,
        low=finding.low,
        high=finding.high,
        series=len(finding.series),
        sentence=finding.sentence,
    )
