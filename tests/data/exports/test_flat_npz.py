"""CameraHMR's flat layout: plain arrays that our own source reads back."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest

from dto_pipeline.cli import main
from dto_pipeline.data.columns import read_numbers, single_array
from dto_pipeline.data.exports import flat_npz
from dto_pipeline.data.exports.flat_npz import NO_KEYPOINTS
from dto_pipeline.data.exports.formats import export_labels
from dto_pipeline.data.exports.job import ExportError, Selection
from dto_pipeline.data.manifest import Manifest, ManifestError
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import read_run_labels
from tests.run.chaos import tiny_config
from tests.tiny_dataset import write_tiny_dataset


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


def test_label_rows_are_not_kept_beside_the_arrays_made_of_them(runs, labels, tmp_path, monkeypatch) -> None:
    kept, make = [], flat_npz._arrays

    def arrays(job, *others):
        kept.append(len(job.taken[0].tables[0]))
        made = make(job, *others)
        made["imgname"] = np.char.add(made["imgname"], "x" * len(kept))  # names of other lengths in every part
        return made

    monkeypatch.setattr(flat_npz, "_arrays", arrays)
    export_labels([runs["mpii"]], "camerahmr", tmp_path / "out", Selection(persons="all"), progress=False)
    assert len(kept) > 1
    assert kept == [*reversed(range(len(kept)))]
    with np.load(tmp_path / "out/mpii-dto.npz", allow_pickle=False) as file:
        people = [person for row in labels["mpii"].to_pylist() for person in row["persons"]]
        assert file["trans_cam"].tolist() == [person["transl"] for person in people]
        assert len({len(name) - len(name.rstrip("x")) for name in file["imgname"].tolist()}) == len(kept)


def test_arrays_are_plain_with_eleven_betas_and_keypoints_of_confidence_0_where_no_release_has_any(
    runs, labels, tmp_path
) -> None:
    report = export_labels([runs["mpii"]], "camerahmr", tmp_path / "out", Selection(), progress=False)
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
    betas = read_numbers(single_array(labels["mpii"]["persons"]).flatten().field("betas"))
    np.testing.assert_array_equal(arrays["shape"], betas)
    assert (arrays["gtkps"] == 0).all()
    assert report.notes[NO_KEYPOINTS] == people


def test_an_image_of_a_tar_is_named_by_its_published_key(tar_run, tmp_path) -> None:
    export_labels([tar_run], "camerahmr", tmp_path / "out", progress=False)
    with np.load(tmp_path / "out/coco-dto.npz", allow_pickle=False) as file:
        assert file["imgname"][0] == "000000.jpg"


def test_a_lost_manifest_is_named(runs, tmp_path) -> None:
    lost = dataclasses.replace(runs["mpii"], manifest=tmp_path / "gone.parquet")
    with pytest.raises(ManifestError, match=r"gone\.parquet does not exist"):
        export_labels([lost], "camerahmr", tmp_path / "out", progress=False)
    other = dataclasses.replace(runs["mpii"], manifest=runs["insta1"].manifest)
    with pytest.raises(ManifestError, match="another manifest now"):
        export_labels([other], "camerahmr", tmp_path / "out", progress=False)
    assert list(tmp_path.iterdir()) == []


class CameraHmrLoader:
    """Reads a label file as CameraHMR's own data set does: these keys, without asking whether they are there."""

    def __init__(self, path, folder) -> None:
        data = np.load(path)
        self.names, self.scale, self.center = data["imgname"], data["scale"], data["center"]
        self.keypoints = data["gtkps"][:, :44].astype(np.float32)
        self.pose, self.betas = data["pose_cam"].reshape(-1, 24, 3)[:, :24], data["shape"][:, :10]
        self.transl, self.camera = data["trans_cam"], data["cam_int"]
        self.folder = folder

    def __getitem__(self, index):
        scale = self.scale[index]
        size = np.max(scale) * 200 if np.ndim(scale) else scale * 200
        return {
            "image": (self.folder / str(self.names[index])).read_bytes(),
            "box": np.append(self.center[index], size),
            "keypoints": self.keypoints[index],
            "transl": self.transl[index],
        }


