"""What can go wrong with the history, each a sentence a person can act on. Next to read: `regress_db.history`."""

from __future__ import annotations

from harness.errors import EpwatchError


class HistoryError(EpwatchError):
    """The history cannot be opened, read or written: where it is, what is wrong, what to do."""


class UnreachableError(HistoryError):
    """The history is on a server that cannot be reached now."""


class NotFoundError(EpwatchError):
    """A night, run or baseline that the history does not have, or a prefix that several share."""


class BaselineError(EpwatchError):
    """A baseline that cannot be set or retired as asked."""


class TriageError(EpwatchError):
    """A decision or a note that cannot be made or withdrawn as asked."""


class ScheduleError(EpwatchError):
    """A schedule of nights that cannot be set, retired or followed as asked."""


class FilterError(EpwatchError):
    """A filter, a time or another part of a question that cannot be understood: what it is, and what would be."""


class MissingLibraryError(EpwatchError):
    """An optional library that what was asked for needs: which, and how to get it."""
