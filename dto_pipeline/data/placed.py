"""Label rows back into placed scenes: the inverse of `labels.build_label_table`, without pixels.

Knows the column table; opens no image (``Scene.image``, ``masks`` and ``disparity`` stay None). Metres, camera frame.
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
from dto_pipeline.schema import IMAGE_COLUMNS, PERSON_COLUMNS
from dto_pipeline.status import ImageStatus, PersonStatus


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
    items = single_array(table.column("persons")).flatten()
    people: dict[str, Any] = {}
    for column in PERSON_COLUMNS:
        found = items.field(column.name)
        people[column.name] = found.to_pylist() if column.kind == pa.string() else read_numbers(found)
    ends = np.cumsum(table.column("num_persons").to_numpy())
    rows = table.drop_columns(["persons"]).to_pylist()
    for row, end in zip(rows, ends.tolist(), strict=True):
        part = slice(end - row["num_persons"], end)
        yield _placed(row, {name: values[part] for name, values in people.items()})


def _placed(row: dict[str, Any], people: dict[str, Any]) -> PlacedScene:
    """Every column put where the table says, and what `data.labels` computed undone."""
    found: dict[str, Any] = {}
    for column, values in [*((c, row) for c in IMAGE_COLUMNS), *((c, people) for c in PERSON_COLUMNS)]:
        value = values[column.name]
        if column.place:
            listed = pa.types.is_list(column.kind) and value is not None
            _put(found, column.place.split("."), np.array(value, np.float32) if listed else value)
    scene = found.pop("scene")
    scene["origin"] = {key: origin for key, origin in scene["origin"].items() if origin is not None}
    for name in ("alpha", "beta", "disparity_line"):  # of two columns each
        found[name] = (found[name]["0"], found[name]["1"])
    found["status"] = ImageStatus(found["status"])
    found["person_status"] = [PersonStatus(word) for word in found["person_status"]]
    classes = {name: code for code, name in enumerate(HEIGHT_CLASSES)}
    return PlacedScene(
        scene=Scene(
            intrinsics=read_cameras(row),
            betas=undo_betas(people["betas"], people["beta_index"], people["beta_init"]),
            person_problem=[None] * len(people["betas"]),
            **scene,
        ),
        height_class=np.array([classes.get(word, -1) for word in people["height_class"]], np.int32),
        **found,
    )


def _put(found: dict[str, Any], place: list[str], value: Any) -> None:
    for part in place[:-1]:
        found = found.setdefault(part, {})
    found[place[-1]] = value
