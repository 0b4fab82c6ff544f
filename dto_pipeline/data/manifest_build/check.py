"""Are the images of a manifest still what it says? Opens every header again, or decodes every image.

Knows four answers (missing, corrupt, changed, fine); writes nothing. An image whose file the manifest itself reports as
unusable counts as `known` while that is so, and as `mended` once it is not: `dto run` takes it up then.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tqdm import tqdm

from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.storage import Location
from dto_pipeline.data.tars import index_again, open_images, split_address
from dto_pipeline.status import ImageStatus, UnusableImage

MISSING, CORRUPT, CHANGED, KNOWN, MENDED, FINE = "missing", "corrupt", "changed", "known", "mended", "fine"
FAULTS = (MISSING, CORRUPT, CHANGED)
_COLUMNS = ("image_id", "image_file", "width", "height", "problem_status")
_THREADS = 16  # headers are waited for; decoding releases the interpreter lock
_AT_ONCE = 64 * _THREADS  # images under way
_SHOWN = 20  # faults listed in the table


class ImageFault(NamedTuple):
    image_id: str
    fault: str  # of FAULTS
    text: str


@dataclass
class CheckReport:
    deep: bool  # images were decoded, not only their headers read
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[ImageFault] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return 1 if self.faults else 0

    def to_json(self) -> dict[str, Any]:
        return {"deep": self.deep, "counts": dict(self.counts), "faults": [fault._asdict() for fault in self.faults]}

    def as_table(self) -> str:
        what = "decoded" if self.deep else "headers read"
        lines = [f"{sum(self.counts.values())} images, {what}"]
        lines += [f"  {word:<8} {self.counts[word]:>9}" for word in (FINE, *FAULTS, KNOWN, MENDED)]
        if self.counts[MENDED]:
            lines.append("  mended images are taken up by `dto run`, in finished shards with --retry-failed")
        lines += [f"  {fault.fault}: {fault.text}" for fault in self.faults[:_SHOWN]]
        hidden = len(self.faults) - _SHOWN
        return "\n".join([*lines, f"  ... and {hidden} more; --report FILE lists all"] if hidden > 0 else lines)


def check_manifest(
    path: Location,
    deep: bool = False,
    images_root: Location | None = None,
    progress: bool = True,
    reindex: bool = False,
) -> CheckReport:
    """Look at every image of a manifest.

    Args:
        deep: decode every image instead of reading its header.
        images_root: folder or URI in place of the manifest's.
        reindex: look at its tars anew first: images of tars that were fetched again, or are new, are found then.

    Raises:
        ManifestError: the manifest itself cannot be read.
        TarIndexError: its tars cannot be looked at anew.
    """
    manifest = Manifest.open(path)
    root, shards = images_root or manifest.images_root, range(manifest.num_shards)
    if reindex:
        missing = [  # names of images that no tar held when the manifest was built
            row["image_file"]
            for shard in shards
            for row in manifest.read_shard(shard, ("image_file", "problem_status")).to_pylist()
            if row["problem_status"] == ImageStatus.IMAGE_MISSING and split_address(row["image_file"]) is None
        ]
        index_again(manifest.path, root, missing, int(manifest.dataset.get("key_parts", 1)), progress)
    store = open_images(root, manifest.path)
    report = CheckReport(deep)
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        tqdm(total=manifest.num_images, unit="image", disable=not progress) as bar,
    ):
        for shard in shards:
            rows = manifest.read_shard(shard, _COLUMNS).to_pylist()
            for block in (rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE)):
                for row, (word, text) in zip(block, pool.map(lambda row: _check(store, row, deep), block), strict=True):
                    report.counts[word] += 1
                    if word in FAULTS:
                        report.faults.append(ImageFault(row["image_id"], word, text))
                bar.update(len(block))
    return report


def _check(store: ImageStore, row: dict[str, Any], deep: bool) -> tuple[str, str]:
    """One of the six words, and a sentence about a fault."""
    known = row["problem_status"] in (ImageStatus.IMAGE_MISSING, ImageStatus.IMAGE_CORRUPT)
    if row["problem_status"] == ImageStatus.LABEL_INVALID and row["width"] == 0:
        return KNOWN, ""  # its name is unusable: nothing to open
    try:
        if deep:
            height, width = store.read(row["image_file"]).rgb.shape[:2]
        else:
            width, height = store.size(row["image_file"])
    except UnusableImage as error:
        fault = MISSING if error.status is ImageStatus.IMAGE_MISSING else CORRUPT
        return (KNOWN if known else fault), str(error)
    changed = (width, height) != (row["width"], row["height"])
    if known or (changed and row["problem_status"] == ImageStatus.SIZE_MISMATCH):
        return MENDED, ""
    if changed:
        was = f"{row['width']} x {row['height']}"
        return CHANGED, f"image {row['image_file']} is {width} x {height}, the manifest says {was}"
    return FINE, ""
