"""Our own label files as the start of a manifest: one Parquet, a folder of them, or a run's folder.

| value of `label_values` | transl, betas                                                        |
|-------------------------|----------------------------------------------------------------------|
| after                   | as the other run left them                                           |
| before                  | as it was given them: transl_init, and beta_init put back            |

Scores, ages and genders come along, masks do not: the label files have none. A label file knows images by their
published key (image_path), not by their file: set `images` to the folder those keys are relative to, or give
`image_prefixes`. Images in which nobody was labelled have no label row and are not taken over. Columns are mapped from
a temporary folder, never all in memory. Metres, camera frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.data.cameras import CAMERA_COLUMNS, camera_matrices
from dto_pipeline.data.columns import build_table, read_numbers, single_array
from dto_pipeline.data.files import check_maps, temporary_folder
from dto_pipeline.data.labels import LabelsError, open_labels, undo_betas
from dto_pipeline.data.parquet import READ_ERRORS, footer_text, open_parquet
from dto_pipeline.data.receipts import find_run_labels
from dto_pipeline.data.sources.rows import LabelFileError, LabelRows, SourceOptions
from dto_pipeline.data.sources.sidecar import SIDECAR_SCHEMA, judge_seen
from dto_pipeline.schema import LABELS_SCHEMA_NAME

_IMAGE_COLUMNS = ("image_path", "fx", "fy", "cx", "cy")
_SHAPES: dict[str, tuple[int, ...]] = {
    "pose": (72,),
    "betas": (NUM_BETAS,),
    "transl": (3,),
    "bbox_xyxy": (4,),
    "det_score": (),
    "age_years": (),
    "male_prob": (),
}


class DtoLabels:
    """Open label files: their people one after the other; see the module. Made by `open_dto_labels`."""

    def __init__(self, files: list[Path], values: str) -> None:
        self.files = files
        self._folder = temporary_folder("dto-labels-")
        try:
            check_maps(self._folder.name)
            self._names, self._camera, image_of = _unpack(files, values, Path(self._folder.name))
            self._image = np.concatenate(image_of) if image_of else np.zeros(0, np.int64)
            self.num_rows = self._image.size
            if self.num_rows == 0:
                raise LabelFileError(f"{files[0]}: no label row; expected at least one person")
            self._columns = {name: self._map(name, shape) for name, shape in _SHAPES.items()}
        except BaseException:
            self._folder.cleanup()
            raise

    def image_names(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) str: published keys."""
        return self._names[self._image[start:stop]]

    def rows(self, index: np.ndarray) -> LabelRows:
        """The people named by `index` (n,) int, in this order."""
        picked = {name: np.array(column[index]) for name, column in self._columns.items()}
        intrinsics = camera_matrices(self._camera[self._image[index]])
        unknown: dict[str, Any] = {
            "mask_rle": pa.nulls(index.size, pa.binary()),
            "mask_height": np.zeros(index.size, np.int32),
            "mask_width": np.zeros(index.size, np.int32),
        }
        told = {name: picked.pop(name) for name in ("det_score", "age_years", "male_prob")}
        seen = judge_seen(build_table(SIDECAR_SCHEMA, {"label_row": index, **told, **unknown}))
        return LabelRows(**picked, intrinsics=intrinsics, seen=seen)

    def __enter__(self) -> DtoLabels:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def _map(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        return np.memmap(Path(self._folder.name) / name, np.float32, "r", shape=(self.num_rows, *shape))


def open_dto_labels(path: Path, options: SourceOptions) -> DtoLabels:
    """Open a label file, a folder of label files, or a run's folder (its label files that count).

    Raises:
        LabelFileError: nothing there, or a file that is no whole label file.
    """
    return DtoLabels(_label_files(path), options.values)


def is_dto_labels(path: Path) -> bool:
    """True for a folder, and for a file of our label schema."""
    if path.is_dir():
        return True
    try:
        with open_parquet(path, LabelFileError) as file:
            return footer_text(file).get("schema") == LABELS_SCHEMA_NAME
    except LabelFileError:
        return False


def _label_files(path: Path) -> list[Path]:
    """The file itself, of a run those that count, of another folder all."""
    if path.is_file():
        return [path]
    folder = path / "labels" if (path / "labels").is_dir() else path
    counting = find_run_labels(folder)
    files = sorted(folder.glob("*.parquet")) if counting is None else [Path(file) for file in counting]
    if not files:
        raise LabelFileError(f"{path} holds no label file; expected *.parquet or labels/*.parquet, as `dto run` writes")
    return files


def _unpack(files: list[Path], values: str, folder: Path) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Write each column of all people to a file of its own.

    Returns:
        (m,) names and (m, 4) fx, fy, cx, cy of the images, and the image of each person, in pieces.
    """
    names: list[str] = []
    cameras, image_of = [np.zeros((0, 4))], []
    sinks = {name: (folder / name).open("wb") for name in _SHAPES}
    try:
        for path in files:
            for table in _groups(path):
                persons = single_array(table.column("persons"))
                counts = persons.value_lengths().to_numpy(zero_copy_only=False)
                image_of.append(np.repeat(np.arange(len(names), len(names) + len(counts)), counts))
                names += table.column("image_path").to_pylist()
                cameras.append(np.stack([table.column(key).to_numpy() for key in CAMERA_COLUMNS], axis=1))
                _append(sinks, persons.flatten(), values)
    finally:
        for sink in sinks.values():
            sink.close()
    return np.array(names, dtype=object), np.concatenate(cameras), image_of


def _groups(path: Path) -> Iterator[pa.Table]:
    try:
        with open_labels(path) as file:
            columns = [*_IMAGE_COLUMNS, "persons"]
            for group in range(file.metadata.num_row_groups):
                yield file.read_row_group(group, columns=columns)
    except LabelsError as error:
        raise LabelFileError(str(error)) from error
    except READ_ERRORS as error:
        raise LabelFileError(f"{path} is damaged ({error}); run again to write it anew") from error


def _append(sinks: Mapping[str, BinaryIO], people: pa.StructArray, values: str) -> None:
    columns = {name: read_numbers(people.field(name)) for name in _SHAPES}
    if values == "before":
        columns["transl"] = read_numbers(people.field("transl_init"))
        index, initial = (people.field(name).to_numpy(zero_copy_only=False) for name in ("beta_index", "beta_init"))
        columns["betas"] = undo_betas(columns["betas"], index, initial)
    for name, sink in sinks.items():
        sink.write(np.ascontiguousarray(columns[name], np.float32).tobytes())
