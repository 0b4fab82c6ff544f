"""Names that come from files, turned into paths that stay inside a root folder.

Label files, manifests and sidecars are foreign: a name in them may be absolute or climb out with ``..``.
The name alone is checked, not the disk: symbolic links inside a root are the choice of whoever owns the root.
"""

from __future__ import annotations

import re
from pathlib import Path

from dto_pipeline.terminal import UNPRINTABLE

_UNFIT = re.compile(rf"[{UNPRINTABLE}\\]")  # control characters, direction marks, halves of a character, backslash
SUBSET_NAME = re.compile(r"\w[\w.-]*")  # names folders and files, and appears in pages
_DRIVE = re.compile("[A-Za-z]:")


class UnsafePath(ValueError):
    """A name that is empty, absolute or leaves its root folder; the message quotes it."""


def check_relative(name: str) -> str:
    """Give `name` back in its shortest spelling (``a//./b.jpg`` -> ``a/b.jpg``).

    Raises:
        UnsafePath: the name is empty, absolute, has a ``..`` part, a backslash, a drive letter or a character that no
            file name should hold.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts:
        raise UnsafePath(f"file name {name!r} is empty; expected a path relative to its folder, like a/b/c.jpg")
    if _UNFIT.search(name):
        raise UnsafePath(f"file name {name!r} holds a backslash or control character; expected a path like a/b/c.jpg")
    if name.startswith("/") or ".." in parts or _DRIVE.match(name):
        raise UnsafePath(f"file name {name!r} leaves its folder; expected a relative path without '..'")
    tidy = "/".join(parts)
    return name if tidy == name else tidy  # the same object saves memory: half a million names are kept


def name_subset(folder: str) -> str:
    """A name of a subset made from a folder's: characters that it may not have become dashes."""
    return re.sub(r"[^\w.-]+", "-", folder).lstrip(".-") or "images"


def resolve_inside(root: str | Path, name: str) -> Path:
    """Path of `name` under `root`; see `check_relative` for what is refused."""
    return Path(root) / check_relative(name)
