"""Whole manifests over tars: every image and label row arrives, whatever is wrong with the tars."""

from __future__ import annotations

import io
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.data.manifest_build.check import check_manifest
from dto_pipeline.data.rle import decode_rle, encode_rle
from dto_pipeline.data.scenes import SceneLoader
from dto_pipeline.data.sources.sidecar import write_sidecar
from dto_pipeline.data.tars import TarIndexError, build_tar_index, carry_tar_index, open_images, tar_index_path
from tests.data.prediction_files import predicted_people, write_npz
from tests.data.small_set import (
    HEIGHT,
    WIDTH,
    all_rows,
    label_arrays,
    read_findings,
    small_dataset,
    write_depth,
    write_labels_file,
)
from tests.pickle_streams import SENTINEL, Armed
from tests.tars import jpeg, write_tar


def picture(shade=90):
    return jpeg(shade, WIDTH, HEIGHT)


def build(root, names, spoil=None, **changes):
    write_labels_file(root, {**label_arrays(names), **(spoil or {})})
    dataset = small_dataset(root, **{"images": "tars", "images_in": "tars", "key_parts": 3, **changes})
    report = build_manifest(dataset, root / "m.parquet", progress=False)
    return Manifest.open(root / "m.parquet"), report


def found(root):
    return {(row["kind"], row["image"]): row["reason"] for row in read_findings(root / "m.parquet").to_pylist()}


def test_images_in_tars_carry_published_keys_and_depth_files_of_their_labels(tmp_path):
    names = ["insta-train/a/b/1.jpg", "insta-train/a/b/2.jpg"]
    write_tar(tmp_path / "tars/s/0.tar", {"a/b/1.jpg": picture(), "a/b/2.jpeg": picture()})
    rows = all_rows(build(tmp_path, names)[0])
    assert [row["image_file"] for row in rows] == ["s/0.tar!a/b/1.jpg", "s/0.tar!a/b/2.jpeg"]
    assert [row["image_path"] for row in rows] == ["a/b/1.jpg", "a/b/2.jpg"]
    assert [row["depth_file"] for row in rows] == ["insta-train/a/b/1.npy", "insta-train/a/b/2.npy"]
    assert [row["problem"] for row in rows] == [None, None]


