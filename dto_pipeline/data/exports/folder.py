"""An export's folder on disk: written aside, described by export.json, given its name at the end.

Knows files, their sizes and hashes; knows no format. A killed export leaves only ``.<name>.tmp-<uuid>`` beside the
place, which the next export to that place removes once its owner is dead. No clock: equal exports have equal bytes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dto_pipeline.data.exports.inputs import ExportError
from dto_pipeline.data.files import is_temporary, sha256_file, sync, write_json_atomic

EXPORT_SCHEMA = "dto-export/1"
EXPORT_FILE = "export.json"


@dataclass(frozen=True)
class ExportedFile:
    """One file of an export."""

    path: str  # relative to the folder
    images: int
    persons: int


def check_free(out: Path) -> None:
    """Refuse a place that is taken: an export never mixes with other files. Raises: ExportError."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists():
        raise ExportError(f"{out} exists and is not an empty folder; remove it or choose another -o")


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out`; whatever still bears the temporary name at the end is removed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    _sweep(out)
    staging = out.with_name(f".{out.name}.tmp-{uuid.uuid4().hex}")
    staging.mkdir()
    handle = os.open(staging, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: there nobody can lock it to sweep it either
            fcntl.flock(handle, fcntl.LOCK_EX)  # held while we live
        yield staging
    finally:
        os.close(handle)
        shutil.rmtree(staging, ignore_errors=True)  # gone already where it was committed


def commit_folder(staging: Path, out: Path, facts: dict[str, Any], files: list[ExportedFile]) -> None:
    """Write export.json with every file's size and sha256, sync all, give the folder its name.

    Raises:
        ExportError: somebody else put something under that name meanwhile.
    """
    entries = []
    for file in files:
        path = staging / file.path
        sync(path)
        size = path.stat().st_size
        entry = {"path": file.path, "bytes": size, "sha256": sha256_file(path)}
        entries.append({**entry, "images": file.images, "persons": file.persons})
    write_json_atomic(staging / EXPORT_FILE, {"schema": EXPORT_SCHEMA, **facts, "files": entries})
    for folder in sorted(path for path in staging.rglob("*") if path.is_dir()):
        sync(folder)
    sync(staging)
    try:
        os.rename(staging, out)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise ExportError(f"{out} appeared while the export was written; remove it or choose another -o") from error
    sync(out.parent)


def _sweep(out: Path) -> None:
    """Remove what killed exports to this place left; a folder whose owner lives is locked and stays."""
    for path in list(out.parent.iterdir()):
        if not (path.name.startswith(f".{out.name}.tmp-") and is_temporary(path.name) and path.is_dir()):
            continue
        handle = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # locked, or a file system without locks: leaving it is safe
            continue
        else:
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(handle)
