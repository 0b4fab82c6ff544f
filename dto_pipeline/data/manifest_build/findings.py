"""What a manifest build found, one row each, in a Parquet file beside the manifest: nothing is lost without a reason.

Knows the kinds of findings and how tars and other manifests are compared with the images of this one. A problem of an
image concerns all its label rows. Most findings keep something out of the run; those with `used` do not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from posixpath import splitext

import pyarrow.parquet as pq

from dto_pipeline.data.columns import build_table
from dto_pipeline.data.image_index import ImageIndex
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.parquet import writer_settings
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
from dto_pipeline.schema import FINDINGS_SCHEMA
from dto_pipeline.status import ImageStatus

WITHOUT_LABELS, TAR, TAR_MEMBER = "image_without_labels", "tar_damaged", "tar_member_refused"
REPEATED_KEY, MASKS, SOURCE = "repeated_key", "masks_unreadable", "source"
UNCOUNTED = (WITHOUT_LABELS, TAR, TAR_MEMBER, REPEATED_KEY, MASKS, SOURCE)  # kinds that no other count stands for
PERSON, ALSO_IN = "person", "also_in"
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
        self._rows: list[tuple] = []

    def add(self, kind: str, image: str, reason: str, label_row: int | None = None, used: bool = False) -> None:
        """One finding; `used` = what it is about takes part in the run all the same."""
        self.counts[kind] += 1
        if kind == ImageStatus.IMAGE_MISSING:
            self.missing.append(image)
        self._rows.append((kind, image, label_row, reason, used))
        if len(self._rows) >= _ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered."""
        if self._rows:
            columns = dict(zip(FINDINGS_SCHEMA.names, zip(*self._rows, strict=True), strict=True))
            self._writer.write_table(build_table(FINDINGS_SCHEMA, columns))
            self._rows.clear()


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

    def folded(name: str) -> str:
        return splitext(name)[0].casefold()

    named = set(index.image_file)
    similar = {folded(name): name for name in findings.missing}
    in_tars = placement and (address for address, _ in placement.images.members())
    try:
        for name in in_tars or list_names(root, _ENDINGS):
            if name not in named:
                near = similar.get(folded(name))
                hint = f"; {near}, which is missing, differs in case or extension only" if near else ""
                findings.add(WITHOUT_LABELS, name, f"no label row names this image{hint}")
    except STORAGE_ERRORS as error:
        findings.add(WITHOUT_LABELS, "", f"the images folder cannot be listed: {error_text(error)}")


def look_for_depth(index: ImageIndex, root: Location, suffix: str) -> tuple[int, int, str]:
    """Whether depth maps lie where a run will look, asked of images spread over all.

    Returns:
        How many were looked for, how many of these are missing, and one sentence about the first.
    """

    def is_there(name: str) -> bool:
        try:
            return exists(join_location(root, name))
        except STORAGE_ERRORS:
            return False

    images = [image for image in range(index.num_images) if image not in index.problem]
    images = images[:: -(-len(images) // _DEPTH_LOOKS) or 1]
    names = [splitext(index.image_name[image])[0] + suffix for image in images]
    with ThreadPoolExecutor(_THREADS) as pool:
        missing = [name for name, there in zip(names, pool.map(is_there, names), strict=True) if not there]
    if isinstance(root, Path) and not root.is_dir():
        return len(names), len(missing), f"there is no depth folder {root}"
    return len(names), len(missing), f"depth map {missing[0]} does not exist below {root}" if missing else ""


def note_shared_images(findings: Findings, index: ImageIndex, others: Sequence[Location]) -> Counter[str]:
    """Images whose key another manifest has too.

    Returns:
        Images shared, by the other manifest's subset.

    Raises:
        ManifestError: one of `others` is no manifest, or damaged.
    """
    own = set(index.image_path) if others else set()
    shared: Counter[str] = Counter()
    for other in map(Manifest.open, others):
        for shard in range(other.num_shards):
            rows = other.read_shard(shard, ["image_path", "image_id"])
            for key, image_id in zip(rows["image_path"].to_pylist(), rows["image_id"].to_pylist(), strict=True):
                if key in own:
                    findings.add(ALSO_IN, key, f"also in {other.subset} as {image_id}", used=True)
                    shared[other.subset] += 1
    return shared
