"""What a run survives on a local disk: a full one, one that cannot be written, files cut or swapped."""

import os
import shutil

import pytest

from dto_pipeline.data.files import is_temporary
from dto_pipeline.errors import DtoError
from dto_pipeline.run import folder as files
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import RunDirectory, read_identity, scan_run
from dto_pipeline.run.report import read_status
from tests.run.chaos import label_bytes, tiny_config
from tests.small_disks import files_no_larger_than, small_disk

SMALL = 20_000  # bytes: more than any receipt or failure, less than a label file


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it."""
    shutil.copytree(finished, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def leftovers(root) -> list[str]:
    return [path.name for path in root.rglob("*") if is_temporary(path.name)]


def test_a_write_that_fails_half_way_leaves_nothing_and_costs_its_shard(tiny, tmp_path, undisturbed):
    run_dir = tmp_path / "run"
    with files_no_larger_than(SMALL):
        summary = run_pipeline(tiny.manifest, run_dir, tiny_config(max_attempts=1), progress=False)
    assert len(summary.failed_shards) == summary.shards
    assert all("File too large" in error for error in summary.failed_shards.values())
    assert leftovers(run_dir) == []
    assert label_bytes(run_dir) == {}

    assert run_pipeline(tiny.manifest, run_dir, tiny_config(), progress=False, retry_failed=True).exit_code == 0
    assert label_bytes(run_dir) == undisturbed


def test_a_folder_that_cannot_be_written_is_named_before_any_work(run, tiny):
    lease = next((run.root / "lease").iterdir())
    lease.unlink()
    lease.mkdir()

    with pytest.raises(DtoError, match=r"cannot be written .* make it writable"):
        run_pipeline(tiny.manifest, run.root, tiny_config(), progress=False)


def test_a_disk_without_room_for_a_lease_is_named_before_any_work(run, tiny):
    with files_no_larger_than(0), pytest.raises(DtoError, match=r"File too large.*room on the disk"):
        run_pipeline(tiny.manifest, run.root, tiny_config(), progress=False)
    assert leftovers(run.root) == []


@pytest.fixture
def disk(tmp_path):
    """A disk of its own, and a function that mounts it again with other options."""
    folder = tmp_path / "disk"
    with small_disk(folder, "160k") as remount:
        yield folder, remount


def test_a_disk_that_fills_up_costs_shards_and_room_on_it_finishes_them(disk, tiny, undisturbed):
    folder, remount = disk
    summary = run_pipeline(tiny.manifest, folder / "run", tiny_config(max_attempts=1), progress=False)
    assert summary.exit_code == 1
    assert all("No space left on device" in error for error in summary.failed_shards.values())
    assert leftovers(folder) == []
    assert 0 < len(label_bytes(folder / "run")) < len(undisturbed)

    remount("size=10m")
    summary = run_pipeline(tiny.manifest, folder / "run", tiny_config(), progress=False, retry_failed=True)
    assert summary.exit_code == 0
    assert summary.done_before > 0
    assert label_bytes(folder / "run") == undisturbed


def test_a_disk_that_became_read_only_is_named_before_any_work(disk, finished, tiny):
    folder, remount = disk
    remount("size=10m")
    shutil.copytree(finished, folder / "run")
    remount("ro")

    with pytest.raises(DtoError, match=r"Read-only file system.*make it writable"):
        run_pipeline(tiny.manifest, folder / "run", tiny_config(), progress=False)
    assert read_status(folder / "run").shards["pending"] == 0


def swap(run):
    """Shard 1's file becomes shard 0's, filled up to the old size."""
    size = run.label_file(1).stat().st_size
    other = run.label_file(0).read_bytes()
    run.label_file(1).write_bytes(other[-size:].rjust(size, b"x"))


def cut_and_fill(run):
    size = run.label_file(1).stat().st_size
    os.truncate(run.label_file(1), size - 100)
    os.truncate(run.label_file(1), size)


@pytest.mark.parametrize(("damage", "reason"), [(swap, "another shard's"), (cut_and_fill, "does not end as Parquet")])
def test_a_label_file_of_the_right_size_that_is_not_its_shards_is_done_again(run, tiny, undisturbed, damage, reason):
    damage(run)
    identity = read_identity(run)

    assert scan_run(run, identity).void == {}
    assert reason in scan_run(run, identity, footers=True).void[1]
    assert run_pipeline(tiny.manifest, run.root, tiny_config(), progress=False).done_now == 1
    assert label_bytes(run.root) == undisturbed


def test_a_label_file_with_a_footer_longer_than_is_read_at_first_stays_done(run, tiny, monkeypatch):
    monkeypatch.setattr(files, "_FOOTER_TAIL", 16)
    cut_and_fill(run)

    assert [*scan_run(run, read_identity(run), footers=True).void] == [1]
    assert run_pipeline(tiny.manifest, run.root, tiny_config(), progress=False).done_now == 1


def test_a_label_file_that_goes_while_it_is_looked_at_is_missing(run, monkeypatch):
    sizes = type(run.store).entries

    def entries(store, folder=""):
        found = sizes(store, folder)
        if folder == files.LABELS:
            run.label_file(4).unlink()
        return found

    monkeypatch.setattr(type(run.store), "entries", entries)
    assert "gone" in scan_run(run, read_identity(run), footers=True).void[4]
