"""Check whether the images of a manifest are still as it says: read every header again, or decode every image.

Nothing is written. An image whose file could not be used when the manifest was built counts as `known`, or as `mended`
if it can be used now; `dto run` then takes it.
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
from dto_pipeline.data.tars import open_images
from dto_pipeline.status import ImageStatus, UnusableImage

MISSING, CORRUPT, CHANGED, KNOWN, MENDED, FINE = "missing", "corrupt", "changed", "known", "mended", "fine"
_COLUMNS = ("image_id", "image_file", "width", "height", "problem_status")
_THREADS = 16  # reading headers is mostly waiting; decoding releases the interpreter lock
_SHOWN = 20  # faults listed in the table


class ImageFault(NamedTuple):
    image_id: str
    fault: str  # missing, corrupt or changed
    text: str


@dataclass
class CheckReport:
    deep: bool  # images were decoded, not only their headers read
    counts: Counter[str] = field(default_factory=Counter)  # one of the six words -> images
    faults: list[ImageFault] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {"deep": self.deep, "counts": self.counts, "faults": [fault._asdict() for fault in self.faults]}

    def as_table(self) -> str:
        lines = [f"{sum(self.counts.values())} images, {'decoded' if self.deep else 'headers read'}"]
        lines += [f"  {word:<8} {self.counts[word]:>9}" for word in (FINE, MISSING, CORRUPT, CHANGED, KNOWN, MENDED)]
        if self.counts[MENDED]:
            lines.append("  mended images are done by `dto run`, in finished shards with --retry-failed")
        lines += [f"  {fault.fault}: {fault.text}" for fault in self.faults[:_SHOWN]]
        hidden = len(self.faults) - _SHOWN
        return "\n".join([*lines, f"  ... and {hidden} more; --report FILE lists all"] if hidden > 0 else lines)


def check_manifest(
    path: Location, deep: bool = False, images_root: Location | None = None, progress: bool = True
) -> CheckReport:
    """Read the header of every image of a manifest.

    `deep`: decode every image instead; `images_root`: folder or URI of the images, None = as the manifest says. Raises:
    ManifestError: the manifest cannot be read.
    """
    manifest, report = Manifest.open(path), CheckReport(deep)
    store = open_images(images_root or manifest.images_root, manifest.path)
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        tqdm(total=manifest.num_images, unit="image", disable=not progress) as bar,
    ):
        for shard in range(manifest.num_shards):
            rows = manifest.read_shard(shard, _COLUMNS).to_pylist()
            for row, (word, text) in zip(rows, pool.map(lambda row: _check(store, row, deep), rows), strict=True):
                report.counts[word] += 1
                if text:
                    report.faults.append(ImageFault(row["image_id"], word, text))
                bar.update()
    return report


def _check(store: ImageStore, row: dict[str, Any], deep: bool) -> tuple[str, str]:
    """One of the six words, and what is wrong; "" where nothing is."""
    name, status, recorded = row["image_file"], row["problem_status"], (row["width"], row["height"])
    known = status in (ImageStatus.IMAGE_MISSING, ImageStatus.IMAGE_CORRUPT)
    if status == ImageStatus.LABEL_INVALID and recorded[0] == 0:
        return KNOWN, ""  # its name is unusable: nothing to open
    try:
        size = store.read(name).rgb.shape[1::-1] if deep else store.size(name)
    except UnusableImage as error:
        fault = MISSING if error.status is ImageStatus.IMAGE_MISSING else CORRUPT
        return (KNOWN, "") if known else (fault, str(error))
    if known or (size != recorded and status == ImageStatus.SIZE_MISMATCH):
        return MENDED, ""
    if size != recorded:
        return CHANGED, f"image {name} is {size[0]} x {size[1]}, the manifest says {recorded[0]} x {recorded[1]}"
    return FINE, ""
