"""What a build found: each thing once, with its reason, in the findings file and counted in the report."""

from __future__ import annotations

import numpy as np
import pytest

from dto_pipeline.data.manifest import ManifestError
from dto_pipeline.data.manifest_build.build_report import ManifestReport, findings_path
from dto_pipeline.data.manifest_build.builder import build_manifest
from tests.data.small_set import (
    all_rows,
    build_small,
    label_arrays,
    read_findings,
    small_dataset,
    write_image,
    write_labels_file,
)

NAMES = ["x/b.jpg", "x/a.jpg", "x/b.jpg", "c.jpg"]


@pytest.fixture
def root(tmp_path):
    for name in set(NAMES):
        write_image(tmp_path, name)
    return tmp_path


def found(manifest):
    return read_findings(manifest.path).to_pylist()


def test_a_clean_build_finds_nothing_and_still_says_so(root):
    manifest, report = build_small(root, NAMES)
    assert found(manifest) == []
    assert report.findings == {}
    assert report.findings_file == "small.findings.parquet"


def test_unusable_people_and_images_are_listed_with_label_row_and_reason(root):
    pose = label_arrays([*NAMES, "gone.jpg"])["pose_cam"]
    pose[2, 5] = np.nan
    manifest, report = build_small(root, [*NAMES, "gone.jpg"], {"pose_cam": pose})
    person, image = sorted(found(manifest), key=lambda row: row["kind"], reverse=True)
    expected = {"kind": "person", "image": "x/b.jpg", "label_row": 2, "reason": "pose is not finite", "used": False}
    assert person == expected
    assert (image["kind"], image["image"], image["label_row"]) == ("image_missing", "gone.jpg", None)
    assert report.findings == {"person": 1, "image_missing": 1}


def test_a_build_that_is_ended_before_its_report_leaves_no_manifest(root, monkeypatch):
    """Images without labels are listed for minutes after the last row; a manifest of that time was taken for built."""

    def end(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ManifestReport, "note_unlabelled", end)
    with pytest.raises(KeyboardInterrupt):
        build_small(root, NAMES)
    assert sorted(path.name for path in root.iterdir()) == ["images", "labels"]


def test_images_without_labels_are_listed_unless_nobody_asks(root):
    for name in ("x/d.jpg", "deep/er/e.PNG", "notes.txt"):
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "images" / name).write_bytes(b"")
    manifest, report = build_small(root, NAMES)
    assert sorted(row["image"] for row in found(manifest)) == ["deep/er/e.PNG", "x/d.jpg"]
    assert "findings: image_without_labels" in report.as_table()
    build_manifest(small_dataset(root), manifest.path, progress=False, unlabelled=False)
    assert found(manifest) == []


def test_names_that_differ_in_case_or_extension_are_not_joined_but_hinted(root):
    manifest, report = build_small(root, ["X/B.jpg", "x/a.png", "c.jpg"])
    assert [row["problem_status"] for row in all_rows(manifest)] == ["image_missing", "image_missing", None]
    reasons = {row["image"]: row["reason"] for row in found(manifest) if row["kind"] == "image_without_labels"}
    assert "X/B.jpg, which is missing, differs in case or extension only" in reasons["x/b.jpg"]
    assert "x/a.png, which is missing" in reasons["x/a.jpg"]
    assert report.findings["image_without_labels"] == 2


def test_a_missing_images_folder_is_reported_and_costs_the_images(tmp_path):
    manifest, report = build_small(tmp_path, NAMES)
    assert report.image_problems == {"image_missing": 3}
    assert "cannot be listed" in next(row for row in found(manifest) if row["image"] == "")["reason"]


def test_images_another_manifest_has_too_are_reported_and_used(root):
    other, _ = build_small(root, ["x/b.jpg", "c.jpg", "z.jpg"], name="other")
    other_path = other.path.rename(root / "other.parquet")
    write_labels_file(root, label_arrays(NAMES))
    out = root / "small.parquet"
    report = build_manifest(small_dataset(root), out, progress=False, against=[other_path])
    rows = read_findings(out).to_pylist()
    assert {(row["image"], row["reason"], row["used"]) for row in rows} == {
        ("b.jpg", "also in other as other/b.jpg", True),
        ("c.jpg", "also in other as other/c.jpg", True),
    }
    assert report.findings == {"also_in": 2}
    with pytest.raises(ManifestError, match="does not exist"):
        build_manifest(small_dataset(root), out, progress=False, against=[root / "none.parquet"])
    data = bytearray(other_path.read_bytes())
    data[4:800] = bytes(796)
    (root / "damaged.parquet").write_bytes(data)
    with pytest.raises(ManifestError, match="cannot be read"):
        build_manifest(small_dataset(root), out, progress=False, against=[root / "damaged.parquet"])
    with pytest.raises(ManifestError, match="has schema"):
        build_manifest(small_dataset(root), out, progress=False, against=[findings_path(out)])


def test_prefixes_move_images_but_neither_keys_nor_depth_files(root):
    write_image(root, "new/x/b.jpg")
    rows = all_rows(build_small(root, ["old/x/b.jpg", "c.jpg"], key_parts=3, image_prefixes={"old/": "new/"})[0])
    assert [row["image_file"] for row in rows] == ["new/x/b.jpg", "c.jpg"]
    assert [row["image_path"] for row in rows] == ["old/x/b.jpg", "c.jpg"]
    assert [row["depth_file"] for row in rows] == ["old/x/b.npy", "c.npy"]
    assert [row["problem"] for row in rows] == [None, None]
