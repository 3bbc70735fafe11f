"""Regressions that a person acknowledged, notes; indices that have a series, or the regressions, side by side."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("triage", sa.Column("effect", sa.Double(), nullable=True))
    op.add_column("triage", sa.Column("until", sa.Date(), nullable=True))
    op.create_table(
        "notes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("written_by", sa.String(), nullable=False),
        sa.Column("written_at", sa.DateTime(), nullable=False),
        sa.Column("case_id", sa.Integer(), nullable=True),
        sa.Column("platform_id", sa.Integer(), nullable=True),
        sa.Column("phase", sa.String(), nullable=True),
        sa.Column("night_id", sa.Integer(), nullable=True),
        sa.Column("run", sa.Integer(), nullable=True),
        sa.Column("withdrawn_by", sa.String(), nullable=True),
        sa.Column("withdrawn_at", sa.DateTime(), nullable=True),
        sa.Column("withdrawn_reason", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["case_id"], ["cases.id"], name=op.f("fk_notes_case_id_cases")),
        sa.ForeignKeyConstraint(["platform_id"], ["platforms.id"], name=op.f("fk_notes_platform_id_platforms")),
        sa.ForeignKeyConstraint(["night_id"], ["nights.id"], name=op.f("fk_notes_night_id_nights")),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_notes_run_runs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notes")),
    )
    op.create_index(op.f("ix_notes_at"), "notes", ["at"])
    op.create_index(
        "ix_verdicts_regressed",
        "verdicts",
        ["night_id", "case_id", "phase"],
        sqlite_where=sa.text("verdict = 'regressed'"),
        postgresql_where=sa.text("verdict = 'regressed'"),
    )
    op.create_index(
        "ix_verdicts_series", "verdicts", ["case_id", "platform_id", "phase", "night_id", "verdict", "effect"]
    )
    op.drop_index("ix_verdicts_case_id", "verdicts")
    op.create_index(
        "ix_runs_series",
        "runs",
        ["case_id", "platform_id", "started_at", "outcome", "run_id", "night_id", "environment_id"],
    )
    op.drop_index("ix_runs_case_platform_started", "runs")


def downgrade() -> None:
    op.create_index("ix_runs_case_platform_started", "runs", ["case_id", "platform_id", "started_at"])
    op.drop_index("ix_runs_series", "runs")
    op.create_index("ix_verdicts_case_id", "verdicts", ["case_id"])
    op.drop_index("ix_verdicts_series", "verdicts")
    op.drop_index("ix_verdicts_regressed", "verdicts")
    op.drop_table("notes")
    op.drop_column("triage", "until")
    op.drop_column("triage", "effect")
