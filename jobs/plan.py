"""The nightly plan: a TOML file, read into frozen structs that are its documentation.

Called by `epwatch nightly`, `epwatch plan check` and the gate. Pure but for `load`, torch-free. Every mistake is a
`PlanError` that names the file, the line where it can be found, and the field. docs/plan.md tells the same to users.
Next to read: `jobs.plan_sections` (the fields), then `jobs.packing`, which makes jobs of a plan.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from harness.case import Case
from harness.errors import CaseError, EpwatchError
from jobs import plan_clusters
from jobs.plan_clusters import ClusterSection
from jobs.plan_matrix import FIELDS, Exclude, Matrix, combinations, excludes, named_fields, values
from jobs.plan_sections import BaselineSection, MeasureSection, PlanFile, PlanSection, VerdictSection
from jobs.plan_tell import TellSection, check_tell
from jobs.toml_lines import line_of
from regress_db.wording import AUTO

MOST_CONFIRMATIONS = 2
NIGHTS_A_MONTH = 30

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class PlanError(EpwatchError):
    """A plan that cannot be read or does not make sense."""


class PlannedCase(msgspec.Struct, frozen=True, kw_only=True):
    """One case of a plan, the smallest change of its latency that is worth a verdict, and the clusters it runs on."""

    case: Case
    floor: float
    clusters: tuple[str, ...]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A plan that makes sense: the file's sections, and the matrix expanded.

    path: of the file; source: its text. clusters: at least one, names unique. cases: in the file's order, keys unique.
    """

    path: str
    source: str
    plan: PlanSection
    clusters: tuple[ClusterSection, ...]
    measure: MeasureSection
    baseline: BaselineSection
    verdict: VerdictSection
    tell: TellSection
    cases: tuple[PlannedCase, ...]

    @property
    def name(self) -> str:
        """The plan's name."""
        return self.plan.name

    @property
    def baseline_name(self) -> str | None:
        """The baseline a night of this plan is judged against, `auto` for its series' own past; None for `none`."""
        if self.baseline.policy == "none":
            return None
        if self.baseline.policy == "auto":
            return AUTO
        return self.baseline.name or self.plan.name

    def cluster(self, name: str) -> ClusterSection:
        """The cluster of that name, which the plan has."""
        return next(one for one in self.clusters if one.name == name)

    def planned(self, case: Case) -> PlannedCase:
        """What the plan says of a case of its own."""
        return next(one for one in self.cases if one.case == case)

    @property
    def runs_of_a_case(self) -> int:
        """How many runs of each case a night plans on each cluster, confirmations aside."""
        return self.measure.repeats * (2 if self.measure.aa else 1)

    @property
    def runs_of_a_confirmation(self) -> int:
        """How many runs of a candidate each confirmation adds: half as many as the night measured."""
        return (self.measure.repeats + 1) // 2

    @property
    def level(self) -> float:
        """The false discovery rate over one night that keeps to the plan's false alarms."""
        return self.verdict.false_alarms_a_month / NIGHTS_A_MONTH

    @property
    def waivers_file(self) -> Path | None:
        """Where the plan's waivers stand, None where it has none."""
        return None if self.verdict.waivers is None else Path(self.path).parent / self.verdict.waivers

    @property
    def floors(self) -> dict[str, float]:
        """Case key to floor."""
        return {planned.case.key: planned.floor for planned in self.cases}


class _Text:
    """The plan's text, to say where in it something is wrong."""

    def __init__(self, path: str, source: str) -> None:
        self.path = path
        self.source = source

    def error(self, field: str, what: str) -> PlanError:
        """The error sentence for `field`, a path such as `cases[1].tokens`, `measure` or ""."""
        line = line_of(self.source, field)
        place = f"{self.path}, line {line}" if line else self.path
        return PlanError(f"plan {place}: {field + ': ' if field else ''}{what}")


