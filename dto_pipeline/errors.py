"""The one base of all errors meant for the person at the terminal."""

from __future__ import annotations


class DtoError(Exception):
    """Something a user can act on: the message says where, what was found, what was expected, and the next step.

    The command line prints it as one message without a traceback; anything else is a bug and keeps its traceback.
    """

    exit_code = 2  # of the command line: it could not begin or go on
