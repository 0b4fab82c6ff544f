"""The base of all errors that are shown to users, and how missing memory or disk space is recognised."""

from __future__ import annotations

import errno

NO_ROOM = {
    errno.ENOSPC: "make room and start again",
    errno.EDQUOT: "make room in your share of the disk and start again",
    errno.EFBIG: "files may not grow so large here (ulimit -f); raise the limit and start again",
}  # advice by the errno of an OSError
# parts of messages of Python, its loader and PyTorch that mean a lack of memory without being a MemoryError
_NO_MEMORY = (
    "can't start new thread",
    "can't allocate memory",
    "annot allocate memory",
    "out of memory",
    "failed to map",
)


class DtoError(Exception):
    """An error that a user can act on: the message says where, what was found, what was expected, and the next step.

    The command line prints it without a traceback; any other error is a bug and keeps its traceback.
    """

    exit_code = 2  # of the command line: it could not begin or go on


def lacks_memory(error: BaseException) -> bool:
    """True where an error means that memory, or a process's limit of it, ran out."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError | ImportError) and any(words in str(error) for words in _NO_MEMORY)


class DeviceLost(RuntimeError):
    """The process's accelerator is in a state from which it does not recover; the process must be replaced."""


def one_line(error: BaseException) -> str:
    """Type and message of an error without line breaks, at most 500 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
