"""The nightly plan: a TOML file, read into frozen structs that are its documentation.

Called by `epwatch nightly`, `epwatch plan check` and the gate. Pure but for `load`, torch-free. Every mistake is a
`PlanError` that names the file, the line where it can be found, and the field. docs/plan.md tells the same to users.
Next to read: `jobs.packing`, which makes jobs of a plan.
"""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from harness.case import Case, CombineKind, Device, DType, Mode, Protocol
from harness.errors import CaseError, EpwatchError
from harness.job import DEFAULT_DEADLINE_S, DEFAULT_ITERS, DEFAULT_WARMUP
from jobs.toml_lines import line_of
from regress_db.wording import AUTO

DEFAULT_JOBS = ".epwatch/jobs"
DEFAULT_REPORT = ".epwatch/reports/{night}.html"
DEFAULT_REPEATS = 5
DEFAULT_FLOOR = 0.1
DEFAULT_CONFIRMATIONS = 2
DEFAULT_FALSE_ALARMS_A_MONTH = 1.0
MOST_CONFIRMATIONS = 2
NIGHTS_A_MONTH = 30
DEFAULT_WAIT_DEADLINE_S = 60.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
T = TypeVar("T")


class PlanError(EpwatchError):
    """A plan that cannot be read or does not make sense."""


class PlanSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[plan]`: what the plan is called and where its results go.

    Relative paths are relative to the working folder, not to the plan: a plan is shared, the place is the user's.

    name: letters, digits and `_ . -`; also the name of the baseline that policy `first` makes.
    history: the history's path or SQLAlchemy URL. spool: folder of the records. Where they are left out, and always
    below `--db` and `EPWATCH_DB`, the same places as for every other command (docs/history.md).
    jobs: folder of the job folders. report: path of the HTML report, `{night}` and `{plan}` are filled in; "" for none.
    """

    name: str
    history: str | None = None
    spool: str | None = None
    jobs: str = DEFAULT_JOBS
    report: str = DEFAULT_REPORT


class ClusterSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[cluster]`: where the jobs run; always named, never guessed.

    kind: `local`, this machine. name: the cluster's name in the platform, hence in every series.
    """

    kind: str
    name: str = "local"


class MeasureSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[measure]`: how each case is measured.

    repeats: runs of each case, each in a job and processes of its own. warmup, iters: of the timing protocol.
    deadline_s: for one wait inside an operation. job_deadline_s: for one job, all its cases together.
    seed: of the order of cases within a job; left out, a new one is drawn each night and recorded with it.
    aa: measure everything twice, in turn, and tell whether the two halves differ: a standing A/A check.
    """

    repeats: int = DEFAULT_REPEATS
    warmup: int = DEFAULT_WARMUP
    iters: int = DEFAULT_ITERS
    deadline_s: float = DEFAULT_WAIT_DEADLINE_S
    job_deadline_s: float = DEFAULT_DEADLINE_S
    seed: int | None = None
    aa: bool = False


class BaselineSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[baseline]`: what the night is judged against.

    policy: `auto`, each series' own past since its last accepted change; `first`, the first clean night of this plan
    becomes the baseline and is kept until someone retires it; `named`, the baseline called `name`, which must exist;
    `none`, nothing is judged.
    name: of the baseline; policy `first` uses the plan's name where it is left out.
    """

    policy: Literal["auto", "first", "named", "none"] = "auto"
    name: str | None = None


class VerdictSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[verdict]`: what counts.

    floor: the smallest relative change of latency worth a verdict (0.1 is 10 %); a `[[cases]]` table may override it.
    strict: exit 4 where a series stayed inconclusive.
    confirmations: how often a case that seems to have changed is measured again, in jobs of its own, before it is said.
    false_alarms_a_month: how many the plan puts up with over all its series, at one night a day; what
    `epwatch calibrate` found on the plan's own history keeps to it.
    controls: backends that do not run the code under test: where they are slower too, it was not the code.
    waivers: TOML file of slowings that are tolerated for a while; relative to the plan.
    """

    floor: float = DEFAULT_FLOOR
    strict: bool = False
    confirmations: int = DEFAULT_CONFIRMATIONS
    false_alarms_a_month: float = DEFAULT_FALSE_ALARMS_A_MONTH
    controls: list[str] = msgspec.field(default_factory=lambda: ["torch"])
    waivers: str | None = None


class Exclude(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One entry of `exclude`: a combination goes when it has, for every field named here, (one of) the given values."""

    backend: str | list[str] | None = None
    mode: Mode | list[Mode] | None = None
    ranks: int | list[int] | None = None
    tokens: int | list[int] | None = None
    hidden: int | list[int] | None = None
    topk: int | list[int] | None = None
    experts: int | list[int] | None = None
    device: Device | list[Device] | None = None
    nodes: int | list[int] | None = None
    dtype: DType | list[DType] | None = None
    combine: CombineKind | list[CombineKind] | None = None
    routing: str | list[str] | None = None
    seed: int | list[int] | None = None
    protocol: Protocol | list[Protocol] | None = None


