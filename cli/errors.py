"""What can go wrong in a way that a user can cause or mend; each kind has its exit code."""

import enum


class Exit(enum.IntEnum):
    """The exit codes of every command, as `relaydesk --help` documents them."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    NOT_AUTHORISED = 3
    UNREACHABLE = 4
    INTERRUPTED = 130


class CommandError(Exception):
    """Ends the command: the message is printed as one paragraph, without a traceback."""

    exit_code = Exit.REFUSED


class UsageError(CommandError):
    """The arguments or the file cannot be used as they are."""

    exit_code = Exit.USAGE


class NotAuthorisedError(CommandError):
    """The credentials are missing, not valid, or not permitted to do this."""

    exit_code = Exit.NOT_AUTHORISED


class WrongServerError(CommandError):
    """Something answers at the address, but not as Relaydesk does; trying again cannot help."""

    exit_code = Exit.UNREACHABLE


class UnreachableError(CommandError):
    """The platform cannot be reached or fails for the moment.

    `retry_after` is what the answer asked for, in seconds.
    """

    exit_code = Exit.UNREACHABLE

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StoppedError(CommandError):
    """The user pressed Ctrl-C."""

    exit_code = Exit.INTERRUPTED
