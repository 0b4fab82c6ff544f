"""Augmented labels and augmented pictures show the same thing in the same place."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dto_pipeline.maths.camera import project
from dto_pipeline.models.body import BodyModel
from dto_pipeline.train.augment import (
    MIRROR_JOINTS,
    ImageLabels,
    View,
    draw_view,
    jitter_colours,
    project_joints,
    see_labels,
    view_affine,
    warp_image,
    whole_view,
)
from dto_pipeline.train.data_config import NO_AUGMENTATION, AugmentConfig
from tests.train.label_examples import random_labels

CAMERAS = st.builds(
    lambda fx, ratio, cx, cy: np.array([[fx, 0, cx], [0, fx * ratio, cy], [0, 0, 1]]),
    st.floats(250, 900),
    st.one_of(st.just(1.0), st.floats(0.8, 1.25)),
    st.floats(-50, 400),
    st.floats(-50, 300),
)
VIEWS = st.builds(
    lambda degrees, flip, focal, cx, cy: View(
        np.deg2rad(degrees), flip, np.array([[focal, 0, cx], [0, focal, cy], [0, 0, 1.0]])
    ),
    st.one_of(st.just(0.0), st.floats(-180, 180)),
    st.booleans(),
    st.floats(150, 1500),
    st.floats(-300, 600),
    st.floats(-300, 600),
)


def body_joints(body: BodyModel, labels: ImageLabels) -> torch.Tensor:
    """(P, 24, 3) float64 of pose, betas and transl, through the whole body model."""
    arrays = (torch.from_numpy(getattr(labels, name)) for name in ("pose", "betas", "transl"))
    return body.joints(*arrays)[:, :24].double()


def mapped(points: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return points @ affine[:, :2].T + affine[:, 2]


@settings(deadline=None, max_examples=60)
@given(camera=CAMERAS, view=VIEWS, seed=st.integers(0, 5))
def test_the_bodies_of_seen_labels_project_where_the_picture_shows_them(
    body: BodyModel, camera: np.ndarray, view: View, seed: int
) -> None:
    labels = random_labels(body, seed=seed, intrinsics=camera)
    if view.flip:  # the template is symmetric, the shape directions of no body model are quite
        labels = with_betas(body, labels, 0)
    before = project(body_joints(body, labels), torch.from_numpy(camera)).numpy()
    seen = see_labels(labels, view)
    after = project(body_joints(body, seen), torch.from_numpy(seen.intrinsics)).numpy()
    order = list(MIRROR_JOINTS) if view.flip else list(range(24))
    expected = mapped(before[:, order], view_affine(camera, view))
    assert np.abs(after - expected).max() < 0.01 * max(1.0, view.intrinsics[0, 0] / 400)
    np.testing.assert_allclose(project_joints(seen), expected, atol=0.01 * max(1.0, view.intrinsics[0, 0] / 400))


def with_betas(body: BodyModel, labels: ImageLabels, value: float) -> ImageLabels:
    same = dataclasses.replace(labels, betas=np.full_like(labels.betas, value))
    return dataclasses.replace(same, joints=body_joints(body, same).numpy().astype(np.float32))


@settings(deadline=None, max_examples=30)
@given(camera=CAMERAS, view=VIEWS, seed=st.integers(0, 5))
def test_the_pelvis_of_any_shape_is_exact_in_the_mirror_too(
    body: BodyModel, camera: np.ndarray, view: View, seed: int
) -> None:
    labels = random_labels(body, seed=seed, intrinsics=camera)
    before = project(body_joints(body, labels)[:, 0], torch.from_numpy(camera)).numpy()
    seen = see_labels(labels, view)
    after = project(body_joints(body, seen)[:, 0], torch.from_numpy(seen.intrinsics)).numpy()
    np.testing.assert_allclose(after, mapped(before, view_affine(camera, view)), atol=0.01)


@settings(deadline=None, max_examples=30)
@given(camera=CAMERAS, view=VIEWS)
def test_distances_along_the_axis_and_their_covariance_stay(body: BodyModel, camera: np.ndarray, view: View) -> None:
    labels = random_labels(body, intrinsics=camera)
    seen = see_labels(labels, view)
    np.testing.assert_array_equal(seen.z_covariance, labels.z_covariance)
    np.testing.assert_allclose(seen.joints[:, 0, 2], labels.joints[:, 0, 2], rtol=1e-6)
    np.testing.assert_array_equal(seen.betas, labels.betas)


def test_looking_into_the_mirror_twice_changes_nothing(body: BodyModel) -> None:
    labels = random_labels(body)
    keypoints = np.random.default_rng(1).uniform(0, 200, labels.keypoints.shape).astype(np.float32)
    labels = dataclasses.replace(labels, keypoints=keypoints)
    mirrored = labels.intrinsics * np.array([[1, 1, -1], [1, 1, 1], [1, 1, 1]]) + np.array(
        [[0, 0, 320], [0] * 3, [0] * 3]
    )
    once = see_labels(labels, View(0.0, True, mirrored))
    twice = see_labels(once, View(0.0, True, labels.intrinsics))
    for name in ("pose", "betas", "transl", "joints", "boxes", "keypoints"):
        np.testing.assert_allclose(getattr(twice, name), getattr(labels, name), atol=2e-5, err_msg=name)
    assert not np.allclose(once.pose, labels.pose)


def test_a_mirror_shows_column_u_at_width_minus_u(body: BodyModel) -> None:
    labels = random_labels(body)
    mirrored = labels.intrinsics.copy()
    mirrored[0, 2] = 320 - mirrored[0, 2]
    np.testing.assert_allclose(
        view_affine(labels.intrinsics, View(0.0, True, mirrored)), [[-1, 0, 320], [0, 1, 0]], atol=1e-9
    )


def test_a_turn_moves_the_pelvis_about_the_axis_although_transl_is_not_the_pelvis(body: BodyModel) -> None:
    labels = random_labels(body, people=1)
    view = View(np.pi / 2, False, labels.intrinsics)
    x, y, z = body_joints(body, labels)[0, 0].tolist()
    np.testing.assert_allclose(body_joints(body, see_labels(labels, view))[0, 0], [-y, x, z], atol=1e-5)
    assert not np.allclose(
        see_labels(labels, view).transl[0], [-labels.transl[0, 1], labels.transl[0, 0], z], atol=1e-3
    )


def test_boxes_are_exact_without_a_turn_and_do_not_swell_with_one(body: BodyModel) -> None:
    labels = dataclasses.replace(random_labels(body, people=1), boxes=np.array([[100, 50, 140, 150]], np.float32))
    wide = View(0.0, True, np.array([[800.0, 0, 20], [0, 800, 30], [0, 0, 1]]))
    corners = mapped(np.array([[140.0, 50], [100, 150]]), view_affine(labels.intrinsics, wide))
    np.testing.assert_allclose(see_labels(labels, wide).boxes[0], corners.ravel(), rtol=1e-5)
    turned = see_labels(labels, View(np.deg2rad(90), False, labels.intrinsics)).boxes[0]
    np.testing.assert_allclose(turned[2:] - turned[:2], [100, 40], atol=1e-3)


@settings(deadline=None, max_examples=25)
@given(
    degrees=st.floats(-15, 15),
    flip=st.booleans(),
    scale=st.floats(0.2, 2.0),
    ratio=st.sampled_from([1.0, 0.9, 1.15]),
    place=st.tuples(st.floats(60, 260), st.floats(60, 180)),
)
def test_a_dot_painted_into_the_picture_is_found_where_the_labels_say(
    degrees: float, flip: bool, scale: float, ratio: float, place: tuple[float, float]
) -> None:
    camera = np.array([[400.0, 0, 140], [0, 400 * ratio, 130], [0, 0, 1]])
    turned = View(np.deg2rad(degrees), flip, np.diag([400 * scale, 400 * scale, 1]))
    affine = view_affine(camera, turned)
    turned.intrinsics[:2, 2] = 128 - mapped(np.array([[160.0, 120]]), affine)[0] + turned.intrinsics[:2, 2]
    affine = view_affine(camera, turned)
    v, u = np.mgrid[:240, :320] + 0.5  # pixel centres
    blob = np.exp(-((u - place[0]) ** 2 + (v - place[1]) ** 2) / (2 * 6.0**2))
    picture = np.round(blob[..., None] * np.array([255, 128, 64])).astype(np.uint8)
    seen = warp_image(picture, affine, 256).astype(np.float64)[..., 0]
    expected = mapped(np.array([place]), affine)[0]
    if not (expected > 30).all() or not (expected < 226).all():
        return
    rows, columns = np.mgrid[:256, :256] + 0.5
    near = (np.hypot(columns - expected[0], rows - expected[1]) < 28) * seen
    found = np.array([(columns * near).sum(), (rows * near).sum()]) / near.sum()
    np.testing.assert_allclose(found, expected, atol=0.35)


def test_a_picture_that_shrinks_is_averaged_not_sampled() -> None:
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 200
    small = warp_image(stripes, np.array([[0.125, 0, 0], [0, 0.125, 0]]), 50)
    assert np.abs(small.astype(int) - 100).max() <= 5  # the border sees fewer stripes


def test_outside_of_the_picture_is_black_and_the_identity_is_exact() -> None:
    picture = np.random.default_rng(0).integers(1, 255, (40, 30, 3)).astype(np.uint8)
    seen = warp_image(picture, np.array([[1.0, 0, 5], [0, 1, 0]]), 40)
    np.testing.assert_array_equal(seen[:, 5:35], picture)
    assert not seen[:, :5].any()
    assert not seen[:, 35:].any()


@pytest.mark.parametrize("size", [(320, 240), (100, 400)])
def test_the_whole_view_fits_the_picture_centred_into_the_input(size: tuple[int, int]) -> None:
    camera = np.array([[400.0, 0, 100], [0, 440, 90], [0, 0, 1]])
    affine = view_affine(camera, whole_view(camera, *size, 224))
    corners = mapped(np.array([[0, 0], size], np.float64), affine)
    np.testing.assert_allclose(corners.mean(axis=0), [112, 112])
    assert (corners[1] - corners[0]).max() == pytest.approx(224)


def test_without_augmentation_the_whole_view_is_drawn(body: BodyModel) -> None:
    labels = random_labels(body)
    drawn = draw_view(np.random.default_rng(3), labels, 320, 240, 224, NO_AUGMENTATION)
    whole = whole_view(labels.intrinsics, 320, 240, 224)
    assert (drawn.angle, drawn.flip) == (0.0, False)
    np.testing.assert_allclose(drawn.intrinsics, whole.intrinsics)


def test_random_windows_hold_the_pelvis_of_somebody_the_picture_shows(body: BodyModel) -> None:
    config = AugmentConfig(min_scale=1.8, crop=1.0)
    labels = random_labels(body, people=1, seed=4, spread=0.5)
    pelvis = project_joints(labels)[0, 0]
    assert (pelvis > 0).all()
    assert (pelvis < [320, 240]).all()
    for seed in range(50):
        view = draw_view(np.random.default_rng(seed), labels, 320, 240, 200, config)
        seen = project_joints(see_labels(labels, view))[0, 0]
        assert ((seen > 0) & (seen < 200)).all(), seed


def test_drawn_views_stay_within_the_ranges_of_the_config(body: BodyModel) -> None:
    labels, config = random_labels(body), AugmentConfig()
    views = [draw_view(np.random.default_rng(s), labels, 320, 240, 320, config) for s in range(300)]
    angles = np.rad2deg([view.angle for view in views])
    scales = np.array([view.intrinsics[0, 0] for view in views]) / 400
    assert 13 < np.abs(angles).max() <= 15
    assert 0.8 <= scales.min() < 0.85
    assert 1.75 < scales.max() <= 1.8
    assert 0.4 < np.mean([view.flip for view in views]) < 0.6


def test_colours_vary_within_the_unit_cube_and_not_at_all_when_switched_off() -> None:
    image = np.random.default_rng(0).random((8, 8, 3)).astype(np.float32)
    varied = jitter_colours(np.random.default_rng(1), image, AugmentConfig())
    assert varied.dtype == np.float32
    assert varied.min() >= 0
    assert varied.max() <= 1
    assert not np.allclose(varied, image)
    assert jitter_colours(np.random.default_rng(1), image, NO_AUGMENTATION) is image


def test_saturation_moves_a_colour_towards_its_grey() -> None:
    image = np.tile(np.array([0.8, 0.4, 0.2], np.float32), (4, 4, 1))
    only = AugmentConfig(brightness=0, contrast=0, saturation=1.0)
    varied = jitter_colours(np.random.default_rng(3), image, only)[0, 0]
    grey = image[0, 0] @ np.array([0.299, 0.587, 0.114])
    factors = (varied - grey) / (image[0, 0] - grey)
    np.testing.assert_allclose(factors, factors[0], rtol=1e-4)
    assert factors[0] != pytest.approx(1)
