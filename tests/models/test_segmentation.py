"""Instances found by a network and the people they belong to; outlines where nobody found one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto_pipeline.config import MaskConfig, PipelineConfig
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.body_pixels import (
    Instances,
    claim_pixels,
    map_joints,
    match_instances,
    project_joints,
    render_silhouettes,
)
from dto_pipeline.models.networks import ModelError, ModelMissing
from dto_pipeline.models.people_networks import InstanceNetwork, person_classes
from dto_pipeline.models.seeing import Perception
from dto_pipeline.scene import Scene
from dto_pipeline.status import PersonStatus
from dto_pipeline.timing import StageClock
from tests.crowds import Stander, make_scene
from tests.tiny_models import save_classifier, save_mask2former


def box(left: int, right: int) -> np.ndarray:
    mask = np.zeros((10, 20), bool)
    mask[2:8, left:right] = True
    return mask


def crowd(body: BodyModel, *people: Stander) -> Scene:
    scene = make_scene(body, people or (Stander(-0.5, 4.0), Stander(0.5, 5.0)))
    scene.image = np.random.default_rng(0).integers(0, 256, (scene.height, scene.width, 3), dtype=np.uint8)
    scene.has_mask = np.ones(scene.num_people, bool)
    return scene


def test_everybody_gets_the_instance_that_is_best_for_all() -> None:
    # the first instance overlaps both people, but the second person has no other
    instances = Instances(np.stack([box(4, 10), box(0, 6)]), np.array([0.9, 0.8], np.float32))
    silhouettes = np.stack([box(1, 8), box(6, 12)])
    joints = np.full((2, 24, 2), np.nan)
    index, match = match_instances(instances, silhouettes, joints, 0.05)
    assert index.tolist() == [1, 0]
    assert (match > 0).all()


def test_joints_decide_between_equal_overlaps() -> None:
    instances = Instances(np.stack([box(0, 4), box(8, 12)]), np.ones(2, np.float32))
    joints = np.full((1, 24, 2), np.nan)
    joints[0, :3] = [[9.5, 4.5], [10.5, 5.5], [30.0, 5.0]]  # the last lies outside and does not count
    index, match = match_instances(instances, box(2, 10)[None], joints, 0.3)
    assert index.tolist() == [1]
    assert match[0] > 0.5


def test_a_poor_match_is_nobodys() -> None:
    instances = Instances(box(15, 20)[None], np.ones(1, np.float32))
    index, match = match_instances(instances, box(0, 5)[None], np.full((1, 24, 2), np.nan), 0.3)
    assert index.tolist() == [-1]
    assert np.isnan(match).all()


@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 10**6))
def test_no_instance_is_given_twice(people: int, found: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    instances = Instances(rng.random((found, 6, 8)) < 0.5, rng.random(found).astype(np.float32))
    index, _ = match_instances(instances, rng.random((people, 6, 8)) < 0.5, rng.random((people, 24, 2)) * 8, 0.2)
    given_away = index[index >= 0]
    assert len(index) == people
    assert len(set(given_away.tolist())) == len(given_away)


def test_pixels_claimed_by_two_people_without_masks_count_for_neither() -> None:
    silhouettes = np.stack([box(0, 8), box(6, 12), box(14, 18)])
    claimed = claim_pixels(np.zeros_like(silhouettes), np.zeros(3, bool), silhouettes)
    np.testing.assert_array_equal(claimed, np.stack([box(0, 6), box(8, 12), box(14, 18)]))


def test_a_mask_that_was_seen_goes_before_an_outline_that_was_drawn() -> None:
    masks = np.stack([box(0, 8), np.zeros((10, 20), bool)])
    claimed = claim_pixels(masks, np.array([True, False]), np.stack([box(0, 10), box(6, 12)]))
    np.testing.assert_array_equal(claimed, np.stack([box(0, 8), box(8, 12)]))


def test_outlines_cover_the_exact_masks_of_the_same_bodies(body: BodyModel) -> None:
    scene = crowd(body, Stander(-0.1, 4.0), Stander(0.1, 5.0))
    assert scene.masks is not None
    silhouettes = render_silhouettes(scene, body, 512)
    front = (silhouettes[0] & scene.masks[0]).sum() / (silhouettes[0] | scene.masks[0]).sum()
    assert front > 0.97  # nobody stands before the first; the map's camera is off by less than a pixel
    assert (silhouettes[1] & scene.masks[1]).sum() > 0.97 * scene.masks[1].sum()
    assert silhouettes[1].sum() > 1.2 * scene.masks[1].sum()  # the second is half hidden


def test_projected_joints_lie_on_the_body(body: BodyModel) -> None:
    scene = crowd(body)
    assert scene.masks is not None
    joints = map_joints(project_joints(scene, body), (scene.height, scene.width), scene.masks.shape[1:])
    column, row = np.floor(joints[0]).astype(int).T
    assert scene.masks[0][row.clip(0, scene.masks.shape[1] - 1), column].mean() > 0.9


def test_a_label_that_cannot_be_used_has_no_outline(body: BodyModel) -> None:
    scene = crowd(body)
    scene.person_problem[0] = (PersonStatus.INVALID_LABEL, "nan")
    scene.pose[0] = np.nan
    silhouettes = render_silhouettes(scene, body, 512)
    assert not silhouettes[0].any()
    assert silhouettes[1].any()
    assert np.isnan(project_joints(scene, body)[0]).all()


def test_without_masks_the_rendered_silhouettes_decide_and_the_column_says_so(body: BodyModel) -> None:
    scene = crowd(body)
    Perception(PipelineConfig(masks=MaskConfig(source="none")), body).perceive([scene], StageClock())
    assert scene.origin["masks"] == "rendered"
    assert scene.masks is not None
    assert scene.masks.any((1, 2)).all()
    assert (scene.masks.sum(0) <= 1).all()


def test_people_the_labels_give_no_mask_are_drawn_and_others_kept(body: BodyModel) -> None:
    scene = crowd(body)
    assert scene.masks is not None
    scene.has_mask, scene.origin["masks"] = np.array([True, False]), "sidecar"
    before = scene.masks.copy()
    scene.masks[1] = True
    Perception(PipelineConfig(), body).perceive([scene], StageClock())
    np.testing.assert_array_equal(scene.masks[0], before[0])
    assert 0 < scene.masks[1].sum() < 0.2 * scene.masks[1].size
    assert scene.origin["masks"] == "sidecar + rendered"


def test_a_networks_instances_reach_the_people_with_their_scores(
    body: BodyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = MaskConfig(source="model", model=str(save_mask2former(tmp_path / "masks")), short_side=64)
    scene = crowd(body)
    assert scene.masks is not None
    exact = scene.masks.copy()
    perception = Perception(PipelineConfig(masks=config), body)

    def find(images: object, sizes: object) -> list[Instances]:
        return [Instances(exact[::-1], np.array([0.7, 0.9], np.float32))]

    monkeypatch.setattr(perception._instances, "find", find)
    perception.perceive([scene], StageClock())
    np.testing.assert_array_equal(scene.masks, exact)
    np.testing.assert_allclose(scene.mask_score, [0.9, 0.7])  # type: ignore[arg-type]
    assert scene.origin["masks"].startswith("mask2former@")
    assert len(perception.facts["mask_sha256"]) == 64


def test_a_network_of_random_weights_runs_from_its_folder_and_finds_nobody_it_is_sure_of(tmp_path: Path) -> None:
    folder = save_mask2former(tmp_path / "masks")
    images = [np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8) for i in range(3)]
    sure = InstanceNetwork(MaskConfig(model=str(folder), short_side=64, min_score=0.999, batch=2))
    found = sure.find(images, [(20, 25)] * 3)
    assert [instances.masks.shape for instances in found] == [(0, 20, 25)] * 3
    unsure = InstanceNetwork(MaskConfig(model=str(folder), short_side=64, min_score=0.0, batch=2))
    everything = unsure.find(images, [(20, 25), (40, 50), (20, 25)])
    assert everything[1].masks.shape[1:] == (40, 50)
    assert len(everything[0].score) == len(everything[0].masks) > 0
    (alone,) = unsure.find(images[2:], [(20, 25)])
    np.testing.assert_allclose(alone.score, everything[2].score, rtol=1e-4)


def test_a_network_that_knows_no_people_is_refused(tmp_path: Path) -> None:
    assert person_classes({0: "dog", 1: "Person"}) == [1]
    with pytest.raises(ModelError, match=r"masks\.model is of the family 'vit'; expected mask2former or"):
        InstanceNetwork(MaskConfig(model=str(save_classifier(tmp_path / "classifier", ("person", "dog")))))
    with pytest.raises(ModelError, match="no class 'person'"):
        InstanceNetwork(MaskConfig(model=str(save_mask2former(tmp_path / "zoo", ("cat", "dog")))))


def test_a_missing_segmentation_network_is_told_with_its_own_option(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match=r"masks\.model"):
        InstanceNetwork(MaskConfig(model=str(tmp_path / "nowhere")))
    with pytest.raises(ModelError, match=r"masks\.revision"):
        InstanceNetwork(MaskConfig(model="facebook/mask2former-swin-small-coco-instance"))
