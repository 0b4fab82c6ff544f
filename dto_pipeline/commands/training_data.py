"""Opens the labels that a training config names. Runs are recognised by their receipts; exports, released DTO-Humans
and RelativeHuman's annotations by the content of their files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dto_pipeline.config import BodyConfig
from dto_pipeline.data.label_files import NO_LIMITS, check_one_body
from dto_pipeline.data.people import FileKind, recognise
from dto_pipeline.data.sources.rows import LabelFileError
from dto_pipeline.data.storage import as_location
from dto_pipeline.data.training_labels import (
    LabelSet,
    ParquetSet,
    PeopleSet,
    open_file_set,
    open_people_set,
    open_run_set,
)
from dto_pipeline.errors import DtoError
from dto_pipeline.models.networks import locate_body, sha256_once
from dto_pipeline.run.folder import RunDirectory, read_run_labels
from dto_pipeline.train.config import DataConfig


def open_label_sets(config: DataConfig) -> list[LabelSet]:
    """One set per entry of `config.labels`; of an unfinished run its finished shards.

    Raises: DtoError: no labels are named, one file is named twice, or labels or their photographs are missing.
    """
    if not config.labels:
        raise DtoError("data.labels names no labels; give the folders of runs or exports")
    for place in config.images:
        if place and "://" not in place and not Path(place).is_dir():
            raise DtoError(f"data.images names {place}, which is no folder; give the one of the photographs")
    images = config.images or ("",) * len(config.labels)
    sets, named = list[LabelSet](), dict[str, str]()
    for text, place in zip(config.labels, images, strict=True):
        labels = _open(text, place)
        for file in map(str, labels.files if isinstance(labels, ParquetSet) else [labels.path]):
            if (real := file if "://" in file else os.path.realpath(file)) in named:
                raise DtoError(
                    f"data.labels names {file} twice ({named[real]} and {text}): name it once; data.weights says how "
                    "often its images are seen"
                )
            named[real] = text
        sets.append(labels)
    return sets


def count_uncertain(sets: Sequence[LabelSet], config: DataConfig) -> list[str]:
    """A line per set and reason for the images and bodies that `data.max_error` and `data.max_z_sigma` leave out."""
    lines = []
    for labels in sets:
        if config.limits != NO_LIMITS and isinstance(labels, ParquetSet):
            left_out = labels.count_uncertain(config.select, config.limits)
            lines += [f"{labels.name}: {count} {reason} left out" for reason, count in left_out.items() if count]
    return lines


def check_bodies(sets: Sequence[LabelSet], config: BodyConfig) -> None:
    """Raises: LabelsError, DtoError: labels of two body models, or of another than the training's. BodyModelError: the
    training's body model is not named or not there."""
    files = [path for labels in sets if isinstance(labels, ParquetSet) for path in labels.files]
    wanted, body = check_one_body(files), locate_body(config.model_path)
    if wanted and (found := sha256_once(body)) != wanted:
        raise DtoError(
            f"body.model_path {body} has sha256 {found}, the labels in data.labels ({files[0]} ...) were made with "
            f"{wanted}; name the body model the labels were made with"
        )


def _open(labels: str, images: str) -> ParquetSet | PeopleSet:
    place = as_location(labels)
    try:
        if RunDirectory(place).is_run():
            return open_run_set(read_run_labels(labels, partial=True), images)
        if (kind := recognise(place)) is FileKind.LABELS:
            return open_file_set(labels, images)
        if kind in (FileKind.MA_HMR, FileKind.RELATIVE_HUMAN):
            return open_people_set(place, kind, images)
        raise LabelFileError(
            f"{labels} holds {kind.words}; training reads labels of this project, released DTO-Humans and "
            "RelativeHuman's annotations: make a run of it first (`dto manifest build`, `dto run`)"
        )
    except DtoError as error:
        raise type(error)(f"data.labels names {labels}: {error}") from error