class Matrix(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[[cases]]`: every combination of its fields' values, less those that `exclude` names.

    The fields are those of `harness.case.Case`; each is one value or a list. combine left out is `exact` for `ll` and
    `local_reduce` for `ht`. floor: overrides the verdict's floor for these cases.
    """

    backend: str | list[str]
    mode: Mode | list[Mode]
    ranks: int | list[int]
    tokens: int | list[int]
    hidden: int | list[int]
    topk: int | list[int]
    experts: int | list[int]
    device: Device | list[Device] = "cpu"
    nodes: int | list[int] = 1
    dtype: DType | list[DType] = "bf16"
    combine: CombineKind | list[CombineKind] | None = None
    routing: str | list[str] = "uniform"
    seed: int | list[int] = 0
    protocol: Protocol | list[Protocol] = "phased"
    floor: float | None = None
    exclude: list[Exclude] = []


class PlanFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file, as written."""

    plan: PlanSection
    cluster: ClusterSection
    cases: list[Matrix]
    measure: MeasureSection = MeasureSection()
    baseline: BaselineSection = BaselineSection()
    verdict: VerdictSection = VerdictSection()


class PlannedCase(msgspec.Struct, frozen=True, kw_only=True):
    """One case of a plan and the smallest change of its latency that is worth a verdict."""

    case: Case
    floor: float


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A plan that makes sense: the file's sections, and the matrix expanded.

    path: of the file; source: its text. cases: in the file's order, keys unique.
    """

    path: str
    source: str
    plan: PlanSection
    cluster: ClusterSection
    measure: MeasureSection
    baseline: BaselineSection
    verdict: VerdictSection
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

    @property
    def runs_of_a_case(self) -> int:
        """How many runs of each case a night plans, confirmations aside."""
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


_FIELDS = Case.__struct_fields__


def values(given: T | list[T]) -> list[T]:
    """A matrix field's values, as a list."""
    return given if isinstance(given, list) else [given]


def combinations(matrix: Matrix) -> Iterator[Case]:
    """Every case of the matrix before exclusion, the last field varying fastest."""
    axes = [values(getattr(matrix, field)) for field in _FIELDS]
    for combination in itertools.product(*axes):
        fields = dict(zip(_FIELDS, combination, strict=True))
        if fields["combine"] is None:
            fields["combine"] = "local_reduce" if fields["mode"] == "ht" else "exact"
        yield Case(**fields)


def excludes(entry: Exclude, case: Case) -> bool:
    """Whether `entry` names `case`: every field it gives holds the case's value."""
    return all(getattr(case, field) in values(wanted) for field, wanted in _named(entry))


def _named(entry: Exclude) -> list[tuple[str, object]]:
    """The fields an exclusion gives."""
    return [(field, wanted) for field in _FIELDS if (wanted := getattr(entry, field)) is not None]


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
    return Plan(
        path=path,
        source=source,
        plan=written.plan,
        cluster=written.cluster,
        measure=written.measure,
        baseline=written.baseline,
        verdict=written.verdict,
        cases=tuple(_expand(written, text)),
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
        lines += ["[[cases]]", *(f"{field} = {json.dumps(getattr(case, field))}" for field in _FIELDS)]
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
        "cases": Matrix,
        "cases.exclude": Exclude,
    }
    known = structs.get(table)
    return f"; there are {', '.join(known.__struct_fields__)}" if known else ""


def _check_sections(written: PlanFile, text: _Text) -> None:
    """Raise `PlanError` for values no plan can have."""
    for field, name in (("plan.name", written.plan.name), ("cluster.name", written.cluster.name)):
        if not _NAME.fullmatch(name):
            raise text.error(field, f"{name!r} is not a name: use letters, digits and _ . -")
    if written.cluster.kind != "local":
        raise text.error(
            "cluster.kind", f'{written.cluster.kind!r} is not known here; this version runs plans on "local" alone'
        )
    measure = written.measure
    for field, least in (("repeats", 1), ("warmup", 0), ("iters", 2)):
        if getattr(measure, field) < least:
            raise text.error(f"measure.{field}", f"is {getattr(measure, field)}, wanted at least {least}")
    for field in ("deadline_s", "job_deadline_s"):
        if not 0 < getattr(measure, field) < 1e6:
            raise text.error(f"measure.{field}", f"is {getattr(measure, field)}, wanted seconds above 0 and below 1e6")
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
    if not written.cases:
        raise text.error("cases", "is empty: a plan measures something")


def _check_floor(floor: float, field: str, text: _Text) -> None:
    """Raise `PlanError` unless `floor` is a relative change that can be."""
    if not 0 < floor <= 10:
        raise text.error(field, f"is {floor}, wanted a relative change above 0 and at most 10 (0.1 is 10 %)")


def _expand(written: PlanFile, text: _Text) -> Iterator[PlannedCase]:
    """The plan's cases; raises `PlanError` for one that cannot be, comes twice, or an exclusion that names nothing."""
    seen: dict[str, int] = {}
    for position, matrix in enumerate(written.cases):
        table = f"cases[{position}]"
        _check_matrix(matrix, table, text)
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
            if case.nodes != 1:
                raise text.error(f"{table}.nodes", f"gives {case.nodes} nodes, but cluster local is one machine")
            if case.key in seen:
                raise text.error(table, f"gives {case.key}, which cases[{seen[case.key]}] already has")
            seen[case.key] = position
            kept += 1
            yield PlannedCase(case=case, floor=written.verdict.floor if matrix.floor is None else matrix.floor)
        if idle:
            raise text.error(f"{table}.exclude", f"entry {next(iter(idle)) + 1} excludes nothing: is it misspelt?")
        if not kept:
            raise text.error(table, "leaves no case: everything is excluded")


def _check_matrix(matrix: Matrix, table: str, text: _Text) -> None:
    """Raise `PlanError` for an empty list, a value given twice, an empty exclusion or a floor that cannot be."""
    for field in _FIELDS:
        given = values(getattr(matrix, field))
        if not given:
            raise text.error(f"{table}.{field}", "is an empty list")
        if len(set(given)) != len(given):
            raise text.error(f"{table}.{field}", f"gives a value twice: {given}")
    for index, entry in enumerate(matrix.exclude):
        if not _named(entry):
            raise text.error(f"{table}.exclude", f"entry {index + 1} is empty and would exclude everything")
    if matrix.floor is not None:
        _check_floor(matrix.floor, f"{table}.floor", text)
