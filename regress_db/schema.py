"""The tables of the history, as typed models.

Normal form: what many runs share (case, platform, environment, node, metric) is stored once and referred to by a
small number. `RunValue` is the table that grows; its rows are three numbers, clustered by run. Samples are compressed
blobs in a table of their own that no query of values touches. Times are UTC.

A change here is a new revision in `regress_db/migrations/versions`. Next to read: `regress_db.history` (who opens it),
`regress_db.ingest` (who fills it), `regress_db.queries` (who asks).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, ForeignKey, Index, LargeBinary, MetaData, String, TypeDecorator, text
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


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


class Base(DeclarativeBase):
    """The metadata of all tables; names of constraints follow one rule, so that migrations can speak of them."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {datetime: UtcDateTime, dict[str, Any]: JSON, list[str]: JSON}  # noqa: RUF012


class CaseRow(Base):
    """A case: its key, and each of its fields as a column so that a filter is SQL."""

    __tablename__ = "cases"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    backend: Mapped[str]
    mode: Mapped[str]
    device: Mapped[str]
    ranks: Mapped[int]
    nodes: Mapped[int]
    tokens: Mapped[int]
    hidden: Mapped[int]
    topk: Mapped[int]
    experts: Mapped[int]
    dtype: Mapped[str]
    combine: Mapped[str]
    routing: Mapped[str]
    seed: Mapped[int] = mapped_column(BigInteger)
    protocol: Mapped[str]


class PlatformRow(Base):
    """A platform: numbers of different platforms never share a series."""

    __tablename__ = "platforms"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    device_model: Mapped[str]
    devices_per_node: Mapped[int]
    interconnect: Mapped[str]
    cluster: Mapped[str]


class EnvironmentRow(Base):
    """An environment, by the digest of its content."""

    __tablename__ = "environments"

    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    commit: Mapped[str] = mapped_column(index=True)
    content: Mapped[dict[str, Any]]


class NodeRow(Base):
    """A machine by its host name."""

    __tablename__ = "nodes"

    id: Mapped[int] = mapped_column(primary_key=True)
    hostname: Mapped[str] = mapped_column(unique=True)


class MetricRow(Base):
    """What a value is: phase and metric. Names are those of `harness.record.Stats`, or made by `metrics.metrics_of`."""

    __tablename__ = "metrics"
    __table_args__ = (Index("uq_metrics_phase_name", "phase", "name", unique=True),)

    id: Mapped[int] = mapped_column(primary_key=True)
    phase: Mapped[str]
    name: Mapped[str]


class NightRow(Base):
    """A night: what was planned together. `judged_*` describe the verdicts that stand in `verdicts`."""

    __tablename__ = "nights"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    plan: Mapped[str]
    started_at: Mapped[datetime | None] = mapped_column(index=True)
    finished_at: Mapped[datetime | None]
    judged_at: Mapped[datetime | None]
    judge: Mapped[str | None]
    baseline_id: Mapped[int | None] = mapped_column(ForeignKey("baselines.id"))


class PlannedRow(Base):
    """A run that was to be. One without a row in `runs` is missing."""

    __tablename__ = "planned"
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012

    night_id: Mapped[int] = mapped_column(ForeignKey("nights.id"), primary_key=True)
    run_id: Mapped[str] = mapped_column(primary_key=True)
    case_id: Mapped[int] = mapped_column(ForeignKey("cases.id"))
    repeat: Mapped[int]


