"""The labels a training config names, opened: runs by their receipts; exports, released DTO-Humans and RelativeHuman's
annotations by what the files hold.

Glue between finished runs and training, which knows none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dto_pipeline.config import BodyConfig
from dto_pipeline.data.annotation_pieces import open_annotation_set, open_annots_set
from dto_pipeline.data.label_files import NO_LIMITS, check_one_body
from dto_pipeline.data.people import FileKind, expect_kind
from dto_pipeline.data.storage import as_location
from dto_pipeline.data.training_labels import LabelSet, ParquetSet, open_file_set, open_run_set
from dto_pipeline.errors import DtoError
from dto_pipeline.models.networks import locate_body, sha256_once
from dto_pipeline.run.folder import RunDirectory, read_run_labels
from dto_pipeline.train.config import DataConfig


def open_label_sets(config: DataConfig) -> list[LabelSet]:
    """One set per entry of `config.labels`; finished shards of a run that is not finished are taken.

    Raises:
        DtoError: nothing was named, labels are missing, or nothing says where their photographs are.
    """
    if not config.labels:
        raise DtoError("data.labels names no labels; give the folders of runs or exports")
    for place in config.images:
        if place and "://" not in place and not Path(place).is_dir():
            raise DtoError(f"data.images names {place}, which is no folder; give the one of the photographs")
    images = config.images or ("",) * len(config.labels)
    return [_open(labels, place) for labels, place in zip(config.labels, images, strict=True)]


def count_uncertain(sets: Sequence[LabelSet], config: DataConfig) -> list[str]:
    """What `data.max_error` and `data.max_z_sigma` leave out of the selected images, a line per labels and reason."""
    lines = []
    for labels in sets:
        if config.limits != NO_LIMITS and isinstance(labels, ParquetSet):
            left_out = labels.count_uncertain(config.select, config.limits)
            lines += [f"{labels.name}: {count} {reason} left out" for reason, count in left_out.items() if count]
    return lines


def check_bodies(sets: Sequence[LabelSet], config: BodyConfig) -> None:
    """Refuse labels of different body models, or of another than the training's.

    Raises:
        LabelsError, DtoError: two that differ, both named.
        BodyModelError: the training's body model is not named or not there.
    """
    files = [path for labels in sets if isinstance(labels, ParquetSet) for path in labels.files]
    told, body = check_one_body(files), locate_body(config.model_path)
    if told and (found := sha256_once(body)) != told:
        raise DtoError(
            f"body.model_path {body} has sha256 {found}, the labels in data.labels ({files[0]} ...) were made with "
            f"{told}; name the body model the labels were made with"
        )


def _open(labels: str, images: str) -> LabelSet:
    try:
        return _open_any(labels, images)
    except FileNotFoundError as error:
        raise DtoError(
            f"data.labels names {labels}, which does not exist; give a run, an export or a label file"
        ) from error
    except DtoError as error:
        raise type(error)(f"data.labels names {labels}: {error}") from error


def _open_any(labels: str, images: str) -> LabelSet:
    if RunDirectory(as_location(labels)).is_run():
        return open_run_set(read_run_labels(labels, partial=True), images)
    place = as_location(labels)
    if isinstance(place, str):  # behind a URI only our own label files are read
        return open_file_set(labels, images)
    readable = (FileKind.DTO_LABELS, FileKind.MA_HMR, FileKind.RELATIVE_HUMAN)
    kind = expect_kind(place, readable, "training")
    if kind is FileKind.DTO_LABELS:
        return open_file_set(labels, images)
    return (open_annots_set if kind is FileKind.MA_HMR else open_annotation_set)(labels, images)
