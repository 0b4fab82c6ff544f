"""How long a manifest takes and how much memory: synthetic label rows over one tiny image under many names.

Times are wall clock in seconds. Memory is what the process itself holds (anonymous pages, Linux); mapped label files
do not count, the kernel takes them back when it likes. The images are hard links to one JPEG, so that the cost of
opening files is there and the cost of a cold disk is not.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from dto_pipeline.data.dataset import dataset_from_dict
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.data.sources.camerahmr import write_camerahmr
from dto_pipeline.data.sources.rows import LabelRows

PEOPLE = 4.8  # per image, as in the published data
FULL_ROWS = 2_700_000  # of the published data
_SIZE = (64, 48)  # width, height [px]
_LINKS = 30_000  # hard links to one file; file systems allow no more than some 65000
_SAMPLE_S = 0.01


@dataclass(frozen=True)
class ManifestBench:
    """One build of `rows` label rows."""

    rows: int
    images: int
    seconds: float
    anonymous_mb: float  # most the process held while building, over what it held before; NaN = unknown here
    manifest_mb: float

    @property
    def full_seconds(self) -> float:
        """The same slope at the published number of rows."""
        return self.seconds * FULL_ROWS / self.rows

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "rows_per_s": self.rows / self.seconds, "full_seconds": self.full_seconds}

    def as_table(self) -> str:
        return (
            f"{self.rows} label rows, {self.images} images: {self.seconds:.1f} s, {self.anonymous_mb:.0f} MB, "
            f"manifest {self.manifest_mb:.0f} MB; {self.full_seconds:.0f} s at {FULL_ROWS} rows by this slope"
        )


def run_manifest_bench(rows: int = 100_000, shard_images: int = 8192, folder: Path | None = None) -> ManifestBench:
    """Write synthetic labels and images, then time `build_manifest` on them.

    Args:
        rows: label rows; `PEOPLE` of them an image.
        shard_images: images a shard, as the manifests say.
        folder: where to write (about 0.7 KB a row); None = a temporary folder, removed afterwards.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="dto-bench-") as name:
        root = Path(name)
        images = _write_data(root, rows)
        plain = {"name": "bench", "source": "camerahmr", "labels": "labels.npz", "images": "images", "depth": "depth"}
        dataset = dataset_from_dict({**plain, "shard_images": shard_images}, root)
        memory = _MemoryWatch()
        started = time.perf_counter()
        with memory:
            build_manifest(dataset, root / "manifest.parquet", progress=False)
        seconds = time.perf_counter() - started
        size = (root / "manifest.parquet").stat().st_size
        return ManifestBench(rows, images, seconds, memory.grown_mb, size / 2**20)


class _MemoryWatch:
    """Looks at this process's anonymous memory every few milliseconds, in a thread, while a block runs."""

    def __init__(self) -> None:
        self._before = self._most = _anonymous_mb()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def grown_mb(self) -> float:
        return self._most - self._before

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            self._most = max(self._most, _anonymous_mb())


def _anonymous_mb() -> float:
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    line = next((line for line in status.read_text().splitlines() if line.startswith("RssAnon")), None)
    return float("nan") if line is None else int(line.split()[1]) / 1024


def _write_data(root: Path, rows: int) -> int:
    """Label file and images; returns how many images."""
    random = np.random.default_rng(0)
    image_of = np.sort(random.integers(0, max(1, round(rows / PEOPLE)), rows))
    names = np.array([f"{image // 1000:04d}/{image:08d}.jpg" for image in range(int(image_of.max()) + 1)])
    width, height = _SIZE
    camera = np.array([[60, 0, width / 2], [0, 60, height / 2], [0, 0, 1]])
    labels = LabelRows(
        pose=random.normal(size=(rows, 72)).astype(np.float32),
        betas=random.normal(size=(rows, 11)).astype(np.float32),
        transl=random.uniform(1, 9, size=(rows, 3)).astype(np.float32),
        bbox_xyxy=np.tile(np.array([0, 0, 20, 20], np.float32), (rows, 1)),
        intrinsics=np.broadcast_to(camera, (rows, 3, 3)),
    )
    write_camerahmr(root / "labels.npz", names[image_of], labels)
    used = names[np.unique(image_of)]
    _link_images(root / "images", used)
    return used.size


def _link_images(folder: Path, names: np.ndarray) -> None:
    jpeg = simplejpeg.encode_jpeg(np.zeros((_SIZE[1], _SIZE[0], 3), np.uint8))
    for number, name in enumerate(names.tolist()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % _LINKS == 0:
            path.write_bytes(jpeg)
            first = path
        else:
            os.link(first, path)
