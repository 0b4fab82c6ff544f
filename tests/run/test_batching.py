"""Batches of a shard: complete, small enough, alike, and always the same."""

import os

from hypothesis import given
from hypothesis import strategies as st

from dto_pipeline.config import BY_DEVICE, RunConfig, load_config
from dto_pipeline.run.placing import (
    MAX_BATCH_MASKS,
    MAX_BATCH_PIXELS,
    MAX_PADDING,
    MAX_WINDOW_PIXELS,
    SceneSize,
    cut_windows,
    plan_batches,
    size_on,
)
from dto_pipeline.run.ray_start import gpus_per_worker
from tests.limited import run_limited

_SIZES = st.lists(
    st.builds(SceneSize, st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 60)), min_size=0, max_size=60
)


@given(sizes=_SIZES, batch_images=st.integers(1, 16))
def test_every_image_is_in_exactly_one_batch(sizes, batch_images):
    batches = plan_batches(sizes, batch_images)

    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
    assert all(1 <= len(batch) <= batch_images for batch in batches)


@given(sizes=_SIZES, batch_images=st.integers(1, 16))
def test_padding_stays_within_its_bound(sizes, batch_images):
    for batch in plan_batches(sizes, batch_images):
        members = [sizes[i] for i in batch]
        padded = len(members) * max(m.height for m in members) * max(m.width for m in members)
        own = sum(m.height * m.width for m in members)
        assert len(batch) == 1 or (padded <= MAX_PADDING * own and padded <= MAX_BATCH_PIXELS)


def test_images_of_one_shape_share_a_batch_wherever_they_stand_in_the_shard():
    small, large = SceneSize(120, 160, 2), SceneSize(1080, 1920, 2)

    batches = plan_batches([small, large, small, large, small], batch_images=8)

    assert batches == [[0, 2, 4], [1, 3]]


def test_equal_shapes_are_grouped_by_number_of_people():
    sizes = [SceneSize(120, 160, people) for people in (9, 1, 8, 2)]

    assert plan_batches(sizes, batch_images=2) == [[1, 3], [2, 0]]


def test_an_empty_shard_needs_no_batch():
    assert plan_batches([], 4) == []


@given(sizes=_SIZES, images=st.integers(1, 16))
def test_windows_keep_the_order_and_hold_few_pixels(sizes, images):
    order = list(range(len(sizes)))[::-1]

    windows = cut_windows(sizes, order, images)

    assert [position for window in windows for position in window] == order
    for window in windows:
        pixels = sum(sizes[i].height * sizes[i].width for i in window)
        assert 1 <= len(window) <= images
        assert len(window) == 1 or pixels <= MAX_WINDOW_PIXELS


def test_photographs_of_a_hundred_megapixels_are_loaded_one_by_one():
    assert cut_windows([SceneSize(10000, 10000, 5)] * 3, [0, 1, 2], 8) == [[0], [1], [2]]
    assert cut_windows([SceneSize(3000, 4000, 5)] * 9, list(range(9)), 8) == [list(range(8)), [8]]


@given(
    sizes=st.lists(st.builds(SceneSize, st.integers(200, 3000), st.integers(200, 3000), st.integers(1, 400))),
    map_side=st.sampled_from((256, 512)),
)
def test_people_times_pixels_of_their_maps_stay_within_their_bound(sizes, map_side):
    for batch in plan_batches(sizes, 64, map_side):
        members = [sizes[i] for i in batch]
        shrunk = min(1, map_side / max(max(m.height, m.width) for m in members)) ** 2
        pixels = shrunk * max(m.height for m in members) * max(m.width for m in members)
        assert len(batch) == 1 or len(batch) * max(m.people for m in members) * pixels <= MAX_BATCH_MASKS


def test_a_batch_of_images_with_three_hundred_people_holds_four_of_them():
    assert [len(batch) for batch in plan_batches([SceneSize(480, 640, 300)] * 32, 32)] == [4] * 8


CROWD = r"""
import math, re, torch
from pathlib import Path
from dto_pipeline.config import PipelineConfig
from dto_pipeline.models.body import load_body
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.scene import SceneBatch

def place(people):
    made = torch.Generator().manual_seed(0)
    z = 8 + 20 * torch.rand(1, people, generator=made)
    x = z * (torch.rand(1, people, generator=made) - 0.5)
    upright = torch.zeros(1, people, 72)
    upright[..., 0] = math.pi
    camera = torch.tensor([[[600.0, 0, 320], [0, 600, 240], [0, 0, 1]]], dtype=torch.float64)
    size, map_size = torch.tensor([[480, 640]]), torch.tensor([[384, 512]])
    known, flags = torch.full((1, people), 0.9), torch.ones(1, people, dtype=torch.bool)
    SceneOptimizer(body, PipelineConfig())(SceneBatch(
        pose=upright, betas=torch.zeros(1, people, 11), transl=torch.stack([x, 0 * x, z], -1), intrinsics=camera,
        age_years=30 * known, male_prob=known, present=flags, masks=flags[..., None, None].expand(1, people, 384, 512),
        disparity=20 + 10 * torch.rand(1, 480, 640, generator=made), metric=flags[:, 0], image_size=size,
        map_size=map_size))

def memory(what):
    return int(re.search(what + r":\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

torch.set_num_threads(1)
body = load_body("demo")
place(20)
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
place(300)
tell(grown=memory("VmHWM") - before)
"""


def test_a_person_of_a_batch_costs_less_than_a_megabyte():
    """Beside its mask, of a byte a pixel: so the bound on masks bounds the rest to 1.4 GB."""
    assert 30 < run_limited(CROWD)["grown"] < 300


def test_sizes_are_the_devices_where_the_config_does_not_say():
    config = load_config(None, ["run.batch_images=5"])
    assert [size_on(config, "run.batch_images", gpu) for gpu in (False, True)] == [5, 5]
    assert [size_on(config, "depth.batch", gpu) for gpu in (False, True)] == list(BY_DEVICE["depth.batch"])
    assert size_on(config, "run.decode_threads", False) == 2
    assert size_on(config, "run.decode_threads", True) == max(4, min(8, (os.cpu_count() or 1) // 2))


def test_workers_get_a_gpu_each_or_share_what_there_is():
    assert [gpus_per_worker(RunConfig(workers=4), there) for there in (0, 1, 2, 3, 4, 8)] == [0, 0.25, 0.5, 0.5, 1, 1]
    assert gpus_per_worker(RunConfig(device="cpu"), 8) == 0
    assert gpus_per_worker(RunConfig(device="cuda"), 0) == 1  # it waits for one
    assert gpus_per_worker(RunConfig(gpus_per_worker=0.3), 8) == 0.3
