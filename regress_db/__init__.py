"""regress_db: what is remembered and what is said about it.

The schema and its migrations, ingestion, nights, baselines, verdicts, trend queries and the report of a night. Never
imports torch; importing the package alone loads nothing. Start reading at `regress_db.history`, then
`regress_db.ingest`, `regress_db.verdicts`, `regress_db.queries`.
"""
