"""The sections of a plan as its file has them: frozen structs that are their own documentation.

Pure and torch-free. Read by `jobs.plan`, which checks them and makes a plan of them; docs/plan.md tells the same to
users, field by field. Next to read: `jobs.plan_matrix` (the cases), `jobs.plan_clusters` (what a cluster may be).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from harness.job import DEFAULT_DEADLINE_S, DEFAULT_HEARTBEAT_S, DEFAULT_ITERS, DEFAULT_WARMUP
from jobs.plan_clusters import ClusterSection
from jobs.plan_matrix import Matrix
from jobs.plan_tell import TellSection

DEFAULT_JOBS = ".epwatch/jobs"
DEFAULT_REPORT = ".epwatch/reports/{night}.html"
DEFAULT_REPEATS = 5
DEFAULT_FLOOR = 0.1
DEFAULT_CONFIRMATIONS = 2
DEFAULT_FALSE_ALARMS_A_MONTH = 1.0
DEFAULT_WAIT_DEADLINE_S = 60.0
DEFAULT_JOB_S = 300.0
DEFAULT_CASE_S = 10.0
DEFAULT_TRIES = 2
DEFAULT_RESUME_WITHIN_H = 12.0


class PlanSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[plan]`: what the plan is called and where its results go.

    Relative paths are relative to the working folder, not to the plan: a plan is shared, the place is the user's.

    name: letters, digits and `_ . -`; also the name of the baseline that policy `first` makes.
    history: the history's path or SQLAlchemy URL. spool: folder of the records. Where they are left out, and always
    below `--db` and `EPWATCH_DB`, the same places as for every other command (docs/history.md).
    jobs: folder of the job folders; on a cluster every node has to see it and the spool.
    report: path of the HTML report, `{night}` and `{plan}` are filled in; "" for none.
    resume_within_h: how old a night whose command was killed may be and still be gone on with.
    """

    name: str
    history: str | None = None
    spool: str | None = None
    jobs: str = DEFAULT_JOBS
    report: str = DEFAULT_REPORT
    resume_within_h: float = DEFAULT_RESUME_WITHIN_H


class MeasureSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[measure]`: how each case is measured.

    repeats: runs of each case, each in a job and processes of its own. warmup, iters: of the timing protocol.
    deadline_s: for one wait inside an operation. heartbeat_s: for one step of a case, on all ranks together; without
    any sign of life for so long the case is hung. job_deadline_s: for one job, all its cases together.
    job_s: what a job is packed to take at most, by what its cases took before. case_s: what a case that has no past
    is taken to need.
    tries: how often a case may take its job down with it before it is recorded as failed or hung.
    seed: of the order of cases within a job; left out, a new one is drawn each night and recorded with it.
    aa: measure everything twice, in turn, and tell whether the two halves differ: a standing A/A check.
    """

    repeats: int = DEFAULT_REPEATS
    warmup: int = DEFAULT_WARMUP
    iters: int = DEFAULT_ITERS
    deadline_s: float = DEFAULT_WAIT_DEADLINE_S
    heartbeat_s: float = DEFAULT_HEARTBEAT_S
    job_deadline_s: float = DEFAULT_DEADLINE_S
    job_s: float = DEFAULT_JOB_S
    case_s: float = DEFAULT_CASE_S
    tries: int = DEFAULT_TRIES
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


class PlanFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file, as written."""

    plan: PlanSection
    cluster: ClusterSection | list[ClusterSection]
    cases: list[Matrix]
    measure: MeasureSection = MeasureSection()
    baseline: BaselineSection = BaselineSection()
    verdict: VerdictSection = VerdictSection()
    tell: TellSection = TellSection()
