"""The demo's depth network: what its loss wants, that training learns, and what the shipped weights reach."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from depth_tiny import build_tiny_network, save_tiny_network
from train_demo_depth import (
    HELD_OUT_SEED,
    TRAINING_SEED,
    Stage,
    TrainingSettings,
    depth_loss,
    load_training_scenes,
    measure_folder,
    train_depth_network,
    write_readme,
)

from dto_pipeline.config import DepthConfig
from dto_pipeline.data.images import read_image
from dto_pipeline.lab.crowd_files import DEMO_SEED, build_demo_data, build_true_pictures
from dto_pipeline.lab.demo import depth_quality, measure_network
from dto_pipeline.lab.known_scenes import CrowdScene
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.depth_anything import DepthNetwork

SHIPPED = files("dto_pipeline.assets") / "depth_tiny"


def picture(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three people of 400 pixels each at different distances; the background is sky."""
    z = np.full((40, 60), 1e4)
    person = np.full((40, 60), -1)
    for index, distance in enumerate(np.random.default_rng(seed).permutation([3.0, 5.0, 9.0])):
        z[10:30, 20 * index : 20 * index + 20] = distance
        person[10:30, 20 * index : 20 * index + 20] = index
    return (500 / z).astype(np.float32), z, person


def test_a_perfect_network_has_no_error_whatever_its_scale() -> None:
    disparity, z, person = picture()
    figures = depth_quality([(disparity, z, person), (disparity * 7, z, person)])
    assert figures["persons"] == 6
    assert figures["pixel_error"] == pytest.approx(0, abs=1e-6)
    assert figures["person_error"] == pytest.approx(0, abs=1e-6)
    assert figures["order"] == 1


def test_an_offset_in_disparity_is_an_error_and_a_swap_breaks_the_order() -> None:
    disparity, z, person = picture()
    assert depth_quality([(disparity + 30, z, person)])["person_error"] > 0.05
    assert depth_quality([((z / 10).astype(np.float32), z, person)])["order"] == 0


def test_the_loss_is_zero_for_the_truth_and_sees_an_offset_that_scale_and_shift_would_hide() -> None:
    true = torch.rand(2, 14, 14, generator=torch.Generator().manual_seed(0)) + 0.2
    weight = torch.ones_like(true)
    assert depth_loss(true, true, weight).item() == pytest.approx(0, abs=1e-6)
    assert depth_loss(2 * true + 0.3, true, weight).item() > 0.3  # the anchor


def test_training_scenes_are_those_of_the_generator_with_seeds_of_their_own(tmp_path: Path, body: BodyModel) -> None:
    assert len({TRAINING_SEED, HELD_OUT_SEED, DEMO_SEED}) == 3
    (scene,), whole = load_training_scenes(tmp_path, 5, range(1, 2)), CrowdScene(5, 1, body)
    np.testing.assert_array_equal(scene.person, whole.picture.person)
    np.testing.assert_allclose(scene.inverse, 1 / whole.picture.z, rtol=2e-3)


def test_a_few_steps_of_training_lower_the_loss_and_the_weights_survive_the_disk(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_tiny_network(hidden=32, layers=4)
    scenes = load_training_scenes(tmp_path, TRAINING_SEED, range(2))
    said: list[str] = []
    settings = TrainingSettings(scenes=2, batch=1, stages=(Stage(42, 200, 2e-3),), warm_up=10)
    train_depth_network(network, scenes, settings, said.append)
    first, last = (float(line.split("loss ")[1].split(",")[0]) for line in said)
    assert last < 0.9 * first
    save_tiny_network(network, tmp_path / "saved", output_scale=100.0)
    figures = measure_folder(tmp_path / "saved", load_training_scenes(tmp_path, TRAINING_SEED, range(2)))
    write_readme(tmp_path / "saved", {"steps": 200}, figures)
    assert f"{figures['person_error']:.4f}" in (tmp_path / "saved" / "README.md").read_text()


def test_the_shipped_network_is_small_and_its_readme_gives_the_held_out_figures() -> None:
    weights, readme = SHIPPED / "model.safetensors", (SHIPPED / "README.md").read_text()
    assert 5e6 < len(weights.read_bytes()) < 8e6
    assert json.loads((SHIPPED / "config.json").read_text())["model_type"] == "depth_anything"
    assert "Unseen scenes" in readme
    assert "order" in readme


def test_the_shipped_network_sees_who_is_nearer_on_scenes_it_was_not_trained_on(
    tmp_path: Path, body: BodyModel
) -> None:
    build_demo_data(tmp_path / "data", body, images=6, seed=11)
    pictures = dict(build_true_pictures(tmp_path / "data", body))
    network = DepthNetwork(DepthConfig(source="model", model="demo", short_side=224))
    seen = ((read_image(tmp_path / "data/images" / name).rgb, one.z, one.person) for name, one in pictures.items())
    figures = measure_network(network, seen)
    assert figures["order"] > 0.65
    assert figures["person_error"] < 0.25
