"""What a manifest build found, one row each, in a Parquet file beside the manifest: nothing is lost without a reason.

Knows the kinds of findings and how tars, label files and other manifests are compared with the images of this one. A
problem of an image concerns all its label rows. Most findings keep something out of the run; those with `used` do not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from posixpath import splitext

import numpy as np
import pyarrow.parquet as pq

from dto_pipeline.data.columns import build_table
from dto_pipeline.data.image_index import ImageIndex
from dto_pipeline.data.parquet import READ_ERRORS, footer_text, open_parquet, writer_settings
from dto_pipeline.data.sources.rows import Finding
from dto_pipeline.data.storage import (
    STORAGE_ERRORS,
    Location,
    beside,
    error_text,
    exists,
    join_location,
    list_names,
    written,
)
from dto_pipeline.data.tars import IMAGE_EXTENSIONS, TarPlacement
from dto_pipeline.errors import DtoError
from dto_pipeline.schema import FINDINGS_SCHEMA, MANIFEST_SCHEMA_NAME
from dto_pipeline.status import ImageStatus

PERSON = "person"
WITHOUT_LABELS = "image_without_labels"
ALSO_IN = "also_in"
TAR = "tar_damaged"
TAR_MEMBER = "tar_member_refused"
REPEATED_KEY = "repeated_key"
MASKS = "masks_unreadable"
SOURCE = "source"
_DEPTH_LOOKS = 1000  # images whose depth map is looked for: a missing twentieth shows, and stores are not asked for all
_THREADS = 16
_ROWS_AT_ONCE = 1 << 15
_ENDINGS = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)


class Findings:
    """Writes findings as they come, a few thousand at a time.

    `counts` says how many there are of each kind, `missing` which images a label names and nobody found.
    """

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self.counts: Counter[str] = Counter()
        self.missing: list[str] = []
        self._writer = writer
        self._rows: dict[str, list] = {name: [] for name in FINDINGS_SCHEMA.names}

    def add(self, kind: str, image: str, reason: str, label_row: int | None = None, used: bool = False) -> None:
        """One finding; `used` = what it is about takes part in the run all the same."""
        self.counts[kind] += 1
        if kind == ImageStatus.IMAGE_MISSING:
            self.missing.append(image)
        row = (kind, image, label_row, reason, used)
        for column, value in zip(self._rows.values(), row, strict=True):
            column.append(value)
        if len(self._rows["kind"]) >= _ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered."""
        if self._rows["kind"]:
            self._writer.write_table(build_table(FINDINGS_SCHEMA, self._rows))
            for column in self._rows.values():
                column.clear()


@contextmanager
def open_findings(manifest: Location) -> Iterator[Findings]:
    """The findings file of a manifest, replaced when the block ends without an error."""
    with (
        written(findings_path(manifest)) as local,
        pq.ParquetWriter(local, FINDINGS_SCHEMA, **writer_settings(FINDINGS_SCHEMA)) as writer,
    ):
        findings = Findings(writer)
        yield findings
        findings.flush()


def findings_path(manifest: Location) -> Location:
    """Where the findings of a manifest lie: beside it."""
    return beside(manifest, ".findings.parquet")


class FindingsError(DtoError, ValueError):
    """A manifest or findings file that cannot be compared with; the message names it."""


def note_tars(findings: Findings, placement: TarPlacement) -> None:
    """Damaged tars, refused members, and keys that several members have."""
    for summary in placement.images.summaries:
        if summary.problem:
            findings.add(TAR, summary.tar, f"{summary.problem}; {summary.usable} members can be read", used=True)
    refused = placement.images.problems().select(["tar", "member", "problem"]).to_pydict()
    for tar, member, problem in zip(*refused.values(), strict=True):
        findings.add(TAR_MEMBER, f"{tar}!{member}", problem)
    for taken, other in placement.repeated:
        findings.add(REPEATED_KEY, other, f"has the key of {taken}, which is taken")


