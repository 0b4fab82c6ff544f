"""A lock is held by one process and goes with it, whatever it left running."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dto_pipeline.data.files import take_lock

HOLD_AND_FORK = """
import os, sys, time
from dto_pipeline.data.files import take_lock
stream = open(sys.argv[1], "a+")
take_lock(stream)
told, tells = os.pipe()
child = os.fork()
if child:
    os.read(told, 1)  # until the child runs
    print(child, flush=True)
else:
    os.write(tells, b".")
time.sleep(60)
"""


def test_a_lock_is_refused_while_somebody_holds_it_and_not_after(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("a+") as first, (tmp_path / "lock").open("a+") as second:
        assert take_lock(first)
        with pytest.raises(BlockingIOError):
            take_lock(second)
        first.close()
        assert take_lock(second)


def test_processes_forked_from_the_holder_do_not_keep_the_lock_after_its_death(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    script = [sys.executable, "-c", HOLD_AND_FORK, str(path)]
    with subprocess.Popen(script, stdout=subprocess.PIPE, text=True) as parent, path.open("a+") as stream:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            with pytest.raises(BlockingIOError):
                take_lock(stream)
            parent.kill()
            parent.wait()
            os.kill(child, 0)  # it lives
            assert take_lock(stream)
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize(("number", "told"), [(errno.ENOLCK, False), (errno.EIO, None)])
def test_a_file_system_without_locks_is_told_from_one_that_fails(
    number: int, told: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("dto_pipeline.data.files.fcntl.flock", refuse)
    with (tmp_path / "lock").open("a+") as stream:
        if told is None:
            with pytest.raises(OSError, match=os.strerror(number)):
                take_lock(stream)
        else:
            assert take_lock(stream) is told