class RunRow(Base):
    """A run: one case measured once by one job. `digest` is of the whole record, to tell a repeat from a clash."""

    __tablename__ = "runs"
    __table_args__ = (Index("ix_runs_case_platform_started", "case_id", "platform_id", "started_at"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(unique=True)
    case_id: Mapped[int] = mapped_column(ForeignKey("cases.id"))
    platform_id: Mapped[int] = mapped_column(ForeignKey("platforms.id"))
    environment_id: Mapped[int] = mapped_column(ForeignKey("environments.id"))
    night_id: Mapped[int | None] = mapped_column(ForeignKey("nights.id"), index=True)
    repeat: Mapped[int]
    started_at: Mapped[datetime] = mapped_column(index=True)
    ended_at: Mapped[datetime]
    outcome: Mapped[str]
    warmup: Mapped[int]
    iters: Mapped[int]
    conditions: Mapped[dict[str, Any]]
    notes: Mapped[list[str]]
    digest: Mapped[str] = mapped_column(String(64))


class FailureRow(Base):
    """Why a run gave no number."""

    __tablename__ = "failures"

    run: Mapped[int] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    step: Mapped[str]
    kind: Mapped[str]
    message: Mapped[str]
    rank: Mapped[int]
    log_tail: Mapped[str]


class CheckRow(Base):
    """One pass of the oracle over a run."""

    __tablename__ = "checks"
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012

    run: Mapped[int] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    moment: Mapped[str]
    passed: Mapped[bool]
    rows: Mapped[int]
    detail: Mapped[str]


class RunRankRow(Base):
    """Which machine each rank of a run was on."""

    __tablename__ = "run_ranks"
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012

    run: Mapped[int] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    rank: Mapped[int] = mapped_column(primary_key=True)
    node_id: Mapped[int] = mapped_column(ForeignKey("nodes.id"), index=True)


class RunPhaseRow(Base):
    """What of a phase is not a value: the byte count its bandwidth is of, and how its samples are laid out."""

    __tablename__ = "run_phases"
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012

    run: Mapped[int] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    phase: Mapped[str] = mapped_column(primary_key=True)
    iterations: Mapped[int]
    leading_dropped: Mapped[int]
    slowest_rank: Mapped[int]
    headline: Mapped[str]


class RunValue(Base):
    """One number of one run: the table that grows."""

    __tablename__ = "run_values"
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012

    run: Mapped[int] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    metric: Mapped[int] = mapped_column(ForeignKey("metrics.id"), primary_key=True)
    value: Mapped[float]


class RankValue(Base):
    """Each rank's median latency in a phase of a run, for attribution to nodes."""

    __tablename__ = "rank_values"
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012

    run: Mapped[int] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    phase: Mapped[str] = mapped_column(primary_key=True)
    rank: Mapped[int] = mapped_column(primary_key=True)
    p50_us: Mapped[float]


class SampleRow(Base):
    """All samples of one phase of one run, as `regress_db.samples` packs them."""

    __tablename__ = "samples"

    run: Mapped[int] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    phase: Mapped[str] = mapped_column(primary_key=True)
    packed: Mapped[bytes] = mapped_column(LargeBinary)


class BaselineRow(Base):
    """A named set of runs: who set it, when and why, and who retired it. Never edited, only retired and set anew.

    The index is partial on PostgreSQL too, by the revision; saying so here would load that dialect at every start.
    """

    __tablename__ = "baselines"
    __table_args__ = (
        Index(
            "uq_baselines_live_name",
            "name",
            unique=True,
            sqlite_where=text("retired_at IS NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    set_by: Mapped[str]
    set_at: Mapped[datetime]
    reason: Mapped[str]
    retired_by: Mapped[str | None]
    retired_at: Mapped[datetime | None]
    retired_reason: Mapped[str | None]


class BaselineRunRow(Base):
    """One run of a baseline."""

    __tablename__ = "baseline_runs"
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012

    baseline_id: Mapped[int] = mapped_column(ForeignKey("baselines.id"), primary_key=True)
    run: Mapped[int] = mapped_column(ForeignKey("runs.id"), primary_key=True)


class VerdictRow(Base):
    """What was said of one series on one night, as it was said. Judging a night anew replaces its rows."""

    __tablename__ = "verdicts"
    __table_args__ = (Index("ix_verdicts_night_id_case_id_phase", "night_id", "case_id", "phase"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    night_id: Mapped[int] = mapped_column(ForeignKey("nights.id"))
    case_id: Mapped[int] = mapped_column(ForeignKey("cases.id"), index=True)
    platform_id: Mapped[int | None] = mapped_column(ForeignKey("platforms.id"))
    phase: Mapped[str]
    verdict: Mapped[str]
    effect: Mapped[float | None]
    low: Mapped[float | None]
    high: Mapped[float | None]
    detectable: Mapped[float | None]
    p_value: Mapped[float | None]
    floor: Mapped[float]
    latency_us: Mapped[float | None]
    bandwidth_gbs: Mapped[float | None]
    baseline_latency_us: Mapped[float | None]
    new_runs: Mapped[int]
    baseline_runs: Mapped[int]
    sentence: Mapped[str]
    warnings: Mapped[list[str]]
