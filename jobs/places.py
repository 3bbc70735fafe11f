"""The history and the spool that a command's options stand for. Torch-free; loads SQLAlchemy when a history is opened.

Called by the commands and the gate; the order in which a place is looked for is `regress_db.locations`' alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from regress_db.locations import default_location, default_spool

if TYPE_CHECKING:
    from jobs.plan import Plan
    from regress_db.history import History


def open_history(
    option: str | None,
    plan: Plan | None = None,
    *,
    create: bool = False,
    migrate_older: bool = True,
    read_only: bool = False,
) -> History:
    """The history that `--db` (or what stands in for it) names, opened as `History.open` says.

    create: also where there is none yet.
    """
    from regress_db.history import History

    where = default_location(option, plan=plan.plan.history if plan else None).where
    return History.open(where, create=create, migrate_older=migrate_older, read_only=read_only)


def spool_folder(option: str | None, plan: Plan | None = None) -> Path:
    """The spool that `--spool` (or what stands in for it) names, as an absolute path."""
    return Path(default_spool(option, plan=plan.plan.spool if plan else None).where).expanduser().absolute()
