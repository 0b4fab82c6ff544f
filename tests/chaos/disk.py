"""Scenarios of the run's folder: a disk that fills up or may not be written.

Each takes a `DisturbedRun`, disturbs it and leaves the resuming to `play`. Sizes in bytes, of disks in kilobytes.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

from tests.chaos.disturbed_run import DisturbedRun, Start
from tests.chaos.mounts import MAKE_ROOM, READ_ONLY, small_disk, why_no_mounts

_SHARE = 0.6  # of the labels that fit on the small disk


class NotPossible(Exception):
    """The disturbance cannot be made on this machine; the message says why."""


def disk_full(run: DisturbedRun) -> None:
    """The disk fills up in the middle of the run; the run ends in words, and goes on once there is room."""
    if reason := why_no_mounts():
        raise NotPossible(reason)
    labels = sum(len(content) for content in run.arena.undisturbed.values())
    disk = run.mount(small_disk(int(_SHARE * labels) // 1024))
    run.note = f"tmpfs with {int(_SHARE * labels) // 1024} KB free"
    _expect_words(run, run.start(), codes=(1, 2))
    run.expect(0 < run.receipts_there < run.arena.shards, f"{run.receipts_there} shards fitted on the small disk")
    disk.run(MAKE_ROOM)


def write_cut_short(run: DisturbedRun) -> None:
    """No file may grow beyond half a label file (RLIMIT_FSIZE): every write is cut short in its middle."""
    limit = min(len(content) for content in run.arena.undisturbed.values()) // 2
    run.note = f"RLIMIT_FSIZE of {limit} bytes"
    start = run.start(workers=0, prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    _expect_words(run, start, codes=(1, 2))
    run.expect(run.receipts_there == 0, f"{run.receipts_there} shards were declared done")


def folder_read_only(run: DisturbedRun) -> None:
    """The run's folder may not be written: refused in words before any work, nothing changed."""
    run.copy_finished()
    for shard in (0, run.arena.shards - 1):
        _label(run, shard).unlink()
        _receipt(run, shard).unlink()
    allow_writing = _forbid_writing(run)
    before = _stamps(run.view)
    start = run.start()
    _expect_words(run, start, codes=(2,))
    run.expect(_stamps(run.view) == before, "something in the folder has changed")
    allow_writing()


def _forbid_writing(run: DisturbedRun) -> Callable[[], None]:
    """Make the run's folder read-only; returns what undoes it."""
    if not why_no_mounts():
        run.mount(READ_ONLY)
        run.note = "read-only bind mount"
        return run.unmount
    if os.geteuid() == 0:
        raise NotPossible(f"{why_no_mounts()}, and to root a folder's mode means nothing")
    folders = [run.folder, *(path for path in run.folder.iterdir() if path.is_dir())]

    def change_modes(mode: int) -> None:
        for folder in folders:
            folder.chmod(mode)

    change_modes(0o555)
    run.note = "folder modes"
    return lambda: change_modes(0o755)


def _expect_words(run: DisturbedRun, start: Start, codes: tuple[int, ...]) -> None:
    """The start ends with one of `codes` and says why without a traceback of its own."""
    found = run.finish(start)
    run.expect(found in codes, f"exit code {found}, expected one of {codes}")
    run.expect("Traceback" not in start.output(), f"a traceback: {start.output()[-600:]}")


def _label(run: DisturbedRun, shard: int) -> Path:
    return run.folder / "labels" / f"shard-{shard:05d}.parquet"


def _receipt(run: DisturbedRun, shard: int) -> Path:
    return run.folder / "receipts" / f"shard-{shard:05d}.json"


def _stamps(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}
