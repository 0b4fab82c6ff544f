"""Labels of people at random, as augmentation takes them."""

from __future__ import annotations

import numpy as np

from dto_pipeline.data.label_files import LabelColumns
from dto_pipeline.train.targets import ImageLabels, build_labels


def random_labels(
    people: int = 3, seed: int = 0, intrinsics: np.ndarray | None = None, spread: float = 1.0
) -> ImageLabels:
    """People in random poses 3 .. 8 m away before a picture of 320 x 240; boxes known, z_covariance too."""
    return build_labels(random_columns(people, seed, intrinsics, spread), 0, 320, 240)


def random_columns(
    people: int, seed: int = 0, intrinsics: np.ndarray | None = None, spread: float = 1.0
) -> LabelColumns:
    """The same as columns of one image."""
    random = np.random.default_rng(seed)
    if intrinsics is None:
        intrinsics = np.array([[400.0, 0, 150], [0, 400, 130], [0, 0, 1]])
    z = random.uniform(3, 8, people)
    transl = np.stack([random.uniform(-spread, spread, people), random.uniform(-0.5, 0.5, people), z], axis=1)
    return LabelColumns(
        images={
            "fx": np.array([intrinsics[0, 0]]),
            "fy": np.array([intrinsics[1, 1]]),
            "cx": np.array([intrinsics[0, 2]]),
            "cy": np.array([intrinsics[1, 2]]),
            "z_covariance": np.array([random.uniform(0, 1, people * (people + 1) // 2).astype(np.float32)]),
        },
        people={
            "pose": random.normal(0, 0.5, (people, 72)).astype(np.float32),
            "betas": random.normal(0, 1, (people, 11)).astype(np.float32) * np.r_[np.ones(10), 0].astype(np.float32),
            "transl": transl.astype(np.float32),
            "bbox_xyxy": np.sort(random.uniform(0, 300, (people, 2, 2)), axis=1).reshape(people, 4).astype(np.float32),
            "status": np.array(["moved"] * people, dtype=object),
        },
        starts=np.array([0, people]),
    )
