"""Where each rank ran, what launched a run, and when nights are to happen."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def _added() -> dict[str, list[sa.Column[Any]]]:
    """The columns that older tables get, by table; anew at each call, since a column belongs to one table."""
    return {
        "run_ranks": [
            sa.Column("cpus", sa.String(), nullable=True),
            sa.Column("numa", sa.String(), nullable=True),
        ],
        "runs": [
            sa.Column("launcher", sa.String(), nullable=True),
            sa.Column("attempt", sa.Integer(), nullable=True),
            sa.Column("scheduler_job", sa.String(), nullable=True),
        ],
    }


def upgrade() -> None:
    for table, columns in _added().items():
        for column in columns:
            op.add_column(table, column)
    op.create_table(
        "schedules",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("plan", sa.String(), nullable=False),
        sa.Column("at", sa.String(), nullable=False),
        sa.Column("zone", sa.String(), nullable=False),
        sa.Column("set_by", sa.String(), nullable=False),
        sa.Column("set_at", sa.DateTime(), nullable=False),
        sa.Column("retired_by", sa.String(), nullable=True),
        sa.Column("retired_at", sa.DateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_schedules")),
    )
    op.create_index(
        "uq_schedules_live_plan",
        "schedules",
        ["plan"],
        unique=True,
        sqlite_where=sa.text("retired_at IS NULL"),
        postgresql_where=sa.text("retired_at IS NULL"),
    )


def downgrade() -> None:
    op.drop_table("schedules")
    for table, columns in _added().items():
        for column in columns:
            op.drop_column(table, column.name)
