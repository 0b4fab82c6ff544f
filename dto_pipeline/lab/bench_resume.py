"""What a look at a run of many shards costs, and its resume: generated, then told and planned as the commands do.

Label files are real Parquet of one shard without rows, each with its own key in the footer; one shard in twenty was
given up. Times are of wall clock and CPU in seconds, files warm in the page cache; imports and the manifest's footer
are not in them.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dto_pipeline.config import STAND_IN_BODY, load_config
from dto_pipeline.data.files import json_bytes, sha256_bytes
from dto_pipeline.data.labels import build_label_table, write_label_shard
from dto_pipeline.data.manifest import ShardSize
from dto_pipeline.data.receipts import Receipt
from dto_pipeline.run import folder as files
from dto_pipeline.run.folder import Failure, RunDirectory
from dto_pipeline.run.identity import RunIdentity, identify_run
from dto_pipeline.run.lease import DriverLock
from dto_pipeline.run.plan import Retry, RunPlan, Selection, plan_run
from dto_pipeline.run.report import read_status

_REPEATS = 3
_IMAGES = 112  # a shard: 0.56 million images in 5000 shards
_PEOPLE = 5 * _IMAGES
_GIVEN_UP = 20  # one shard in so many


@dataclass(frozen=True)
class ResumeBench:
    """One look at a run of `shards` shards, `given_up` of them given up."""

    shards: int
    given_up: int
    status_s: float  # what `dto status` does: receipts and failures read, sizes compared, all of it told
    status_cpu_s: float
    plan_s: float  # what `dto run` does before it says that nothing is to do: footers searched for their keys too
    plan_cpu_s: float

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    def as_table(self) -> str:
        return (
            f"{self.shards} shards, {self.given_up} of them given up: status {self.status_s:.2f} s "
            f"({self.status_cpu_s:.2f} s of CPU), plan {self.plan_s:.2f} s ({self.plan_cpu_s:.2f} s of CPU, "
            f"{1000 * self.plan_cpu_s / self.shards:.3f} ms a shard)"
        )


def run_resume_bench(shards: int, folder: Path | None = None) -> ResumeBench:
    """Generate a run and time its resume; `folder` is where to write, None = a temporary folder."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="dto-bench-") as name:
        directory = RunDirectory(Path(name) / "run")
        manifest: Any = SimpleNamespace(  # as far as identity and plan look at it
            num_shards=shards,
            num_images=shards * _IMAGES,
            num_people=shards * _PEOPLE,
            shard_sizes=[ShardSize(_IMAGES, _PEOPLE)] * shards,
            fingerprint="0" * 64,
            subset="bench",
        )
        config = load_config(None, [f"body.model_path={STAND_IN_BODY}"])
        identity = identify_run(config, manifest, "manifest.parquet")
        _write_run(directory, identity)
        with DriverLock(directory.root, config.run) as lock:

            def plan() -> RunPlan:
                return plan_run(directory, identity, manifest, Selection(), Retry(), lock=lock)

            found = plan()
            if found.work or found.scan.void or len(found.done) + len(found.failed) != shards:
                raise RuntimeError(f"{len(found.done)} of {shards} generated shards hold; {found.scan.void}")
            status = _seconds(lambda: read_status(directory.root).as_table())
            return ResumeBench(shards, len(found.failed), *status, *_seconds(plan))


def _write_run(directory: RunDirectory, identity: RunIdentity) -> None:
    """A run that is at its end. Synced once, not file by file: it is thrown away."""
    files.open_run(directory, identity)
    key = sha256_bytes(b"")
    first = Path(directory.label_file(0))
    write_label_shard(build_label_table([]), first, {"config_hash": identity.config_hash, "shard_key": key})
    template = first.read_bytes()
    for shard in range(identity.shards):
        if shard % _GIVEN_UP == _GIVEN_UP - 1:
            failure = Failure(
                shard, 3, True, "the actor died: its worker process was killed", "bench:1", 1e9, "trace " * 400
            )
            Path(directory.failure_file(shard)).write_bytes(json_bytes(failure.to_dict()))
            continue
        own = hashlib.sha256(str(shard).encode()).hexdigest()
        data = template.replace(key.encode(), own.encode())
        Path(directory.label_file(shard)).write_bytes(data)
        receipt = Receipt(
            shard=shard,
            rows=_IMAGES,
            images=_IMAGES,
            persons=_PEOPLE,
            image_status={"optimized": _IMAGES},
            person_status={"moved": _PEOPLE},
            label_sha256=sha256_bytes(data),
            label_bytes=len(data),
            shard_key=own,
            config_hash=identity.config_hash,
            manifest_fingerprint=identity.manifest_fingerprint,
            worker="bench:1",
            attempt=1,
            adopted=False,
            wall_s=100.0,
            finished_at=1e9 + shard,
            stage_seconds={"read": 1.0, "body": 2.0, "render": 3.0, "write": 4.0},
        )
        Path(directory.receipt_file(shard)).write_bytes(json_bytes(receipt.to_dict()))


def _seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds, each the least of `_REPEATS`: what the work takes, not what the machine did besides."""
    taken = []
    for _ in range(_REPEATS):
        started, cpu = time.perf_counter(), time.process_time()
        work()
        taken.append((time.perf_counter() - started, time.process_time() - cpu))
    return min(wall for wall, _ in taken), min(cpu for _, cpu in taken)
