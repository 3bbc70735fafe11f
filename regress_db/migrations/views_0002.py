"""The read-only views of revision 0002, for those who bring their own tools; docs/history.md explains each column.

Their names and columns are promises: a later revision may add a column, and neither renames nor drops one. A revision
that changes a table under them drops them first (`drop`) and makes its own afterwards. Frozen with its revision.
"""

from __future__ import annotations

from collections.abc import Callable

_HOSTS = {
    "sqlite": "(SELECT group_concat(hostname, ',') FROM (SELECT DISTINCT o.hostname FROM run_ranks k "
    "JOIN nodes o ON o.id = k.node_id WHERE k.run = r.id ORDER BY o.hostname))",
    "postgresql": "(SELECT string_agg(DISTINCT o.hostname, ',' ORDER BY o.hostname) FROM run_ranks k "
    "JOIN nodes o ON o.id = k.node_id WHERE k.run = r.id)",
}
"""The one expression that the two databases write differently."""

_RUNS = """
SELECT r.run_id, r.started_at, r.ended_at, r.outcome, n.name AS night, n.plan, r.repeat, p.purpose,
  c.key AS case_key, c.backend, c.mode, c.device, c.ranks, c.nodes, c.tokens, c.hidden, c.topk, c.experts, c.dtype,
  c.combine, c.routing, c.seed, c.protocol,
  f.key AS platform, f.cluster, f.device_model, f.devices_per_node, f.interconnect,
  e."commit" AS code_commit, e.digest AS environment, {hosts} AS hosts, r.warmup, r.iters,
  x.step AS failure_step, x.kind AS failure_kind, x.message AS failure
FROM runs r
JOIN cases c ON c.id = r.case_id
JOIN platforms f ON f.id = r.platform_id
JOIN environments e ON e.id = r.environment_id
LEFT JOIN nights n ON n.id = r.night_id
LEFT JOIN planned p ON p.night_id = r.night_id AND p.run_id = r.run_id
LEFT JOIN failures x ON x.run = r.id
"""

_VALUES = """
SELECT r.run_id, r.started_at, n.name AS night, c.key AS case_key, f.key AS platform, e."commit" AS code_commit,
  m.phase, m.name AS metric, v.value
FROM run_values v
JOIN metrics m ON m.id = v.metric
JOIN runs r ON r.id = v.run
JOIN cases c ON c.id = r.case_id
JOIN platforms f ON f.id = r.platform_id
JOIN environments e ON e.id = r.environment_id
LEFT JOIN nights n ON n.id = r.night_id
"""

_NIGHTS = """
SELECT n.name AS night, n.plan, n.started_at, n.finished_at, n.judged_at, n.judge, n.against, b.name AS baseline,
  n.level, n.aa_series, n.aa_alarms,
  (SELECT count(*) FROM planned p WHERE p.night_id = n.id) AS planned,
  (SELECT count(*) FROM runs r WHERE r.night_id = n.id AND r.outcome = 'ok') AS ok,
  (SELECT count(*) FROM runs r WHERE r.night_id = n.id AND r.outcome <> 'ok') AS not_ok,
  (SELECT count(*) FROM planned p LEFT JOIN runs r ON r.run_id = p.run_id
    WHERE p.night_id = n.id AND r.id IS NULL) AS missing
FROM nights n
LEFT JOIN baselines b ON b.id = n.baseline_id
"""

_VERDICTS = """
SELECT n.name AS night, n.started_at, n.judged_at, c.key AS case_key, f.key AS platform, v.phase, v.verdict,
  v.effect, v.low, v.high, v.p_value, v.floor, v.noise_floor, v.detectable, v.runs_needed,
  v.latency_us, v.bandwidth_gbs, v.baseline_latency_us, v.new_runs, v.confirmations, v.baseline_runs,
  v.baseline_first, v.baseline_last, v.cause, v.finding, v.shared, v.waiver, v.sentence
FROM verdicts v
JOIN nights n ON n.id = v.night_id
JOIN cases c ON c.id = v.case_id
LEFT JOIN platforms f ON f.id = v.platform_id
"""

_CHANGES = """
SELECT c.key AS case_key, f.key AS platform, m.phase, m.name AS metric, g.kind,
  a.started_at AS after_started_at, b.run_id AS before_run, a.run_id AS after_run,
  early.run_id AS earliest_run, late.run_id AS latest_run,
  before_e."commit" AS before_commit, after_e."commit" AS after_commit,
  g.effect, g.low, g.high, g.p_value, g.cause, g.method, g.found_at
FROM change_points g
JOIN series s ON s.id = g.series_id
JOIN cases c ON c.id = s.case_id
JOIN platforms f ON f.id = s.platform_id
JOIN metrics m ON m.id = s.metric_id
JOIN runs b ON b.id = g.before_run
JOIN runs a ON a.id = g.after_run
JOIN runs early ON early.id = g.earliest_run
JOIN runs late ON late.id = g.latest_run
JOIN environments before_e ON before_e.id = b.environment_id
JOIN environments after_e ON after_e.id = a.environment_id
"""

_VIEWS = {
    "v_runs": _RUNS,
    "v_values": _VALUES,
    "v_nights": _NIGHTS,
    "v_verdicts": _VERDICTS,
    "v_changes": _CHANGES,
}


def create(execute: Callable[[str], object], dialect: str) -> None:
    """Make the views; `dialect` is `sqlite` or `postgresql`."""
    for name, query in _VIEWS.items():
        execute(f"CREATE VIEW {name} AS {query.format(hosts=_HOSTS[dialect]).strip()}")


def drop(execute: Callable[[str], object]) -> None:
    """Remove the views."""
    for name in _VIEWS:
        execute(f"DROP VIEW {name}")
