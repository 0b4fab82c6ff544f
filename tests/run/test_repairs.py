"""Failed images of finished shards, done again alone: the same bytes as doing everything again, and nothing to lose."""

from pathlib import Path

import pytest

from dto_pipeline.data.labels import read_labels
from dto_pipeline.data.splice import splice_rows
from dto_pipeline.run import directory as files
from dto_pipeline.run.directory import RunDirectory
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.publishing import commit_repair
from dto_pipeline.run.receipt import read_receipt
from dto_pipeline.run.shard_runner import ShardRunner
from tests.run.chaos import label_bytes, tiny_config
from tests.tiny_dataset import write_tiny_dataset


class Case:
    """A run of six images in two shards; image 1 lost its depth map and image 4 its picture; both can be mended."""

    def __init__(self, root: Path, body) -> None:
        self.tiny = write_tiny_dataset(root / "data", body, images=6, shard_images=3, broken=False)
        self.directory = RunDirectory(root / "run")
        self.whole = self.start(root / "whole", retry_failed=False) and label_bytes(root / "whole")
        self.lost = [next((root / "data").rglob(name)) for name in ("000001.npy", "000004.jpg")]
        self.kept = [path.read_bytes() for path in self.lost]
        for path in self.lost:
            path.unlink()
        self.start(retry_failed=False)

    def start(self, run_dir=None, retry_failed=True, **options):
        return run_pipeline(
            self.tiny.manifest,
            run_dir or self.directory.root,
            tiny_config(),
            progress=False,
            retry_failed=retry_failed,
            **options,
        )

    def mend(self, *which: int) -> None:
        for number in which or range(2):
            self.lost[number].write_bytes(self.kept[number])

    def stage(self, shard: int):
        """What a worker does of a repair; the driver's part is left."""
        runner = ShardRunner(
            tiny_config(), self.tiny.manifest, self.directory.root, retry_images=["depth_missing", "image_missing"]
        )
        return runner.run(shard)


@pytest.fixture
def case(tmp_path, body):
    return Case(tmp_path, body)


def test_mended_images_give_the_bytes_of_a_run_that_never_failed(case):
    case.mend()
    before = read_receipt(case.directory.receipt_file(0))
    summary = case.start()

    after = read_receipt(case.directory.receipt_file(0))
    assert after.wall_s > before.wall_s
    assert after.stage_seconds["body"] > before.stage_seconds["body"]
    assert (summary.repaired, summary.mended, summary.failed_images, summary.exit_code) == (2, 2, 0, 0)
    assert "retried  2 failed images, 2 mended" in summary.as_table()
    assert label_bytes(case.directory.root) == case.whole


def test_a_status_narrows_the_repair_to_its_images(case):
    case.mend()
    case.start(retry_statuses=["image_missing"])

    found = label_bytes(case.directory.root)
    assert found["shard-00001.parquet"] == case.whole["shard-00001.parquet"]
    assert read_receipt(case.directory.receipt_file(0)).image_status["depth_missing"] == 1


def test_images_that_are_still_broken_leave_everything_untouched(case):
    before = {path: path.stat().st_mtime_ns for path in case.directory.root.rglob("shard-*")}
    summary = case.start()

    assert (summary.repaired, summary.failed_images, summary.exit_code) == (0, 2, 0)
    assert {path: path.stat().st_mtime_ns for path in case.directory.root.rglob("shard-*")} == before


def test_good_rows_are_not_computed_again(case, monkeypatch):
    from dto_pipeline.run.placing import ScenePlacer

    seen = []
    place = ScenePlacer.place

    def watched(self, rows, clock):
        seen.extend(rows["image_id"].to_pylist())
        return place(self, rows, clock)

    monkeypatch.setattr(ScenePlacer, "place", watched)
    case.mend(0)
    case.start()

    assert sorted(seen) == ["tiny/000001.jpg", "tiny/000004.jpg"]


def test_nothing_changes_before_the_driver_commits_and_leftovers_are_swept(case):
    before = label_bytes(case.directory.root)
    case.mend()
    case.stage(0)

    staged = {name for name in label_bytes(case.directory.root) if name not in before}
    assert len(staged) == 1
    assert case.start(retry_failed=False).nothing_to_do
    assert label_bytes(case.directory.root) == before


@pytest.mark.parametrize("step", ["remove receipt", "replace labels", "replace receipt"])
def test_a_driver_killed_while_it_commits_leaves_an_old_or_a_new_shard(case, step, monkeypatch):
    case.mend()
    receipt = case.stage(0)
    old = label_bytes(case.directory.root)["shard-00000.parquet"]
    store = type(case.directory.store)
    name = {"remove receipt": "remove", "replace labels": "replace", "replace receipt": "replace"}[step]
    action = getattr(store, name)

    def killed(self, path, *data):
        if path.startswith("labels" if step == "replace labels" else "receipts"):
            raise KeyboardInterrupt
        return action(self, path, *data)

    monkeypatch.setattr(store, name, killed)
    with pytest.raises(KeyboardInterrupt):
        commit_repair(case.directory, receipt)
    monkeypatch.undo()

    standing = label_bytes(case.directory.root)["shard-00000.parquet"]
    assert standing in (old, case.whole["shard-00000.parquet"])
    assert case.start(retry_failed=False).exit_code == 0
    assert label_bytes(case.directory.root)["shard-00000.parquet"] == standing
    assert case.start().failed_images == 0
    assert label_bytes(case.directory.root) == case.whole


def test_a_zombie_of_a_repair_changes_nothing(case):
    case.mend()
    zombie = case.stage(0)
    case.start()
    receipt = case.directory.receipt_file(0).read_bytes()

    assert not commit_repair(case.directory, zombie)
    assert case.directory.receipt_file(0).read_bytes() == receipt
    assert label_bytes(case.directory.root) == case.whole


def test_a_receipt_that_is_lost_while_its_shard_is_repaired_is_written_anew(case):
    case.mend()
    receipt = case.stage(0)
    case.directory.receipt_file(0).unlink()

    assert commit_repair(case.directory, receipt)
    assert read_receipt(case.directory.receipt_file(0)) == receipt


def test_a_repair_that_raises_is_given_up_and_the_shard_stands(case, monkeypatch):
    case.mend()
    before = label_bytes(case.directory.root)
    monkeypatch.setattr(ShardRunner, "_repair", lambda self, job, rows, before: 1 / 0)
    summary = case.start()

    assert (list(summary.failed_repairs), summary.exit_code) == ([0, 1], 1)
    assert "repair of shard 0: ZeroDivisionError" in summary.as_table()
    assert label_bytes(case.directory.root) == before
    monkeypatch.undo()
    assert case.start().mended == 2
    assert list(case.directory.failures.iterdir()) == []


def test_rows_of_other_images_are_not_spliced_in(case):
    table = read_labels(case.directory.label_file(0))

    with pytest.raises(ValueError, match="other images"):
        splice_rows(table, [0], table.slice(1, 1))


def test_an_orphan_is_adopted_and_repaired_in_one_start(case):
    case.mend()
    case.directory.receipt_file(0).unlink()

    case.start()
    assert label_bytes(case.directory.root)["shard-00000.parquet"] == case.whole["shard-00000.parquet"]
    assert files.read_shard_failure(case.directory, 0) is None
