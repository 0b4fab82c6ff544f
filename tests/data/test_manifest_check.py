from __future__ import annotations

import json
import shutil

import pytest

from dto_pipeline.cli import main
from dto_pipeline.data.manifest_build.check import check_manifest
from tests.data.small_set import WIDTH, build_small, label_arrays, write_image, write_labels_file

NAMES = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "gone.jpg", "../up.jpg"]


@pytest.fixture
def manifest(tmp_path):
    for name in NAMES[:4]:
        write_image(tmp_path, name)
    return build_small(tmp_path, NAMES, shard_images=2)[0]


def test_images_as_the_manifest_says_are_fine(manifest):
    report = check_manifest(manifest.path, progress=False)
    assert report.counts == {"fine": 4, "known": 2}
    assert report.faults == []


def test_missing_corrupt_and_changed_images_are_listed(manifest, tmp_path):
    images = tmp_path / "images"
    (images / "a.jpg").unlink()
    (images / "b.jpg").write_bytes(b"text")
    write_image(tmp_path, "c.jpg", width=2 * WIDTH)
    write_image(tmp_path, "gone.jpg")
    report = check_manifest(manifest.path, progress=False)
    assert [(fault.image_id, fault.fault) for fault in report.faults] == [
        ("small/a.jpg", "missing"),
        ("small/b.jpg", "corrupt"),
        ("small/c.jpg", "changed"),
    ]
    assert report.counts["mended"] == 1
    assert "the manifest says" in report.as_table()


def test_only_decoding_finds_an_image_that_ends_too_early(manifest, tmp_path):
    path = tmp_path / "images/d.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    assert check_manifest(manifest.path, progress=False).faults == []
    assert [fault.fault for fault in check_manifest(manifest.path, deep=True, progress=False).faults] == ["corrupt"]


def test_another_images_folder_can_be_checked(manifest, tmp_path):
    shutil.copytree(tmp_path / "images", tmp_path / "other")
    shutil.rmtree(tmp_path / "images")
    assert check_manifest(manifest.path, progress=False).counts["missing"] == 4
    assert check_manifest(manifest.path, images_root=tmp_path / "other", progress=False).faults == []


def test_the_command_exits_with_1_and_writes_everything_it_found(manifest, tmp_path, capsys):
    (tmp_path / "images/a.jpg").unlink()
    report = tmp_path / "check.json"
    assert main(["manifest", "check", str(manifest.path), "--quiet", "--report", str(report)]) == 1
    assert "missing: image a.jpg does not exist" in capsys.readouterr().out
    assert json.loads(report.read_text())["counts"]["missing"] == 1


def test_the_build_command_takes_other_places_and_other_manifests(tmp_path, capsys):
    write_image(tmp_path, "a.jpg")
    write_labels_file(tmp_path, label_arrays(["a.jpg"]))
    (tmp_path / "d.yaml").write_text("{name: d, source: camerahmr, labels: nowhere.npz, images: nowhere}")
    first, second = str(tmp_path / "1.parquet"), str(tmp_path / "2.parquet")
    places = ["--labels", str(tmp_path / "labels/small-release.npz"), "--images", (tmp_path / "images").as_uri()]
    build = ["manifest", "build", str(tmp_path / "d.yaml"), "--data-root", str(tmp_path), "--quiet", *places]
    assert main([*build, "-o", first]) == 0
    assert main([*build, "-o", second, "--against", first]) == 0
    out = capsys.readouterr().out
    assert "findings: also_in" in out
    assert "image_missing" not in out
    assert main(["manifest", "build", str(tmp_path / "d.yaml"), "--data-root", str(tmp_path), "-o", first]) == 2
    assert "nowhere.npz does not exist" in capsys.readouterr().err
