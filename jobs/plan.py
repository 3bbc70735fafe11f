"""The nightly plan: a TOML file, read into frozen structs that are its documentation.

Called by `epwatch nightly`, `epwatch plan check` and the gate. Pure but for `load`, torch-free. Every mistake is a
`PlanError` that names the file, the line where it can be found, and the field. docs/plan.md tells the same to users.
Next to read: `jobs.plan_sections` (the fields), then `jobs.packing`, which makes jobs of a plan.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from harness.case import ROUTINGS, Case
from harness.errors import CaseError, EpwatchError
from jobs import plan_clusters
from jobs.plan_checks import MOST_RUNS, NIGHTS_A_MONTH, fitted, floor_complaint, sections_complaint
from jobs.plan_clusters import ClusterSection
from jobs.plan_matrix import FIELDS, Matrix, combinations, excludes, named_fields, values
from jobs.plan_sections import BaselineSection, MeasureSection, PlanFile, PlanSection, VerdictSection
from jobs.plan_tell import TellSection
from jobs.toml_lines import line_of, shown
from jobs.toml_words import misfit
from regress_db.wording import AUTO

_NEEDED = {
    "there is no [plan]": "there is no [plan]: it gives the plan its name",
    "there is no [cluster]": "there is no [cluster]: a plan names where it runs",
    "there is no [cases]": "there is no [[cases]]: a plan measures something",
}


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

    def mistake(self, field: str, what: str) -> PlanError:
        """The error sentence for a field that turns out to be wrong once the plan is read."""
        return _Text(self.path, self.source).error(field, what)

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
        """The error sentence for `field`, a path such as `cases[0].tokens`, `measure` or ""."""
        line = line_of(self.source, field)
        place = f"{self.path}, line {line}" if line else self.path
        return PlanError(f"plan {place}: {shown(field) + ': ' if field else ''}{what}")


def parse(source: str, path: str) -> Plan:
    """The plan in TOML text; `path` only names it in errors. Raises `PlanError`."""
    text = _Text(path, source)
    try:
        document = tomllib.loads(source)
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"plan {path} is not valid TOML: {error}") from None
    try:
        written = msgspec.convert(document, PlanFile)
    except msgspec.ValidationError as error:
        field, what = misfit(error, document, PlanFile)
        raise text.error(field, _NEEDED.get(what, what)) from None
    written = msgspec.structs.replace(written, measure=fitted(written.measure, document.get("measure", {})))
    if (wrong := sections_complaint(written)) is not None:
        raise text.error(*wrong)
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


def _checked_clusters(written: PlanFile, text: _Text) -> Iterator[ClusterSection]:
    """The clusters, each with its name; raises `PlanError` for one that cannot be."""
    sections = written.cluster if isinstance(written.cluster, list) else [written.cluster]
    if not sections:
        raise text.error("cluster", "is empty: a plan names where it runs")
    names: set[str] = set()
    for position, section in enumerate(map(plan_clusters.named, sections)):
        table = _cluster_table(written, position)
        wrong = plan_clusters.complaint(section, written.measure.job_deadline_s)
        if wrong is None and section.name in names:
            wrong = "name", f"{section.name!r} is another cluster's already"
        if wrong is not None:
            field, what = wrong
            raise text.error(f"{table}.{field}" if field else table, what)
        names.add(section.name)
        yield section


def _cluster_table(written: PlanFile, position: int) -> str:
    """The path of the table of a cluster."""
    return f"cluster[{position}]" if isinstance(written.cluster, list) else "cluster"


def _expand(written: PlanFile, clusters: Sequence[ClusterSection], text: _Text) -> Iterator[PlannedCase]:
    """The plan's cases; raises `PlanError` for one that cannot be, comes twice, or an exclusion that names nothing."""
    seen: dict[str, int] = {}
    runs = 0
    for position, matrix in enumerate(written.cases):
        table = f"cases[{position}]"
        _check_matrix(matrix, table, text)
        wanted = _clusters_of(matrix, table, clusters, text)
        each = written.measure.repeats * (2 if written.measure.aa else 1) * len(wanted)
        runs += each * math.prod(len(values(getattr(matrix, field))) for field in FIELDS)
        if runs > MOST_RUNS:
            raise text.error(table, f"brings the runs of a night to {runs:,}, wanted at most {MOST_RUNS:,}")
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
                if (wrong := plan_clusters.nodelist_complaint(cluster, case)) is not None:
                    raise text.error(f"{_cluster_table(written, clusters.index(cluster))}.{wrong[0]}", wrong[1])
            if case.key in seen:
                raise text.error(table, f"gives {case.key}, which cases[{seen[case.key] + 1}] already has")
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
    for routing in values(matrix.routing):
        if routing not in ROUTINGS:
            raise text.error(f"{table}.routing", f"there is no routing {routing!r}; there are {', '.join(ROUTINGS)}")
    if matrix.floor is not None and (wrong := floor_complaint(matrix.floor)) is not None:
        raise text.error(f"{table}.floor", wrong)
