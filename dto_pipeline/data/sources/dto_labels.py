"""Our own label files as the start of a manifest: one Parquet, a folder of them, or a run's folder.

| value of `label_values` | transl, betas                                                        |
|-------------------------|----------------------------------------------------------------------|
| after                   | as the other run left them                                           |
| before                  | as it was given them: transl_init, and beta_init put back            |

Scores, ages and genders come along, masks do not: the label files have none. A label file knows images by their
published key (image_path), not by their file: set `images` to the folder those keys are relative to, or give
`image_prefixes`. Images in which nobody was labelled are not taken over. Metres, camera frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.data.cameras import CAMERA_COLUMNS, camera_matrices
from dto_pipeline.data.label_files import find_label_files, flatten_table, initial_betas
from dto_pipeline.data.labels import LabelsError, open_labels
from dto_pipeline.data.parquet import READ_ERRORS
from dto_pipeline.data.scratch import FlatColumn
from dto_pipeline.data.sources.rows import (
    SEEN_RANGES,
    LabelFileError,
    LabelRows,
    LabelSource,
    SourceOptions,
    take_rows,
)

_TAILS = {"pose": (72,), "betas": (NUM_BETAS,), "transl": (3,), "bbox_xyxy": (4,), **dict.fromkeys(SEEN_RANGES, ())}


def open_dto_labels(path: Path, options: SourceOptions) -> LabelSource:
    """Open a label file, a folder of label files, or a run's folder (its label files that count). Rows have `seen`.

    Raises:
        LabelFileError: nothing there, no person, or a file that is no whole label file.
    """
    try:
        files = [Path(file) for file in find_label_files(path)]
    except LabelsError as error:
        raise LabelFileError(str(error)) from error
    columns = {name: FlatColumn("f4", tail) for name, tail in _TAILS.items()}
    names, cameras, image = list[str](), [np.zeros((0, 4))], [np.zeros(0, np.int64)]
    for table in _row_groups(files):
        found = flatten_table(table, (*_TAILS, "transl_init", "beta_index", "beta_init"))
        people = found.people
        if options.values == "before":
            people = {**people, "transl": people["transl_init"], "betas": initial_betas(found)}
        for name, column in columns.items():
            column.append(people[name])
        image.append(found.owner + len(names))
        names += found.images["image_path"].tolist()
        cameras.append(np.stack([found.images[key] for key in CAMERA_COLUMNS], axis=1))
    owner, camera, name_of = np.concatenate(image), np.concatenate(cameras), np.array(names, dtype=object)
    if not owner.size:
        raise LabelFileError(f"{files[0]}: no label row; expected at least one person")
    maps = {name: column.mapped() for name, column in columns.items()}

    def rows(index: np.ndarray) -> LabelRows:
        return take_rows(maps, index, camera_matrices(camera[owner[index]]), pa.nulls(index.size, pa.binary()))

    return LabelSource(files, owner.size, lambda start, stop: name_of[owner[start:stop]], rows)


def _row_groups(files: list[Path]) -> Iterator[pa.Table]:
    for path in files:
        try:
            with open_labels(path) as file:
                for group in range(file.metadata.num_row_groups):
                    yield file.read_row_group(group, columns=["image_path", *CAMERA_COLUMNS, "persons"])
        except LabelsError as error:
            raise LabelFileError(str(error)) from error
        except READ_ERRORS as error:
            raise LabelFileError(f"{path} is damaged ({error}); run again to write it anew") from error
