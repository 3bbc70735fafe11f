"""Change points, what people decided, what moved together, how the method was calibrated."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from regress_db.migrations import views_0002

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def _added() -> dict[str, list[sa.Column[Any]]]:
    """The columns that tables of 0001 get, by table; anew at each call, since a column belongs to one table."""
    return {
        "verdicts": [
            sa.Column("baseline_first", sa.String(), nullable=True),
            sa.Column("baseline_last", sa.String(), nullable=True),
            sa.Column("cause", sa.String(), nullable=True),
            sa.Column("finding", sa.Integer(), nullable=True),
            sa.Column("shared", sa.Double(), nullable=True),
            sa.Column("noise_floor", sa.Double(), nullable=True),
            sa.Column("runs_needed", sa.Integer(), nullable=True),
            sa.Column("confirmations", sa.Integer(), nullable=False, server_default="0"),
            sa.Column("waiver", sa.String(), nullable=True),
        ],
        "nights": [
            sa.Column("against", sa.String(), nullable=True),
            sa.Column("level", sa.Double(), nullable=True),
            sa.Column("aa_series", sa.Integer(), nullable=True),
            sa.Column("aa_alarms", sa.Integer(), nullable=True),
            sa.Column("remarks", sa.JSON(), nullable=True),
        ],
        "planned": [sa.Column("purpose", sa.String(), nullable=False, server_default="planned")],
    }


def upgrade() -> None:
    for table, columns in _added().items():
        for column in columns:
            op.add_column(table, column)
    op.create_table(
        "findings",
        sa.Column("night_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("cause", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("effect", sa.Double(), nullable=True),
        sa.Column("low", sa.Double(), nullable=True),
        sa.Column("high", sa.Double(), nullable=True),
        sa.Column("series", sa.Integer(), nullable=False),
        sa.Column("sentence", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["night_id"], ["nights.id"], name=op.f("fk_findings_night_id_nights")),
        sa.PrimaryKeyConstraint("night_id", "number", name=op.f("pk_findings")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "series",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("case_id", sa.Integer(), nullable=False),
        sa.Column("platform_id", sa.Integer(), nullable=False),
        sa.Column("metric_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["case_id"], ["cases.id"], name=op.f("fk_series_case_id_cases")),
        sa.ForeignKeyConstraint(["platform_id"], ["platforms.id"], name=op.f("fk_series_platform_id_platforms")),
        sa.ForeignKeyConstraint(["metric_id"], ["metrics.id"], name=op.f("fk_series_metric_id_metrics")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_series")),
    )
    op.create_index(
        "uq_series_case_id_platform_id_metric_id", "series", ["case_id", "platform_id", "metric_id"], unique=True
    )
    runs = ("before_run", "after_run", "earliest_run", "latest_run")
    op.create_table(
        "change_points",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("series_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in runs),
        sa.Column("effect", sa.Double(), nullable=False),
        sa.Column("low", sa.Double(), nullable=False),
        sa.Column("high", sa.Double(), nullable=False),
        sa.Column("p_value", sa.Double(), nullable=False),
        sa.Column("cause", sa.String(), nullable=True),
        sa.Column("method", sa.String(), nullable=False),
        sa.Column("found_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["series_id"], ["series.id"], name=op.f("fk_change_points_series_id_series")),
        *(sa.ForeignKeyConstraint([name], ["runs.id"], name=op.f(f"fk_change_points_{name}_runs")) for name in runs),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_change_points")),
    )
    op.create_index(op.f("ix_change_points_series_id"), "change_points", ["series_id"])
    op.create_table(
        "triage",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("case_id", sa.Integer(), nullable=False),
        sa.Column("platform_id", sa.Integer(), nullable=True),
        sa.Column("phase", sa.String(), nullable=True),
        sa.Column("decision", sa.String(), nullable=False),
        sa.Column("from_time", sa.DateTime(), nullable=False),
        sa.Column("decided_by", sa.String(), nullable=False),
        sa.Column("decided_at", sa.DateTime(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("withdrawn_by", sa.String(), nullable=True),
        sa.Column("withdrawn_at", sa.DateTime(), nullable=True),
        sa.Column("withdrawn_reason", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["case_id"], ["cases.id"], name=op.f("fk_triage_case_id_cases")),
        sa.ForeignKeyConstraint(["platform_id"], ["platforms.id"], name=op.f("fk_triage_platform_id_platforms")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_triage")),
    )
    op.create_index(op.f("ix_triage_case_id"), "triage", ["case_id"])
    op.create_table(
        "calibrations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("made_at", sa.DateTime(), nullable=False),
        sa.Column("made_by", sa.String(), nullable=False),
        sa.Column("plan", sa.String(), nullable=False),
        sa.Column("judge", sa.String(), nullable=False),
        sa.Column("series", sa.Integer(), nullable=False),
        sa.Column("runs", sa.Integer(), nullable=False),
        sa.Column("shuffles", sa.Integer(), nullable=False),
        sa.Column("alarms", sa.Integer(), nullable=False),
        sa.Column("budget", sa.Double(), nullable=False),
        sa.Column("level", sa.Double(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_calibrations")),
    )
    op.create_index(op.f("ix_calibrations_plan"), "calibrations", ["plan"])
    views_0002.create(op.execute, op.get_context().dialect.name)


def downgrade() -> None:
    views_0002.drop(op.execute)
    for table in ("calibrations", "triage", "change_points", "series", "findings"):
        op.drop_table(table)
    for table, columns in _added().items():
        for column in columns:
            op.drop_column(table, column.name)
