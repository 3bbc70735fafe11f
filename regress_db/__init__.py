"""regress_db: what is remembered and what is said about it.

The schema and its migrations, ingestion, nights, baselines, verdicts, trend queries and the report of a night. Never
imports torch; importing the package alone loads nothing. Start reading at `regress_db.history`, then
`regress_db.ingest`, `regress_db.verdicts`, `regress_db.queries`; in a notebook, at `regress_db.asking`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regress_db.history import History

__all__ = ["History"]


def __getattr__(name: str) -> Any:
    if name == "History":
        from regress_db.history import History

        return History
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
