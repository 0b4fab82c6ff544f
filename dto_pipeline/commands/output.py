"""Output that several verbs share: tables or JSON of one run or of several, and checks of `-o`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dto_pipeline.errors import DtoError

_Found = TypeVar("_Found")
_GRAVITY = (0, 3, 1, 2)  # exit codes from good to bad: done, pending as asked, something failed, could not begin


def print_report(report: Any, as_json: bool) -> None:
    """Print a report: its `to_json()` for programs, or its `as_table()`."""
    print(json.dumps(report.to_json(), indent=1) if as_json else report.as_table())


def worst_exit(codes: Sequence[int]) -> int:
    """The exit code of several; any other code than 0, 1, 2, 3 is the worst."""
    return max(codes, key=lambda code: _GRAVITY.index(code) if code in _GRAVITY else len(_GRAVITY), default=0)


def show_several(
    names: Sequence[str],
    read: Callable[[int], _Found],
    facts: Callable[[_Found], Mapping[str, str]],
    exit_code: Callable[[_Found], int],
    as_json: bool,
) -> int:
    """Print one table (or JSON list) of several reports; return the worst exit code.

    Args:
        names: of the rows.
        read: number of a row -> its report; a `DtoError` fails this row only.
        facts: report -> its cells by column.
        exit_code: of a report.
        as_json: print a list of ``to_json()`` instead, each with its name.
    """
    from dto_pipeline.terminal import align

    rows, plain, codes, errors = list[Mapping[str, str]](), list[dict[str, Any]](), list[int](), list[str]()
    for number, name in enumerate(names):
        try:
            found: Any = read(number)
            code, cells = exit_code(found), facts(found)
            plain.append({"name": name, "exit_code": code, **found.to_json()})
        except DtoError as error:
            code, cells = error.exit_code, {}
            plain.append({"name": name, "error": str(error)})
            errors.append(f"{name}: {error}")
        codes.append(code)
        rows.append({"": name, **cells})
    if as_json:
        print(json.dumps(plain, indent=1))
    else:
        columns = list(dict.fromkeys(column for cells in rows for column in cells))
        lines = [
            [*(cells.get(name, "-") for name in columns), f"{code}"] for cells, code in zip(rows, codes, strict=True)
        ]
        print("\n".join(align([[*columns, "exit code"], *lines])))
    for line in errors:
        print(line, file=sys.stderr)
    return worst_exit(codes)


def local_place(text: str) -> Path:
    """`-o` of a verb that writes to local disks only; raises DtoError for a URI of anything else."""
    from dto_pipeline.data.storage import as_location

    place = as_location(text)
    if not isinstance(place, Path):
        raise DtoError(f"{text} is a URI; this is written to a local folder, name one (-o)")
    return place


def lasting_place(text: str) -> str:
    """`-o` of a verb that writes to any store except this process's memory, which ends with it, and web servers."""
    if text.startswith(("http://", "https://")):
        raise DtoError(f"{text}: a web server's files can be read, not created; name a folder or a bucket (-o)")
    if text.startswith("memory://"):
        raise DtoError(f"{text} is the memory of this process and ends with it; name a folder or a bucket (-o)")
    return text


def show_progress(done: int, images: int) -> None:
    """A progress line on the terminal."""
    print(f"\r   {done} of {images} images", end="\n" if done == images else "", flush=True)
