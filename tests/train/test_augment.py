"""Pictures and labels are varied alike; that they equal the published ones is for `tests/lab/test_golden_mahmr.py`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dto_pipeline.data.images import ImageStore
from dto_pipeline.models.body import BodyModel
from dto_pipeline.train.augment import (
    Draw,
    Frame,
    Varied,
    draw_paint,
    draw_variation,
    fit_size,
    inside_image,
    move_points,
    paint,
    resize,
    vary,
)
from dto_pipeline.train.config import AugmentConfig, DataConfig, without_augmentation
from dto_pipeline.train.targets import ImageLabels, Rules, Seen, mark_cells, person_boxes, see_people
from tests.train.label_examples import random_labels

SIDE = 224
DRAWS = [Draw(12.0, False, 1.3), Draw(-9.0, True, 0.8), Draw(0.0, True, 1.0), Draw(5.0, True, 1.1, 0.4), Draw(crop=0.2)]


def varied(labels: ImageLabels, body: BodyModel, side: int, draw: Draw, size: tuple[int, int] = (320, 240)) -> Varied:
    return vary(labels.pose, labels.betas, labels.transl, labels.intrinsics[None], size, side, draw, body)


def see(labels: ImageLabels, body: BodyModel, draw: Draw | None = None, rules: AugmentConfig | None = None) -> Seen:
    how = Rules(body, DataConfig(input_size=SIDE), rules or AugmentConfig())
    return see_people(labels, (320, 240), draw or Draw(), how)


def show(rgb: np.ndarray, frame: Frame) -> np.ndarray:
    """(h, w, 3) uint8: a photograph resized and painted."""
    resized = torch.from_numpy(resize(rgb, frame.resized)).permute(2, 0, 1)
    return paint(resized, frame).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("draw", DRAWS, ids=str)
def test_a_dot_in_the_picture_stays_on_the_place_that_the_labels_name(draw: Draw) -> None:
    rgb = np.zeros((240, 320, 3), np.uint8)
    rgb[98:103, 138:143] = 255  # around (140.5, 100.5)
    labels = random_labels(1)
    from dto_pipeline.models.body import load_body

    frame = varied(labels, load_body("demo"), SIDE, draw).frame
    seen = show(rgb, frame)[..., 0].astype(float)
    assert seen.shape == frame.size[::-1]
    rows, columns = np.indices(seen.shape) + 0.5
    middle = [(seen * axis).sum() / seen.sum() for axis in (columns, rows)]
    expected = move_points(np.array([140.5, 100.5]), frame)
    np.testing.assert_allclose(middle, expected, atol=1.5)  # warps turn about pixels, cameras about corners


@pytest.mark.parametrize("draw", DRAWS, ids=str)
def test_bodies_project_where_the_picture_shows_them(body: BodyModel, draw: Draw) -> None:
    labels = random_labels(3)
    before = varied(labels, body, 320, Draw())
    after = varied(labels, body, SIDE, draw)
    tree = list(range(24))
    from dto_pipeline.train.augment import MIRROR_JOINTS

    names = list(MIRROR_JOINTS) if draw.flip else tree
    moved = move_points(before.image_joints[:, names], after.frame)
    limit = 12.0 if draw.flip else 0.01  # the stand-in body is not quite symmetric
    assert np.abs(moved - after.image_joints[:, tree]).max() < limit
    np.testing.assert_allclose(after.transl[:, 2], labels.transl[:, 2], atol=0.05)  # nothing changes a distance


def test_a_mirror_image_of_a_mirror_image_is_the_image(body: BodyModel) -> None:
    labels = random_labels(3)
    once = varied(labels, body, 320, Draw(flip=True))
    mirrored = dataclasses.replace(labels, pose=once.pose, transl=once.transl, intrinsics=once.intrinsics[0])
    twice = varied(mirrored, body, 320, Draw(flip=True))
    np.testing.assert_allclose(twice.pose, labels.pose, atol=1e-6)
    np.testing.assert_allclose(twice.transl, labels.transl, atol=1e-6)
    np.testing.assert_allclose(twice.intrinsics[0], labels.intrinsics, atol=1e-6)


def test_the_same_chance_gives_the_same_variation_and_the_ranges_hold() -> None:
    config = AugmentConfig()
    draws = [draw_variation(np.random.default_rng(seed), config) for seed in range(300)]
    assert draws == [draw_variation(np.random.default_rng(seed), config) for seed in range(300)]
    assert max(abs(draw.angle) for draw in draws) <= 15
    assert all(0.8 <= draw.scale <= 1.8 for draw in draws)
    assert 0.4 < np.mean([draw.flip for draw in draws]) < 0.6
    assert 0.7 < np.mean([draw.crop is not None for draw in draws]) < 0.9
    still = without_augmentation(config)
    assert all(draw_variation(np.random.default_rng(seed), still) == Draw() for seed in range(20))


def test_a_crop_ends_below_every_chest_and_fills_the_side_again(body: BodyModel) -> None:
    labels = random_labels(3)
    whole = varied(labels, body, SIDE, Draw(), (240, 320))
    cut = varied(labels, body, SIDE, Draw(crop=0.3), (240, 320))
    assert max(cut.frame.size) == SIDE
    assert cut.frame.rows < whole.frame.rows
    assert cut.frame.rows >= np.floor(whole.image_joints[:, 9, 1].max())


def test_sizes_keep_the_longer_side() -> None:
    assert fit_size(630, 420, 280) == ((280, 186), pytest.approx(280 / 630))
    assert fit_size(100, 1000, 280) == ((28, 280), pytest.approx(0.28))
    assert fit_size(1, 4000, 280)[0] == (1, 280)


def test_resizing_is_bilinear_and_leaves_what_fits() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    assert resize(rgb, (60, 40)) is rgb
    assert resize(rgb, (30, 20)).shape == (20, 30, 3)
    flat = np.full((10, 10, 3), 7, np.uint8)
    assert (resize(flat, (33, 21)) == 7).all()


def test_boxes_hold_all_joints_and_a_fifth_more_and_end_at_the_border() -> None:
    points = np.array([[[20.0, 30], [60, 110]], [[-50, -50], [40, 40]]])
    boxes = person_boxes(points, np.ones((2, 2), bool), (100, 200), 200)
    np.testing.assert_allclose(boxes[0], [0.2, 0.35, 0.24, 0.48])
    low = boxes[1, :2] - boxes[1, 2:] / 2
    np.testing.assert_allclose(low, 1e-6, atol=1e-9)


def test_cells_are_marked_from_far_to_near_and_not_outside_unless_as_published() -> None:
    points = np.array([[[10.0, 10], [10, 10]], [[12.0, 12], [500, 12]]])
    edges = np.array([[0, 1]])
    near_first = mark_cells(points, np.array([1.0, 2.0]), np.array([0.3, 0.6]), (100, 100), edges, clamp=False)
    assert near_first.shape == (16, 2)
    assert near_first[0].tolist() == [1, np.float32(0.3)]
    assert near_first[:, 0].sum() == 1
    clamped = mark_cells(points, np.array([1.0, 2.0]), np.array([0.3, 0.6]), (100, 100), edges, clamp=True)
    assert clamped[:, 0].sum() == 2  # the border cell of the vertex outside
    behind = np.full((1, 2, 2), np.nan)
    assert mark_cells(behind, np.ones(1), np.ones(1), (100, 100), edges, clamp=False)[:, 0].sum() == 0


def test_joints_outside_count_only_as_published(body: BodyModel) -> None:
    labels = random_labels(4, spread=2.5)
    ours, paper = (see(labels, body, rules=AugmentConfig(as_published=flag)) for flag in (False, True))
    assert len(ours.targets["boxes"]) == len(paper.targets["boxes"])
    assert not ours.targets["j2ds_mask"].all()
    assert paper.targets["j2ds_mask"].all()


def test_a_person_of_whom_too_little_is_seen_is_left_out(body: BodyModel) -> None:
    labels = random_labels(2, spread=0.2)
    far = labels.transl.copy()
    far[1, 0] = 30
    seen = see(dataclasses.replace(labels, transl=far), body)
    assert len(seen.targets["boxes"]) == 1
    assert seen.good
    assert not see(dataclasses.replace(labels, transl=far + np.array([40, 0, 0], np.float32)), body).good


def test_occlusion_covers_parts_of_boxes_with_noise() -> None:
    image, box = torch.zeros(3, 100, 100, dtype=torch.uint8), np.array([[20.0, 20, 80, 80]])
    frame, still = Frame((100, 100), False, None, 100, (100, 100), np.eye(2, 3)), without_augmentation(AugmentConfig())
    hidden = dataclasses.replace(still, occlude=1.0)
    covered = paint(image.clone(), draw_paint(np.random.default_rng(1), frame, box, hidden))
    places = covered.any(0).nonzero()
    assert len(places)
    assert places.min() >= 20
    assert places.max() < 80
    unchanged = draw_paint(np.random.default_rng(1), frame, box, still)
    assert (unchanged.patches, unchanged.colours) == (frame.patches, frame.colours)


def test_colours_vary_within_their_ranges() -> None:
    image, frame = torch.full((3, 4, 4), 100, dtype=torch.uint8), Frame((4, 4), False, None, 4, (4, 4), np.eye(2, 3))
    assert torch.equal(paint(image, frame), image)
    brighter = paint(image, dataclasses.replace(frame, colours=(1.2, 1.0, 1.0)))
    assert (brighter == 120).all()
    grey = paint(
        image * torch.tensor([1, 2, 0], dtype=torch.uint8)[:, None, None], dataclasses.replace(frame, colours=(1, 1, 0))
    )
    assert (grey == round(0.299 * 100 + 0.587 * 200)).all()


def test_the_black_margin_of_a_warp_is_not_the_picture(body: BodyModel) -> None:
    labels = random_labels(1)
    frame = varied(labels, body, SIDE, Draw(angle=14.0, scale=0.8)).frame
    shown = show(np.full((240, 320, 3), 255, np.uint8), frame).any(-1)
    points = np.stack(np.meshgrid(np.arange(frame.size[0]), np.arange(frame.size[1])), -1) + 0.5
    assert (inside_image(points, frame) == shown).mean() > 0.99
    assert not inside_image(np.array([[-0.5, 5.0], [np.nan, 3.0], [1e9, 3.0]]), frame).any()


def test_annotated_places_are_mirrored_with_their_names(body: BodyModel) -> None:
    labels = random_labels(1)
    keypoints = np.full((1, 26, 2), np.nan, np.float32)
    keypoints[0, 16] = [100, 50]  # the left shoulder
    flat = dataclasses.replace(labels, has_body=np.array([False]), keypoints=keypoints)
    seen = see(flat, body, Draw(flip=True))
    assert seen.targets["j2ds_mask"][0].any(-1).nonzero()[0].tolist() == [17]  # is the right one in the mirror
    np.testing.assert_allclose(seen.targets["j2ds"][0, 17], [SIDE - 100 * SIDE / 320, 50 * SIDE / 320], rtol=1e-5)
    assert torch.from_numpy(seen.targets["boxes"]).isfinite().all()


def test_a_large_jpeg_is_read_smaller_and_keeps_its_size(tmp_path: Path) -> None:
    flat = np.tile(np.linspace(0, 255, 640).astype(np.uint8)[None, :, None], (480, 1, 3))
    Image.fromarray(flat).save(tmp_path / "a.jpg", quality=95)
    Image.fromarray(flat).save(tmp_path / "a.png")
    store = ImageStore(tmp_path)
    small, same = store.read("a.jpg", least_side=SIDE), store.read("a.jpg", least_side=400)
    assert small.rgb.shape == (180, 240, 3)  # three eighths
    assert same.rgb.shape == (480, 640, 3)
    assert small.size == same.size == store.read("a.png", least_side=SIDE).size == (640, 480)
    whole, part = (resize(rgb, (224, 168)).astype(int) for rgb in (same.rgb, small.rgb))
    assert np.abs(whole - part).max() <= 4
