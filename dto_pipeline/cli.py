"""The `dto` command: runs a verb and turns its errors into one message.

Each verb is a module of `dto_pipeline.commands`; heavy libraries load only in the verb that needs them. Exit codes:
0 done, 1 done with failures that the verb's output names, 2 it could not begin or go on, 3 (`dto run`) done as far as
was asked, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import argcomplete

import dto_pipeline
from dto_pipeline.commands import VERBS
from dto_pipeline.errors import NO_ROOM, DtoError, lacks_memory
from dto_pipeline.terminal import configure_logs, printable, printable_stdout

_VERBOSE = "log more: a line per shard, checkpoint or file"
_LIGHT = ("status",)  # verbs that load no large library
_LEAST_MEMORY = 3 << 30  # of address space; measured: runs failed with 2.3 GB, 3.1 GB sufficed [bytes]
_NO_MEMORY = "memory ran out; free some, or raise the limit (ulimit -v), and start again: finished work is kept"


def build_parser() -> argparse.ArgumentParser:
    """The whole command line, for `main` and for documentation."""
    parser = _Parser(prog="dto", description="Scene-consistent, metric 3D labels of crowds.")
    parser.add_argument("--version", action="version", version=f"dto {dto_pipeline.__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help=_VERBOSE)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in VERBS:
        verb.add_parser(verbs)
    for verb_parser in verbs.choices.values():  # also after the verb; SUPPRESS keeps a value from before it
        verb_parser.add_argument("-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help=_VERBOSE)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb named by `argv`; returns the exit code."""
    # Our tensors are small: several threads cost more than they gain (ten times the wall time on a busy two-core
    # machine). Set before PyTorch loads; workers follow run.torch_threads.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _open_streams()
    parser = build_parser()
    argcomplete.autocomplete(parser)
    arguments = parser.parse_args(argv)
    configure_logs("info" if arguments.verbose else "warning", replace=False)
    try:
        _check_limits(arguments.verb)
        with printable_stdout(sys.stdout), interrupt_on_sigterm():
            return int(arguments.run(arguments))
    except DtoError as error:
        _complain(arguments.verb, str(error))
        return error.exit_code
    except BrokenPipeError:  # the reader of our output ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if (sentence := _describe(error)) is None:
            raise
        _complain(arguments.verb, sentence)
        return 2
    except (MemoryError, RuntimeError, ImportError) as error:
        if not lacks_memory(error):
            raise
        _complain(arguments.verb, _NO_MEMORY)
        return 2
    except (KeyboardInterrupt, SystemError) as error:
        if isinstance(error, SystemError) and not isinstance(error.__cause__, KeyboardInterrupt):
            raise  # otherwise the signal came while an extension module was being loaded
        _complain(arguments.verb, "interrupted; finished work is kept")
        return 130


def _open_streams() -> None:
    """Replace standard streams that the caller closed (``>&-``), or the next file opened would take their place."""
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for as long as the process lives


@contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """Make SIGTERM an interrupt like Ctrl-C: Slurm, Kubernetes and spot nodes send it before they kill."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _complain(verb: str, text: str) -> None:
    print(printable(f"dto {verb}: {text}"), file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """Escapes its messages, because they quote arguments, which may be untrusted names of files."""

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(printable(message), file)


def _check_limits(verb: str) -> None:
    """Refuse a memory limit that is too low to load the libraries: they would end the process without a message."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if verb not in _LIGHT and limit != resource.RLIM_INFINITY and limit < _LEAST_MEMORY:
        raise DtoError(
            f"this process may have {limit >> 20} MB of address space (ulimit -v); PyTorch and Arrow need "
            f"{_LEAST_MEMORY >> 20} MB to load, so raise the limit"
        )


def _describe(error: OSError) -> str | None:
    """The system's error as a sentence; None where it names neither a file nor a lacking resource."""
    place = f"{error.filename}: " if error.filename else ""  # writing to an open file names none
    if error.errno in NO_ROOM:
        return f"{place}{error.strerror}; {NO_ROOM[error.errno]}"
    if lacks_memory(error):
        return _NO_MEMORY
    if str(error.strerror).startswith("No usable temporary directory"):
        return f"{error.strerror}; set TMPDIR to a folder that can be written"
    if place:
        return f"{place}{error.strerror}"
    try:
        os.getcwd()
    except FileNotFoundError:
        return "the current folder was removed; change to another one and start again"
    return None


if __name__ == "__main__":
    sys.exit(main())
