"""The demo's files, read back by the readers of real data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dto_pipeline.data.images import ImageCorrupt, ImageStore, read_image
from dto_pipeline.data.rle import decode_rle
from dto_pipeline.data.sources.camerahmr import open_camerahmr
from dto_pipeline.data.sources.rows import LabelRows
from dto_pipeline.data.sources.sidecar import Sidecar
from dto_pipeline.lab.crowd import plan_crowd
from dto_pipeline.lab.crowd_files import (
    BREAKAGES,
    DEMO_PLACES,
    CrowdData,
    CrowdFilesError,
    build_demo_data,
    image_name,
    plan_breakages,
    read_truth,
)
from dto_pipeline.lab.demo import run_demo
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.depth import DepthFiles, DepthInvalid

_, LABELS, SIDECAR = DEMO_PLACES


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, body: BodyModel) -> CrowdData:
    """The smallest data set that has everything broken."""
    return build_demo_data(tmp_path_factory.mktemp("demo"), body, images=12)


@pytest.fixture(scope="module")
def labels(demo: CrowdData) -> tuple[np.ndarray, LabelRows]:
    """Image name and label of everybody."""
    file = open_camerahmr(demo.root / LABELS)
    return file.image_names, file.rows(np.arange(file.num_rows))


@pytest.fixture(scope="module")
def images(demo: CrowdData) -> ImageStore:
    return ImageStore(demo.root / "images")


def image_of(demo: CrowdData, kind: str) -> str:
    return next(name for name, broken in demo.broken.items() if broken == kind)


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_equal_settings_give_identical_bytes(tmp_path: Path, body: BodyModel) -> None:
    for name in "ab":
        build_demo_data(tmp_path / name, body, images=2, seed=5)
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


def test_truth_of_a_half_written_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CrowdFilesError, match="no whole demo data set"):
        read_truth(tmp_path)


def test_label_rows_and_truth_rows_are_the_same_people(demo: CrowdData, labels: tuple[np.ndarray, LabelRows]) -> None:
    truth, (names, rows) = read_truth(demo.root), labels
    assert len(names) == demo.persons
    assert np.array_equal(names, truth["image_name"])
    whole = truth["broken"] == ""
    stretched = rows.transl[whole, 2] / truth["transl"][whole, 2]
    np.testing.assert_allclose(stretched, truth["label_factor"][whole], atol=0.1)
    assert np.isfinite(rows.bbox_xyxy).all()


def test_cameras_fit_their_images(demo: CrowdData, labels: tuple[np.ndarray, LabelRows], images: ImageStore) -> None:
    for name, camera in zip(labels[0].tolist(), labels[1].intrinsics, strict=True):
        if demo.broken.get(name) not in ("missing_image", "truncated_image"):
            scale = 1.5 if demo.broken.get(name) == "wrong_size" else 1.0
            assert (2 * camera[:2, 2]).tolist() == [scale * side for side in images.size(name)]


def test_masks_decode_to_the_size_of_their_image(demo: CrowdData) -> None:
    rows = Sidecar(demo.root / SIDECAR, demo.persons).rows(np.arange(demo.persons))
    assert rows.notes == {}
    assert not rows.mask_damaged.any()
    shapes = zip(rows.mask_rle.to_pylist(), rows.mask_height.tolist(), rows.mask_width.tolist(), strict=True)
    empty = [row for row, (rle, height, width) in enumerate(shapes) if not decode_rle(rle, height, width).any()]
    assert read_truth(demo.root)["image_name"][empty].tolist() == [image_of(demo, "empty_mask")]
    assert decode_rle(rows.mask_rle[0].as_py(), int(rows.mask_height[0]), int(rows.mask_width[0])).any()


def test_every_image_has_a_depth_map_of_its_size(demo: CrowdData, images: ImageStore) -> None:
    depth = DepthFiles(demo.root / "depth")
    for name in np.unique(read_truth(demo.root)["image_name"]).tolist():
        if demo.broken.get(name) not in ("missing_image", "truncated_image", "zero_disparity"):
            width, height = images.size(name)
            assert depth.load(str(Path(name).with_suffix(".npy")), height, width).max() > 50


def test_broken_images_fail_the_way_the_readme_says(
    demo: CrowdData, labels: tuple[np.ndarray, LabelRows], images: ImageStore
) -> None:
    assert not (demo.root / "images" / image_of(demo, "missing_image")).exists()
    with pytest.raises(ImageCorrupt):
        read_image(demo.root / "images" / image_of(demo, "truncated_image"))
    name = image_of(demo, "zero_disparity")
    width, height = images.size(name)
    with pytest.raises(DepthInvalid, match="zero everywhere"):
        DepthFiles(demo.root / "depth").load(str(Path(name).with_suffix(".npy")), height, width)
    bad = ~np.isfinite(labels[1].pose).all(axis=1)
    assert labels[0][bad].tolist() == [image_of(demo, "nan_pose")]
    readme = (demo.root / "README.md").read_text()
    assert all(name in readme for name in demo.broken)


def test_each_breakage_hits_one_image_of_its_own() -> None:
    for images in (12, 24):
        broken = plan_breakages(images)
        assert sorted(broken.values()) == sorted(BREAKAGES)
        assert max(broken) < images
    assert plan_breakages(11) == {}


def test_small_crowds_to_train_on_have_nothing_broken_and_the_truth_beside_them(
    body: BodyModel, tmp_path: Path
) -> None:
    assert build_demo_data(tmp_path, body, 12, 9, 0.25, spoilt=False).broken == {}
    with Image.open(tmp_path / "images" / image_name(0)) as picture:
        assert picture.size == (160, 120)
    planned = [plan_crowd(9, number).num_people for number in range(12)]
    assert np.bincount(read_truth(tmp_path)["image_number"]).tolist() == planned
    with pytest.raises(CrowdFilesError, match=r"scale: 0\.25 there, 1\.0 wanted"):
        build_demo_data(tmp_path, body, 12, 9, spoilt=False)
    point = np.array([0.3, 0.8, 5.0])
    view = plan_crowd(9, 0).view
    assert view.scaled(0.5).project(point) == pytest.approx(view.project(point) / 2)  # a smaller view shows the same


def test_the_demo_leaves_a_folder_of_other_files_as_it_is(tmp_path: Path) -> None:
    """Its manifest replaced one of the same name, and the runs of that one had none any more."""
    (tmp_path / "manifest.parquet").write_bytes(b"of a run")
    with pytest.raises(CrowdFilesError, match="holds other files and no demo"):
        run_demo(tmp_path, 2, 0, False, lambda done, images: None)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.parquet"]
