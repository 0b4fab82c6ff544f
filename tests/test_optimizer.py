"""The whole method on exact crowds: it finds the truth, and padding, order and batching change nothing."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dto_pipeline.collate import collate_scenes, keep_labels, split_batch
from dto_pipeline.config import PipelineConfig, config_from_dict
from dto_pipeline.models.body import BodyModel
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.scene import PlacedScene, Scene
from dto_pipeline.status import ImageStatus, PersonStatus
from tests.crowds import Stander, make_scene, reorder

CONFIGS = {mode: config_from_dict({"solver": {"mode": mode}}) for mode in ("paper", "joint")}
CONFIG = CONFIGS["paper"]
both_solvers = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
FAMILY = (  # children as tall as their priors expect, labelled as adults farther away
    Stander(x=-0.9, z=2.8, height=1.122, factor=1.5, age=5),
    Stander(x=0.0, z=3.6, height=1.477, factor=1.15, age=11),
    Stander(x=0.9, z=3.2, height=1.122, factor=1.4, age=6),
    Stander(x=1.9, z=4.4, height=1.477, factor=1.1, age=12),
)


def place(scenes: list[Scene], body: BodyModel, config: PipelineConfig = CONFIG) -> list[PlacedScene]:
    return split_batch(scenes, SceneOptimizer(body, config)(collate_scenes(scenes)), config)


def assert_close(left: PlacedScene, right: PlacedScene, order: list[int] | None = None) -> None:
    """Equal statuses, numbers equal but for float32 skinning in batches of another size."""
    index = order or list(range(left.scene.num_people))
    assert [left.person_status[i] for i in index] == right.person_status
    assert left.status is right.status
    for name in ("transl", "betas", "scale", "height_m", "depth_mean", "slope"):
        assert np.allclose(getattr(left, name)[index], getattr(right, name), rtol=1e-4, atol=1e-5, equal_nan=True), name
    assert np.allclose(left.z_sigma_m[index], right.z_sigma_m, rtol=1e-3, equal_nan=True)
    assert left.alpha == pytest.approx(right.alpha, rel=1e-4, nan_ok=True)
    assert left.deviation == pytest.approx(right.deviation, abs=1e-4)


@settings(max_examples=8, deadline=None)
@given(alpha=st.floats(300, 700), beta=st.floats(-0.3, 0.3))
def test_a_scene_made_from_a_true_alpha_and_beta_gives_them_back(body: BodyModel, alpha: float, beta: float) -> None:
    config = config_from_dict({"solver": {"internal_constraint": False}})  # else bodies may hold alpha up
    scene = make_scene(body, FAMILY, alpha=alpha, beta=beta)
    (placed,) = place([scene], body, config)
    assert placed.status is ImageStatus.OPTIMIZED
    assert placed.alpha[0] == pytest.approx(alpha, rel=0.02)
    assert placed.beta[0] == pytest.approx(beta, abs=0.1)
    assert np.allclose(placed.transl[:, 2], [p.z for p in FAMILY], rtol=0.02)
    assert np.allclose(placed.height_m, [p.height for p in FAMILY], atol=0.02)


@both_solvers
def test_padding_and_batching_never_change_a_scene(body: BodyModel, config: PipelineConfig) -> None:
    small = make_scene(body, FAMILY[:3], size=(240, 320), name="small")
    large = make_scene(body, (*FAMILY, Stander(-2.0, 5.0)), size=(300, 400), focal=330, name="large")
    pair = make_scene(body, FAMILY[1:3], size=(320, 240), focal=240, name="pair")
    together = place([small, large, pair], body, config)
    for scene, placed in zip((small, large, pair), together, strict=True):
        assert_close(place([scene], body, config)[0], placed)


@both_solvers
@settings(max_examples=5, deadline=None)
@given(order=st.permutations(range(4)))
def test_the_order_of_people_never_changes_a_scene(body: BodyModel, config: PipelineConfig, order: list[int]) -> None:
    scene = make_scene(body, FAMILY)
    assert_close(place([scene], body, config)[0], place([reorder(scene, order)], body, config)[0], order)


def test_an_off_centre_principal_point_gives_the_same_distances(body: BodyModel) -> None:
    """The same camera looking through a window cut out of the image: nothing real has changed."""
    whole = make_scene(body, FAMILY, size=(240, 360))
    cut = make_scene(body, FAMILY, size=(240, 340), principal_point=(160, 120))  # 20 columns gone on the left
    assert np.allclose(place([whole], body)[0].transl, place([cut], body)[0].transl, rtol=0.01, atol=0.02)


def test_joints_keep_their_place_in_the_image(body: BodyModel) -> None:
    scene = make_scene(body, FAMILY)
    (placed,) = place([scene], body)
    pose = torch.from_numpy(scene.pose)

    def joints(betas: np.ndarray, transl: np.ndarray) -> np.ndarray:
        xyz = body.joints(pose, torch.from_numpy(betas), torch.from_numpy(transl)).numpy()[:, :24]
        return xyz[..., :2] / xyz[..., 2:] * 300

    shift = np.abs(joints(scene.betas, scene.transl) - joints(placed.betas, placed.transl))
    assert shift.mean() < 5  # px at a focal length of 300 px; the kid axis changes proportions
    assert float(shift.max()) < 16


def test_people_set_aside_keep_their_labels_exactly(body: BodyModel) -> None:
    far = Stander(x=0.5, z=10.0, height=1.7, factor=1.05)  # alone in the far group
    scene = make_scene(body, (*FAMILY, far), size=(360, 480), focal=430)
    (placed,) = place([scene], body)
    assert placed.person_status[-1] is PersonStatus.ALONE_IN_GROUP
    assert np.array_equal(placed.transl[-1], scene.transl[-1])
    assert np.array_equal(placed.betas[-1], scene.betas[-1])
    assert placed.scale[-1] == 1
    assert placed.beta_index[-1] == -1


def test_one_usable_person_passes_through_with_a_status(body: BodyModel) -> None:
    scene = make_scene(body, FAMILY[:2])
    scene.person_problem[0] = (PersonStatus.INVALID_LABEL, "pose of row 7 is not finite")
    scene.pose[0] = np.nan
    (placed,) = place([scene], body)
    assert placed.status is ImageStatus.TOO_FEW_PEOPLE
    assert placed.person_status == [PersonStatus.INVALID_LABEL, PersonStatus.NOT_RUN]
    assert placed.person_message[0] == "pose of row 7 is not finite"
    assert np.isnan(placed.scene.pose[0]).all()
    assert np.array_equal(placed.transl, scene.transl)


@both_solvers
def test_a_broken_person_leaves_the_others_as_if_it_were_not_there(body: BodyModel, config: PipelineConfig) -> None:
    whole = make_scene(body, FAMILY[:3])
    (expected,) = place([whole], body, config)
    crowd = reorder(whole, [0, 1, 2, 2])
    crowd.transl[3] = np.nan
    crowd.person_problem[3] = (PersonStatus.INVALID_LABEL, "transl is not finite")
    (placed,) = place([crowd], body, config)
    assert np.allclose(placed.transl[:3], expected.transl, rtol=1e-5)
    assert placed.person_status[3] is PersonStatus.INVALID_LABEL
    assert np.isnan(placed.z_sigma_m[3])


def test_a_scene_with_a_problem_passes_through_with_its_labels(body: BodyModel) -> None:
    scene = dataclasses.replace(make_scene(body, FAMILY), problem=(ImageStatus.IMAGE_CORRUPT, "cut off at byte 100"))
    placed = keep_labels(scene)
    assert placed.status is ImageStatus.IMAGE_CORRUPT
    assert placed.message == "cut off at byte 100"
    assert placed.person_status == [PersonStatus.NOT_RUN] * 4
    assert np.array_equal(placed.transl, scene.transl)


def test_unknown_age_and_gender_mean_an_adult_of_unknown_gender(body: BodyModel) -> None:
    scene = make_scene(body, FAMILY)
    scene.age_years[:] = np.nan
    scene.male_prob[:] = np.nan
    (placed,) = place([scene], body)
    assert placed.height_class.tolist() == [5] * 4
    assert np.isfinite(placed.transl).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@both_solvers
def test_gpu_equals_cpu(body: BodyModel, config: PipelineConfig) -> None:
    scene = make_scene(body, FAMILY)
    (expected,) = place([scene], body, config)
    optimizer = SceneOptimizer(body.to("cuda"), config)
    (placed,) = split_batch([scene], optimizer(collate_scenes([scene], "cuda")), config)
    body.to("cpu")
    assert_close(expected, placed)


def test_each_of_the_causes_of_too_small_is_told(body: BodyModel) -> None:
    """Four people: whole; almost covered; only a patch of the chest; in a flat spot of the map."""
    scene = make_scene(body, [Stander(x=0.9 * i - 1.4, z=3.5 + 0.1 * i) for i in range(4)], size=(240, 480))
    assert scene.masks is not None
    assert scene.disparity is not None
    for person, side in ((1, 4), (2, 18)):
        rows, columns = np.nonzero(scene.masks[person])
        kept = np.zeros_like(scene.masks[person])
        top, left = int(np.median(rows)) - 35, int(np.median(columns)) - side // 2
        kept[top : top + side, left : left + side] = True
        scene.masks[person] &= kept
    scene.disparity[scene.masks[3]] = 0.3
    (placed,) = place([scene], body)
    whole, covered, patch, flat = placed.person_message
    assert placed.person_status[1:] == [PersonStatus.TOO_SMALL] * 3
    assert whole is None
    assert covered == "16 pixels of known depth are seen, fewer than 288"
    assert re.fullmatch(r"\d+ vertices are seen, fewer than 500", str(patch))
    assert re.fullmatch(r"its depth is flat: the middle half of its \d+ pixels is 3.333, and none .*", str(flat))
    assert all(word in PersonStatus.TOO_SMALL.advice for word in ("pixels", "vertices", "flat"))
