"""Prediction files as other programs write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def predicted_people(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Every column of a prediction file, with people of noise."""
    random = np.random.default_rng(seed)
    return {
        "image": np.array([f"x/{number // 2}.jpg" for number in range(count)]),
        "pose": random.normal(size=(count, 72)).astype(np.float32),
        "betas": random.normal(size=(count, 10)).astype(np.float32),
        "transl": random.uniform(1, 5, size=(count, 3)).astype(np.float32),
        "intrinsics": np.repeat(np.array([[[40.0, 0, 16], [0, 40, 12], [0, 0, 1]]]), count, axis=0),
        "det_score": random.uniform(size=count).astype(np.float32),
        "bbox_xyxy": random.uniform(size=(count, 4)).cumsum(axis=1).astype(np.float32),
        "keypoints": random.uniform(size=(count, 17, 3)).astype(np.float32),
        "age_years": random.uniform(1, 90, size=count).astype(np.float32),
        "male_prob": random.uniform(size=count).astype(np.float32),
    }


def write_npz(path: Path, people: Mapping[str, Any]) -> Path:
    """Write columns as an npz."""
    with path.open("wb") as stream:  # given a name, savez appends its own suffix
        np.savez(stream, **people)
    return path


def write_parquet(path: Path, people: Mapping[str, np.ndarray], row_group_size: int = 1000) -> Path:
    """Write columns as Parquet: numbers of a row flattened into a list."""
    columns = {
        name: pa.array(values.reshape(len(values), -1).tolist() if values.ndim > 1 else values.tolist())
        for name, values in people.items()
    }
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path
