"""What is shown where there is nothing to show: one sentence."""

from __future__ import annotations

from regress_db.web.views.shared import Answer


class ErrorView(Answer, frozen=True, kw_only=True, tag="error"):
    """status: of the answer (400, 403, 404, 500). sentence: what was wrong, and what to do."""

    status: int
    sentence: str
