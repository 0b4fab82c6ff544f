"""A person, and an image, is the same to the last bit in whatever company it is computed (on a CPU)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dto_pipeline.config import AttributeConfig, DepthConfig, MaskConfig, PipelineConfig
from dto_pipeline.models.body import BodyModel, load_body
from dto_pipeline.models.depth_anything import DepthNetwork
from dto_pipeline.models.people_networks import InstanceNetwork
from dto_pipeline.models.seeing import Perception
from dto_pipeline.scene import Scene
from tests.company import CONFIGS, assert_same_bytes, digest, make_crowds, place, raw_bytes, threads
from tests.tiny_models import save_classifier, save_depth_anything, save_mask2former

THREADS = st.sampled_from([1, 2, 4])
CROWDS = 12


@pytest.fixture(scope="module")
def crowds(body: BodyModel) -> list[Scene]:
    return make_crowds(body, CROWDS)


@pytest.fixture(scope="module")
def alone(body: BodyModel, crowds: list[Scene]) -> dict[str, list[dict[str, bytes]]]:
    """What becomes of every scene by itself, by solver mode."""
    return {mode: [raw_bytes(place([scene], body, config)[0]) for scene in crowds] for mode, config in CONFIGS.items()}


@settings(max_examples=15, deadline=None)
@given(chosen=st.lists(st.integers(0, 79), min_size=1, max_size=80), number=THREADS)
def test_a_body_is_the_same_among_any_others(body: BodyModel, chosen: list[int], number: int) -> None:
    generator = torch.Generator().manual_seed(0)
    people = [torch.randn(80, size, generator=generator) for size in (72, 11, 3)]
    whole = [body.vertices(*people), body.joints(*people), body.rest_height(people[1].double())]
    some = [value[chosen] for value in people]
    with threads(number):
        found = [body.vertices(*some), body.joints(*some), body.rest_height(some[1].double())]
    for value, expected in zip(found, whole, strict=True):
        assert value.numpy().tobytes() == expected[chosen].numpy().tobytes()


def test_a_body_model_is_read_the_same_on_any_number_of_threads() -> None:
    found = []
    for number in (1, 4):
        with threads(number):
            body = load_body("demo", kid_axis=False)  # with the axis this process has one already
        parts = [value if isinstance(value, tuple) else (value,) for value in vars(body).values()]
        found.append([part.numpy().tobytes() for some in parts for part in some if isinstance(part, torch.Tensor)])
    assert len(found[0]) == 5 + 3 * 2
    assert found[0] == found[1]


@pytest.mark.parametrize("mode", list(CONFIGS))
def test_batches_of_one_to_sixty_four_give_the_same_bytes(
    body: BodyModel, crowds: list[Scene], alone: dict[str, list[dict[str, bytes]]], mode: str
) -> None:
    for size in (2, 3, 7, 16, 64):
        chosen = [(number * 7 + size) % CROWDS for number in range(size)]
        found = place([crowds[index] for index in chosen], body, CONFIGS[mode])
        assert_same_bytes(found, [alone[mode][index] for index in chosen])


@settings(max_examples=5, deadline=None)
@given(
    chosen=st.lists(st.integers(0, CROWDS - 1), min_size=1, max_size=9),
    number=THREADS,
    mode=st.sampled_from(list(CONFIGS)),
)
def test_no_neighbour_no_place_and_no_thread_changes_a_bit(
    body: BodyModel,
    crowds: list[Scene],
    alone: dict[str, list[dict[str, bytes]]],
    chosen: list[int],
    number: int,
    mode: str,
) -> None:
    with threads(number):
        found = place([crowds[index] for index in chosen], body, CONFIGS[mode])
    assert_same_bytes(found, [alone[mode][index] for index in chosen])


def test_networks_on_a_cpu_see_the_same_in_any_company(body: BodyModel, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in [(60, 80), (80, 60)] * 4]
    depth = DepthNetwork(
        DepthConfig(source="model", model=str(save_depth_anything(tmp_path / "depth")), short_side=56, batch=4)
    )
    masks = InstanceNetwork(
        MaskConfig(source="model", model=str(save_mask2former(tmp_path / "masks")), short_side=64, min_score=0.0)
    )
    classifier = str(save_classifier(tmp_path / "ages", ("0-2", "20-29", "male", "female")))
    perception = Perception(PipelineConfig(attributes=AttributeConfig(source="model", model=classifier)), body)
    crops = torch.rand(8, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    sizes = [(40, 50)] * len(images)

    def see(some: list[int]) -> list[list[bytes]]:
        seen = masks.find([images[i] for i in some], [sizes[i] for i in some])
        ages = perception._estimate(crops[some], crops[some])
        maps = depth.estimate([images[i] for i in some])
        return [
            [np.asarray(value).tobytes() for value in (disparity, found.masks, found.score, age)]
            for disparity, found, age in zip(maps, seen, ages, strict=True)
        ]

    expected = [see([i])[0] for i in range(len(images))]
    for number in (1, 2, 4):
        with threads(number):
            assert see(list(range(8))) == expected
            assert see([5, 2, 7]) == [expected[i] for i in (5, 2, 7)]
            assert torch.get_num_threads() == number


_DIGEST = """
from dto_pipeline.models.body import load_body
from tests.company import CONFIGS, digest, make_crowds, place, raw_bytes
body = load_body("demo")
for config in CONFIGS.values():
    placed = place(make_crowds(body, 4), body, config)
    print(digest([raw_bytes(item) for item in placed]))
"""


def test_avx512_and_avx2_give_the_same_bits_where_no_network_looks(alone: dict[str, list[dict[str, bytes]]]) -> None:
    run = subprocess.run(
        [sys.executable, "-c", _DIGEST],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "avx2"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == [digest(alone[mode][:4]) for mode in CONFIGS]
