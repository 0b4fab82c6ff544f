"""Crowds of Anny: that labels fit what is seen, and that a missing package is named."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dto_pipeline.cli import main
from dto_pipeline.config import PipelineConfig
from dto_pipeline.data.images import read_image
from dto_pipeline.data.people import read_people
from dto_pipeline.lab.benchmark import BenchmarkSettings, measure
from dto_pipeline.lab.difficulty import choose_difficulty
from dto_pipeline.lab.foreign_bodies import AnnyMissing, load_anny
from dto_pipeline.lab.known_scenes import SynthScene
from dto_pipeline.models.body import BodyModel


def test_without_the_package_the_next_step_is_named_and_nothing_is_written(
    body: BodyModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "anny", None)
    load_anny.cache_clear()
    with pytest.raises(AnnyMissing, match=r"pip install 'dto-pipeline\[anny\]'"):
        SynthScene(3, 0, body, choose_difficulty("foreign")).truth  # noqa: B018
    with pytest.raises(AnnyMissing):  # before any other difficulty is worked on
        measure(BenchmarkSettings(images=10**6, seed=9, difficulties=("easy", "foreign")), PipelineConfig())
    assert main(["synth", "--bodies", "anny", "-o", str(tmp_path / "crowds"), "--quiet"]) == 2
    assert not (tmp_path / "crowds").exists()


@pytest.fixture(scope="module")
def scene(body: BodyModel) -> SynthScene:
    load_anny.cache_clear()
    return SynthScene(3, 0, body, choose_difficulty("foreign"))


def test_a_label_falls_on_what_is_seen_at_an_adults_height(scene: SynthScene, body: BodyModel) -> None:
    labels, truth, focal = scene.labels, scene.truth, scene.crowd.view.focal
    betas = np.pad(labels.betas, ((0, 0), (0, 1)))
    joints = body.joints(*(torch.as_tensor(value) for value in (labels.pose, betas, labels.transl))).numpy()
    limbs = [4, 5, 7, 8, 18, 19, 20, 21]
    found, seen = (points[:, limbs, :2] / points[:, limbs, 2:] * focal for points in (joints, truth.joints))
    size = np.ptp(seen[..., 1], axis=1)[:, None]
    assert np.median(np.linalg.norm(found - seen, axis=-1) / size) < 0.03
    assert np.allclose(labels.factor * truth.height, 1.70, atol=0.2)


def test_true_people_stand_on_the_ground_and_children_are_small(scene: SynthScene) -> None:
    view, truth = scene.crowd.view, scene.truth
    down = (truth.vertices @ view.level_to_camera)[..., 1].max(1)
    assert np.allclose(down, view.eye_height, atol=1e-3)
    young = scene.crowd.age < 12
    assert (truth.height[young] < 1.6).all()
    assert (truth.height[~young] > 1.3).all()


def test_pictures_of_them_are_written_with_true_hips_and_heights(
    scene: SynthScene, tmp_path: Path, body: BodyModel
) -> None:
    command = ["synth", "--difficulty", "standard", "--bodies", "anny", "--images", "2", "--seed", "3", "--quiet"]
    assert main([*command, "-o", str(tmp_path / "crowds")]) == 0
    made = SynthScene(3, 0, body, choose_difficulty("standard", ["bodies=anny"]))
    people = made.crowd.num_people
    with np.load(tmp_path / "crowds/truth.npz", allow_pickle=False) as truth:
        assert np.array_equal(truth["pelvis"][:people], made.truth.joints[:, 0])
        assert np.allclose(truth["height"][:people], made.truth.height)
        assert np.isnan(truth["betas"]).all()
        heights = truth["height"]
    read = read_people(tmp_path / "crowds").height
    assert read is not None
    assert np.array_equal(read, heights)
    with np.load(tmp_path / "crowds/labels/release.npz", allow_pickle=False) as labels:
        keypoints = labels["gtkps"][:people]
    picture = read_image(tmp_path / "crowds/images/000/000000.jpg").rgb
    assert picture.shape[:2] == made.seen[0].shape
    seen = keypoints[..., 2] > 0.6
    assert 10 < seen.sum(1).max() < 44  # the ears nobody has are not seen
    assert np.isfinite(keypoints).all()
    u, v = keypoints[0, seen[0], :2].astype(int).T
    assert made.masks[0, v, u].mean() > 0.7
