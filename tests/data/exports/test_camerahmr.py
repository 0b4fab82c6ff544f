"""CameraHMR's flat layout: plain arrays that our own source reads back."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest

from dto_pipeline.data.columns import read_vectors, single_array
from dto_pipeline.data.exports.export import export_labels
from dto_pipeline.data.exports.inputs import ExportError
from dto_pipeline.data.exports.selection import Selection
from dto_pipeline.data.manifest import Manifest, build_manifest


@pytest.fixture
def rebuilt(runs, tiny, tmp_path):
    """A manifest built from the export of all valid people."""
    export_labels([runs["mpii"]], "camerahmr", tmp_path / "out", Selection(persons="valid"), progress=False)
    root = tmp_path / "again"
    shutil.copytree(tiny.manifest.parent / "images", root / "images")
    (root / "labels").mkdir()
    shutil.copy(tmp_path / "out/mpii-dto.npz", root / "labels/mpii-dto.npz")
    dataset = dataclasses.replace(tiny.dataset, name="mpii", root=root, labels="labels/mpii-dto.npz", sidecar="")
    build_manifest(dataset, root / "mpii.parquet", progress=False)
    manifest = Manifest.open(root / "mpii.parquet")
    return [row for shard in range(manifest.num_shards) for row in manifest.read_shard(shard).to_pylist()]


def test_a_manifest_built_from_the_export_has_the_labels_of_the_run(rebuilt, labels) -> None:
    rows = labels["mpii"].to_pylist()
    assert [row["image_path"] for row in rebuilt] == [row["image_path"] for row in rows]
    for found, row in zip(rebuilt, rows, strict=True):
        assert [found[name] for name in ("fx", "fy", "cx", "cy")] == [row[name] for name in ("fx", "fy", "cx", "cy")]
        expected = [person for person in row["persons"] if person["status"] != "invalid_label"]
        for new, person in zip(found["persons"], expected, strict=True):
            assert {name: new[name] for name in ("pose", "betas", "transl")} == {
                name: person[name] for name in ("pose", "betas", "transl")
            }
            np.testing.assert_allclose(new["bbox_xyxy"], person["bbox_xyxy"], rtol=1e-6)


def test_no_array_is_a_pickle(runs, tmp_path) -> None:
    export_labels([runs["mpii"]], "camerahmr", tmp_path / "out", progress=False)
    with np.load(tmp_path / "out/mpii-dto.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file}
    people = len(arrays["imgname"])
    assert {key: (array.dtype.kind, array.shape[1:]) for key, array in arrays.items()} == {
        "imgname": ("U", ()),
        "center": ("f", (2,)),
        "scale": ("f", ()),
        "pose_cam": ("f", (72,)),
        "shape": ("f", (11,)),
        "trans_cam": ("f", (3,)),
        "cam_int": ("f", (3, 3)),
        "gtkps": ("f", (44, 3)),
        "z_sigma_m": ("f", ()),
        "height_sigma_m": ("f", ()),
    }
    assert {len(array) for array in arrays.values()} == {people}
    np.testing.assert_array_equal(arrays["cam_int"][0, 2], [0, 0, 1])


def test_the_kid_axis_survives(runs, labels, tmp_path) -> None:
    export_labels([runs["mpii"]], "camerahmr", tmp_path / "out", Selection(), progress=False)
    with np.load(tmp_path / "out/mpii-dto.npz", allow_pickle=False) as file:
        betas = read_vectors(single_array(labels["mpii"]["persons"]).flatten().field("betas"))
        np.testing.assert_array_equal(file["shape"], betas)


def test_an_image_of_a_tar_is_named_by_its_published_key(tar_run, tmp_path) -> None:
    export_labels([tar_run], "camerahmr", tmp_path / "out", progress=False)
    with np.load(tmp_path / "out/coco-dto.npz", allow_pickle=False) as file:
        assert file["imgname"][0] == "000000.jpg"


def test_a_lost_manifest_is_named(runs, tmp_path) -> None:
    lost = dataclasses.replace(runs["mpii"], manifest=tmp_path / "gone.parquet")
    with pytest.raises(ExportError, match=r"gone\.parquet does not exist"):
        export_labels([lost], "camerahmr", tmp_path / "out", progress=False)
    other = dataclasses.replace(runs["mpii"], manifest=runs["insta1"].manifest)
    with pytest.raises(ExportError, match="another manifest now"):
        export_labels([other], "camerahmr", tmp_path / "out", progress=False)
    assert list(tmp_path.iterdir()) == []
