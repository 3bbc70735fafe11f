"""A measured night is judged: against which baseline, with which floors, and with which exit code.

Called by `jobs.commands.nightly` and the gate; torch-free. The comparison itself is made by `regress_db.verdicts`,
which is next to read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.case import Case
from jobs.plan import Plan
from jobs.plan_sections import DEFAULT_FLOOR
from jobs.tables import Column, change, number
from regress_db.wording import AUTO, size

if TYPE_CHECKING:
    from regress_db.history import History
    from regress_db.nightverdict import NightVerdict, SeriesVerdict
    from regress_db.verdicts import Rules

_WHO = "epwatch nightly"
_WORST_FIRST = (2, 1, 3, 4, 0)
_TOLD = frozenset({"regressed", "failed", "wrong", "hung", "missing"})


@dataclass(frozen=True)
class Judged:
    """What is said of a night. baseline_made: the baseline that this night became, None where it became none."""

    verdict: NightVerdict
    baseline_made: str | None
    strict: bool

    @property
    def exit_code(self) -> int:
        """See `NightVerdict.exit_code`; strictness is about what a baseline leaves undecided."""
        return self.verdict.exit_code(strict=self.strict and self.verdict.baseline is not None)

    @property
    def told_in_words(self) -> tuple[str, ...]:
        """What a person wants to know: each finding; what regressed, once where it stands for a finding; what gave no
        number.
        """
        told = [f"#{finding.number} {finding.sentence}" for finding in self.verdict.findings]
        told += [f"Note: {remark}." for remark in self.verdict.remarks]
        seen: set[int] = set()
        for one in self.verdict.series:
            if one.verdict not in _TOLD or one.finding in seen:
                continue
            if one.finding is not None:
                seen.add(one.finding)
            told.append(one.sentence)
        return tuple(told)

    @property
    def summary(self) -> str:
        """The night in one line."""
        against = f"against baseline {self.verdict.baseline}" if self.verdict.baseline else "against no baseline"
        if self.verdict.baseline == AUTO:
            against = "against each series' own past"
        made = f" It is now baseline {self.baseline_made}." if self.baseline_made else ""
        if self.verdict.aa_series is not None:
            made += f" A/A check: {self.verdict.aa_alarms} of {self.verdict.aa_series} series differ from themselves."
        return f"night {self.verdict.night} of plan {self.verdict.plan} {against}: {self.verdict.headline}{made}"


def rules_of(history: History, plan: Plan) -> Rules:
    """How nights of the plan are judged. The level is the plan's, or what calibration on its own
    history found, where that is stricter.

    Raises `PlanError` for a file of waivers that cannot be used.
    """
    from jobs import waivers
    from regress_db.calibration import level_for
    from regress_db.verdicts import Rules

    calibrated = level_for(history, plan.name)
    return Rules(
        floor=plan.floors,
        level=plan.level if calibrated is None else min(calibrated, plan.level),
        confirmations=plan.verdict.confirmations * plan.runs_of_a_confirmation,
        controls=tuple(plan.verdict.controls),
        waivers=waivers.of_plan(plan),
    )


def cases_to_confirm(history: History, plan: Plan, night: str, baseline: str | None) -> list[Case]:
    """The cases of the night that seem to have changed: to be measured again before anything is said of them."""
    from regress_db.verdicts import judge_night

    name = _baseline_of(history, plan, night, baseline)
    if name is None:
        return []
    said = judge_night(history, night, baseline=name, rules=rules_of(history, plan), keep=False)
    return [Case.parse(key) for key in sorted({one.case for one in said.series if one.candidate})]


def judge_planned(
    history: History, plan: Plan, night: str, *, baseline: str | None = None, strict: bool = False
) -> Judged:
    """Judge a night of the plan, and make it the baseline where the plan's policy says so.

    Doing so again says the same. baseline: overrides the plan's policy; it must exist. Raises `NotFoundError` for a
    named baseline that does not.
    """
    from regress_db.baselines import set_baseline
    from regress_db.verdicts import judge_night

    name = _baseline_of(history, plan, night, baseline)
    verdict = judge_night(history, night, baseline=name, rules=rules_of(history, plan))
    made = None
    if name is None and plan.baseline.policy == "first" and verdict.exit_code() == 0:
        made = plan.baseline_name
        assert made is not None
        if not _has_baseline(history, made):
            set_baseline(history, made, who=_WHO, why=f"first clean night of plan {plan.name}", night=night)
    return Judged(verdict, made, strict or plan.verdict.strict)


def worst(codes: Iterable[int]) -> int:
    """The exit code of a command that has judged several nights; 0 for none."""
    return min(codes, key=_WORST_FIRST.index, default=0)


def _baseline_of(history: History, plan: Plan, night: str, baseline: str | None) -> str | None:
    """What a night of the plan is judged against; None for nothing, or where policy `first` has none but itself yet."""
    name = baseline or plan.baseline_name
    if baseline is not None or name is None or plan.baseline.policy != "first":
        return name
    return name if _has_baseline(history, name) and not _is_made_of(history, name, night) else None


def _has_baseline(history: History, name: str) -> bool:
    from regress_db.baselines import list_baselines

    return any(one.name == name for one in list_baselines(history))


def settle_night(history: History, plan: Plan | None, night: str | None, baseline: str | None) -> NightVerdict:
    """The verdict on a night that was measured before: the one that stands, or a new one where it does not answer.

    night: its id; None for the newest (of the plan, where one is given). baseline: to judge against, else the plan's,
    else the one the night was judged against. The verdict on a night that was never judged is kept; one by another
    baseline or with other floors than the standing one's is given and not kept. Raises `EpwatchError` where there is no
    night or nothing to judge it against.
    """
    from regress_db.errors import NotFoundError
    from regress_db.nightverdict import stored_verdict
    from regress_db.queries import nights
    from regress_db.verdicts import Rules, judge_night

    if night is None:
        known = [line.night for line in nights(history) if plan is None or line.plan == plan.name]
        if not known:
            of_plan = "" if plan is None else f" of plan {plan.name}"
            raise NotFoundError(f"the history {history.where} has no night{of_plan}: run `epwatch nightly` first")
        night = known[0]
    try:
        standing: NightVerdict | None = stored_verdict(history, night)
    except NotFoundError:
        standing = None
    wanted = baseline or (plan.baseline_name if plan else None) or (standing.baseline if standing else None)
    if wanted is None:
        raise NotFoundError(f"night {night} was judged against no baseline: name one, or the plan that has one")
    if wanted != AUTO:
        _refuse_own_runs(history, night, wanted)
    floors: dict[str, float] = {one.case: one.floor for one in standing.series} if standing else {}
    if plan is not None:
        floors = plan.floors
    if standing and standing.baseline == wanted and all(floors.get(one.case) == one.floor for one in standing.series):
        return standing
    rules = Rules() if plan is None else rules_of(history, plan)
    rules = dataclasses.replace(rules, floor={"": DEFAULT_FLOOR, **floors})
    return judge_night(history, night, baseline=wanted, rules=rules, keep=standing is None)


def _refuse_own_runs(history: History, night: str, baseline: str) -> None:
    """Raise `BaselineError` where the baseline is the night itself: it says nothing about it."""
    from regress_db.errors import BaselineError

    if _is_made_of(history, baseline, night):
        raise BaselineError(f"night {night} is what baseline {baseline!r} was made of: another night has to come first")


def _is_made_of(history: History, baseline: str, night: str) -> bool:
    """Whether the baseline holds runs of the night alone. Raises `NotFoundError` where there is none of that name."""
    from regress_db.baselines import show_baseline
    from regress_db.queries import runs
    from regress_db.selection import Selection

    held = {run_id for series in show_baseline(history, baseline).series for run_id in series.run_ids}
    return held <= {line.run_id for line in runs(history, Selection(night=night))}


SERIES_COLUMNS: list[Column[SeriesVerdict]] = [
    Column("case", lambda row: row.case, "case", long=True),
    Column("phase", lambda row: row.phase, "phase"),
    Column("platform", lambda row: row.platform_key),
    Column("latency_us", lambda row: row.latency_us, "latency µs", lambda row: number(row.latency_us), right=True),
    Column(
        "bandwidth_gbs",
        lambda row: row.bandwidth_gbs,
        "GB/s per rank",
        lambda row: number(row.bandwidth_gbs, 3),
        right=True,
    ),
    Column("baseline_latency_us", lambda row: row.baseline_latency_us),
    Column("effect", lambda row: row.effect, "change [interval]", lambda row: _interval(row), right=True),
    Column("low", lambda row: row.low),
    Column("high", lambda row: row.high),
    Column("floor", lambda row: row.floor),
    Column("noise_floor", lambda row: row.noise_floor),
    Column(
        "detectable",
        lambda row: row.detectable,
        "would be seen",
        lambda row: "" if row.detectable is None else size(row.detectable),
        right=True,
    ),
    Column("runs_needed", lambda row: row.runs_needed),
    Column("p_value", lambda row: row.p_value),
    Column("shared", lambda row: row.shared),
    Column("new_runs", lambda row: row.new_runs),
    Column("confirmations", lambda row: row.confirmations),
    Column("baseline_runs", lambda row: row.baseline_runs),
    Column("baseline_first", lambda row: row.baseline_first),
    Column("baseline_last", lambda row: row.baseline_last),
    Column("verdict", lambda row: row.verdict, "verdict"),
    Column("cause", lambda row: row.cause, "cause", lambda row: _cause(row)),
    Column("finding", lambda row: row.finding),
    Column("waiver", lambda row: row.waiver or None),
    Column("acknowledged", lambda row: row.acknowledged),
    Column("sentence", lambda row: row.sentence),
]
"""The columns of a night's table, JSON and CSV. Changes are relative: 0.1 is ten per cent slower."""


def _cause(row: SeriesVerdict) -> str:
    """Whom a change is put down to, with the number of its finding."""
    told = f"{row.cause} #{row.finding}" if row.cause and row.finding else row.cause or ""
    return f"{told} ({row.passes_as})".strip() if row.passes_as else told


def _interval(row: SeriesVerdict) -> str:
    """The change with its interval."""
    if row.effect is None:
        return ""
    if row.low is None or row.high is None:
        return change(row.effect)
    return f"{change(row.effect)} [{change(row.low)}..{change(row.high)}]".replace(" %..", "..")
