"""Synthetic crowds: what is true of a scene is true of everything made from it; heights follow growth charts."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from dto_pipeline.axes import ADULT_FEMALE, BABY, KID_AXIS
from dto_pipeline.lab.crowd import HEIGHT_RANGE, plan_crowd
from dto_pipeline.lab.known_scenes import DEMO_DEPTH, CrowdScene, observe_disparity
from dto_pipeline.lab.own_bodies import FEMALE, MALE, height_law, rest_height, solve_height
from dto_pipeline.models.body import BodyModel, load_body


def test_heights_are_the_charts_medians_children_grow_and_adults_do_not() -> None:
    age, sex = np.array([2.0, 2.0, 5.042, 10.042, 20.0, 60.0]), np.array([MALE, FEMALE, FEMALE, MALE, MALE, FEMALE])
    median, variation = height_law(age, sex)
    assert median == pytest.approx([0.8645, 0.8498, 1.0796, 1.3882, 1.7685, 1.6334])
    assert variation[4] == pytest.approx(0.0404)
    ages = np.linspace(0.8, 20, 200)
    for one in (MALE, FEMALE):
        assert (np.diff(height_law(ages, np.full(200, one))[0]) > 0).all()
        assert np.ptp(height_law(np.linspace(20, 80, 9), np.full(9, one))[0]) == 0


SEED = 7


@cache
def scene(number: int) -> CrowdScene:
    return CrowdScene(SEED, number, load_body("demo"))


@pytest.fixture(params=[0, 2])
def crowd_scene(request: pytest.FixtureRequest) -> CrowdScene:
    return scene(request.param)


def test_crowds_are_of_two_to_ten_people_of_all_classes_near_and_far_in_several_image_sizes() -> None:
    crowds = [plan_crowd(SEED, number) for number in range(24)]
    assert {crowd.num_people for crowd in crowds} <= set(range(2, 11))
    classes, height = (np.concatenate([getattr(one, name) for one in crowds]) for name in ("height_class", "height"))
    assert set(classes.tolist()) == set(HEIGHT_RANGE)
    low, high = np.array([HEIGHT_RANGE[c] for c in classes.tolist()]).T
    assert ((low <= height) & (height <= high)).all()
    z = np.concatenate([crowd.place[:, 1] for crowd in crowds])
    assert z.min() < 4
    assert z.max() > 10
    assert len({(crowd.view.width, crowd.view.height) for crowd in crowds}) >= 3


def test_true_bodies_have_the_planned_heights_and_stand_on_the_ground(crowd_scene: CrowdScene) -> None:
    crowd, truth = crowd_scene.crowd, crowd_scene.truth
    np.testing.assert_allclose(truth.height, crowd.height, atol=1e-4)
    level = truth.vertices @ crowd.view.level_to_camera
    np.testing.assert_allclose(level[..., 1].max(axis=1), crowd.view.eye_height, atol=1e-4)


def test_the_picture_shows_people_where_their_joints_project(crowd_scene: CrowdScene) -> None:
    seen = crowd_scene.picture.person
    sure = crowd_scene.keypoints[..., 2] > 0.6
    inner = np.zeros_like(sure)
    inner[:, [1, 8, 40, 41]] = True  # neck, mid hip, thorax, spine: inside the body
    person, joint = np.nonzero(sure & inner)
    u, v = crowd_scene.keypoints[person, joint, :2].astype(int).T
    assert len(person) > 4
    assert (seen[v, u] == person).mean() > 0.9


def test_masks_are_disjoint_and_close_to_what_is_seen(crowd_scene: CrowdScene) -> None:
    masks, seen = crowd_scene.masks, crowd_scene.picture.person
    assert masks.sum(axis=0).max() == 1
    for index, mask in enumerate(masks):
        true = seen == index
        assert (mask & true).sum() > 0.8 * (mask | true).sum()


def test_labels_make_children_adult_like_and_too_far(crowd_scene: CrowdScene) -> None:
    truth, labels = crowd_scene.truth, crowd_scene.labels
    child = crowd_scene.crowd.height_class < ADULT_FEMALE
    assert (labels.factor[child] > 1.02).all()
    np.testing.assert_allclose(labels.transl[:, 2] / truth.transl[:, 2], labels.factor, atol=0.1)
    betas = np.pad(labels.betas, ((0, 0), (0, 1)))
    np.testing.assert_allclose(rest_height(load_body("demo"), betas), labels.factor * truth.height, atol=1e-4)


def test_disparity_is_the_announced_line_of_true_inverse_depth() -> None:
    z = np.repeat(np.linspace(2, 20, 64)[None], 48, axis=0).astype(np.float32)
    nobody = np.full(z.shape, -1)
    found = observe_disparity(DEMO_DEPTH, z, nobody, np.zeros(0), (500.0, 0.6), np.random.default_rng(3))
    inner = np.s_[20:28, 8:-8]  # rows in the middle tilt least, columns off the border blur least
    slope, offset = np.polyfit(1 / z[inner].ravel(), found[inner].ravel().astype(float), 1)
    assert slope == pytest.approx(500.0, rel=0.02)
    assert offset == pytest.approx(0.6, abs=0.5)


def test_near_people_have_small_relative_depth_as_networks_give_it(crowd_scene: CrowdScene) -> None:
    disparity = crowd_scene.depth[0].astype(np.float64)
    for index in np.flatnonzero(crowd_scene.truth.transl[:, 2] < 6):
        assert 1 / np.median(disparity[crowd_scene.masks[index]]) < 0.02


def test_heights_out_of_reach_are_refused(body: BodyModel) -> None:
    betas = np.zeros((1, 11))
    solved = solve_height(body, betas, np.array([KID_AXIS]), np.array([0.8]))
    assert rest_height(body, solved)[0] == pytest.approx(0.8, abs=1e-5)
    with pytest.raises(ValueError, match=r"gives a height of 0\.800 m"):
        solve_height(body, betas, np.array([1]), np.array([0.8]))  # girth makes nobody shorter


def test_babies_are_shaped_along_the_kid_axis() -> None:
    baby = next(n for n in (0, 2, 5, 7) if (plan_crowd(SEED, n).height_class == BABY).any())
    made = scene(baby)
    of_baby = made.crowd.height_class == BABY
    assert (made.truth.betas[of_baby, KID_AXIS] > 0.5).all()
    adult = made.crowd.height_class >= ADULT_FEMALE
    assert (made.truth.betas[adult, KID_AXIS] == 0).all()
