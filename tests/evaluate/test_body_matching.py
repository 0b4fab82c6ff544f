"""Who is who in the image: nearest first, boxes must overlap, order of people does not matter."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dto_pipeline.evaluate.matching import MIN_IOU, by_image, match_bodies
from dto_pipeline.maths.person_matching import box_iou, joint_boxes

BODY = np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 30.0], [0.0, 30.0]])


def at(*corners: tuple[float, float]) -> np.ndarray:
    return np.stack([BODY + corner for corner in corners])


def match(found: np.ndarray, truth: np.ndarray) -> list[tuple[int, int]]:
    return [(int(one), int(other)) for one, other in match_bodies(found, truth)]


def naive(found: np.ndarray, truth: np.ndarray) -> set[tuple[int, int]]:
    pairs = []
    for i, one in enumerate(found):
        for j, other in enumerate(truth):
            iou = box_iou(joint_boxes(one[None]), joint_boxes(other[None]))[0]
            if iou >= MIN_IOU:
                pairs.append((np.sqrt(((one - other) ** 2).sum(-1).mean()), i, j))
    taken: set[tuple[int, int]] = set()
    for _, i, j in sorted(pairs):
        if all(i != a and j != b for a, b in taken):
            taken.add((i, j))
    return taken


def test_boxes_that_hardly_overlap_are_no_pair() -> None:
    assert match(at((9.5, 0)), at((0, 0))) == []
    assert match(at((5, 0)), at((0, 0))) == [(0, 0)]


def test_people_are_grouped_by_image_in_any_order() -> None:
    groups = by_image(np.array([2, 0, 2, 0]), 4)
    assert [group.tolist() for group in groups] == [[1, 3], [], [0, 2], []]


def test_as_published_a_pair_without_overlap_uses_up_a_prediction() -> None:
    base = np.random.default_rng(0).uniform(0, 50, (24, 2))
    truth = np.stack([base, base + 400])
    found = np.stack([base + 1, base + 60])  # the second is nearer to the first true person than to its own
    assert match_bodies(found, truth, published=True).tolist() == [[0, 0]]
    assert match_bodies(found[:0], truth, published=True).tolist() == []
    assert match_bodies(found, truth[:0], published=True).tolist() == []


def test_joints_behind_the_camera_do_not_count_and_nobody_without_joints_matches() -> None:
    partly, nowhere = at((0, 0)), at((0, 0))
    partly[0, 0] = np.nan
    nowhere[:] = np.nan
    assert match(partly, at((1, 0))) == [(0, 0)]
    assert match(nowhere, at((0, 0))) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 100_000), st.integers(0, 7), st.integers(0, 7))
def test_the_nearest_pairs_are_taken_in_any_order_of_people(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    found, truth = (BODY + rng.uniform(0, 25, (count, 1, 2)) for count in (n, m))
    pairs = match(found, truth)
    assert set(pairs) == naive(found, truth)
    order, other = rng.permutation(n), rng.permutation(m)
    assert {(int(order[i]), int(other[j])) for i, j in match(found[order], truth[other])} == set(pairs)
