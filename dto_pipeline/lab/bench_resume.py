"""What resume costs: a finished run of many shards is generated, then opened, swept and judged as `dto run` does.

Label files are real Parquet of one shard without rows, each with its own key in the footer. Times are wall clock in
seconds, files warm in the page cache; imports and the manifest's footer are not in them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dto_pipeline.config import STAND_IN_BODY, load_config
from dto_pipeline.data.files import json_bytes, sha256_bytes
from dto_pipeline.data.labels import build_label_table, write_label_shard
from dto_pipeline.data.receipts import Receipt
from dto_pipeline.run import folder as files
from dto_pipeline.run.folder import RunDirectory
from dto_pipeline.run.identity import RunIdentity, identify_run

_REPEATS = 3
_IMAGES = 112  # a shard: 0.56 million images in 5000 shards


@dataclass(frozen=True)
class ResumeBench:
    """One look at a finished run of `shards` shards."""

    shards: int
    sizes_s: float  # receipts read and sizes compared: what `dto status` does
    footers_s: float  # the same, and every label file's footer searched for its key: what `dto run` does
    total_s: float  # run.json, sweeping and the latter: all of `dto run` before it says that nothing is to do
    total_cpu_s: float  # the same in CPU seconds, which other jobs of the machine do not lengthen

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def as_table(self) -> str:
        return (
            f"{self.shards} finished shards: {self.total_s:.2f} s to resume (receipts and sizes {self.sizes_s:.2f} s, "
            f"with footers {self.footers_s:.2f} s); {self.total_cpu_s:.2f} s of CPU, "
            f"{1000 * self.total_cpu_s / self.shards:.3f} ms a shard"
        )


@dataclass(frozen=True)
class _Facts:
    """The manifest of the generated run."""

    num_shards: int
    num_images: int
    num_people: int
    fingerprint: str = "0" * 64
    subset: str = "bench"


def run_resume_bench(shards: int, folder: Path | None = None) -> ResumeBench:
    """Generate a run and time its resume; `folder` is where to write, None = a temporary folder."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="dto-bench-") as name:
        directory = RunDirectory(Path(name) / "run")
        facts: Any = _Facts(shards, shards * _IMAGES, shards * _IMAGES * 5)
        identity = identify_run(load_config(None, [f"body.model_path={STAND_IN_BODY}"]), facts, "manifest.parquet")
        _write_run(directory, identity)
        sizes_s, _ = _seconds(lambda: files.scan_run(directory, identity))
        footers_s, _ = _seconds(lambda: files.scan_run(directory, identity, footers=True))
        return ResumeBench(shards, sizes_s, footers_s, *_seconds(lambda: _resume(directory, identity)))


def _resume(directory: RunDirectory, identity: RunIdentity) -> None:
    with directory.lock():
        files.open_run(directory, identity)
        files.sweep_temporary(directory)
        scan = files.scan_run(directory, identity, footers=True)
        if len(scan.done) != identity.shards:
            raise RuntimeError(f"{len(scan.done)} of {identity.shards} generated shards hold; {scan.void}")
        files.settle_records(directory, scan)


def _write_run(directory: RunDirectory, identity: RunIdentity) -> None:
    """A finished run. Synced once, not file by file: it is thrown away."""
    files.open_run(directory, identity)
    key = sha256_bytes(b"")
    first = Path(directory.label_file(0))
    write_label_shard(build_label_table([]), first, {"config_hash": identity.config_hash, "shard_key": key})
    template = first.read_bytes()
    for shard in range(identity.shards):
        own = hashlib.sha256(str(shard).encode()).hexdigest()
        data = template.replace(key.encode(), own.encode())
        Path(directory.label_file(shard)).write_bytes(data)
        receipt = _receipt(shard, own, data, identity)
        Path(directory.receipt_file(shard)).write_bytes(json_bytes(receipt.to_dict()))


def _receipt(shard: int, key: str, data: bytes, identity: RunIdentity) -> Receipt:
    return Receipt(
        shard=shard,
        rows=_IMAGES,
        images=_IMAGES,
        persons=_IMAGES * 5,
        image_status={"optimized": _IMAGES},
        person_status={"moved": _IMAGES * 5},
        label_sha256=sha256_bytes(data),
        label_bytes=len(data),
        shard_key=key,
        config_hash=identity.config_hash,
        manifest_fingerprint=identity.manifest_fingerprint,
        worker="bench:1",
        attempt=1,
        adopted=False,
        wall_s=100.0,
        finished_at=1e9 + shard,
        stage_seconds={"read": 1.0, "body": 2.0, "render": 3.0, "write": 4.0},
    )


def _seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds, each the least of `_REPEATS`: what the work takes, not what the machine did besides."""
    taken = []
    for _ in range(_REPEATS):
        started, cpu = time.perf_counter(), time.process_time()
        work()
        taken.append((time.perf_counter() - started, time.process_time() - cpu))
    return min(wall for wall, _ in taken), min(cpu for _, cpu in taken)
