"""Instances found by a network and the people they belong to; outlines where nobody found one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto_pipeline.config import MaskConfig, PipelineConfig
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.network_input import Instances
from dto_pipeline.models.networks import ModelError, ModelMissing
from dto_pipeline.models.people_networks import InstanceNetwork
from dto_pipeline.models.seeing import Perception, match_instances, project_joints, render_silhouettes
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


NOWHERE = np.full((1, 24, 2), np.nan)
NEAR_NINE = NOWHERE.copy()
NEAR_NINE[0, :3] = [[9.5, 4.5], [10.5, 5.5], [30.0, 5.0]]  # the last lies outside the map and does not count


@pytest.mark.parametrize(
    ("found", "outlines", "joints", "least", "expected"),
    [
        # the first instance overlaps both people, but the second person has no other
        ([box(4, 10), box(0, 6)], [box(1, 8), box(6, 12)], NOWHERE.repeat(2, 0), 0.05, [1, 0]),
        ([box(0, 4), box(8, 12)], [box(2, 10)], NEAR_NINE, 0.3, [1]),  # joints decide between equal overlaps
        ([box(15, 20)], [box(0, 5)], NOWHERE, 0.3, [-1]),  # a poor match is nobody's
    ],
)
def test_everybody_gets_the_instance_that_is_best_for_all(
    found: list[np.ndarray], outlines: list[np.ndarray], joints: np.ndarray, least: float, expected: list[int]
) -> None:
    instances = Instances(np.stack(found), np.ones(len(found), np.float32))
    assert match_instances(instances, np.stack(outlines), joints, least).tolist() == expected


@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 10**6))
def test_no_instance_is_given_twice(people: int, found: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    instances = Instances(rng.random((found, 6, 8)) < 0.5, rng.random(found).astype(np.float32))
    index = match_instances(instances, rng.random((people, 6, 8)) < 0.5, rng.random((people, 24, 2)) * 8, 0.2)
    given_away = index[index >= 0]
    assert len(index) == people
    assert len(set(given_away.tolist())) == len(given_away)


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
    column, row = np.floor(project_joints(scene, body)[0, :24]).astype(int).T
    assert scene.masks[0][row.clip(0, scene.masks.shape[1] - 1), column].mean() > 0.9


def test_a_label_that_cannot_be_used_has_no_outline(body: BodyModel) -> None:
    scene = crowd(body)
    scene.person_problem[0] = (PersonStatus.INVALID_LABEL, "nan")
    scene.pose[0] = np.nan
    silhouettes = render_silhouettes(scene, body, 512)
    assert not silhouettes[0].any()
    assert silhouettes[1].any()
    assert np.isnan(project_joints(scene, body)[0]).all()


@pytest.mark.parametrize("source", ["none", "labels"])
def test_people_without_a_mask_get_their_outline_but_for_pixels_that_others_claim(body: BodyModel, source: str) -> None:
    scene = crowd(body, Stander(-0.1, 4.0), Stander(0.1, 4.5), Stander(1.0, 5.0))
    scene.origin["masks"] = "sidecar"
    assert scene.masks is not None
    seen, outlines = scene.masks.copy(), render_silhouettes(scene, body, 512)
    scene.has_mask = np.array([True, False, False])
    scene.masks[1:] = True  # whatever stands there
    Perception(PipelineConfig(masks=MaskConfig(source=source)), body).perceive([scene], StageClock())
    first = seen[0] if source == "labels" else outlines[0]
    claimed = first.astype(int) + outlines[1] + outlines[2] > 1
    assert claimed.any()
    np.testing.assert_array_equal(scene.masks[1:], outlines[1:] & ~claimed)
    np.testing.assert_array_equal(scene.masks[0], first if source == "labels" else first & ~claimed)
    assert scene.origin["masks"] == ("sidecar + rendered" if source == "labels" else "rendered")


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
    with pytest.raises(ModelError, match=r"masks\.model is of the family 'vit'; expected mask2former or"):
        InstanceNetwork(MaskConfig(model=str(save_classifier(tmp_path / "classifier", ("person", "dog")))))
    assert InstanceNetwork(MaskConfig(model=str(save_mask2former(tmp_path / "two", ("dog", "Person")))))._person == [1]
    with pytest.raises(ModelError, match="no class 'person'"):
        InstanceNetwork(MaskConfig(model=str(save_mask2former(tmp_path / "zoo", ("cat", "dog")))))


def test_a_missing_segmentation_network_is_refused_by_the_name_of_its_option(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match=r"masks\.model"):
        InstanceNetwork(MaskConfig(model=str(tmp_path / "nowhere")))
    with pytest.raises(ModelError, match=r"masks\.revision"):
        InstanceNetwork(MaskConfig(model="facebook/mask2former-swin-small-coco-instance"))
