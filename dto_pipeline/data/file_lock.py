"""The kernel's lock on an open file: held by one process, gone with it however it dies.

Knows flock and the file systems that lack it; knows nothing of what is guarded. Some network and FUSE file systems keep
the lock to each machine.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TextIO

_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)


def take_lock(stream: TextIO) -> bool:
    """Lock an open file without waiting; closing it, or the death of this process, gives it back.

    Processes forked from this one close their copy of the file: else the lock would outlive it with them.

    Returns:
        False where the file system has no such locks.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the file system failed otherwise.
    """
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    os.register_at_fork(after_in_child=stream.close)
    return True
