"""Precomputed maps of every declared kind and format give the same disparity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dto_pipeline.config import DepthConfig
from dto_pipeline.models.depth import METRES_PER_DEPTH, DepthInvalid, open_depth_files

Z = np.array([[2.0, 4.0, 8.0], [2.5, 5.0, 10.0]])  # [m], exact in millimetres


def load(root: Path, name: str, **options: object) -> np.ndarray:
    return open_depth_files(DepthConfig(**options), root).load(name, 2, 3)  # type: ignore[arg-type]


def test_disparity_depth_and_metric_depth_agree_up_to_their_units(tmp_path: Path) -> None:
    np.save(tmp_path / "disparity.npy", METRES_PER_DEPTH / Z)
    np.save(tmp_path / "depth.npy", Z / METRES_PER_DEPTH)
    np.save(tmp_path / "metric.npy", Z)
    disparity = load(tmp_path, "disparity.npy")
    np.testing.assert_allclose(load(tmp_path, "depth.npy", kind="depth"), disparity, rtol=1e-6)
    np.testing.assert_allclose(load(tmp_path, "metric.npy", kind="metric_depth"), disparity, rtol=1e-6)


def test_a_png_of_millimetres_is_metric_depth_by_its_scale(tmp_path: Path) -> None:
    Image.fromarray((Z * 1000).astype(np.uint16)).save(tmp_path / "mm.png")
    found = load(tmp_path, "mm.png", kind="metric_depth", scale=0.001)
    np.testing.assert_allclose(found, METRES_PER_DEPTH / Z, rtol=1e-6)


def test_unknown_and_infinite_depth_have_no_disparity(tmp_path: Path) -> None:
    np.save(tmp_path / "holes.npy", np.array([[0.0, np.inf, 2.0], [2.0, 2.0, 2.0]]))
    found = load(tmp_path, "holes.npy", kind="metric_depth")
    assert found[0].tolist() == [0.0, 0.0, METRES_PER_DEPTH / 2]


def test_a_npz_holds_its_kind_under_its_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "map.npz", depth=Z)
    np.testing.assert_allclose(load(tmp_path, "map.npz", kind="metric_depth"), METRES_PER_DEPTH / Z, rtol=1e-6)
    with pytest.raises(DepthInvalid, match="expected 'disparity'"):
        load(tmp_path, "map.npz")


def test_metres_made_with_another_focal_length_are_brought_to_the_labels_camera(tmp_path: Path) -> None:
    np.savez(tmp_path / "map.npz", depth=Z, focal=np.float64(800.0))
    files = open_depth_files(DepthConfig(kind="metric_depth"), tmp_path)
    np.testing.assert_allclose(files.load("map.npz", 2, 3, 800.0), METRES_PER_DEPTH / Z, rtol=1e-6)
    np.testing.assert_allclose(files.load("map.npz", 2, 3, 1600.0), METRES_PER_DEPTH / (2 * Z), rtol=1e-6)
    np.testing.assert_allclose(files.load("map.npz", 2, 3), METRES_PER_DEPTH / Z, rtol=1e-6)


@pytest.mark.parametrize(("focal", "reason"), [(-3.0, "above 0"), (np.nan, "above 0"), (np.ones(2), "one number")])
def test_a_focal_length_that_is_none_is_refused(tmp_path: Path, focal: object, reason: str) -> None:
    np.savez(tmp_path / "map.npz", depth=Z, focal=focal)  # type: ignore[arg-type]
    with pytest.raises(DepthInvalid, match=reason):
        load(tmp_path, "map.npz", kind="metric_depth")


def test_a_png_of_eight_bits_or_of_another_size_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((2, 3), np.uint8)).save(tmp_path / "coarse.png")
    Image.fromarray(np.ones((3, 3), np.uint16)).save(tmp_path / "other.png")
    (tmp_path / "no.png").write_bytes(b"not a picture")
    for name, reason in (("coarse.png", "16 bits"), ("other.png", "shape"), ("no.png", "cannot")):
        with pytest.raises(DepthInvalid, match=reason):
            load(tmp_path, name, kind="depth")


def test_negative_depth_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "negative.npy", -Z)
    with pytest.raises(DepthInvalid, match="negative"):
        load(tmp_path, "negative.npy", kind="depth")
