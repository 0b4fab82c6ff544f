"""Everything a manifest is made from, found and opened: label file, sidecar, images, tars.

Knows how a dataset description becomes open files, wherever they lie; judges nothing. Files behind URIs that have to be
mapped are copied to a temporary folder for as long as the build lasts.
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from dto_pipeline.data.dataset import Dataset
from dto_pipeline.data.image_index import ImageIndex, index_images
from dto_pipeline.data.images import ImageFolder, ImageStore
from dto_pipeline.data.recognise import FileKind, UnknownFile, recognise
from dto_pipeline.data.sources import SOURCES
from dto_pipeline.data.sources.rows import LabelFileError, LabelSource
from dto_pipeline.data.sources.sidecar import Sidecar, SidecarError
from dto_pipeline.data.storage import Location, fetch
from dto_pipeline.data.tars import TarPlacement, place_in_tars, tar_index_path


@dataclass(frozen=True)
class ManifestInputs:
    """Everything a manifest is made from, opened."""

    dataset: Dataset
    source: LabelSource
    sidecar: Sidecar
    images: ImageStore
    index: ImageIndex
    placement: TarPlacement | None = None  # None = the images are plain files

    @property
    def num_shards(self) -> int:
        return -(-self.index.num_images // self.dataset.shard_images)

    @property
    def files(self) -> list[Path]:
        """Label files and sidecar, as local files."""
        return [*self.source.files, *([self.sidecar.path] if self.sidecar.path else [])]

    @property
    def mask_store(self) -> ImageStore | None:
        """What masks beside the images are read from; None = they are not looked for."""
        return self.images if self.dataset.masks == "detection" else None


def open_inputs(dataset: Dataset, out: Location, stack: ExitStack, progress: bool) -> ManifestInputs:
    """Open what a description names; `stack` closes it.

    Args:
        dataset: the description.
        out: where the manifest will lie; a tar index is made beside it.
        progress: show a progress line while tars are indexed.

    Raises:
        LabelFileError, SidecarError, TarIndexError, StorageError: a file is missing or cannot be used.
    """
    options = dataclasses.replace(dataset.source_options, predictions=_predictions(dataset, stack))
    labels = fetch(dataset.labels_path, stack, LabelFileError)
    check_source(labels, dataset.source)
    source = stack.enter_context(SOURCES[dataset.source](labels, options))
    place = dataset.sidecar_path
    sidecar_file = None if place is None else fetch(place, stack, SidecarError)
    sidecar = stack.enter_context(Sidecar(sidecar_file, source.num_rows))
    index = index_images(source, dataset.key_parts)
    if dataset.images_in == "folder":
        images = ImageFolder(dataset.images_root)
        return ManifestInputs(dataset, source, sidecar, images, index.with_prefixes(dataset.image_prefixes))
    placed = place_in_tars(index, dataset.images_root, dataset.key_parts, tar_index_path(out), progress)
    return ManifestInputs(dataset, source, sidecar, placed.images, placed.index, placed)


def check_source(labels: Path, source: str) -> None:
    """Refuse a label file of another kind than `source` reads; of one that is unknown its reader says more.

    Raises:
        LabelFileError: another kind, with the source that reads it.
    """
    try:
        kind = recognise(labels)
    except UnknownFile:
        return
    found = "labels" if kind is FileKind.DTO_LABELS else str(kind)
    if found != source:
        advice = f"set source: {found} (--source {found})" if found in SOURCES else "no source reads that"
        raise LabelFileError(f"{labels} holds {kind.words}, and the description says source: {source}; {advice}")


def _predictions(dataset: Dataset, stack: ExitStack) -> Path | None:
    place = dataset.place("predictions")
    return None if place is None else fetch(place, stack, LabelFileError)