@pytest.fixture
def released(body, tmp_path):
    """A run of a release as published: folders in its names, keypoints, rows in any order; and the release's arrays."""
    tiny = write_tiny_dataset(tmp_path / "data", body, images=4, broken=False)
    file = tmp_path / "data/labels/tiny-release.npz"
    arrays = dict(np.load(file))
    rng, count = np.random.default_rng(0), len(arrays["imgname"])
    shutil.move(tmp_path / "data/images", tmp_path / "data/images-train")
    shutil.copytree(tmp_path / "data/images-train", tmp_path / "data/images/mpii-train")
    arrays["imgname"] = np.array([f"mpii-train/{name}" for name in arrays["imgname"]])
    arrays["gtkps"] = rng.uniform(0, 160, (count, 46, 3)).astype(np.float32)
    arrays["center"] = rng.uniform(20, 100, (count, 2)).astype(np.float32)
    arrays["scale"] = rng.uniform(0.3, 0.6, count).astype(np.float32)
    shuffled = rng.permutation(count)  # rows of an image need not be adjacent
    arrays = {key: values[shuffled] for key, values in arrays.items()}
    np.savez(file, **arrays)
    depth = tmp_path / "data/depth"
    (depth / "mpii-train").mkdir()
    for path in list(depth.glob("*.npy")):
        path.rename(depth / "mpii-train" / path.name)
    dataset = dataclasses.replace(tiny.dataset, name="mpii", sidecar="")
    (tmp_path / "lists").mkdir()
    build_manifest(dataset, tmp_path / "lists/mpii.parquet", progress=False)
    run_pipeline(tmp_path / "lists/mpii.parquet", tmp_path / "runs/mpii", tiny_config(), progress=False)
    return tmp_path, arrays


def test_cameras_loader_opens_the_export_and_finds_what_the_release_holds(released) -> None:
    root, arrays = released
    selection = Selection(persons="valid")
    export_labels([read_run_labels(root / "runs/mpii")], "camerahmr", root / "out", selection, progress=False)
    loader = CameraHmrLoader(root / "out/mpii-dto.npz", root / "data/images")
    assert len(loader.names) == len(arrays["imgname"])
    for index in range(len(loader.names)):
        item = loader[index]
        (row,) = np.flatnonzero((arrays["center"] == item["box"][:2].astype(np.float32)).all(axis=1))
        assert loader.names[index] == arrays["imgname"][row]
        assert item["box"][2] == pytest.approx(arrays["scale"][row] * 200)
        np.testing.assert_array_equal(item["keypoints"], arrays["gtkps"][row, :44])
        np.testing.assert_array_equal(loader.pose[index].ravel(), arrays["pose_cam"][row].ravel())


def test_the_release_is_known_by_its_bytes_and_asked_for_where_it_is_gone(released) -> None:
    root, arrays = released
    run, release = read_run_labels(root / "runs/mpii"), root / "data/labels/tiny-release.npz"
    elsewhere = shutil.move(release, root / "kept.npz")
    np.savez(release, **{**arrays, "gtkps": arrays["gtkps"] + 1})
    with pytest.raises(ExportError, match=r"another file \(its sha256 is not .*name it with --labels"):
        export_labels([run], "camerahmr", root / "out", Selection(), progress=False)
    export_labels([run], "camerahmr", root / "out", Selection(), progress=False, labels=[elsewhere])
    with np.load(root / "out/mpii-dto.npz", allow_pickle=False) as file:
        assert np.isin(file["gtkps"], arrays["gtkps"]).all()


def test_a_run_and_its_manifest_that_moved_together_are_exported_from_any_folder(released, monkeypatch) -> None:
    root, _ = released
    (root / "new").mkdir()
    for name in ("lists", "runs", "data"):
        shutil.move(root / name, root / "new" / name)
    monkeypatch.chdir("/")
    run = root / "new/runs/mpii"
    with pytest.raises(ExportError, match="name it with --labels"):  # the manifest was found, its images root is gone
        export_labels([read_run_labels(run)], "camerahmr", root / "out", Selection(), progress=False)
    told = ["--format", "camerahmr", "--all", "--quiet", "--labels", str(root / "new/data/labels/tiny-release.npz")]
    assert main(["export", str(run), "-o", str(root / "out"), *told]) == 0
    shutil.move(root / "new/lists/mpii.parquet", root / "mine.parquet")
    assert main(["export", str(run), "-o", str(root / "again"), *told]) == 2
    assert main(["export", str(run), "-o", str(root / "again"), *told, "--manifest", str(root / "mine.parquet")]) == 0
