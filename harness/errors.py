"""Errors that a person is meant to read.

Every room raises a subclass of `EpwatchError` where the knowledge is; the command line catches it once and prints
one sentence. Next to read: `harness.case`.
"""


class EpwatchError(Exception):
    """Something is wrong that the user can mend: the message is one sentence that names it and says what to do.

    `exit_code` is what a command that ends with this error exits with (2: usage or configuration).
    """

    exit_code = 2


class CaseError(EpwatchError):
    """A case that cannot be: a malformed key, or sizes that no run could have."""


class RecordError(EpwatchError):
    """A run record that cannot be read or written."""


class BackendError(EpwatchError):
    """A backend that is unknown, absent, or cannot do what the case asks."""


class WorldError(EpwatchError):
    """The ranks' world cannot be joined: rank variables are missing, in conflict, or peers did not come."""


class WrongAnswer(EpwatchError):
    """A backend moved the wrong bytes: the oracle's finding, in one sentence."""


class JobError(EpwatchError):
    """A job that cannot be started as it was described."""
