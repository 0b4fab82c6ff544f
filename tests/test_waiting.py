"""How often a batch makes a GPU wait, counted on a CPU that works as a GPU would."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dto_pipeline.collate import collate_scenes, split_batch
from dto_pipeline.config import DepthConfig, PipelineConfig, load_config
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.depth_anything import DepthNetwork
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.scene import SceneBatch
from dto_pipeline.train.checkpoint import begin_network
from dto_pipeline.train.learner import Learner
from tests.company import make_crowds
from tests.tiny_models import save_depth_anything
from tests.train.small_crowds import crowd_batch, tiny_config
from tests.waits import as_on_gpu, count_waits, unexpected_waits, waits_of

MODES = {"paper": 6, "joint": 12}  # at most so often a batch; joint looks at some images twice
TRAINING_STEP = {  # where a step of training waits, how often, and why
    "model.py:forward": (1, "sizes of the images"),
    "blocks.py:list_by_level": (2, "which cells become which tokens, and how many an image has"),
    "blocks.py:most": (1, "people of the image with most: slots of denoising queries"),
    "losses.py:match_people": (3, "costs and people of each image to the program, pairs back: SciPy assigns them"),
    "learner.py:step": (1, "losses, and whether the gradient is finite"),
}


def config(mode: str) -> PipelineConfig:
    return load_config(None, [f"solver.mode={mode}", "joint.rerender_pixels=0"])


@pytest.fixture(scope="module")
def batch(body: BodyModel) -> SceneBatch:
    scenes = make_crowds(body, 6)
    for scene in scenes:  # masks that overlap: the joint solver draws again
        assert scene.masks is not None
        scene.masks = scene.masks | np.roll(scene.masks, 1, 0)
    return collate_scenes(scenes)


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_waits_in_named_places_only_and_seldom(body: BodyModel, batch: SceneBatch, mode: str) -> None:
    optimizer = SceneOptimizer(body, config(mode))
    found = waits_of(lambda: optimizer(batch))
    assert not unexpected_waits(found)
    assert 0 < sum(found.values()) <= MODES[mode]
    assert mode == "paper" or ("optimizer.py:_measure_again", "nonzero") in found


@pytest.mark.parametrize("mode", MODES)
def test_results_are_the_same_piece_by_piece_and_at_once(body: BodyModel, mode: str) -> None:
    """But for the rounding of sums, which a GPU makes of whole numbers."""
    scenes = make_crowds(body, 6)
    optimizer = SceneOptimizer(body, config(mode))
    pieces = split_batch(scenes, optimizer(collate_scenes(scenes)), optimizer.config)
    with as_on_gpu():
        whole = split_batch(scenes, optimizer(collate_scenes(scenes)), optimizer.config)
    for one, other in zip(pieces, whole, strict=True):
        assert one.person_status == other.person_status
        np.testing.assert_array_equal(one.mask_pixels, other.mask_pixels)
        np.testing.assert_array_equal(one.visible_vertices, other.visible_vertices)
        np.testing.assert_allclose(one.depth_mean, other.depth_mean, rtol=1e-6)
        np.testing.assert_allclose(one.transl, other.transl, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(one.betas, other.betas, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"model__denoising": 2, "model__as_published": True}])
def test_a_training_step_waits_in_named_places_only(body: BodyModel, options: dict[str, Any]) -> None:
    learner = Learner(tiny_config(**options), begin_network(tiny_config(**options))[0], body, torch.device("cpu"))
    batch = crowd_batch(body, [0, 5])
    by_place: Counter[str] = Counter()
    for (place, _), times in waits_of(lambda: learner.step(batch, 0)).items():
        by_place[place.removeprefix("train/")] += times
    named = {place: times for place, (times, _) in TRAINING_STEP.items() if options or "most" not in place}
    assert by_place == named


def test_a_window_of_the_depth_network_is_waited_for_once(tmp_path: Path) -> None:
    tiny = save_depth_anything(tmp_path / "net")
    network = DepthNetwork(DepthConfig(source="model", model=str(tiny), short_side=28))
    images = [np.full((30, 45, 3), value, np.uint8) for value in (0, 100, 200)]
    found = waits_of(lambda: network.see(images))
    # images leave from pinned memory, and ranges are on the host when they are read
    names = {(place.removeprefix("models/depth_anything.py:"), asked) for place, asked in found}
    assert names == {("_run", "lift_fresh"), ("_check", "tolist")}


def test_whatever_asks_a_gpu_is_counted() -> None:
    values = torch.arange(4)
    asks = {
        "_local_scalar_dense": lambda: bool(values[1]),
        "tolist": lambda: values.tolist(),
        "cpu": lambda: values.cpu(),
        "to": lambda: values.to("cpu"),
        "index": lambda: values[values > 1],
        "nonzero": lambda: values.nonzero(),
        "bincount": lambda: torch.bincount(values),
        "repeat_interleave": lambda: values.repeat_interleave(values),
        "lift_fresh": lambda: torch.tensor([1, 2]),
        "_unique2": lambda: torch.unique(values),
    }
    for name, ask in asks.items():
        with count_waits() as found:
            ask()
        assert found == {("elsewhere", name): 1}
    with count_waits() as found:
        values.to("cpu", non_blocking=True)
        torch.repeat_interleave(values, output_size=6)
        values[torch.arange(2)]
    assert not found
