"""A shard runner in which single images end the process, and a command that drives a run with it in one process.

python -m tests.run.poison MANIFEST RUN_DIR IMAGE_ID
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Collection
from pathlib import Path

from dto_pipeline.config import PipelineConfig
from dto_pipeline.data.storage import Location
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.worker import ShardRunner
from tests.run.chaos import tiny_config


class PoisonRunner(ShardRunner):
    """`ShardRunner` whose process is killed when it works on one of `poison`, as a crashing decoder would."""

    def __init__(self, config: PipelineConfig, manifest: Path, run_dir: Location, poison: Collection[str]) -> None:
        super().__init__(config, manifest, run_dir)
        self._poison = frozenset(poison)

    def warm_up(self) -> None:
        super().warm_up()
        placer = self._warm_placer()
        place = placer.place

        def checked(rows, clock, *following):
            if not self._poison.isdisjoint(rows.column("image_id").to_pylist()):
                os.kill(os.getpid(), signal.SIGKILL)
            return place(rows, clock, *following)

        placer.place = checked

    def _warm_placer(self):
        assert self._loaded is not None
        return self._loaded.placer


def main() -> None:
    manifest, run_dir, image = sys.argv[1:]
    runner = PoisonRunner(tiny_config(), Path(manifest), Path(run_dir), [image])
    run_pipeline(manifest, run_dir, tiny_config(), progress=False, runner=runner)


if __name__ == "__main__":
    main()
