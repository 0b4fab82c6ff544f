"""WebDataset tars: read back with the `webdataset` package where it is installed, and with tarfile."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto_pipeline.cli import main
from dto_pipeline.data.exports import webdataset as module
from dto_pipeline.data.exports.formats import export_labels
from dto_pipeline.data.exports.job import Selection
from dto_pipeline.data.exports.webdataset import escape_key

NAMES = st.text(st.sampled_from("ab.%/"), min_size=1, max_size=8)


def plain(value):
    """A row as JSON can say it: NaN is null."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def close(found, expected) -> bool:
    """Equal, floats to the last digit of float32."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    if isinstance(expected, float):
        return found == expected or np.float32(found) == np.float32(expected)
    return found == expected


def test_webdataset_reads_every_sample_with_its_image(runs, labels, tiny, tmp_path) -> None:
    wds = pytest.importorskip("webdataset", reason="pip install 'dto-pipeline[exports]'")
    images = tiny.dataset.images_root
    export_labels([runs["mpii"]], "webdataset", tmp_path / "out", images={"mpii": str(images)}, progress=False)
    tar = str(tmp_path / "out/mpii/mpii-{000000..000000}.tar")
    samples = list(wds.WebDataset(tar, shardshuffle=False).decode())
    rows = [row for row in labels["mpii"].to_pylist() if row["is_accepted"]]
    assert [sample["__key__"] for sample in samples] == [f"mpii/{row['image_path'][:-4]}" for row in rows]
    for sample, row in zip(samples, rows, strict=True):
        row["persons"] = [person for person in row["persons"] if person["status"] != "invalid_label"]
        row["num_persons"] = len(row["persons"])
        assert close(sample["json"], plain(row))
    raw = list(wds.WebDataset(tar, shardshuffle=False))
    assert [sample["jpg"] for sample in raw] == [(images / row["image_path"]).read_bytes() for row in rows]


def test_all_labels_without_images_are_json_in_contiguous_tars(runs, labels, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "SAMPLES", 4)
    report = export_labels([runs["mpii"]], "webdataset", tmp_path / "out", Selection(), progress=False)
    assert [file["path"] for file in report.files] == [f"mpii/mpii-{k:06d}.tar" for k in range(3)]
    found = []
    for file in report.files:
        with tarfile.open(tmp_path / "out" / file["path"]) as tar:
            found += [json.load(tar.extractfile(entry)) for entry in tar]  # type: ignore[arg-type]
            assert {(entry.mtime, entry.uid, entry.uname, entry.mode) for entry in tar} == {(0, 0, "", 0o644)}
    assert all(map(close, found, plain(labels["mpii"].to_pylist())))
    assert len(found) == 9


def test_a_missing_or_changed_image_leaves_its_sample_out_and_is_counted(runs, tiny, tmp_path) -> None:
    images = tmp_path / "images"
    shutil.copytree(tiny.dataset.images_root, images)
    (images / "000000.jpg").unlink()
    (images / "000003.jpg").write_bytes(b"\xff\xd8\xffanother picture")
    report = export_labels([runs["mpii"]], "webdataset", tmp_path / "out", images={"mpii": str(images)}, progress=False)
    assert report.failures == {module.MISSING: 1, module.CHANGED: 1}
    assert f"looked for in {images}" in report.as_table()
    assert report.exit_code == 1
    assert sum(file["images"] for file in report.files) == 2
    assert json.loads((tmp_path / "out/export.json").read_bytes())["failures"] == dict(report.failures)


def test_an_image_that_the_run_could_not_read_is_in_no_tar(runs, labels, tiny, tmp_path) -> None:
    everything, images = Selection(accepted_only=False), {"mpii": str(tiny.dataset.images_root)}
    export_labels([runs["mpii"]], "webdataset", tmp_path / "out", everything, images=images, progress=False)
    rows = {row["image_path"]: row for row in labels["mpii"].to_pylist()}
    with tarfile.open(tmp_path / "out/mpii/mpii-000000.tar") as tar:
        names = {entry.name.removeprefix("mpii/").rpartition(".")[0] for entry in tar}
    assert "image_corrupt" in {row["status"] for row in rows.values()}
    assert names == {escape_key(path) for path, row in rows.items() if row["image_sha256"]}


def test_images_inside_tars_are_copied_as_they_are(tar_run, tiny, tmp_path) -> None:
    tars = str(tar_run.manifest.parent / "tars")
    report = export_labels([tar_run], "webdataset", tmp_path / "out", images={"coco": tars}, progress=False)
    with tarfile.open(tmp_path / "out/coco/coco-000000.tar") as tar:
        images = {entry.name: tar.extractfile(entry).read() for entry in tar if entry.name.endswith(".jpg")}  # type: ignore[union-attr]
    assert len(images) == report.subsets[0].images == 4
    for name, contents in images.items():
        assert contents == (tiny.manifest.parent / "images" / name.removeprefix("coco/")).read_bytes()


@given(NAMES, NAMES)
def test_different_images_have_different_keys_without_dots(one: str, other: str) -> None:
    assert "." not in escape_key(one)
    assert (escape_key(one) == escape_key(other)) == (one == other)


@pytest.mark.parametrize(
    ("image_id", "key"),
    [
        ("insta1/a/b/c.jpg", "insta1/a/b/c"),
        ("coco/COCO_train2014_1.v2.jpg", "coco/COCO_train2014_1%2Ev2"),
        ("aic/x.png", "aic/x%2Epng"),
        ("aic/x", "aic/x%"),
    ],
)
def test_keys_look_like_the_published_names(image_id: str, key: str) -> None:
    assert escape_key(image_id) == key


def members(folder) -> set[str]:
    """Names in all tars of an export."""
    found: set[str] = set()
    for path in folder.rglob("*.tar"):
        with tarfile.open(path) as tar:
            found |= set(tar.getnames())
    return found


def test_each_subset_has_a_folder_of_images_or_its_manifests_own(runs, run_dirs, tiny, tmp_path, capsys) -> None:
    images = Path(tiny.dataset.images_root)
    other = shutil.copytree(images, tmp_path / "other")
    export = ["export", *(str(run_dirs[name]) for name in ("mpii", "insta1")), "--format", "webdataset", "--quiet"]
    assert main([*export, "-o", str(tmp_path / "own"), "--own-images"]) == 0
    named = ["--images", f"mpii={other}", "--images", f"insta1={images}"]
    assert main([*export, "-o", str(tmp_path / "named"), *named]) == 0
    found = members(tmp_path / "own")
    assert found == members(tmp_path / "named")
    assert any(name.startswith("insta1/") and name.endswith(".jpg") for name in found)
    assert main([*export, "-o", str(tmp_path / "x"), *named[:1], f"mpii={other}"]) == 2
    assert "no folder of images is named for ['insta1']" in capsys.readouterr().err
    assert main([*export[:-2], "parquet", "-o", str(tmp_path / "x"), *named]) == 2
    assert "holds no images" in capsys.readouterr().err
    assert main([*export, "-o", str(tmp_path / "x"), *named, "--own-images"]) == 2
    assert main([*export, "-o", str(tmp_path / "x"), *named, "--images", f"coco={other}"]) == 2
    for empty in ("", "mpii="):  # no place is not the manifest's own
        assert main([*export, "-o", str(tmp_path / "x"), "--images", empty]) == 2
        assert "names no folder; name one, or say --own-images" in capsys.readouterr().err
