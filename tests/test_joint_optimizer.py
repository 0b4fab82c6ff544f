"""`solver.mode: joint` through the whole optimiser: who moves, who decides overlaps, what the labels say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from dto_pipeline.collate import collate_scenes
from dto_pipeline.config import PipelineConfig, load_config
from dto_pipeline.data.labels import build_label_table, placed_scenes, unpack_covariance
from dto_pipeline.models.body import BodyModel
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.status import ImageStatus, PersonStatus
from tests.crowds import Stander, make_scene
from tests.test_optimizer import FAMILY, place

JOINT = load_config(overrides=["solver.mode=joint"])
SINGLE = load_config(overrides=["solver.mode=joint", "joint.move_single=true"])


def test_children_labelled_as_adults_are_brought_to_their_places(body: BodyModel) -> None:
    (placed,) = place([make_scene(body, FAMILY)], body, JOINT)
    assert placed.status is ImageStatus.OPTIMIZED
    assert np.allclose(placed.transl[:, 2], [p.z for p in FAMILY], rtol=0.08)
    assert np.allclose(placed.height_m, [p.height for p in FAMILY], atol=0.1)
    assert placed.depth_model in ("affine_depth", "affine_disparity")


def test_heights_are_hit_exactly(body: BodyModel) -> None:
    (placed,) = place([make_scene(body, FAMILY)], body, JOINT)
    assert (placed.beta_index == 10).any()  # the kid axis, where one secant step misses by millimetres
    reached = body.rest_height(torch.from_numpy(placed.betas).to(torch.float64)).numpy()
    assert np.allclose(reached, placed.scale * placed.height_init_m, atol=2e-6)  # float32 betas


def test_a_person_alone_in_its_group_is_placed_by_the_scene(body: BodyModel) -> None:
    far = Stander(x=0.5, z=10.0, height=1.7, factor=1.25)
    scene = make_scene(body, (*FAMILY, far), size=(360, 480), focal=430)
    assert place([scene], body)[0].person_status[-1] is PersonStatus.ALONE_IN_GROUP
    (placed,) = place([scene], body, JOINT)
    assert placed.person_status[-1] is PersonStatus.MOVED
    assert placed.transl[-1, 2] == pytest.approx(10.0, rel=0.06)


def test_exactly_two_people_are_solved(body: BodyModel) -> None:
    (placed,) = place([make_scene(body, FAMILY[:2])], body, JOINT)
    assert placed.person_status == [PersonStatus.MOVED] * 2
    assert placed.is_optimized
    assert np.allclose(placed.transl[:, 2], [p.z for p in FAMILY[:2]], rtol=0.1)


def test_one_person_moves_only_when_asked(body: BodyModel) -> None:
    scene = make_scene(body, (Stander(x=0.0, z=3.0, height=1.715, factor=1.2),))
    (kept,) = place([scene], body, JOINT)
    assert kept.status is ImageStatus.TOO_FEW_PEOPLE
    assert np.array_equal(kept.transl, scene.transl)
    assert np.isnan(kept.z_sigma_m).all()
    (moved,) = place([scene], body, SINGLE)
    assert moved.status is ImageStatus.PLACED_BY_PRIOR
    assert moved.person_status == [PersonStatus.PLACED_BY_PRIOR]
    assert moved.transl[0, 2] == pytest.approx(3.0, rel=0.08)
    assert moved.z_sigma_m[0] > 0


def test_overlapping_masks_go_to_whoever_the_fit_puts_in_front(body: BodyModel) -> None:
    """A child before its mother, labelled as an adult behind her; both masks hold both people."""
    child = Stander(x=0.05, z=2.6, height=1.122, factor=1.6, age=5)
    mother = Stander(x=0.0, z=3.6, height=1.647, age=35, male_prob=0.1)
    scene = make_scene(body, (child, mother, Stander(1.3, 4.0), Stander(-1.3, 3.0)))
    assert scene.masks is not None
    overlap = scene.masks.copy()
    overlap[:2] = scene.masks[:2].any(0)
    disputed = dataclasses.replace(scene, masks=overlap)
    labels = SceneOptimizer(body, PipelineConfig())(collate_scenes([disputed]))
    found = SceneOptimizer(body, JOINT)(collate_scenes([disputed]))
    inside = torch.from_numpy(scene.masks[0])  # where the child is seen
    assert (labels.maps.person[0][inside] == 0).float().mean() < 0.4
    assert (found.maps.person[0][inside] == 0).float().mean() > 0.8  # what of it the label's body covers
    z = found.maps.z[0][inside & (found.maps.person[0] == 0)]
    assert z.mean().item() == pytest.approx(2.6 * 1.6, rel=0.05)  # still the label's distance, as evidence wants it


def test_the_paper_mode_never_looks_at_the_joint_options(body: BodyModel) -> None:
    scene = make_scene(body, FAMILY)
    other = load_config(overrides=["joint.temperature=3", "joint.move_single=true", "joint.min_pixels_grid=5"])
    before, after = place([scene], body)[0], place([scene], body, other)[0]
    assert np.array_equal(before.transl, after.transl)
    assert np.array_equal(before.betas, after.betas)
    assert np.isnan(after.z_sigma_m).all()
    assert after.z_covariance is None


def test_the_posterior_arrives_in_the_labels(body: BodyModel) -> None:
    placed = place([make_scene(body, FAMILY), make_scene(body, FAMILY[:3], name="other")], body, JOINT)
    table = build_label_table([*placed, *place([make_scene(body, FAMILY[:2])], body)])
    assert table.column("z_covariance").to_pylist()[2] is None
    for before, after in zip(placed, placed_scenes(table), strict=False):
        people = before.scene.num_people
        assert after.z_covariance is not None
        assert after.z_covariance.shape == (people * (people + 1) // 2,)
        covariance = unpack_covariance(after.z_covariance, people)
        assert np.array_equal(covariance, covariance.T)
        assert np.linalg.eigvalsh(covariance.astype(np.float64)).min() > 0
        assert np.allclose(covariance.diagonal(), after.z_sigma_m**2, rtol=1e-5)
        assert np.array_equal(before.height_sigma_m, after.height_sigma_m)
        assert after.depth_model == before.depth_model
        line = (*after.alpha, *after.beta) if after.depth_model == "affine_depth" else after.disparity_line
        assert np.isfinite(line).all()