def test_a_broken_tar_costs_its_broken_members_and_everything_is_reported(tmp_path):
    names = [f"s/a/b/{name}.jpg" for name in ("0", "1", "2", "3", "Case", "up", "link", "twice")]
    files = {"a/b/0.jpg": picture(10), "a/b/1.jpg": picture()[:60], "a/b/2.jpg": picture(30), "a/b/case.jpg": picture()}
    files |= {"../a/b/up.jpg": picture(), "/a/b/up.jpg": picture(), "a/b/9.jpg": picture()}
    write_tar(tmp_path / "tars/0.tar", files)
    with tarfile.open(tmp_path / "tars/0.tar", "a") as tar:
        link = tarfile.TarInfo("a/b/link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    write_tar(tmp_path / "tars/1.tar", {"a/b/twice.jpg": picture(40), "a/b/3.jpg": picture(50)})
    write_tar(tmp_path / "tars/2.tar", {"a/b/twice.jpg": picture(60)})
    whole = (tmp_path / "tars/1.tar").read_bytes()
    (tmp_path / "tars/1.tar").write_bytes(whole[: whole.index(b"a/b/3.jpg") + 700])
    manifest, report = build(tmp_path, names)
    status = [row["problem_status"] for row in all_rows(manifest)]
    gone = "image_missing"
    assert status == [None, "image_corrupt", None, gone, gone, gone, gone, None]
    assert "in none of the tars" in all_rows(manifest)[4]["problem"]
    reasons = found(tmp_path)
    assert reasons["repeated_key", "2.tar!a/b/twice.jpg"] == "has the key of 1.tar!a/b/twice.jpg, which is taken"
    assert "leaves its folder" in reasons["tar_member_refused", "0.tar!../a/b/up.jpg"]
    assert "is no plain file" in reasons["tar_member_refused", "0.tar!a/b/link.jpg"]
    assert "truncated" in reasons["tar_member_refused", "1.tar!a/b/3.jpg"]
    assert "truncated" in reasons["tar_damaged", "1.tar"]
    assert ("image_without_labels", "0.tar!a/b/9.jpg") in reasons
    assert report.findings["tar_member_refused"] == 4
    assert report.image_problems["image_missing"] == 4
    assert "findings: tar_damaged" in report.as_table()


def test_a_corrupt_jpeg_in_the_middle_costs_one_scene(tmp_path):
    names = ["0.jpg", "1.jpg", "2.jpg"]
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=95)
    half = buffer.getvalue()[: len(buffer.getvalue()) // 2]  # its header is sound: only decoding finds out
    write_tar(tmp_path / "tars/t.tar", {"0.jpg": picture(), "1.jpg": half, "2.jpg": picture()})
    for name in names:
        write_depth(tmp_path, name)
    manifest, _ = build(tmp_path, names, key_parts=1)
    assert [row["problem_status"] for row in all_rows(manifest)] == [None] * 3
    store = open_images(manifest.images_root, manifest.path)
    scenes = SceneLoader(store, None).load(manifest.read_shard(0))
    assert [scene.problem and str(scene.problem[0]) for scene in scenes] == [None, "image_corrupt", None]
    assert check_manifest(manifest.path, progress=False).faults == []
    deep = check_manifest(manifest.path, deep=True, progress=False)
    assert [(fault.image_id, fault.fault) for fault in deep.faults] == [("small/1.jpg", "corrupt")]


def test_a_manifest_without_its_tar_index_says_so(tmp_path):
    write_tar(tmp_path / "tars/t.tar", {"0.jpg": picture()})
    manifest, _ = build(tmp_path, ["0.jpg"], key_parts=1)
    (tmp_path / "m.tars.parquet").unlink()
    report = check_manifest(manifest.path, progress=False)
    assert report.counts == {"missing": 1}
    assert "missing next to the manifest" in report.faults[0].text


def test_a_manifest_made_from_another_takes_the_tar_index_along(tmp_path):
    write_tar(tmp_path / "tars/t.tar", {"0.jpg": picture()})
    manifest, _ = build(tmp_path, ["0.jpg"], key_parts=1)
    derived = tmp_path / "elsewhere" / "d.parquet"
    derived.parent.mkdir()
    derived.write_bytes((tmp_path / "m.parquet").read_bytes())
    carry_tar_index(manifest.path, derived)
    assert check_manifest(derived, deep=True, progress=False).counts == {"fine": 1}


def test_folders_without_tars_stop_the_build(tmp_path):
    with pytest.raises(TarIndexError, match="does not exist"):
        build(tmp_path, ["0.jpg"])
    (tmp_path / "tars").mkdir()
    with pytest.raises(TarIndexError, match=r"holds no \*\.tar"):
        build(tmp_path, ["0.jpg"])


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def halves():
    masks = np.zeros((2, HEIGHT, WIDTH), bool)
    masks[0, :, : WIDTH // 2], masks[1, :, WIDTH // 2 :] = True, True
    return masks


def keypoints_at(*columns):
    """(n, 44, 3): person i stands at column columns[i]."""
    return np.stack([np.tile([column, HEIGHT / 2, 1], (44, 1)) for column in columns]).astype(np.float32)


def test_masks_in_tars_go_to_people_by_keypoints_and_sidecar_masks_come_first(tmp_path):
    names = ["0.jpg", "0.jpg", "1.jpg", "2.jpg"]
    files = {"0.jpg": picture(), "0.detection.npz": npz(masks=halves()), "1.jpg": picture(), "2.jpg": picture()}
    files |= {"2.detection.npz": npz(masks=halves())}
    write_tar(tmp_path / "tars/t.tar", files)
    own = np.zeros((HEIGHT, WIDTH), bool)
    own[2:5, 2:5] = True
    write_sidecar(
        tmp_path / "labels/s.parquet",
        np.array([3]),
        mask_rle=[encode_rle(own)],
        mask_height=np.array([HEIGHT]),
        mask_width=np.array([WIDTH]),
    )
    points = {"gtkps": keypoints_at(WIDTH - 3, 3, 3, 3)}
    manifest, report = build(
        tmp_path, names, points, key_parts=1, masks="detection", sidecar="labels/s.parquet", images_in="tars"
    )
    rows = all_rows(manifest)
    masks = [[decode_rle(p["mask_rle"], HEIGHT, WIDTH) for p in row["persons"] if p["mask_rle"]] for row in rows]
    np.testing.assert_array_equal(masks[0], halves()[::-1])
    assert masks[1] == []
    np.testing.assert_array_equal(masks[2], own[None])
    assert [row["mask_origin"] for row in rows] == ["detection", None, "sidecar"]
    assert (report.masks_given, report.persons) == (3, 4)


@pytest.mark.parametrize(
    ("member", "why"),
    [
        (npz(masks=np.array([Armed()], object)), "expected numbers"),
        (npz(masks=halves())[:-40], "not a whole npz"),
        (npz(other=np.zeros(3)), "holds the arrays"),
    ],
)
def test_hostile_or_broken_masks_cost_the_masks_only_and_nothing_runs(tmp_path, monkeypatch, member, why):
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "tars/t.tar", {"0.jpg": picture(), "0.detection.npz": member})
    points = {"gtkps": keypoints_at(3)}
    manifest, report = build(tmp_path, ["0.jpg"], points, key_parts=1, masks="detection")
    assert all_rows(manifest)[0]["persons"][0]["problem"] is None
    assert report.masks_given == report.persons - 1
    assert why in found(tmp_path)["masks_unreadable", "t.tar!0.jpg"]
    assert not (tmp_path / SENTINEL).exists()


def test_masks_of_another_size_make_their_people_unusable(tmp_path):
    masks = np.ones((1, HEIGHT + 1, WIDTH), bool)
    write_tar(tmp_path / "tars/t.tar", {"0.jpg": picture(), "0.detection.npz": npz(masks=masks)})
    manifest, _ = build(tmp_path, ["0.jpg"], {"gtkps": keypoints_at(3)}, key_parts=1, masks="detection")
    assert "another size" in all_rows(manifest)[0]["persons"][0]["problem"]


def test_masks_go_to_the_people_who_name_them_wherever_their_joints_lie(tmp_path):
    """Both people's joints lie on the left half, which is the first one's mask; the second names the other."""
    points = keypoints_at(3, 4)
    people = [
        {"keypoints_2d": own, "center": np.array([8.0, 12]), "scale": 0.1, "extra_info": {"detection_npz_idx": number}}
        for own, number in zip(points, (0, 1), strict=True)
    ]
    files = {"0.jpg": picture(), "0.detection.npz": npz(masks=halves()), "0.data.pyd": pickle.dumps(people)}
    files |= {"1.jpg": picture(), "1.detection.npz": npz(masks=halves()), "1.data.pyd": pickle.dumps(people)[:-30]}
    write_tar(tmp_path / "tars/t.tar", files)
    names, spoil = ["0.jpg", "0.jpg", "1.jpg"], {"gtkps": np.concatenate([points[::-1], points[:1]])}
    manifest, report = build(tmp_path, names, spoil, key_parts=1, masks="detection")
    persons = all_rows(manifest)[0]["persons"]
    np.testing.assert_array_equal([decode_rle(p["mask_rle"], HEIGHT, WIDTH) for p in persons], halves()[::-1])
    assert report.masks_given == report.persons - 1
    assert "1.data.pyd" in found(tmp_path)["masks_unreadable", "t.tar!1.jpg"]


def test_predicted_keypoints_in_the_order_of_the_tars_say_whose_a_mask_is(tmp_path):
    points = np.random.default_rng(0).uniform(1, HEIGHT, (2, 44, 3)).astype(np.float32)
    people = [{"keypoints_2d": own, "extra_info": {"detection_npz_idx": k}} for k, own in enumerate(points)]
    files = {"0.jpg": picture(), "0.detection.npz": npz(masks=halves()), "0.data.pyd": pickle.dumps(people)}
    write_tar(tmp_path / "tars/t.tar", files)
    columns = {name: predicted_people(2)[name] for name in ("pose", "betas", "transl", "intrinsics")}
    write_npz(tmp_path / "p.npz", {**columns, "image": np.array(["0.jpg"] * 2), "keypoints": points[::-1]})
    dataset = small_dataset(
        tmp_path, source="predictions", labels="p.npz", images="tars", images_in="tars", masks="detection"
    )
    build_manifest(dataset, tmp_path / "m.parquet", progress=False)
    persons = all_rows(Manifest.open(tmp_path / "m.parquet"))[0]["persons"]
    np.testing.assert_array_equal([decode_rle(p["mask_rle"], HEIGHT, WIDTH) for p in persons], halves()[::-1])


def test_masks_beside_images_in_a_folder_are_found_as_those_in_tars(tmp_path):
    people = [{"keypoints_2d": keypoints_at(3)[0], "extra_info": {"detection_npz_idx": 1}}]
    files = {"0.jpg": picture(), "0.detection.npz": npz(masks=halves()), "0.data.pyd": pickle.dumps(people)}
    for name, data in {**files, "1.jpg": picture()}.items():
        (tmp_path / "tars").mkdir(exist_ok=True)
        (tmp_path / "tars" / name).write_bytes(data)
    spoil = {"gtkps": keypoints_at(3, 3)}
    manifest, report = build(tmp_path, ["0.jpg", "1.jpg"], spoil, key_parts=1, masks="detection", images_in="folder")
    first, second = (row["persons"][0] for row in all_rows(manifest))
    np.testing.assert_array_equal(decode_rle(first["mask_rle"], HEIGHT, WIDTH), halves()[1])
    assert second["mask_rle"] is None
    assert (report.masks_given, report.persons) == (1, 2)
    assert [row["mask_origin"] for row in all_rows(manifest)] == ["detection", None]


def test_images_of_a_tar_that_is_fetched_again_are_mended_without_a_new_manifest(tmp_path):
    """As docs/real_run.md says: an index built anew replaces the old one, missing images become plain files."""
    files = {"0.jpg": picture(10), "1.jpg": picture(20), "2.jpg": picture(30)}
    write_tar(tmp_path / "tars/t.tar", files)
    whole = (tmp_path / "tars/t.tar").read_bytes()
    (tmp_path / "tars/t.tar").write_bytes(whole[: whole.index(b"2.jpg") + 600])
    manifest, _ = build(tmp_path, ["0.jpg", "1.jpg", "2.jpg", "new.jpg"], key_parts=1)
    assert check_manifest(manifest.path, progress=False).counts == {"fine": 2, "known": 2}

    (tmp_path / "tars/t.tar").write_bytes(whole)
    assert check_manifest(manifest.path, progress=False).counts == {"corrupt": 2, "known": 2}
    for name, level in (("2.jpg", 30), ("new.jpg", 40)):
        (tmp_path / "tars" / name).write_bytes(picture(level))
    build_tar_index(tmp_path / "tars", tar_index_path(tmp_path / "other.parquet"))
    (tmp_path / "other.tars.parquet").replace(tar_index_path(manifest.path))
    report = check_manifest(manifest.path, progress=False)
    assert report.counts == {"fine": 2, "mended": 2}
    assert "done by `dto run`" in report.as_table()
    store = open_images(manifest.images_root, manifest.path)
    scenes = SceneLoader(store, None).load(manifest.read_shard(0))
    assert [scene.problem for scene in scenes] == [None] * 4
    assert [int(scene.image.mean()) for scene in scenes if scene.image is not None] == [10, 20, 30, 40]
