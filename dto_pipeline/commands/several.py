"""Several runs in one call: each is looked at by itself, one table shows them all, the worst exit code counts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from dto_pipeline.errors import DtoError

_T = TypeVar("_T")
_GRAVITY = (0, 3, 1, 2)  # exit codes from harmless to bad: done, pending as asked, something failed, could not begin


def worst_exit(codes: Sequence[int]) -> int:
    """The exit code of several; any other code than 0, 1, 2, 3 is the worst."""
    return max(codes, key=lambda code: _GRAVITY.index(code) if code in _GRAVITY else len(_GRAVITY), default=0)


def show_several(
    names: Sequence[str],
    look: Callable[[int], _T],
    facts: Callable[[_T], Mapping[str, str]],
    exit_code: Callable[[_T], int],
    as_json: bool,
) -> int:
    """Look at each, print one table over them (or one JSON list), return the worst exit code.

    Args:
        names: what the rows are called.
        look: number of a row -> what was found; a `DtoError` costs this row only.
        facts: what was found -> column -> cell.
        exit_code: of what was found.
        as_json: print a list of ``to_json()`` instead, each with its name.
    """
    rows: list[tuple[str, Mapping[str, str]]] = []
    plain: list[dict[str, Any]] = []
    codes: list[int] = []
    errors: list[str] = []
    for number, name in enumerate(names):
        try:
            found: Any = look(number)
        except DtoError as error:
            errors.append(f"{name}: {error}")
            codes.append(error.exit_code)
            plain.append({"name": name, "error": str(error)})
            rows.append((name, {"exit code": f"{error.exit_code}"}))
            continue
        codes.append(exit_code(found))
        plain.append({"name": name, "exit_code": codes[-1], **found.to_json()})
        rows.append((name, {**facts(found), "exit code": f"{codes[-1]}"}))
    if as_json:
        print(json.dumps(plain, indent=1))
    else:
        print("\n".join(_table(rows)))
    for line in errors:
        print(line, file=sys.stderr)
    return worst_exit(codes)


def _table(rows: Sequence[tuple[str, Mapping[str, str]]]) -> list[str]:
    from dto_pipeline.evaluate.tables import align

    columns = list(dict.fromkeys(column for _, cells in rows for column in cells))
    columns = [*(column for column in columns if column != "exit code"), "exit code"]
    lines = [[name, *(cells.get(column, "-") for column in columns)] for name, cells in rows]
    return align([["", *columns], *lines])
