"""What all scenarios share: a manifest, a folder to work in, and the run over it that nobody disturbed.

Knows how `dto run` is started as a process; knows no scenario. The undisturbed run uses one process without Ray.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from dto_pipeline.data.dataset import load_dataset
from dto_pipeline.data.labels import read_labels
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.errors import DtoError
from tests.chaos.judge import read_label_bytes

_DATASET = files("dto_pipeline.assets") / "demo.yaml"


class ChaosError(DtoError):
    """A scenario that cannot be played to its end; the message says what was waited for and what came instead."""


@dataclass(frozen=True)
class Arena:
    """Where scenarios are played."""

    manifest: Path
    scratch: Path  # every scenario works in a folder of its own below it
    calm: Path  # folder of the undisturbed run
    workers: int = 2  # Ray workers of disturbed runs that need Ray

    @cached_property
    def undisturbed(self) -> dict[str, bytes]:
        """Label files of the undisturbed run."""
        return read_label_bytes(self.calm)

    @property
    def shards(self) -> int:
        return len(self.undisturbed)

    def rows(self, shard: int) -> list[dict[str, object]]:
        """Rows of a shard of the undisturbed run."""
        return read_labels(self.calm / "labels" / f"shard-{shard:05d}.parquet").to_pylist()

    def good_image(self) -> tuple[int, str]:
        """(shard, image_path) of an image in the middle of the data that was optimised."""
        for shard in range(self.shards // 2, self.shards):
            for row in self.rows(shard):
                if row["status"] == "optimized":
                    return shard, str(row["image_path"])
        raise ChaosError("no image in the second half of the data is optimised; take other data")


ANY_FAILURES = ("--set", "run.max_failed_images=1")  # the demo's crowds are broken on purpose, and so are runs here


def dto_command(*arguments: str | Path) -> list[str]:
    """The command line of a `dto` verb, run by this very Python."""
    return [sys.executable, "-m", "dto_pipeline.cli", *(str(argument) for argument in arguments)]


def build_arena(manifest: Path, scratch: Path, workers: int = 2) -> Arena:
    """Run `manifest` undisturbed; the folder of that run is kept and used again."""
    calm = scratch / "undisturbed"
    command = dto_command("run", manifest, "-o", calm, "--workers", "0", "--quiet", *ANY_FAILURES)
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise ChaosError(f"the undisturbed run ended with exit code {answer.returncode}: {answer.stderr[-2000:]}")
    return Arena(manifest, scratch, calm, workers)


def build_demo_manifest(folder: Path, images: int, shard_images: int) -> Path:
    """The demo's synthetic crowds, a few of them broken, in small shards; made once per folder.

    Returns:
        The manifest's path.
    """
    from dto_pipeline.lab.crowd_files import build_demo_data
    from dto_pipeline.models.body import load_body

    build_demo_data(folder / "data", load_body("demo"), images)
    dataset = load_dataset(str(_DATASET), folder / "data")
    build_manifest(dataclasses.replace(dataset, shard_images=shard_images), folder / "manifest.parquet", progress=False)
    return folder / "manifest.parquet"