def note_unlabelled(findings: Findings, index: ImageIndex, root: Location, placement: TarPlacement | None) -> None:
    """Images that no label row names, and whether a missing one has nearly their name. Call it after the images.

    An images folder that cannot be listed is a finding itself.
    """
    named = set(index.image_file)
    similar = {_folded(name): name for name in findings.missing}
    try:
        for name in _stored_images(root, placement):
            if name not in named:
                near = similar.get(_folded(name))
                hint = f"; {near}, which is missing, differs in case or extension only" if near else ""
                findings.add(WITHOUT_LABELS, name, f"no label row names this image{hint}")
    except STORAGE_ERRORS as error:
        findings.add(WITHOUT_LABELS, "", f"the images folder cannot be listed: {error_text(error)}")


def look_for_depth(index: ImageIndex, root: Location, suffix: str) -> tuple[int, int, str]:
    """Whether depth maps lie where a run will look, asked of images spread over all.

    Returns:
        How many were looked for, how many of these are missing, and one sentence about the first.
    """
    images = [image for image in range(index.num_images) if image not in index.problem]
    images = images[:: -(-len(images) // _DEPTH_LOOKS) or 1]
    names = [splitext(index.image_name[image])[0] + suffix for image in images]
    with ThreadPoolExecutor(_THREADS) as pool:
        there = list(pool.map(lambda name: _is_there(root, name), names))
    missing = [name for name, found in zip(names, there, strict=True) if not found]
    if isinstance(root, Path) and not root.is_dir():
        return len(names), len(missing), f"there is no depth folder {root}"
    return len(names), len(missing), f"depth map {missing[0]} does not exist below {root}" if missing else ""


def _is_there(root: Location, name: str) -> bool:
    try:
        return exists(join_location(root, name))
    except STORAGE_ERRORS:
        return False


def note_source(findings: Findings, noticed: Iterable[Finding]) -> None:
    """What the source noticed by itself."""
    for finding in noticed:
        findings.add(SOURCE, finding.image, finding.reason)


def note_duplicates(findings: Findings, index: ImageIndex, others: Sequence[Location]) -> Counter[str]:
    """Images whose key another manifest has too.

    Returns:
        Images shared, by the other manifest's subset.

    Raises:
        FindingsError: one of `others` is no manifest.
    """
    own = set(index.image_path) if others else set()
    shared: Counter[str] = Counter()
    for other in others:
        with open_parquet(other, FindingsError) as file:
            if footer_text(file).get("schema") != MANIFEST_SCHEMA_NAME:
                expected = f"expected {MANIFEST_SCHEMA_NAME}, as `dto manifest build` writes"
                raise FindingsError(f"{other} is no manifest; {expected}")
            for subset, key, image_id in _image_keys(other, file):
                if key in own:
                    findings.add(ALSO_IN, key, f"also in {subset} as {image_id}", used=True)
                    shared[subset] += 1
    return shared


def _image_keys(path: Location, file: pq.ParquetFile) -> Iterator[tuple[str, str, str]]:
    """Subset, key and id of every image of a manifest."""
    try:
        for group in range(file.metadata.num_row_groups):
            rows = file.read_row_group(group, columns=["subset", "image_path", "image_id"]).to_pydict()
            yield from zip(rows["subset"], rows["image_path"], rows["image_id"], strict=True)
    except (*READ_ERRORS, KeyError) as error:
        raise FindingsError(f"{path} is damaged ({error}); build it again") from error


def note_people(findings: Findings, images: Sequence[str], rows: np.ndarray, reasons: Sequence[str]) -> None:
    """Label rows that cannot be used, with the image each belongs to."""
    for image, row, reason in zip(images, rows.tolist(), reasons, strict=True):
        findings.add(PERSON, image, reason, label_row=row)


def _folded(name: str) -> str:
    """A name without what is often spelled differently."""
    return splitext(name)[0].casefold()


def _stored_images(root: Location, placement: TarPlacement | None) -> Iterator[str]:
    if placement is None:
        yield from list_names(root, _ENDINGS)
    else:
        yield from (address for address, _ in placement.images.members())