def parse(source: str, path: str) -> Plan:
    """The plan in TOML text; `path` only names it in errors. Raises `PlanError`."""
    text = _Text(path, source)
    try:
        written = msgspec.convert(tomllib.loads(source), PlanFile)
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"plan {path} is not valid TOML: {error}") from None
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$")
        field = where.strip("`").lstrip(".")
        unknown = re.search(r"unknown field `(.*)`", message)
        if unknown:
            field = f"{field}.{unknown[1]}".lstrip(".")
            message = "there is no such field" + (_suggestion(field, unknown[1]))
        raise text.error(field, message) from None
    _check_sections(written, text)
    clusters = tuple(_checked_clusters(written, text))
    return Plan(
        path=path,
        source=source,
        plan=written.plan,
        clusters=clusters,
        measure=written.measure,
        baseline=written.baseline,
        verdict=written.verdict,
        tell=written.tell,
        cases=tuple(_expand(written, clusters, text)),
    )


def load(path: Path) -> Plan:
    """The plan in the file `path`. Raises `PlanError`."""
    try:
        source = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PlanError(f"cannot read the plan {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise PlanError(f"plan {path} is not UTF-8 text: {error}") from None
    return parse(source, str(path))


def plan_of_cases(name: str, cases: Sequence[Case], floor: float) -> str:
    """The TOML text of a local plan that measures exactly these cases."""
    lines = ["[plan]", f"name = {json.dumps(name)}", "[cluster]", 'kind = "local"', "[verdict]", f"floor = {floor}"]
    for case in cases:
        # JSON's strings and integers are TOML's, too.
        lines += ["[[cases]]", *(f"{field} = {json.dumps(getattr(case, field))}" for field in FIELDS)]
    return "\n".join(lines) + "\n"


def _suggestion(field: str, unknown: str) -> str:
    """What the table does have, for a field it does not have."""
    table = re.sub(r"\[\d+\]", "", field.removesuffix(unknown)).strip(".")
    structs: dict[str, type[msgspec.Struct]] = {
        "": PlanFile,
        "plan": PlanSection,
        "cluster": ClusterSection,
        "measure": MeasureSection,
        "baseline": BaselineSection,
        "verdict": VerdictSection,
        "tell": TellSection,
        "cases": Matrix,
        "cases.exclude": Exclude,
    }
    known = structs.get(table)
    return f"; there are {', '.join(known.__struct_fields__)}" if known else ""


def _check_sections(written: PlanFile, text: _Text) -> None:
    """Raise `PlanError` for values no plan can have."""
    if not _NAME.fullmatch(written.plan.name):
        raise text.error("plan.name", f"{written.plan.name!r} is not a name: use letters, digits and _ . -")
    if not 0 <= written.plan.resume_within_h < 1e6:
        raise text.error("plan.resume_within_h", f"is {written.plan.resume_within_h}, wanted hours from 0 on")
    _check_measure(written.measure, text)
    _check_floor(written.verdict.floor, "verdict.floor", text)
    if written.baseline.policy == "named" and not written.baseline.name:
        raise text.error("baseline.policy", 'is "named", but there is no baseline.name')
    if written.baseline.policy in ("none", "auto") and written.baseline.name:
        raise text.error("baseline.name", f'is given, but baseline.policy is "{written.baseline.policy}"')
    if not 0 <= written.verdict.confirmations <= MOST_CONFIRMATIONS:
        raise text.error(
            "verdict.confirmations", f"is {written.verdict.confirmations}, wanted 0 to {MOST_CONFIRMATIONS}"
        )
    if not 0 < written.verdict.false_alarms_a_month < NIGHTS_A_MONTH:
        raise text.error(
            "verdict.false_alarms_a_month",
            f"is {written.verdict.false_alarms_a_month}, wanted a number above 0 and below {NIGHTS_A_MONTH}",
        )
    try:
        written.plan.report.format(night="", plan="")
    except (KeyError, IndexError, ValueError):
        raise text.error("plan.report", "may hold {night} and {plan}, and no other braces") from None
    if wrong := check_tell(written.tell):
        raise text.error(*wrong)
    if not written.cases:
        raise text.error("cases", "is empty: a plan measures something")


def _check_measure(measure: MeasureSection, text: _Text) -> None:
    """Raise `PlanError` for counts or times that no measuring can have."""
    for field, least in (("repeats", 1), ("warmup", 0), ("iters", 2), ("tries", 1)):
        if getattr(measure, field) < least:
            raise text.error(f"measure.{field}", f"is {getattr(measure, field)}, wanted at least {least}")
    for field in ("deadline_s", "heartbeat_s", "job_deadline_s", "job_s", "case_s"):
        if not 0 < getattr(measure, field) < 1e6:
            raise text.error(f"measure.{field}", f"is {getattr(measure, field)}, wanted seconds above 0 and below 1e6")


def _checked_clusters(written: PlanFile, text: _Text) -> Iterator[ClusterSection]:
    """The clusters, each with its name; raises `PlanError` for one that cannot be."""
    several = isinstance(written.cluster, list)
    sections = written.cluster if isinstance(written.cluster, list) else [written.cluster]
    if not sections:
        raise text.error("cluster", "is empty: a plan names where it runs")
    names: set[str] = set()
    for position, section in enumerate(map(plan_clusters.named, sections)):
        table = f"cluster[{position}]" if several else "cluster"
        wrong = plan_clusters.complaint(section, written.measure.job_deadline_s)
        if wrong is None and section.name in names:
            wrong = "name", f"{section.name!r} is another cluster's already"
        if wrong is not None:
            field, what = wrong
            raise text.error(f"{table}.{field}" if field else table, what)
        names.add(section.name)
        yield section


def _check_floor(floor: float, field: str, text: _Text) -> None:
    """Raise `PlanError` unless `floor` is a relative change that can be."""
    if not 0 < floor <= 10:
        raise text.error(field, f"is {floor}, wanted a relative change above 0 and at most 10 (0.1 is 10 %)")


def _expand(written: PlanFile, clusters: Sequence[ClusterSection], text: _Text) -> Iterator[PlannedCase]:
    """The plan's cases; raises `PlanError` for one that cannot be, comes twice, or an exclusion that names nothing."""
    seen: dict[str, int] = {}
    for position, matrix in enumerate(written.cases):
        table = f"cases[{position}]"
        _check_matrix(matrix, table, text)
        wanted = _clusters_of(matrix, table, clusters, text)
        idle = dict(enumerate(matrix.exclude))
        kept = 0
        for case in combinations(matrix):
            hits = [index for index, entry in enumerate(matrix.exclude) if excludes(entry, case)]
            for index in hits:
                idle.pop(index, None)
            if hits:
                continue
            try:
                case.validate()
            except CaseError as error:
                raise text.error(table, f"gives {case.key}, which cannot run: {error}") from None
            for cluster in wanted:
                if (wrong := plan_clusters.world_complaint(cluster, case)) is not None:
                    raise text.error(f"{table}.{wrong[0]}", wrong[1])
            if case.key in seen:
                raise text.error(table, f"gives {case.key}, which cases[{seen[case.key]}] already has")
            seen[case.key] = position
            kept += 1
            yield PlannedCase(
                case=case,
                floor=written.verdict.floor if matrix.floor is None else matrix.floor,
                clusters=tuple(cluster.name for cluster in wanted),
            )
        if idle:
            raise text.error(f"{table}.exclude", f"entry {next(iter(idle)) + 1} excludes nothing: is it misspelt?")
        if not kept:
            raise text.error(table, "leaves no case: everything is excluded")


def _clusters_of(
    matrix: Matrix, table: str, clusters: Sequence[ClusterSection], text: _Text
) -> tuple[ClusterSection, ...]:
    """The clusters that the matrix runs on; raises `PlanError` for one the plan does not have, or none."""
    if matrix.clusters is None:
        return tuple(clusters)
    names = values(matrix.clusters)
    known = {cluster.name: cluster for cluster in clusters}
    for name in names:
        if name not in known:
            raise text.error(f"{table}.clusters", f"there is no cluster {name!r}; there are {', '.join(known)}")
    if not names:
        raise text.error(f"{table}.clusters", "is an empty list")
    return tuple(known[name] for name in dict.fromkeys(names))


def _check_matrix(matrix: Matrix, table: str, text: _Text) -> None:
    """Raise `PlanError` for an empty list, a value given twice, an empty exclusion or a floor that cannot be."""
    for field in FIELDS:
        given = values(getattr(matrix, field))
        if not given:
            raise text.error(f"{table}.{field}", "is an empty list")
        if len(set(given)) != len(given):
            raise text.error(f"{table}.{field}", f"gives a value twice: {given}")
    for index, entry in enumerate(matrix.exclude):
        if not named_fields(entry):
            raise text.error(f"{table}.exclude", f"entry {index + 1} is empty and would exclude everything")
    if matrix.floor is not None:
        _check_floor(matrix.floor, f"{table}.floor", text)
