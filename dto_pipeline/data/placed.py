"""Label rows back into placed scenes: the inverse of `labels.build_label_table`, without pixels.

Knows the label schema; opens no image (``Scene.image``, ``masks`` and ``disparity`` stay None). Metres, camera frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from dto_pipeline.axes import HEIGHT_CLASSES
from dto_pipeline.data.cameras import read_cameras
from dto_pipeline.data.columns import read_numbers, single_array
from dto_pipeline.data.labels import read_labels, undo_betas
from dto_pipeline.data.storage import Location
from dto_pipeline.scene import PlacedScene, Scene
from dto_pipeline.status import ImageStatus, PersonStatus

_PERSON_NUMBERS = (
    "height_sigma_m",
    *("pose", "betas", "transl", "transl_init", "source_row", "bbox_xyxy", "det_score", "age_years", "male_prob"),
    "mask_score",
    *("scale", "beta_index", "beta_init", "height_init_m", "height_m", "prior_mean_m", "prior_sigma_m"),
    *("depth_mean", "depth_std", "slope", "corr", "mask_pixels", "visible_vertices", "depth_group", "z_sigma_m"),
)
_PLACED_COLUMNS = (
    "height_sigma_m",
    *("betas", "transl", "scale", "beta_index", "height_init_m", "height_m", "prior_mean_m", "prior_sigma_m"),
    *("depth_mean", "depth_std", "slope", "corr", "mask_pixels", "visible_vertices", "depth_group", "z_sigma_m"),
)


def read_placed(path: Location) -> list[PlacedScene]:
    """Every image of a label file. Errors as `labels.read_labels`."""
    return list(placed_scenes(read_labels(path)))


def unpack_covariance(packed: np.ndarray, people: int) -> np.ndarray:
    """(P, P) symmetric matrix from the label column `z_covariance` of an image with `people` people."""
    matrix: np.ndarray = np.zeros((people, people), packed.dtype)
    rows, columns = np.tril_indices(people)
    matrix[rows, columns] = matrix[columns, rows] = packed
    return matrix


def placed_scenes(table: pa.Table) -> Iterator[PlacedScene]:
    """Every row of a table of `schema.LABELS_SCHEMA`, people in source order."""
    people = single_array(table.column("persons"))
    items = people.flatten()
    numbers = {name: read_numbers(items.field(name)) for name in _PERSON_NUMBERS}
    words = {name: items.field(name).to_pylist() for name in ("height_class", "status", "message")}
    ends = np.cumsum(table.column("num_persons").to_numpy())
    rows = table.drop_columns(["persons"]).to_pylist()
    for row, end in zip(rows, ends.tolist(), strict=True):
        part = slice(end - row["num_persons"], end)
        yield _placed(
            row,
            {name: values[part] for name, values in numbers.items()},
            {name: values[part] for name, values in words.items()},
        )


def _placed(row: dict[str, Any], people: dict[str, np.ndarray], words: dict[str, list[Any]]) -> PlacedScene:
    classes = {name: code for code, name in enumerate(HEIGHT_CLASSES)}
    return PlacedScene(
        scene=_scene(row, people),
        status=ImageStatus(row["status"]),
        message=row["message"],
        person_status=[PersonStatus(word) for word in words["status"]],
        person_message=words["message"],
        height_class=np.array([classes.get(word, -1) for word in words["height_class"]], np.int32),
        is_optimized=row["is_optimized"],
        is_accepted=row["is_accepted"],
        deviation=row["mean_height_deviation"],
        expected_error=row["expected_error_m"],
        alpha=(row["alpha_near"], row["alpha_far"]),
        beta=(row["beta_near"], row["beta_far"]),
        used_ground=row["used_ground_evidence"],
        depth_model=row["depth_model"],
        disparity_line=(row["disparity_slope"], row["disparity_offset"]),
        z_covariance=None if row["z_covariance"] is None else np.array(row["z_covariance"], np.float32),
        **{name: people[name] for name in _PLACED_COLUMNS},
    )


def _scene(row: dict[str, Any], people: dict[str, np.ndarray]) -> Scene:
    """The scene as it went in: `beta_init` and `transl_init` undo what was changed."""
    betas = undo_betas(people["betas"], people["beta_index"], people["beta_init"])
    origins = {"masks": "mask_origin", "attributes": "attribute_origin", "depth": "depth_origin"}
    return Scene(
        image_id=row["image_id"],
        subset=row["subset"],
        image_path=row["image_path"],
        width=row["width"],
        height=row["height"],
        image_sha256=row["image_sha256"],
        intrinsics=read_cameras(row),
        pose=people["pose"],
        betas=betas,
        transl=people["transl_init"],
        person_problem=[None] * len(betas),
        origin={key: row[column] for key, column in origins.items() if row[column] is not None},
        source_row=people["source_row"],
        bbox_xyxy=people["bbox_xyxy"],
        det_score=people["det_score"],
        age_years=people["age_years"],
        male_prob=people["male_prob"],
        mask_score=people["mask_score"],
    )
