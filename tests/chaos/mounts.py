"""A small or read-only disk under one folder, seen by chosen processes only.

A process that holds a mount namespace of its own mounts it; whoever enters the namespace sees the disk, and with the
holder's death it is gone, whatever happened in between. Needs Linux with `unshare` and `nsenter`, and root or user
namespaces. Kilobytes.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

_HOLD = "echo ready; exec sleep infinity"


class MountedFolder:
    """Context manager: `folder` with something mounted on it, in a namespace of its own."""

    def __init__(self, folder: Path, script: str, environment: dict[str, str]) -> None:
        """`script`: shell commands that mount; ``$1`` is the folder. `environment`: of the holder."""
        self._folder, self._script, self._environment = folder, script, environment
        self._holder: subprocess.Popen[str] | None = None

    def __enter__(self) -> MountedFolder:
        command = [*_unshare(), "sh", "-ec", f"{self._script}; {_HOLD}", "sh", str(self._folder)]
        self._holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=self._environment)
        assert self._holder.stdout is not None
        if self._holder.stdout.readline().strip() != "ready":
            raise OSError(f"nothing could be mounted on {self._folder}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._holder is not None
        self._holder.kill()
        self._holder.communicate()

    @property
    def prefix(self) -> list[str]:
        """What to put before a command that is to see the disk."""
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return ["nsenter", "--target", str(self._pid), *user, "--mount"]

    @property
    def view(self) -> Path:
        """The folder as processes inside see it, for reading from outside."""
        return Path(f"/proc/{self._pid}/root{self._folder}")

    def run(self, script: str) -> None:
        """Shell commands inside; ``$1`` is the folder."""
        subprocess.run([*self.prefix, "sh", "-ec", script, "sh", str(self._folder)], check=True)

    @property
    def _pid(self) -> int:
        assert self._holder is not None, "enter it first"
        return self._holder.pid


_FILLER_KB = 1 << 14  # what is taken away to make room


def small_disk(kilobytes: int) -> str:
    """Script that mounts a disk with so much free space; the rest of it is taken."""
    filler = f'head -c {_FILLER_KB}k /dev/zero > "$1/.filler"'
    return f'mount -t tmpfs -o size={_FILLER_KB + kilobytes}k chaos "$1"; {filler}'


MAKE_ROOM = 'rm "$1/.filler"'  # by removing a file: a user namespace may not remount what root could
READ_ONLY = 'mount --bind "$1" "$1"; mount -o remount,ro,bind "$1"'


@functools.cache
def why_no_mounts() -> str:
    """Why nothing can be mounted here; "" where it can."""
    missing = [name for name in ("unshare", "nsenter", "mount") if shutil.which(name) is None]
    if missing:
        return f"there is no {', '.join(missing)}"
    command = [*_unshare(), "sh", "-c", "mount -t tmpfs chaos /tmp"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if answer.returncode == 0 else f"mounting is not allowed ({' '.join(answer.stderr.split())})"


def _unshare() -> Sequence[str]:
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, "--mount", "--propagation", "private"]
