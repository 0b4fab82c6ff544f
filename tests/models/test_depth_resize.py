"""Depth Anything's resizing against an independent implementation of OpenCV's cubic and PyTorch's corner-on-corner."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dto_pipeline.models.network_input import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    network_size,
    resize_to_image,
    resize_to_network,
)


def cubic_weights(offset: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.75 (OpenCV's) at distances offset + 1, offset, 1 - offset, 2 - offset: (n, 4)."""
    a = -0.75
    distance = np.abs(offset[:, None] - np.array([-1.0, 0.0, 1.0, 2.0]))
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def cubic_matrix(before: int, after: int) -> np.ndarray:
    """(after, before) float64: pixel centres at + 0.5, four taps, borders repeated, no antialiasing."""
    position = (np.arange(after) + 0.5) * before / after - 0.5
    first = np.floor(position).astype(int)
    matrix = np.zeros((after, before))
    for tap, weight in enumerate(cubic_weights(position - first).T):
        np.add.at(matrix, (np.arange(after), np.clip(first + tap - 1, 0, before - 1)), weight)
    return matrix


def linear_matrix(before: int, after: int) -> np.ndarray:
    """(after, before) float64: the first pixel on the first, the last on the last."""
    position = np.linspace(0, before - 1, after)
    first = np.minimum(position.astype(int), before - 2)
    matrix = np.zeros((after, before))
    matrix[np.arange(after), first] = 1 - (position - first)
    matrix[np.arange(after), first + 1] += position - first
    return matrix


@pytest.mark.parametrize(
    ("image", "network"),
    [((427, 640), (518, 770)), ((640, 427), (770, 518)), ((480, 640), (518, 686)), ((1080, 1920), (518, 924)),
     ((518, 518), (518, 518)), ((100, 1000), (518, 5180)), ((3, 4), (518, 686))],
)  # fmt: skip
def test_the_short_side_becomes_518_and_both_sides_multiples_of_14(
    image: tuple[int, int], network: tuple[int, int]
) -> None:
    assert network_size(*image, 518) == network


def test_a_short_side_that_is_no_multiple_is_never_rounded_below_itself() -> None:
    assert network_size(100, 100, 517) == (518, 518)
    assert network_size(100, 100, 519) == (532, 532)  # 518 is nearer, but smaller than asked
    assert network_size(2, 1, 14, multiple=16) == (32, 16)


@pytest.mark.parametrize("size", [(37, 53), (28, 42), (112, 98)])
def test_images_are_resized_as_opencv_does_it(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    rows, columns = cubic_matrix(37, size[0]), cubic_matrix(53, size[1])
    pixels = np.einsum("yh,xw,hwc->cyx", rows, columns, image / 255.0)
    expected = (pixels - np.reshape(IMAGENET_MEAN, (3, 1, 1))) / np.reshape(IMAGENET_STD, (3, 1, 1))
    found = resize_to_network(torch.from_numpy(image)[None], size)[0].numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)  # full scale is about 4.5 after normalisation


def test_cubic_overshoot_is_kept_rather_than_clipped() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, 4:] = 255
    found = resize_to_network(torch.from_numpy(image)[None], (56, 56))[0, 0] * IMAGENET_STD[0] + IMAGENET_MEAN[0]
    assert found.max() > 1.01
    assert found.min() < -0.01


def test_maps_come_back_corner_on_corner() -> None:
    output = np.random.default_rng(1).random((2, 14, 28)).astype(np.float32)
    expected = np.einsum("yh,xw,bhw->byx", linear_matrix(14, 37), linear_matrix(28, 53), output)
    found = resize_to_image(torch.from_numpy(output), 37, 53).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(found[:, [0, 0, -1, -1], [0, -1, 0, -1]], output[:, [0, 0, -1, -1], [0, -1, 0, -1]])
