"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:

    op.create_table(
        "baselines",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("set_by", sa.String(), nullable=False),
        sa.Column("set_at", sa.DateTime(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("retired_by", sa.String(), nullable=True),
        sa.Column("retired_at", sa.DateTime(), nullable=True),
        sa.Column("retired_reason", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_baselines")),
    )
    op.create_index(
        "uq_baselines_live_name",
        "baselines",
        ["name"],
        unique=True,
        sqlite_where=sa.text("retired_at IS NULL"),
        postgresql_where=sa.text("retired_at IS NULL"),
    )
    op.create_table(
        "cases",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("backend", sa.String(), nullable=False),
        sa.Column("mode", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("ranks", sa.Integer(), nullable=False),
        sa.Column("nodes", sa.Integer(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("hidden", sa.Integer(), nullable=False),
        sa.Column("topk", sa.Integer(), nullable=False),
        sa.Column("experts", sa.Integer(), nullable=False),
        sa.Column("dtype", sa.String(), nullable=False),
        sa.Column("combine", sa.String(), nullable=False),
        sa.Column("routing", sa.String(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("protocol", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cases")),
        sa.UniqueConstraint("key", name=op.f("uq_cases_key")),
    )
    op.create_table(
        "environments",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("commit", sa.String(), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_environments")),
        sa.UniqueConstraint("digest", name=op.f("uq_environments_digest")),
    )
    op.create_index(op.f("ix_environments_commit"), "environments", ["commit"], unique=False)
    op.create_table(
        "metrics",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("phase", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_metrics")),
    )
    op.create_index("uq_metrics_phase_name", "metrics", ["phase", "name"], unique=True)
    op.create_table(
        "nodes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("hostname", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_nodes")),
        sa.UniqueConstraint("hostname", name=op.f("uq_nodes_hostname")),
    )
    op.create_table(
        "platforms",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("device_model", sa.String(), nullable=False),
        sa.Column("devices_per_node", sa.Integer(), nullable=False),
        sa.Column("interconnect", sa.String(), nullable=False),
        sa.Column("cluster", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_platforms")),
        sa.UniqueConstraint("key", name=op.f("uq_platforms_key")),
    )
    op.create_table(
        "nights",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("plan", sa.String(), nullable=False),
        sa.Column("started_at", sa.DateTime(), nullable=True),
        sa.Column("finished_at", sa.DateTime(), nullable=True),
        sa.Column("judged_at", sa.DateTime(), nullable=True),
        sa.Column("judge", sa.String(), nullable=True),
        sa.Column("baseline_id", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["baseline_id"], ["baselines.id"], name=op.f("fk_nights_baseline_id_baselines")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_nights")),
        sa.UniqueConstraint("name", name=op.f("uq_nights_name")),
    )
    op.create_index(op.f("ix_nights_started_at"), "nights", ["started_at"], unique=False)
    op.create_table(
        "planned",
        sa.Column("night_id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("case_id", sa.Integer(), nullable=False),
        sa.Column("repeat", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["case_id"], ["cases.id"], name=op.f("fk_planned_case_id_cases")),
        sa.ForeignKeyConstraint(["night_id"], ["nights.id"], name=op.f("fk_planned_night_id_nights")),
        sa.PrimaryKeyConstraint("night_id", "run_id", name=op.f("pk_planned")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("case_id", sa.Integer(), nullable=False),
        sa.Column("platform_id", sa.Integer(), nullable=False),
        sa.Column("environment_id", sa.Integer(), nullable=False),
        sa.Column("night_id", sa.Integer(), nullable=True),
        sa.Column("repeat", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(), nullable=False),
        sa.Column("ended_at", sa.DateTime(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("warmup", sa.Integer(), nullable=False),
        sa.Column("iters", sa.Integer(), nullable=False),
        sa.Column("conditions", sa.JSON(), nullable=False),
        sa.Column("notes", sa.JSON(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["case_id"], ["cases.id"], name=op.f("fk_runs_case_id_cases")),
        sa.ForeignKeyConstraint(
            ["environment_id"], ["environments.id"], name=op.f("fk_runs_environment_id_environments")
        ),
        sa.ForeignKeyConstraint(["night_id"], ["nights.id"], name=op.f("fk_runs_night_id_nights")),
        sa.ForeignKeyConstraint(["platform_id"], ["platforms.id"], name=op.f("fk_runs_platform_id_platforms")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
        sa.UniqueConstraint("run_id", name=op.f("uq_runs_run_id")),
    )
    op.create_index("ix_runs_case_platform_started", "runs", ["case_id", "platform_id", "started_at"], unique=False)
    op.create_index(op.f("ix_runs_night_id"), "runs", ["night_id"], unique=False)
    op.create_index(op.f("ix_runs_started_at"), "runs", ["started_at"], unique=False)
    op.create_table(
        "verdicts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("night_id", sa.Integer(), nullable=False),
        sa.Column("case_id", sa.Integer(), nullable=False),
        sa.Column("platform_id", sa.Integer(), nullable=True),
        sa.Column("phase", sa.String(), nullable=False),
        sa.Column("verdict", sa.String(), nullable=False),
        sa.Column("effect", sa.Double(), nullable=True),
        sa.Column("low", sa.Double(), nullable=True),
        sa.Column("high", sa.Double(), nullable=True),
        sa.Column("detectable", sa.Double(), nullable=True),
        sa.Column("p_value", sa.Double(), nullable=True),
        sa.Column("floor", sa.Double(), nullable=False),
        sa.Column("latency_us", sa.Double(), nullable=True),
        sa.Column("bandwidth_gbs", sa.Double(), nullable=True),
        sa.Column("baseline_latency_us", sa.Double(), nullable=True),
        sa.Column("new_runs", sa.Integer(), nullable=False),
        sa.Column("baseline_runs", sa.Integer(), nullable=False),
        sa.Column("sentence", sa.String(), nullable=False),
        sa.Column("warnings", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["case_id"], ["cases.id"], name=op.f("fk_verdicts_case_id_cases")),
        sa.ForeignKeyConstraint(["night_id"], ["nights.id"], name=op.f("fk_verdicts_night_id_nights")),
        sa.ForeignKeyConstraint(["platform_id"], ["platforms.id"], name=op.f("fk_verdicts_platform_id_platforms")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_verdicts")),
    )
    op.create_index(op.f("ix_verdicts_case_id"), "verdicts", ["case_id"], unique=False)
    op.create_index("ix_verdicts_night_id_case_id_phase", "verdicts", ["night_id", "case_id", "phase"], unique=False)
    op.create_table(
        "baseline_runs",
        sa.Column("baseline_id", sa.Integer(), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["baseline_id"], ["baselines.id"], name=op.f("fk_baseline_runs_baseline_id_baselines")),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_baseline_runs_run_runs")),
        sa.PrimaryKeyConstraint("baseline_id", "run", name=op.f("pk_baseline_runs")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "checks",
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("moment", sa.String(), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_checks_run_runs")),
        sa.PrimaryKeyConstraint("run", "position", name=op.f("pk_checks")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "failures",
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("step", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("log_tail", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_failures_run_runs")),
        sa.PrimaryKeyConstraint("run", name=op.f("pk_failures")),
    )
    op.create_table(
        "rank_values",
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("phase", sa.String(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("p50_us", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_rank_values_run_runs")),
        sa.PrimaryKeyConstraint("run", "phase", "rank", name=op.f("pk_rank_values")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "run_phases",
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("phase", sa.String(), nullable=False),
        sa.Column("iterations", sa.Integer(), nullable=False),
        sa.Column("leading_dropped", sa.Integer(), nullable=False),
        sa.Column("slowest_rank", sa.Integer(), nullable=False),
        sa.Column("headline", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_run_phases_run_runs")),
        sa.PrimaryKeyConstraint("run", "phase", name=op.f("pk_run_phases")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "run_ranks",
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("node_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("fk_run_ranks_node_id_nodes")),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_run_ranks_run_runs")),
        sa.PrimaryKeyConstraint("run", "rank", name=op.f("pk_run_ranks")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_run_ranks_node_id"), "run_ranks", ["node_id"], unique=False)
    op.create_table(
        "run_values",
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("metric", sa.Integer(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["metric"], ["metrics.id"], name=op.f("fk_run_values_metric_metrics")),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_run_values_run_runs")),
        sa.PrimaryKeyConstraint("run", "metric", name=op.f("pk_run_values")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "samples",
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("phase", sa.String(), nullable=False),
        sa.Column("packed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_samples_run_runs")),
        sa.PrimaryKeyConstraint("run", "phase", name=op.f("pk_samples")),
    )


def downgrade() -> None:

    op.drop_table("samples")
    op.drop_table("run_values")
    op.drop_index(op.f("ix_run_ranks_node_id"), table_name="run_ranks")
    op.drop_table("run_ranks")
    op.drop_table("run_phases")
    op.drop_table("rank_values")
    op.drop_table("failures")
    op.drop_table("checks")
    op.drop_table("baseline_runs")
    op.drop_index("ix_verdicts_night_id_case_id_phase", table_name="verdicts")
    op.drop_index(op.f("ix_verdicts_case_id"), table_name="verdicts")
    op.drop_table("verdicts")
    op.drop_index(op.f("ix_runs_started_at"), table_name="runs")
    op.drop_index(op.f("ix_runs_night_id"), table_name="runs")
    op.drop_index("ix_runs_case_platform_started", table_name="runs")
    op.drop_table("runs")
    op.drop_table("planned")
    op.drop_index(op.f("ix_nights_started_at"), table_name="nights")
    op.drop_table("nights")
    op.drop_table("platforms")
    op.drop_table("nodes")
    op.drop_index("uq_metrics_phase_name", table_name="metrics")
    op.drop_table("metrics")
    op.drop_index(op.f("ix_environments_commit"), table_name="environments")
    op.drop_table("environments")
    op.drop_table("cases")
    op.drop_index(
        "uq_baselines_live_name",
        table_name="baselines",
        sqlite_where=sa.text("retired_at IS NULL"),
        postgresql_where=sa.text("retired_at IS NULL"),
    )
    op.drop_table("baselines")
