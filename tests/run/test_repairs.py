"""Failed images of finished shards, done again alone: the same bytes as doing everything again, and nothing to lose."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import dto_pipeline as dto
from dto_pipeline.data.label_files import find_label_files
from dto_pipeline.data.labels import read_labels, splice_rows
from dto_pipeline.data.sources.dto_labels import open_dto_labels
from dto_pipeline.data.sources.rows import SourceOptions
from dto_pipeline.data.storage import LocalStore, base_name
from dto_pipeline.run import folder as files
from dto_pipeline.run import publish
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import RunDirectory, read_run_labels
from dto_pipeline.run.report import read_status
from dto_pipeline.run.worker import ShardRunner
from dto_pipeline.view.verify import verify_run
from tests.run.chaos import label_bytes, read_receipt, tiny_config
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


@pytest.fixture
def case(tmp_path, body):
    return Case(tmp_path, body)


def test_mended_images_give_the_bytes_of_a_run_that_never_failed(case):
    case.mend()
    before = read_receipt(case.directory.receipt_file(0))
    summary = case.start()

    after = read_receipt(case.directory.receipt_file(0, 1))
    assert after.wall_s > before.wall_s
    assert after.stage_seconds["body"] > before.stage_seconds["body"]
    assert (summary.mended, summary.failed_images, summary.exit_code) == (2, 0, 0)
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

    assert (summary.mended, summary.failed_images, summary.exit_code) == (0, 2, 0)
    assert {path: path.stat().st_mtime_ns for path in case.directory.root.rglob("shard-*")} == before


def test_good_rows_are_not_computed_again(case, monkeypatch):
    from dto_pipeline.run.placing import ScenePlacer

    seen = []
    place = ScenePlacer.place

    def watched(self, rows, *more):
        seen.extend(rows["image_id"].to_pylist())
        return place(self, rows, *more)

    monkeypatch.setattr(ScenePlacer, "place", watched)
    case.mend(0)
    case.start()

    assert sorted(seen) == ["tiny/000001.jpg", "tiny/000004.jpg"]


STEPS = {
    "create labels": (publish, "write_label_shard", lambda values: True),
    "create receipt": (LocalStore, "create", lambda values: values[1].startswith("receipts/")),
    "remove old labels": (LocalStore, "remove", lambda values: values[1].startswith("labels/")),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("after", [False, True])
def test_a_worker_killed_at_any_step_of_a_repair_leaves_an_old_or_a_new_shard(case, step, after, monkeypatch):
    case.mend()
    old = label_bytes(case.directory.root)["shard-00000.parquet"]
    owner, name, concerns = STEPS[step]
    action = getattr(owner, name)

    def killed(*values):
        if not concerns(values):
            return action(*values)
        if after:
            action(*values)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, killed)
    runner = ShardRunner(tiny_config(), case.tiny.manifest, case.directory.root, retry_images=["depth_missing"])
    with pytest.raises(KeyboardInterrupt):
        runner.run(0)
    monkeypatch.undo()

    assert case.start(retry_failed=False).exit_code == 0
    standing = label_bytes(case.directory.root)["shard-00000.parquet"]
    assert standing in (old, case.whole["shard-00000.parquet"])
    assert verify_run(case.directory.root).exit_code == 0
    assert case.start().failed_images == 0
    assert label_bytes(case.directory.root) == case.whole


def test_a_zombie_of_a_repair_finds_the_newer_generation_and_changes_nothing(case, monkeypatch):
    case.mend(0)
    zombie = ShardRunner(tiny_config(), case.tiny.manifest, case.directory.root, retry_images=["depth_missing"])
    publish_late = ShardRunner._publish

    def overtaken(self, job, generation, table):
        if self is zombie:
            case.start()
            case.directory.receipt_file(0, 1).write_text("{")  # the next one is done again, as a third generation
            case.start(retry_failed=False)
        return publish_late(self, job, generation, table)

    monkeypatch.setattr(ShardRunner, "_publish", overtaken)
    receipt = zombie.run(0)
    assert (receipt.generation, receipt.adopted) == (2, False)
    assert label_bytes(case.directory.root)["shard-00000.parquet"] == case.whole["shard-00000.parquet"]
    assert verify_run(case.directory.root).exit_code == 0


def test_readers_agree_on_the_newest_generation_and_verify_names_what_others_would_see_twice(case):
    old = case.directory.label_file(0).read_bytes()
    case.mend()
    case.start()
    root, labels = case.directory.root, case.directory.at("labels")
    assert len(set(pq.read_table(labels).column("image_id").to_pylist())) == pq.read_table(labels).num_rows == 6
    assert verify_run(root).exit_code == 0

    case.directory.label_file(0).write_bytes(old)  # by a worker that was killed before it could take it away again
    wanted = ["shard-00000.r1.parquet", "shard-00001.r1.parquet"]
    for found in (
        find_label_files(root),
        find_label_files(labels),
        find_label_files(root),
        [file.path for file in read_run_labels(root).files],
        open_dto_labels(root, SourceOptions()).files,
        open_dto_labels(labels, SourceOptions()).files,
    ):
        assert [base_name(path) for path in found] == wanted
    assert read_status(root).images_done == dto.read_table(root).num_rows == 6
    verdict = verify_run(root)
    assert verdict.exit_code == 1
    assert "shard-00000.parquet: shard-00000.r1.parquet counts, so its images are there twice" in verdict.as_table()

    assert case.start(retry_failed=False).nothing_to_do
    assert verify_run(root).exit_code == 0
    assert label_bytes(root) == case.whole


@pytest.mark.parametrize("name", ["all.parquet", "shard-00099.parquet"])
def test_a_stranger_among_the_label_files_is_named_by_the_launch_and_by_verify(case, name):
    shutil.copy(case.directory.label_file(0), case.directory.at("labels") / name)

    summary = case.start(retry_failed=False)
    assert (summary.exit_code, summary.strays) == (1, [name])
    assert f"WRONG    labels/ holds {name}: it is no label file of this run" in summary.as_table()
    assert f"{name}: it is no label file of this run" in verify_run(case.directory.root).as_table()
    (case.directory.at("labels") / name).unlink()
    assert case.start(retry_failed=False).exit_code == 0


def test_a_repair_that_raises_is_given_up_and_the_shard_stands(case, monkeypatch):
    case.mend()
    before = label_bytes(case.directory.root)
    monkeypatch.setattr(ShardRunner, "_repair", lambda self, job, before, generation: 1 / 0)
    summary = case.start()

    assert (list(summary.failed_repairs), summary.exit_code) == ([0, 1], 1)
    assert "repair of shard 0: ZeroDivisionError" in summary.as_table()
    assert label_bytes(case.directory.root) == before
    monkeypatch.undo()
    assert case.start().mended == 2
    assert list(case.directory.at("failures").iterdir()) == []


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
