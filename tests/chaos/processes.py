"""Processes of a disturbed run, found by a mark in their environment, whoever started them and whoever died since.

Knows /proc (Linux) and how Ray titles its processes; sends signals to marked processes only. Seconds.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

MARK = "DTO_CHAOS_MARK"
_DIE_S = 20.0  # a process that was sent SIGKILL is gone by then, however busy the machine


class Kind(StrEnum):
    """What a process is to the run."""

    DRIVER = "driver"
    WORKER = "worker"  # a Ray actor, starting or at work
    RAYLET = "raylet"
    OTHER = "other"  # the rest of Ray


_TITLES = (
    (Kind.DRIVER, re.compile(r"dto_pipeline\.cli\b")),
    (Kind.WORKER, re.compile(r"^ray::(?!IDLE|DashboardAgent|RuntimeEnvAgent)")),
    (Kind.RAYLET, re.compile(r"^\S*/raylet/raylet\b")),
)


@dataclass(frozen=True)
class MarkedProcess:
    """A live process of a run."""

    pid: int
    kind: Kind
    title: str  # its command line

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; False where the process is gone by now."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True


def mark_environment(mark: str) -> dict[str, str]:
    """Variables that mark a process and all its descendants; the title Ray sets must not wipe them out."""
    return {MARK: mark, "SPT_NOENV": "1"}


def find_marked(mark: str, kind: Kind | None = None) -> list[MarkedProcess]:
    """Live processes with `mark`, by pid; `kind` None = all."""
    found = sorted(_scan(mark), key=lambda process: process.pid)
    return [process for process in found if kind is None or process.kind is kind]


def end_marked(mark: str) -> None:
    """SIGKILL to every process with `mark`, until there is none.

    Raises:
        TimeoutError: some will not go.
    """
    deadline = time.monotonic() + _DIE_S
    while left := find_marked(mark):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {[process.pid for process in left]} outlive SIGKILL")
        for process in left:
            process.send(signal.SIGKILL)
        time.sleep(0.05)


def _scan(mark: str) -> Iterator[MarkedProcess]:
    wanted = f"{MARK}={mark}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            marked = wanted in (folder / "environ").read_bytes().split(b"\0")
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace") if marked else ""
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # gone meanwhile, or somebody else's
        if marked:
            yield MarkedProcess(int(folder.name), _kind_of(title), title.strip()[:200])


def _kind_of(title: str) -> Kind:
    return next((kind for kind, pattern in _TITLES if pattern.search(title)), Kind.OTHER)
