from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dto_pipeline.data import files
from dto_pipeline.data.files import (
    is_temporary,
    replaced,
    staged,
    sweep_abandoned,
    sync,
    take_lock,
    write_bytes_atomic,
    write_new,
)
from tests.small_disks import files_no_larger_than


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_the_first_to_create_a_file_wins_and_the_second_changes_nothing(tmp_path):
    path = tmp_path / "receipts" / "shard-00001.json"
    for content, is_first in ((b"one", True), (b"other", False)):
        assert write_new(path, content) == is_first
    assert path.read_bytes() == b"one"
    assert names(path.parent) == [path.name]


def test_a_writer_that_fails_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "x.bin"
    write_bytes_atomic(path, b"old")

    def fail_half_way():
        with replaced(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x.bin"]


def test_a_device_or_a_pipe_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match="pipe, socket or device"):
            write_bytes_atomic(tmp_path / name, b"report")
    assert names(tmp_path) == ["link", "pipe"]
    assert (tmp_path / "link").is_symlink()


def test_the_leftover_of_a_killed_writer_is_recognised_by_its_name(tmp_path):
    with staged(tmp_path / "labels.parquet") as temporary:
        assert is_temporary(temporary.name)
        assert temporary.parent == tmp_path
    for name in ("labels.parquet", ".labels.parquet", ".x.tmp-12", "x.tmp-" + "0" * 32):
        assert not is_temporary(name)


def refusal(number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EINVAL, errno.EPERM, errno.ENOTSUP, errno.EXDEV])
def test_where_hard_links_are_refused_the_first_writer_still_wins(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "link", refusal(number))
    for content, is_first in ((b"one", True), (b"other", False)):
        assert write_new(tmp_path / "x", content) == is_first
    assert (tmp_path / "x").read_bytes() == b"one"
    assert names(tmp_path) == ["x"]


def test_of_many_writers_without_hard_links_exactly_one_creates_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", refusal(errno.EPERM))
    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda number: write_new(tmp_path / "x", str(number).encode()), range(40)))
    assert won.count(True) == 1
    assert int((tmp_path / "x").read_bytes()) == won.index(True)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_folder_that_cannot_be_synced_does_not_stop_a_writer(tmp_path, monkeypatch, number):
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: refusal(number)() if stat.S_ISDIR(os.fstat(fd).st_mode) else real(fd))
    write_bytes_atomic(tmp_path / "x", b"1")
    assert write_new(tmp_path / "y", b"2")
    assert names(tmp_path) == ["x", "y"]


def test_a_file_that_another_process_removed_meanwhile_is_no_fault_of_the_file_system(tmp_path):
    with pytest.raises(FileNotFoundError, match="No such file or directory"), replaced(tmp_path / "x") as temporary:
        assert not temporary.exists()


def test_a_file_or_folder_whose_sync_fails_is_named_with_the_cause(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", refusal(errno.EIO))
    with pytest.raises(OSError, match="cannot sync it"):
        write_bytes_atomic(tmp_path / "x", b"1")
    with pytest.raises(OSError, match="cannot sync it"):
        sync(tmp_path)


def test_a_file_system_that_neither_links_nor_renames_without_replacing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", refusal(errno.ENOTSUP))
    monkeypatch.setattr(files, "_rename_new", lambda *_: errno.EINVAL)
    with pytest.raises(OSError, match="hard links"):
        write_new(tmp_path / "x", b"1")
    assert names(tmp_path) == []
    write_bytes_atomic(tmp_path / "x", b"1")
    assert (tmp_path / "x").read_bytes() == b"1"


def test_a_disk_without_room_is_named_by_the_file_that_was_to_be_written(tmp_path):
    with files_no_larger_than(1000), pytest.raises(OSError, match=str(tmp_path / "x")) as caught:
        write_bytes_atomic(tmp_path / "x", bytes(5000))
    assert caught.value.errno == errno.EFBIG
    assert names(tmp_path) == []


DYING = """
import os, signal, sys
from pathlib import Path
from dto_pipeline.data.files import staged, temporary_folder
with temporary_folder("dto-npz-") as folder, staged(Path(sys.argv[1]) / "m.parquet") as half:
    half.write_bytes(b"half")
    print(folder, half, flush=True)
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
"""


@pytest.mark.parametrize("fate", ["die", "live"])
def test_what_a_killed_process_left_is_swept_and_what_a_living_one_uses_stays(tmp_path, monkeypatch, fate):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "tmp").mkdir()
    other = tmp_path / f".other.parquet.tmp-{'0' * 32}"
    elsewhere = tmp_path / "tmp" / f"dto-npz-00000001{'f' * 8}-x"
    other.write_bytes(b"")
    elsewhere.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", DYING, str(tmp_path), fate], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        left = [Path(word) for word in child.stdout.readline().split()]
        if fate == "die":
            child.wait()
        assert all(path.exists() for path in left)
        assert sweep_abandoned(tmp_path / "m.parquet") == (2 if fate == "die" else 0)
        assert [path.exists() for path in left] == [fate == "live"] * 2
        child.communicate("")
    assert other.exists()  # another name's, and of a machine nobody knows
    assert elsewhere.exists()


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
