"""Depth evidence on maps small enough to draw, against numpy's own statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dto_pipeline.axes import FAR, NEAR
from dto_pipeline.config import EvidenceConfig
from dto_pipeline.maths.depth_evidence import measure_depth_evidence
from dto_pipeline.scene import DepthEvidence, PersonMaps, SceneBatch

CONFIG = EvidenceConfig()


def make_batch(
    disparity: np.ndarray, people: int, z: float = 3.0, map_shape: tuple[int, int] | None = None
) -> SceneBatch:
    height, width = disparity.shape
    size = torch.tensor([[height, width]])
    intrinsics = torch.tensor([[[100.0, 0, width / 2], [0, 100.0, height / 2], [0, 0, 1]]], dtype=torch.float64)
    return SceneBatch(
        pose=torch.zeros(1, people, 72),
        betas=torch.zeros(1, people, 11),
        transl=torch.tensor([0.0, 0.0, z]).expand(1, people, 3),
        intrinsics=intrinsics,
        age_years=torch.zeros(1, people),
        male_prob=torch.zeros(1, people),
        present=torch.ones(1, people, dtype=torch.bool),
        masks=torch.ones(1, people, 1, 1, dtype=torch.bool),
        disparity=torch.from_numpy(disparity.astype(np.float32))[None],
        metric=torch.zeros(1, dtype=torch.bool),
        image_size=size,
        map_size=torch.tensor([map_shape]) if map_shape else size,
    )


def measure(
    person: np.ndarray, z: np.ndarray, batch: SceneBatch, vertices: int = 3000, zero_is_unknown: bool = False
) -> DepthEvidence:
    people = batch.present.shape[1]
    maps = PersonMaps(
        person=torch.from_numpy(person.astype(np.int64))[None],
        z=torch.from_numpy(z.astype(np.float32))[None],
        visible_vertices=torch.full((1, people), vertices),
    )
    return measure_depth_evidence(maps, batch, CONFIG, zero_is_unknown=zero_is_unknown)


def blocks(seed: int, people: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """40 x 60 maps: people as side-by-side blocks of noisy depth, and z on the line 400 d + 0.2 plus noise."""
    rng = np.random.default_rng(seed)
    person = np.full((40, 60), -1)
    for index in range(people):
        person[5:38, 3 + 18 * index : 17 + 18 * index] = index
    depth = rng.uniform(0.005, 0.012, person.shape)
    z = 400 * depth + 0.2 + rng.normal(0, 0.04, person.shape)
    return person, z, 1 / depth


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_statistics_equal_a_plain_loop_over_people_and_rows(seed: int) -> None:
    person, z, disparity = blocks(seed)
    found = measure(person, z, make_batch(disparity, 2))
    for index in range(2):
        rows, columns = np.nonzero(person == index)
        depth = (1.0 / disparity.astype(np.float32))[rows, columns].astype(np.float64)
        height = z.astype(np.float32)[rows, columns].astype(np.float64)
        q1, q3 = np.percentile(depth.astype(np.float32), [25, 75])
        keep = (depth > max(q1 - 1.5 * (q3 - q1), 0)) & (depth < q3 + 1.5 * (q3 - q1))
        rows, depth, height = rows[keep], depth[keep], height[keep]
        for row in np.unique(rows):
            depth_row, z_row = depth[rows == row].mean(), height[rows == row].mean()
            depth, height = (
                np.where(rows == row, depth - depth_row, depth),
                np.where(rows == row, height - z_row, height),
            )
        slope, _ = np.polyfit(depth, height, 1)
        assert np.isclose(float(found.slope[0, index]), slope, rtol=1e-6)
        assert np.isclose(float(found.corr[0, index]), np.corrcoef(depth, height)[0, 1], rtol=1e-6)
        near = np.abs(height - slope * depth) <= 0.10
        assert found.pixels[0, index, :3].tolist() == [(person == index).sum(), keep.sum(), near.sum()]
        assert float(found.ground_row[0, index]) == np.percentile(rows[near], 90)


def test_a_person_with_too_few_pixels_or_vertices_is_dropped_with_the_reason() -> None:
    person, z, disparity = blocks(1)
    person[:, 20:] = -1
    person[5, 40:44] = 1  # 4 pixels where (40 / 20) * (60 / 20) = 6 are needed
    evidence = measure(person, z, make_batch(disparity, 2))
    assert evidence.cut[0].tolist() == [0, 1]
    assert evidence.usable[0].tolist() == [True, False]
    assert measure(person, z, make_batch(disparity, 2), vertices=499).cut[0].tolist() == [1, 1]


def test_zeros_of_a_disparity_map_count_as_its_smallest_positive_value() -> None:
    person, z, disparity = blocks(2)
    holes = disparity.copy()
    holes[5:10] = 0
    filled = disparity.copy()
    filled[5:10] = holes[holes > 0].astype(np.float32).min()
    left, right = (measure(person, z, make_batch(values, 2)) for values in (holes, filled))
    assert torch.equal(left.depth, right.depth)
    assert torch.equal(left.pixels, right.pixels)


def test_a_person_of_constant_depth_is_dropped_because_the_open_outlier_cut_leaves_nothing() -> None:
    person, _, disparity = blocks(3)
    z = np.full(person.shape, 3.0)
    evidence = measure(person, z, make_batch(np.full_like(disparity, 123.4), 2))
    assert evidence.cut[0].tolist() == [2, 2]
    assert evidence.group[0].tolist() == [-1, -1]


@pytest.mark.parametrize("metric", [False, True])
def test_pixels_of_unknown_depth_change_a_person_as_little_as_if_they_showed_nobody(metric: bool) -> None:
    """Four tenths of a person without metres were taken for the farthest of the map: it stood a third too far."""
    person, z, disparity = blocks(8)
    holes = (person == 0) & (np.arange(40)[:, None] > 24)
    batch = make_batch(np.where(holes, 0, disparity), 2).replace(metric=torch.tensor([metric]))
    found = measure(person, z, batch, zero_is_unknown=not metric)
    expected = measure(np.where(holes, -1, person), z, make_batch(disparity, 2))
    for name, value in vars(found).items():
        assert torch.equal(value, getattr(expected, name)), name


def test_rows_of_constant_depth_have_slope_and_correlation_exactly_zero() -> None:
    person, _, _ = blocks(4)
    depth = np.repeat(np.linspace(0.005, 0.011, 40)[:, None], 60, 1)
    evidence = measure(person, np.full(person.shape, 3.0), make_batch(1 / depth, 2))
    assert evidence.usable[0].tolist() == [True, True]
    assert evidence.slope[0].tolist() == [0, 0]
    assert evidence.corr[0].tolist() == [0, 0]


def test_large_relative_depth_or_a_small_label_makes_a_person_far() -> None:
    person, z, disparity = blocks(5)
    assert measure(person, z, make_batch(disparity, 2)).group[0].tolist() == [NEAR, NEAR]
    assert measure(person, z, make_batch(disparity / 4, 2)).group[0].tolist() == [FAR, FAR]
    assert measure(person, z, make_batch(disparity, 2, z=25.0)).group[0].tolist() == [FAR, FAR]  # 200 / (25 * 40) < 1/4


def test_a_small_person_map_is_enlarged_to_the_image_by_nearest_neighbour() -> None:
    person, z, disparity = blocks(6)
    small = (20, 30)
    evidence = measure(person[::2, ::2], z[::2, ::2], make_batch(disparity, 2, map_shape=small))
    enlarged_person = person[::2, ::2].repeat(2, 0).repeat(2, 1)
    enlarged_z = z[::2, ::2].repeat(2, 0).repeat(2, 1)
    whole = measure(enlarged_person, enlarged_z, make_batch(disparity, 2))
    assert torch.equal(evidence.pixels, whole.pixels)
    assert torch.equal(evidence.depth, whole.depth)
    assert torch.equal(evidence.z, whole.z)
