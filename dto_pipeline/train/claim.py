"""One training at a time in a folder: a second start while the first is at work would mix their files.

Knows the file that is locked for it, see `data.file_lock`; knows nothing of training. A file system without such locks,
or one that keeps them to each machine, does not keep a second machine out.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dto_pipeline.data.file_lock import take_lock
from dto_pipeline.errors import DtoError

LOCK_FILE = "train.lock"
_LOG = logging.getLogger(__name__)


class FolderBusy(DtoError, RuntimeError):
    """Another process trains in the folder."""


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a folder, which is made if missing.

    Raises:
        FolderBusy: somebody else is at work in it; the message says who.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a+") as stream:
        try:
            locked = take_lock(stream)
        except BlockingIOError as error:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            raise FolderBusy(
                f"{folder} is being trained by {holder}; wait for it, end it, or choose another"
            ) from error
        if not locked:
            _LOG.warning("%s: no file locks here; see to it that only one training runs in this folder", folder)
        stream.truncate(0)
        stream.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        stream.flush()
        yield
