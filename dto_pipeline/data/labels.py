"""Label shards: placed scenes in, Parquet of schema `dto-labels/1` out, and back.

Knows how a `PlacedScene` becomes a row; every input image has one, failures too, and people keep their order. Knows no
shard plan and no receipt. Equal input and metadata give identical bytes. Lengths in metres, image positions in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dto_pipeline import __version__
from dto_pipeline.axes import HEIGHT_CLASSES, NUM_BETAS
from dto_pipeline.data.columns import build_table, pick_words, ragged_column, struct_column
from dto_pipeline.data.files import commit_new, staged
from dto_pipeline.data.parquet import (
    READ_ERRORS,
    ROWS_PER_GROUP,
    check_schema,
    footer_text,
    open_parquet,
    writer_settings,
)
from dto_pipeline.data.storage import Location, as_location
from dto_pipeline.data.store import create_bytes
from dto_pipeline.errors import NO_ROOM, DtoError
from dto_pipeline.schema import COORDINATES, LABEL_PERSON, LABELS_SCHEMA, LABELS_SCHEMA_NAME

if TYPE_CHECKING:  # a finished run answers without loading PyTorch
    from dto_pipeline.scene import PlacedScene

_PLACED_PERSON_NUMBERS = (
    ("betas", (NUM_BETAS,)),
    ("transl", (3,)),
    *((name, ()) for name in ("scale", "beta_index", "height_init_m", "height_m", "prior_mean_m", "prior_sigma_m")),
    *((name, ()) for name in ("depth_mean", "depth_std", "slope", "corr", "mask_pixels", "visible_vertices")),
    *((name, ()) for name in ("depth_group", "z_sigma_m", "height_sigma_m")),
)
_ADDED = ("expected_error_m",)  # columns of images that files of older versions lack
_SCENE_PERSON_NUMBERS = (
    ("pose", (72,)),
    ("source_row", ()),
    ("bbox_xyxy", (4,)),
    *((name, ()) for name in ("det_score", "age_years", "male_prob")),
)


class LabelsError(DtoError, ValueError):
    """A label file that cannot be used; the message names it and the next step."""


def build_label_table(placed: Sequence[PlacedScene]) -> pa.Table:
    """One row per placed scene, in order.

    Returns:
        Table of `schema.LABELS_SCHEMA`.

    Raises:
        ValueError: a scene whose per-person fields disagree on the number of people, named.
    """
    counts = np.array([item.scene.num_people for item in placed], dtype=np.int64)
    _check_counts(placed, counts)
    people = ragged_column(counts, struct_column(LABEL_PERSON, _person_columns(placed, counts)), _PERSONS_TYPE)
    return build_table(LABELS_SCHEMA, {**_image_columns(placed), "num_persons": counts, "persons": people})


def write_label_shard(table: pa.Table, path: Location, metadata: Mapping[str, str]) -> bool:
    """Write a table of `build_label_table` if there is no file of that name yet.

    Args:
        table: rows of `schema.LABELS_SCHEMA`.
        path: the shard's final name.
        metadata: text for the footer (config hash, shard key, licence ...); schema, pipeline version and coordinate
            convention are added.

    Returns:
        True if this call created the file, False if it existed and was left alone.
    """
    check_schema(path, table.schema, LABELS_SCHEMA, LabelsError)
    footer = {"schema": LABELS_SCHEMA_NAME, "pipeline_version": __version__, "coordinates": COORDINATES, **metadata}
    schema = LABELS_SCHEMA.with_metadata(dict(sorted(footer.items())))
    table = table.replace_schema_metadata(schema.metadata)
    if isinstance(path, Path):
        with staged(path) as temporary:
            try:
                _write_parquet(table, temporary)
            except OSError as error:
                if error.errno in NO_ROOM:
                    raise OSError(error.errno, f"{error.strerror}; {NO_ROOM[error.errno]}", str(path)) from error
                raise
            return commit_new(temporary, path)
    buffer = pa.BufferOutputStream()
    _write_parquet(table, buffer)
    return create_bytes(path, buffer.getvalue().to_pybytes())


def _write_parquet(table: pa.Table, sink: Path | pa.NativeFile) -> None:
    with pq.ParquetWriter(sink, table.schema, **writer_settings(table.schema)) as writer:
        writer.write_table(table, row_group_size=ROWS_PER_GROUP)


def open_labels(path: Location) -> pq.ParquetFile:
    """Open a label file to read it piece by piece; errors as `read_labels`. Close it, or use `with`."""
    path = as_location(path)
    file = open_parquet(path, LabelsError)
    name = footer_text(file).get("schema")
    if name != LABELS_SCHEMA_NAME:
        raise LabelsError(f"{path} has schema {name!r}; expected {LABELS_SCHEMA_NAME!r}, is it a label shard?")
    known = [field for field in LABELS_SCHEMA if field.name in file.schema_arrow.names or field.name not in _ADDED]
    check_schema(path, file.schema_arrow, pa.schema(known), LabelsError)
    return file


def fill_added(table: pa.Table, columns: Sequence[str] | None = None) -> pa.Table:
    """Rows of a label file with null in the columns its version did not know, of `columns` (None = all)."""
    for name in _ADDED:
        if name not in table.column_names and (columns is None or name in columns):
            before = LABELS_SCHEMA.names[: LABELS_SCHEMA.names.index(name)]
            place, field = sum(other in before for other in table.column_names), LABELS_SCHEMA.field(name)
            table = table.add_column(place, field, pa.nulls(table.num_rows, field.type))
    return table


def read_labels(path: Location) -> pa.Table:
    """All rows of a label file.

    Raises:
        LabelsError: missing, not a whole Parquet file, or not of this schema.
    """
    with open_labels(path) as file:
        try:
            return fill_added(file.read())
        except READ_ERRORS as error:
            raise LabelsError(f"{path} is damaged ({error}); delete it and run again to write it anew") from error


def read_label_metadata(path: Location) -> dict[str, str]:
    """Footer text of a label file (shard key, config hash ...), without reading its rows; errors as `read_labels`."""
    with open_labels(path) as file:
        return footer_text(file)


def undo_betas(betas: np.ndarray, index: np.ndarray, initial: np.ndarray) -> np.ndarray:
    """(n, 11) shapes as they went in: coefficient `index` (n,) becomes `initial` (n,) again where index >= 0."""
    changed = np.flatnonzero(index >= 0)
    betas = betas.copy()
    betas[changed, index[changed]] = initial[changed]
    return betas


_PERSONS_TYPE = LABELS_SCHEMA.field("persons").type


def _check_counts(placed: Sequence[PlacedScene], counts: np.ndarray) -> None:
    for item, people in zip(placed, counts, strict=True):
        found = {len(item.person_status), len(item.person_message), item.transl.shape[0], item.scene.pose.shape[0]}
        if found != {int(people)}:
            raise ValueError(f"{item.scene.image_id}: fields hold {sorted(found)} people; expected {people} in each")


def _image_columns(placed: Sequence[PlacedScene]) -> dict[str, Any]:
    """Columns of the image itself, one entry per scene."""
    scenes = [item.scene for item in placed]
    intrinsics = np.array([scene.intrinsics for scene in scenes], dtype=np.float64).reshape(-1, 3, 3)
    line = np.array([item.alpha + item.beta for item in placed], dtype=np.float32).reshape(-1, 4)
    columns: dict[str, Any] = {
        name: [getattr(scene, name) for scene in scenes]
        for name in ("image_id", "subset", "image_path", "width", "height", "image_sha256")
    }
    columns.update({"fx": intrinsics[:, 0, 0], "fy": intrinsics[:, 1, 1]})
    columns.update({"cx": intrinsics[:, 0, 2], "cy": intrinsics[:, 1, 2]})
    columns.update({"alpha_near": line[:, 0], "alpha_far": line[:, 1], "beta_near": line[:, 2], "beta_far": line[:, 3]})
    columns["status"] = [str(item.status) for item in placed]
    columns["message"] = [item.message for item in placed]
    columns["is_optimized"] = [bool(item.is_optimized) for item in placed]
    columns["is_accepted"] = [bool(item.is_accepted) for item in placed]
    columns["mean_height_deviation"] = np.array([item.deviation for item in placed], dtype=np.float32)
    columns["expected_error_m"] = [item.expected_error for item in placed]
    columns["depth_model"] = [item.depth_model for item in placed]
    inverse = np.array([item.disparity_line for item in placed], dtype=np.float32).reshape(-1, 2)
    columns.update({"disparity_slope": inverse[:, 0], "disparity_offset": inverse[:, 1]})
    columns["z_covariance"] = [item.z_covariance for item in placed]
    columns["used_ground_evidence"] = [bool(item.used_ground) for item in placed]
    for column, key in (("mask_origin", "masks"), ("attribute_origin", "attributes"), ("depth_origin", "depth")):
        columns[column] = [scene.origin.get(key) for scene in scenes]
    return columns


def _person_columns(placed: Sequence[PlacedScene], counts: np.ndarray) -> dict[str, Any]:
    """Columns of all people of all scenes, one after the other."""
    scenes = [item.scene for item in placed]
    columns: dict[str, Any] = {name: _stack(scenes, name, shape) for name, shape in _SCENE_PERSON_NUMBERS}
    columns.update({name: _stack(placed, name, shape) for name, shape in _PLACED_PERSON_NUMBERS})
    columns["transl_init"] = _stack(scenes, "transl", (3,))
    unscored = [np.full(scene.num_people, np.nan, np.float32) for scene in scenes]
    scores = [
        own if scene.mask_score is None else scene.mask_score for own, scene in zip(unscored, scenes, strict=True)
    ]
    columns["mask_score"] = np.concatenate([*scores, np.zeros(0, np.float32)])
    starts = np.cumsum(counts) - counts
    columns["person_index"] = np.arange(int(counts.sum())) - np.repeat(starts, counts)
    columns["beta_init"] = _initial_beta(_stack(scenes, "betas", (NUM_BETAS,)), columns["beta_index"])
    heights = _stack(placed, "height_class", ()).astype(np.int64)
    columns["height_class"] = pick_words((*HEIGHT_CLASSES, None), np.where(heights < 0, len(HEIGHT_CLASSES), heights))
    columns["status"] = [str(status) for item in placed for status in item.person_status]
    columns["message"] = [message for item in placed for message in item.person_message]
    return columns


def _stack(items: Sequence[Any], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """(sum of P, *shape): the field `name` of all items, end to end; right also without items."""
    arrays = [getattr(item, name) for item in items]
    return np.concatenate(arrays) if arrays else np.zeros((0, *shape), dtype=np.float32)


def _initial_beta(betas: np.ndarray, index: np.ndarray) -> np.ndarray:
    """(n,) float32: the input coefficient that was changed, NaN where none was."""
    picked = np.take_along_axis(betas, np.maximum(index, 0).astype(np.int64)[:, None], axis=1)[:, 0]
    return np.where(index < 0, np.float32(np.nan), picked).astype(np.float32)
