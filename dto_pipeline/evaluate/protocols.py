"""Matching and errors as MA-HMR's evaluation scripts have them (3DPW, AGORA), equal to the recorded numbers.

Plain arrays of one image at a time for the matching, of all matched people for the errors; knows no files and no body
model. Metres in, millimetres out, pixels. `evaluate.mesh_evaluation` has the field's definitions without their faults.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dto_pipeline.evaluate.mesh_metrics import aligned_error, mean_distance

H36M_JOINTS = (1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 13, 14, 15, 16)  # the 14 of Human3.6M's 17 that are compared
H36M_ROOT, AGORA_ROOTS = 0, (1, 2)  # joint whose place, or joints whose middle, is brought to the origin
MIN_IOU = 0.1
_MM = 1000.0


@dataclass(frozen=True)
class ProtocolCounts:
    """Who was found."""

    true: int
    missed: int
    false_positives: int

    @property
    def matched(self) -> int:
        return self.true - self.missed

    @property
    def precision(self) -> float:
        return self.matched / max(1, self.matched + self.false_positives)

    @property
    def recall(self) -> float:
        return self.matched / max(1, self.true)

    @property
    def f1(self) -> float:
        """TP / (TP + (FP + FN) / 2)."""
        return self.matched / max(1, self.matched + (self.false_positives + self.missed) / 2)


def match_protocol(found: np.ndarray, truth: np.ndarray) -> tuple[list[tuple[int, int]], int]:
    """Who is who in one image.

    Pairs come by ascending spectral norm of the difference of their joints. One whose boxes overlap less than 0.1 is
    dropped and uses up a prediction, whether or not a side is taken already.

    Args:
        found: (n, 24, 2) joints [px]; truth: (m, 24, 2).

    Returns:
        (found, true) pairs in the order of the true people, and how many found people are false.
    """
    if not len(found) or not len(truth):
        return [], len(found)
    distance = np.linalg.norm(found[:, None] - truth[None], ord=2, axis=(2, 3))
    overlap = _pixel_iou(found, truth)
    pairs: dict[int, int] = {}
    taken, dropped = set[int](), 0
    for place in np.argsort(distance, axis=None, kind="stable"):
        if len(pairs) == len(truth) or len(pairs) + dropped >= len(found):
            break
        first, second = divmod(int(place), len(truth))
        if overlap[first, second] < MIN_IOU:
            dropped += 1
        elif first not in taken and second not in pairs:
            pairs[second] = first
            taken.add(first)
    return [(pairs[second], second) for second in sorted(pairs)], len(found) - len(pairs)


def threedpw_errors(
    found: np.ndarray, truth: np.ndarray, found_vertices: np.ndarray, true_vertices: np.ndarray
) -> dict[str, np.ndarray]:
    """3DPW, Hi4D: 14 joints regressed from the mesh, root = the first of the 17.

    Args:
        found, truth: (n, 17, 3) [m]; found_vertices, true_vertices: (n, V, 3) [m].

    Returns:
        (n,) each: ``mpjpe``, ``pa_mpjpe``, ``mve``, ``pa_mve`` [mm].
    """
    points = [joints - joints[:, [H36M_ROOT]] for joints in (found, truth)]
    meshes = [mesh - joints[:, [H36M_ROOT]] for mesh, joints in ((found_vertices, found), (true_vertices, truth))]
    own, other = (joints[:, list(H36M_JOINTS)] for joints in points)
    return {
        "mpjpe": _MM * mean_distance(own, other),
        "pa_mpjpe": _MM * aligned_error(own, other)[0],
        "mve": _MM * mean_distance(*meshes),
        "pa_mve": _MM * aligned_error(*meshes)[0],
    }


def agora_errors(
    found: np.ndarray, truth: np.ndarray, found_vertices: np.ndarray, true_vertices: np.ndarray
) -> dict[str, np.ndarray]:
    """AGORA, BEDLAM: SMPL's 24 joints, root = the middle of the hips; vertices are those of the body.

    Args:
        found, truth: (n, 24, 3) [m]; found_vertices, true_vertices: (n, V, 3) [m].

    Returns:
        (n,) each: ``agora_mpjpe``, ``agora_mve`` [mm].
    """
    roots = [joints[:, list(AGORA_ROOTS)].mean(1, keepdims=True) for joints in (found, truth)]
    return {
        "agora_mpjpe": _MM * mean_distance(found - roots[0], truth - roots[1]),
        "agora_mve": _MM * mean_distance(found_vertices - roots[0], true_vertices - roots[1]),
    }


def _pixel_iou(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(n, m) intersection over union of the boxes of the joints, borders counted as pixels."""
    low = np.maximum(found.min(1)[:, None], truth.min(1)[None])
    high = np.minimum(found.max(1)[:, None], truth.max(1)[None])
    shared = (high - low + 1).clip(0).prod(-1)
    areas = [(points.max(1) - points.min(1) + 1).prod(-1) for points in (found, truth)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)
