"""The launcher's one error: a sentence a person can act on, and where to read more."""

import errno
from pathlib import Path


class LauncherError(Exception):
    """Something the user can act on.

    Attributes:
        sentence: One sentence that says what is wrong and, where it is known, what to do.
        log: The file that holds the details, if there is one.
    """

    def __init__(self, sentence: str, log: Path | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.log = log

    def __str__(self) -> str:
        return f"{self.sentence} Log: {self.log}" if self.log else self.sentence


def from_os_error(error: OSError, doing: str) -> LauncherError:
    """Turn an operating system error into a sentence; `doing` names the act, as in "write /x/y"."""
    place = f" ({error.filename})" if error.filename else ""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return LauncherError(f"The disk is full: could not {doing}{place}; free some space and try again.")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return LauncherError(f"Not allowed to {doing}{place}; check who owns the folder.")
        case _:
            return LauncherError(f"Could not {doing}{place}: {error.strerror or error}.")


def first_cause(error: BaseException) -> BaseException:
    """The error that counts in nested exception groups: a LauncherError if there is one, else the first."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [first_cause(each) for each in error.exceptions]
    return next((cause for cause in causes if isinstance(cause, LauncherError)), causes[0])
