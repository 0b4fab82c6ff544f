"""An image that was unfit when the manifest was built costs that image only, once its file is mended."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.label_files import find_label_files
from dto_pipeline.data.labels import read_labels
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.data.manifest_build.check import check_manifest
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import RunDirectory
from dto_pipeline.status import ImageStatus
from dto_pipeline.view.verify import verify_run
from tests.run.chaos import label_bytes, tiny_config
from tests.tiny_dataset import write_tiny_dataset


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def swap_sides(path: Path) -> None:
    """The same pixels, turned, with the note that turns them back for a viewer."""
    note = Image.Exif()
    note[0x0112] = 6
    with Image.open(path) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(path, exif=note)


SPOILT = {
    "000001.jpg": (remove, ImageStatus.IMAGE_MISSING),
    "000002.jpg": (cut, ImageStatus.IMAGE_CORRUPT),
    "000004.jpg": (swap_sides, ImageStatus.SIZE_MISMATCH),
}


class Case:
    """Six images in two shards, three of them spoilt before the manifest is built; a finished run of it."""

    def __init__(self, root: Path, body, **changes) -> None:
        tiny = write_tiny_dataset(root / "data", body, images=6, shard_images=3, broken=False)
        self.root, self.dataset = root, dataclasses.replace(tiny.dataset, **changes)
        self.images = root / "data" / "images"
        self.whole = self.run(tiny.manifest, "whole")
        self.kept = {name: (self.images / name).read_bytes() for name in SPOILT}
        for name, (spoil, _) in SPOILT.items():
            spoil(self.images / name)
        self.manifest = root / "spoilt.parquet"
        build_manifest(self.dataset, self.manifest, progress=False)
        self.before = self.run(self.manifest, "run")

    def run(self, manifest, name, **options):
        run_pipeline(manifest, self.root / name, tiny_config(), progress=False, **options)
        return self.rows(name)

    def rows(self, name):
        return {row["image_path"]: row for row in read_labels(*find_label_files(self.root / name)).to_pylist()}

    def mend(self, *names) -> None:
        for name in names:
            (self.images / name).write_bytes(self.kept[name])


@pytest.fixture
def case(tmp_path, body):
    return Case(tmp_path, body)


def same(one, other):
    """Equal rows, NaN being equal to NaN."""
    return repr(one) == repr(other)


def test_one_mended_image_costs_one_image(case, monkeypatch):
    assert {name: case.before[name]["status"] for name in SPOILT} == {n: str(s) for n, (_, s) in SPOILT.items()}
    seen: list[str] = []

    decode = ImageStore.read

    def read(self, name, *limits):
        seen.append(name)
        return decode(self, name, *limits)

    monkeypatch.setattr(ImageStore, "read", read)
    case.mend("000001.jpg")
    after = case.run(case.manifest, "run", retry_failed=True)

    assert seen == ["000001.jpg"]
    assert same(after["000001.jpg"], case.whole["000001.jpg"])
    assert all(same(after[name], row) for name, row in case.before.items() if name != "000001.jpg")


def test_everything_mended_gives_the_labels_of_a_run_that_never_failed(case):
    case.mend(*SPOILT)
    after = case.run(case.manifest, "run", retry_failed=True)
    assert same(after, case.whole)
    verdict = verify_run(case.root / "run", case.manifest)
    assert verdict.passed, verdict.as_table()
    assert check_manifest(case.manifest, progress=False).counts["mended"] == 3


def test_an_image_that_came_after_the_build_is_taken_up_by_the_first_run(case):
    case.mend(*SPOILT)
    assert same(case.run(case.manifest, "late"), case.whole)


def test_what_is_not_mended_leaves_every_byte(case):
    before = label_bytes(case.root / "run")
    case.run(case.manifest, "run", retry_failed=True)
    assert label_bytes(case.root / "run") == before


def test_another_image_than_the_camera_expects_is_refused_again(case):
    Image.fromarray(np.zeros((90, 200, 3), np.uint8)).save(case.images / "000001.jpg")
    row = case.run(case.manifest, "run", retry_failed=True)["000001.jpg"]
    assert row["status"] == ImageStatus.SIZE_MISMATCH
    assert "is 200 x 90, its principal point 80, 60 expects 160 x 120" in row["message"]
    case.mend("000001.jpg")
    assert same(case.run(case.manifest, "run", retry_failed=True)["000001.jpg"], case.whole["000001.jpg"])


def test_of_a_turned_photo_its_note_is_named(case):
    row = case.before["000004.jpg"]
    assert "its EXIF note (orientation 6) turns it to that size, and pixels are taken as stored" in row["message"]
    assert "EXIF" in ImageStatus.SIZE_MISMATCH.advice


def test_a_photo_turned_after_the_build_is_told_by_its_note_too(case):
    row = case.before["000003.jpg"]
    assert row["status"] == ImageStatus.OPTIMIZED
    swap_sides(case.images / "000003.jpg")
    row = case.run(case.manifest, "turned")["000003.jpg"]
    assert row["status"] == ImageStatus.SIZE_MISMATCH
    assert "the manifest says 160 x 120; the file changed since; its EXIF note (orientation 6)" in row["message"]


def test_a_principal_point_that_no_row_tells_is_the_centre_once_the_image_is_there(tmp_path, body):
    tiny = write_tiny_dataset(tmp_path / "data", body, images=3, shard_images=3, broken=False)
    labels = tmp_path / "data" / tiny.dataset.labels
    arrays = dict(np.load(labels))
    arrays["cam_int"][:, :2, 2] = np.nan
    np.savez(labels, **arrays)
    kept = (tmp_path / "data/images/000001.jpg").read_bytes()
    (tmp_path / "data/images/000001.jpg").unlink()
    report = build_manifest(tiny.dataset, tiny.manifest, progress=False)
    assert report.image_problems == {"image_missing": 1}
    (tmp_path / "data/images/000001.jpg").write_bytes(kept)
    run_pipeline(tiny.manifest, tmp_path / "run", tiny_config(), progress=False)
    rows = read_labels(RunDirectory(tmp_path / "run").label_file(0)).to_pylist()
    assert [(row["status"], row["cx"], row["cy"]) for row in rows] == [
        ("optimized", row["width"] / 2, row["height"] / 2) for row in rows
    ]


def test_a_camera_that_cannot_be_used_is_said_before_a_missing_file(tmp_path, body):
    tiny = write_tiny_dataset(tmp_path / "data", body, images=3, shard_images=3, broken=False)
    labels = tmp_path / "data" / tiny.dataset.labels
    arrays = dict(np.load(labels))
    arrays["cam_int"][arrays["imgname"] == "000001.jpg", 0, 1] = 3
    np.savez(labels, **arrays)
    (tmp_path / "data/images/000001.jpg").unlink()
    report = build_manifest(tiny.dataset, tiny.manifest, progress=False)
    assert report.image_problems == {"label_invalid": 1}
    problem = pq.read_table(tiny.manifest)["problem"].to_pylist()[1]
    assert "skew" in problem
    assert "does not exist" in problem
    assert Manifest.open(tiny.manifest).num_images == 3
