"""A shard runner that takes its time and misbehaves on request, and a command that starts a run with it.

    python -m tests.run.chaos MANIFEST RUN_DIR WORKERS PAUSE_S [LEASE_S]

Prints ``started`` when the driver is about to work. Kills are done from outside, with SIGKILL.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dto_pipeline.config import PipelineConfig, load_config
from dto_pipeline.data.receipts import Receipt, parse_receipt
from dto_pipeline.data.storage import Location, as_location, open_store, read_bytes
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import Failure, parse_failure
from dto_pipeline.run.worker import ShardRunner

RAISE, RAISE_ONCE, DIE, HANG, STOP = "raise", "raise once", "die", "hang", "stop"
ONCE = (RAISE_ONCE, HANG, STOP)  # faults of a shard's first attempt only


class ChaosRunner(ShardRunner):
    """`ShardRunner` with pauses (before the work, and between label file and receipt) and faults per shard."""

    def __init__(
        self,
        config: PipelineConfig,
        manifest: Path,
        run_dir: Location,
        pause_s: float = 0.0,
        faults: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__(config, manifest, run_dir)
        self._pause_s, self._faults = pause_s, dict(faults or {})

    def run(self, shard: int, attempt: int = 1, following: int | None = None) -> Receipt:
        fault = self._faults.get(shard)
        if attempt > 1 and fault in ONCE:
            fault = None
        if fault in (RAISE, RAISE_ONCE):
            raise RuntimeError(f"shard {shard} raised")
        if fault == DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == STOP:
            os.kill(os.getpid(), signal.SIGSTOP)
        if fault == HANG:
            time.sleep(3600)
        return super().run(shard, attempt, following)

    def _publish(self, *args):
        time.sleep(self._pause_s)
        table = super()._publish(*args)
        time.sleep(self._pause_s)
        return table


class PoisonRunner(ShardRunner):
    """`ShardRunner` whose process is killed when it works on one of `poison`, as a crashing decoder would."""

    def __init__(self, config: PipelineConfig, manifest: Path, run_dir: Location, poison: Collection[str]) -> None:
        super().__init__(config, manifest, run_dir)
        self._poison = frozenset(poison)

    def warm_up(self):
        loaded = super().warm_up()
        placer: Any = loaded.placer
        place = placer.place

        def checked(rows, clock, *following):
            if not self._poison.isdisjoint(rows.column("image_id").to_pylist()):
                os.kill(os.getpid(), signal.SIGKILL)
            return place(rows, clock, *following)

        placer.place = checked
        return loaded


def tiny_config(workers: int = 0, **run) -> PipelineConfig:
    """Defaults, the stand-in body, on the CPU, small batches; a tiny set may be broken on purpose as a test likes."""
    options = {"device": "cpu", "batch_images": 2, "workers": workers, "max_failed_images": 1, **run}
    return load_config(overrides=["body.model_path=demo", *(f"run.{name}={value}" for name, value in options.items())])


def label_bytes(run_dir: Path) -> dict[str, bytes]:
    """Every label file of a run, by the shard's first name; everything else in the folder, hidden files too, shows."""
    found: dict[str, bytes] = {}
    for path in sorted((run_dir / "labels").iterdir()):
        name = first_name(path.name)
        assert name not in found, f"{name} lies there twice, so that pq.read_table sees its images twice"
        found[name] = path.read_bytes()
    return found


def remote_labels(uri: str) -> dict[str, bytes]:
    """The same of a run in an object store."""
    store = open_store(uri)
    return {first_name(name): store.read(f"labels/{name}") for name in sorted(store.entries("labels"))}


def first_name(name: str) -> str:
    """A label file's name without its generation."""
    return re.sub(r"\.r\d+(?=\.parquet$)", "", name)


def read_receipt(path: Location) -> Receipt:
    return parse_receipt(read_bytes(path), path)


def read_failure(path: Path) -> Failure:
    return parse_failure(path.read_bytes(), path)


def main() -> None:
    manifest, run_dir, workers, pause_s, *lease_s = sys.argv[1:]
    config = tiny_config(int(workers), heartbeat_s=0.5, lease_s=float(lease_s[0]) if lease_s else 60.0)
    runner = ChaosRunner(config, Path(manifest), as_location(run_dir), float(pause_s))
    print("started", flush=True)
    run_pipeline(manifest, run_dir, config, progress=False, runner=runner)


if __name__ == "__main__":
    main()
