"""The tables of the history, as SQLAlchemy Core tables: typed models would double the time a command takes to start.

Normal form: what many runs share (case, platform, environment, node, metric) is stored once and referred to by a
small number. `RUN_VALUES` is the table that grows; its rows are three numbers, clustered by run. Samples are compressed
blobs in a table of their own that no query of values touches. Times are UTC.

A change here is a new revision in `regress_db/migrations/versions`. Next to read: `regress_db.history` (who opens it),
`regress_db.ingest` (who fills it), `regress_db.queries` (who asks).
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    TypeDecorator,
    text,
)
from sqlalchemy.engine import Dialect

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
"""Names of constraints follow one rule, so that revisions can speak of them."""

METADATA = MetaData(naming_convention=NAMING)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware `datetime`, stored as UTC without a zone, read back aware. A naive one is a `ValueError`."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC, zone dropped."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"time {value} has no zone")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Zone put back."""
        return None if value is None else value.replace(tzinfo=UTC)


CASES = Table(
    "cases",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("key", String, nullable=False, unique=True),
    Column("backend", String, nullable=False),
    Column("mode", String, nullable=False),
    Column("device", String, nullable=False),
    Column("ranks", Integer, nullable=False),
    Column("nodes", Integer, nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("hidden", Integer, nullable=False),
    Column("topk", Integer, nullable=False),
    Column("experts", Integer, nullable=False),
    Column("dtype", String, nullable=False),
    Column("combine", String, nullable=False),
    Column("routing", String, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("protocol", String, nullable=False),
)
"""A case: its key, and each of its fields as a column so that a filter is SQL."""

PLATFORMS = Table(
    "platforms",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("key", String, nullable=False, unique=True),
    Column("device_model", String, nullable=False),
    Column("devices_per_node", Integer, nullable=False),
    Column("interconnect", String, nullable=False),
    Column("cluster", String, nullable=False),
)
"""A platform: numbers of different platforms never share a series."""

ENVIRONMENTS = Table(
    "environments",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("commit", String, nullable=False, index=True),
    Column("content", JSON, nullable=False),
)
"""An environment, by the digest of its content."""

NODES = Table(
    "nodes",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("hostname", String, nullable=False, unique=True),
)
"""A machine by its host name."""

METRICS = Table(
    "metrics",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("phase", String, nullable=False),
    Column("name", String, nullable=False),
    Index("uq_metrics_phase_name", "phase", "name", unique=True),
)
"""What a value is: phase and metric. Names are those of `harness.record.Stats`, or made by `metrics.metrics_of`."""

NIGHTS = Table(
    "nights",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("plan", String, nullable=False),
    Column("started_at", UtcDateTime, index=True),
    Column("finished_at", UtcDateTime),
    Column("judged_at", UtcDateTime),
    Column("judge", String),
    Column("baseline_id", ForeignKey("baselines.id")),
    Column("against", String),
    Column("level", Double),
    Column("aa_series", Integer),
    Column("aa_alarms", Integer),
    Column("remarks", JSON),
)
"""A night: what was planned together. `judged_*` describe the verdicts that stand in `verdicts`.

against: the name of the baseline it was judged against, or `auto`: each series against its own past. level: the false
discovery rate the verdicts were made at. aa_*: how many series the standing A/A check compared, and
in how many it saw a change that cannot be. remarks: what could not be told of the night as a whole, in sentences."""

PLANNED = Table(
    "planned",
    METADATA,
    Column("night_id", ForeignKey("nights.id"), primary_key=True),
    Column("run_id", String, primary_key=True),
    Column("case_id", ForeignKey("cases.id"), nullable=False),
    Column("repeat", Integer, nullable=False),
    Column("purpose", String, nullable=False, server_default="planned"),
    sqlite_with_rowid=False,
)
"""A run that was to be. One without a row in `runs` is missing.

purpose: `planned`, `confirmation` (a re-run of a candidate) or `aa` (the second half of a standing A/A check).
"""

RUNS = Table(
    "runs",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("run_id", String, nullable=False, unique=True),
    Column("case_id", ForeignKey("cases.id"), nullable=False),
    Column("platform_id", ForeignKey("platforms.id"), nullable=False),
    Column("environment_id", ForeignKey("environments.id"), nullable=False),
    Column("night_id", ForeignKey("nights.id"), index=True),
    Column("repeat", Integer, nullable=False),
    Column("started_at", UtcDateTime, nullable=False, index=True),
    Column("ended_at", UtcDateTime, nullable=False),
    Column("outcome", String, nullable=False),
    Column("warmup", Integer, nullable=False),
    Column("iters", Integer, nullable=False),
    Column("conditions", JSON, nullable=False),
    Column("notes", JSON, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("launcher", String),
    Column("attempt", Integer),
    Column("scheduler_job", String),
    Index("ix_runs_series", "case_id", "platform_id", "started_at", "outcome", "run_id", "night_id", "environment_id"),
)
"""A run: one case measured once by one job. `digest` is of the whole record, to tell a repeat from a clash.

A series' runs lie a night apart from one another; its index has them side by side, with all that a plot tells of each.

launcher, attempt, scheduler_job: as in the record; NULL where it does not say.
"""

FAILURES = Table(
    "failures",
    METADATA,
    Column("run", ForeignKey("runs.id"), primary_key=True),
    Column("step", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("message", String, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("log_tail", String, nullable=False),
)
"""Why a run gave no number."""

CHECKS = Table(
    "checks",
    METADATA,
    Column("run", ForeignKey("runs.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("moment", String, nullable=False),
    Column("passed", Boolean, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("detail", String, nullable=False),
    sqlite_with_rowid=False,
)
"""One pass of the oracle over a run."""

RUN_RANKS = Table(
    "run_ranks",
    METADATA,
    Column("run", ForeignKey("runs.id"), primary_key=True),
    Column("rank", Integer, primary_key=True),
    Column("node_id", ForeignKey("nodes.id"), nullable=False, index=True),
    Column("cpus", String),
    Column("numa", String),
    sqlite_with_rowid=False,
)
"""Which machine each rank of a run was on, on which CPUs ("0-3,8") and NUMA nodes ("0-1"); NULL where not known."""

RUN_PHASES = Table(
    "run_phases",
    METADATA,
    Column("run", ForeignKey("runs.id"), primary_key=True),
    Column("phase", String, primary_key=True),
    Column("iterations", Integer, nullable=False),
    Column("leading_dropped", Integer, nullable=False),
    Column("slowest_rank", Integer, nullable=False),
    Column("headline", String, nullable=False),
    sqlite_with_rowid=False,
)
"""What of a phase is not a value: the byte count its bandwidth is of, and how its samples are laid out."""

RUN_VALUES = Table(
    "run_values",
    METADATA,
    Column("run", ForeignKey("runs.id"), primary_key=True),
    Column("metric", ForeignKey("metrics.id"), primary_key=True),
    Column("value", Double, nullable=False),
    sqlite_with_rowid=False,
)
"""One number of one run: the table that grows."""

RANK_VALUES = Table(
    "rank_values",
    METADATA,
    Column("run", ForeignKey("runs.id"), primary_key=True),
    Column("phase", String, primary_key=True),
    Column("rank", Integer, primary_key=True),
    Column("p50_us", Double, nullable=False),
    sqlite_with_rowid=False,
)
"""Each rank's median latency in a phase of a run, for attribution to nodes."""

SAMPLES = Table(
    "samples",
    METADATA,
    Column("run", ForeignKey("runs.id"), primary_key=True),
    Column("phase", String, primary_key=True),
    Column("packed", LargeBinary, nullable=False),
)
"""All samples of one phase of one run, as `regress_db.samples` packs them."""

SCHEDULES = Table(
    "schedules",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("plan", String, nullable=False),
    Column("at", String, nullable=False),
    Column("zone", String, nullable=False),
    Column("set_by", String, nullable=False),
    Column("set_at", UtcDateTime, nullable=False),
    Column("retired_by", String),
    Column("retired_at", UtcDateTime),
    Index("uq_schedules_live_plan", "plan", unique=True, sqlite_where=text("retired_at IS NULL")),
)
"""When a plan is to have its nights: at "02:00" in a zone (IANA; "": the local one). Never edited, only retired and set
anew; one lives for each plan. The index is partial on PostgreSQL too, as for baselines."""

BASELINES = Table(
    "baselines",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False),
    Column("set_by", String, nullable=False),
    Column("set_at", UtcDateTime, nullable=False),
    Column("reason", String, nullable=False),
    Column("retired_by", String),
    Column("retired_at", UtcDateTime),
    Column("retired_reason", String),
    Index("uq_baselines_live_name", "name", unique=True, sqlite_where=text("retired_at IS NULL")),
)
"""A named set of runs: who set it, when and why, and who retired it. Never edited, only retired and set anew.

The index is partial on PostgreSQL too, by the revision; saying so here would load that dialect at every start."""

BASELINE_RUNS = Table(
    "baseline_runs",
    METADATA,
    Column("baseline_id", ForeignKey("baselines.id"), primary_key=True),
    Column("run", ForeignKey("runs.id"), primary_key=True),
    sqlite_with_rowid=False,
)
"""One run of a baseline."""

VERDICTS = Table(
    "verdicts",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("night_id", ForeignKey("nights.id"), nullable=False),
    Column("case_id", ForeignKey("cases.id"), nullable=False),
    Column("platform_id", ForeignKey("platforms.id")),
    Column("phase", String, nullable=False),
    Column("verdict", String, nullable=False),
    Column("effect", Double),
    Column("low", Double),
    Column("high", Double),
    Column("detectable", Double),
    Column("p_value", Double),
    Column("floor", Double, nullable=False),
    Column("latency_us", Double),
    Column("bandwidth_gbs", Double),
    Column("baseline_latency_us", Double),
    Column("new_runs", Integer, nullable=False),
    Column("baseline_runs", Integer, nullable=False),
    Column("sentence", String, nullable=False),
    Column("warnings", JSON, nullable=False),
    Column("baseline_first", String),
    Column("baseline_last", String),
    Column("cause", String),
    Column("finding", Integer),
    Column("shared", Double),
    Column("noise_floor", Double),
    Column("runs_needed", Integer),
    Column("confirmations", Integer, nullable=False, server_default="0"),
    Column("waiver", String),
    Index("ix_verdicts_night_id_case_id_phase", "night_id", "case_id", "phase"),
    Index("ix_verdicts_series", "case_id", "platform_id", "phase", "night_id", "verdict", "effect"),
    Index("ix_verdicts_regressed", "night_id", "case_id", "phase", sqlite_where=text("verdict = 'regressed'")),
)
"""What was said of one series on one night, as it was said. Judging a night anew replaces its rows.

baseline_first, baseline_last: ids of the oldest and newest run it was compared with. cause: `code`, `night`, `node` or
`environment`; finding: number of the row in `findings` it belongs to; shared: the change that many series had in common
and that was taken out before this one was judged; noise_floor: the smallest change its noise supports; runs_needed: how
many new runs more would see the floor; confirmations: re-runs among new_runs; waiver: why it does not fail the night
although it regressed, by the plan's file of waivers. The index of what regressed is partial on PostgreSQL too, as for
baselines.
"""

FINDINGS = Table(
    "findings",
    METADATA,
    Column("night_id", ForeignKey("nights.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("cause", String, nullable=False),
    Column("subject", String, nullable=False),
    Column("effect", Double),
    Column("low", Double),
    Column("high", Double),
    Column("series", Integer, nullable=False),
    Column("sentence", String, nullable=False),
    sqlite_with_rowid=False,
)
"""What moved together on a night, as one thing to look at. Judging a night anew replaces its rows.

subject: what the cause names: a host, an environment's change, a range of commits. effect, low, high: relative change.
"""

SERIES = Table(
    "series",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("case_id", ForeignKey("cases.id"), nullable=False),
    Column("platform_id", ForeignKey("platforms.id"), nullable=False),
    Column("metric_id", ForeignKey("metrics.id"), nullable=False),
    Index("uq_series_case_id_platform_id_metric_id", "case_id", "platform_id", "metric_id", unique=True),
)
"""A series through time, where something is said of it: a change point."""

CHANGE_POINTS = Table(
    "change_points",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("series_id", ForeignKey("series.id"), nullable=False, index=True),
    Column("kind", String, nullable=False),
    Column("before_run", ForeignKey("runs.id"), nullable=False),
    Column("after_run", ForeignKey("runs.id"), nullable=False),
    Column("earliest_run", ForeignKey("runs.id"), nullable=False),
    Column("latest_run", ForeignKey("runs.id"), nullable=False),
    Column("effect", Double, nullable=False),
    Column("low", Double, nullable=False),
    Column("high", Double, nullable=False),
    Column("p_value", Double, nullable=False),
    Column("cause", String),
    Column("method", String, nullable=False),
    Column("found_at", UtcDateTime, nullable=False),
)
"""Where a series changed its level. Looking again at a series replaces its rows.

kind: `step`, `transient` (it came back within a night or two) or `drift`. before_run, after_run: the last run before
and the first after; earliest_run, latest_run: the interval in which the first run after lies. effect, low, high:
relative change of the run value. p_value: of no change, the search accounted for.
"""

TRIAGE = Table(
    "triage",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("case_id", ForeignKey("cases.id"), nullable=False, index=True),
    Column("platform_id", ForeignKey("platforms.id")),
    Column("phase", String),
    Column("decision", String, nullable=False),
    Column("from_time", UtcDateTime, nullable=False),
    Column("decided_by", String, nullable=False),
    Column("decided_at", UtcDateTime, nullable=False),
    Column("reason", String, nullable=False),
    Column("withdrawn_by", String),
    Column("withdrawn_at", UtcDateTime),
    Column("withdrawn_reason", String),
    Column("effect", Double),
    Column("until", Date),
)
"""What a person decided about a series: `accepted` makes the level from `from_time` on the one that is normal;
`acknowledged` lets the regression that stands since `from_time` pass.

platform_id, phase: NULL for all of them. effect, until: of an acknowledged one, the relative slowing that it lets pass,
and the last day (UTC) it holds, NULL where it ends with the regression. Never edited, only withdrawn.
"""

NOTES = Table(
    "notes",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("at", UtcDateTime, nullable=False, index=True),
    Column("text", String, nullable=False),
    Column("written_by", String, nullable=False),
    Column("written_at", UtcDateTime, nullable=False),
    Column("case_id", ForeignKey("cases.id")),
    Column("platform_id", ForeignKey("platforms.id")),
    Column("phase", String),
    Column("night_id", ForeignKey("nights.id")),
    Column("run", ForeignKey("runs.id")),
    Column("withdrawn_by", String),
    Column("withdrawn_at", UtcDateTime),
    Column("withdrawn_reason", String),
)
"""What a person wrote beside the numbers. Never edited, only withdrawn.

at: the moment it speaks of. case_id, platform_id, phase, night_id, run: what it is about, NULL for all of them.
"""

CALIBRATIONS = Table(
    "calibrations",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("made_at", UtcDateTime, nullable=False),
    Column("made_by", String, nullable=False),
    Column("plan", String, nullable=False, index=True),
    Column("judge", String, nullable=False),
    Column("series", Integer, nullable=False),
    Column("runs", Integer, nullable=False),
    Column("shuffles", Integer, nullable=False),
    Column("alarms", Integer, nullable=False),
    Column("budget", Double, nullable=False),
    Column("level", Double, nullable=False),
    Column("details", JSON, nullable=False),
)
"""How often the whole method cried wolf on shuffled history, and the level that keeps the plan's budget.

budget: false alarms a night over all series that the plan allows. level: the false discovery rate to judge at.
"""
