"""A shard runner in which single images end the process."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection
from pathlib import Path
from typing import Any

from dto_pipeline.config import PipelineConfig
from dto_pipeline.data.labels import read_labels
from dto_pipeline.data.storage import Location
from dto_pipeline.run.folder import RunDirectory
from dto_pipeline.run.worker import ShardRunner
from dto_pipeline.status import ImageStatus
from tests.run.chaos import label_bytes

POISON = "tiny/000007.jpg"  # second image of shard 2 of the tiny set


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


def check_poisoned(directory: RunDirectory, undisturbed: dict[str, bytes]) -> None:
    """`POISON` has a row with its status; everything else is as if nothing had happened."""
    rows = read_labels(directory.label_file(2)).to_pylist()
    assert [row["status"] for row in rows].count(str(ImageStatus.WORKER_DIED)) == 1
    assert (rows[1]["image_id"], rows[1]["status"]) == (POISON, "worker_died")
    assert all(person["status"] == "not_run" for person in rows[1]["persons"])
    found = label_bytes(directory.root)
    assert {name for name in found if found[name] != undisturbed[name]} == {"shard-00002.parquet"}
    assert directory.store.entries("failures") == {}
