"""Do one shard: read its manifest rows, place its scenes, publish labels and receipt; or do its failed images again.

Label bytes depend on manifest, config and library versions only, never on threads, workers, attempts or time. Seconds.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch

from dto_pipeline.config import PipelineConfig
from dto_pipeline.data.columns import rows_sha256
from dto_pipeline.data.labels import build_label_table, read_label_metadata, read_labels, splice_rows
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.receipts import Receipt
from dto_pipeline.data.remote_inputs import fetch_body, open_depth
from dto_pipeline.data.storage import absolute
from dto_pipeline.data.tars import open_images
from dto_pipeline.errors import DtoError
from dto_pipeline.models.seeing import Perception
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.run import folder as files
from dto_pipeline.run.deaths import clear_note, find_earlier_deaths, work_one_by_one
from dto_pipeline.run.folder import LabelTable, RunDirectory, RunDirectoryError, RunMismatch
from dto_pipeline.run.identity import RunIdentity, describe_run_difference, find_missing, find_places, identify_run
from dto_pipeline.run.lease import process_name
from dto_pipeline.run.placing import ManifestRows, ScenePlacer
from dto_pipeline.run.publish import (
    commit_receipt,
    find_orphan,
    find_shard_files,
    publish_labels,
)
from dto_pipeline.timing import StageClock


@dataclass(frozen=True)
class _Loaded:
    """What a runner owns after `warm_up`."""

    identity: RunIdentity
    manifest: Manifest
    placer: ScenePlacer
    facts: dict[str, str]  # about the inputs, for the footer: the same on every machine, so no paths
    generations: dict[int, int]  # of shards that were done more than once, see `folder.list_generations`


@dataclass(frozen=True)
class _Job:
    """One attempt at one shard."""

    shard: int
    attempt: int
    following: int | None  # probably the next shard
    rows: ManifestRows
    started: float  # on `time.perf_counter` [s]
    clock: StageClock


class ShardRunner:
    """Does shards of one run. Light until `warm_up`, and picklable before it."""

    def __init__(
        self,
        config: PipelineConfig,
        manifest_path: str | Path,
        run_dir: str | Path,
        images_root: str | Path | None = None,
        depth_root: str | Path | None = None,
        retry_images: Collection[str] = (),
    ) -> None:
        """
        Args:
            images_root, depth_root: folders in place of those of manifest and config.
            retry_images: statuses; images of finished shards with one of them are done again.
        """
        self.config = config
        self.manifest_path = absolute(manifest_path)
        self.directory = RunDirectory(absolute(run_dir))
        self._images_root = images_root
        self._depth_root = depth_root
        self._retry_images = frozenset(retry_images)
        self._loaded: _Loaded | None = None

    @property
    def images_done(self) -> int:
        """Images done of the current shard."""
        return 0 if self._loaded is None else self._loaded.placer.images_done

    def warm_up(self) -> _Loaded:
        """Load the models once in this process. Raises: a DtoError if an input of the run is not there."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def run(self, shard: int, attempt: int = 1, following: int | None = None) -> Receipt:
        """Do one shard, so that its label file and its receipt exist, and load the first images of the `following` one.

        On its last attempts a shard whose process died is done image by image.

        Raises:
            DeviceLost: the accelerator failed; this process cannot go on.
            Exception: an error of the whole shard (disk full, manifest gone ...); single images never raise.
        """
        loaded = self.warm_up()
        found = find_shard_files(self.directory, loaded.identity, shard, highest=loaded.generations.get(shard, -1))
        receipt = found.receipt
        if receipt is not None and not self._needs_repair(receipt):
            return receipt
        started, clock = time.perf_counter(), StageClock()
        loaded.placer.images_done = 0
        with clock("read"):
            rows = loaded.manifest.read_shard(shard)
        job = _Job(shard, attempt, following, rows, started, clock)
        try:
            if found.orphan is not None:
                ids = rows.column("image_id").to_pylist()
                table = find_orphan(self.directory, loaded.identity, shard, found.orphan, ids)
                receipt = receipt if table is None else self._commit(job, found.orphan, table, adopted=True)
            if receipt is None:
                return self._commit(job, found.free, self._publish(job, found.free, self._place(job, rows)))
            if not self._needs_repair(receipt):
                return receipt
            return self._repair(job, receipt, max(found.free, receipt.generation + 1))
        finally:
            if attempt >= self.config.run.max_attempts:
                clear_note(self.directory, shard)

    def _needs_repair(self, receipt: Receipt) -> bool:
        return not self._retry_images.isdisjoint(receipt.image_status)

    def _publish(self, job: _Job, generation: int, table: LabelTable) -> LabelTable:
        loaded = self.warm_up()
        with job.clock("write"):
            return publish_labels(self.directory, loaded.identity, job.shard, generation, table, loaded.facts)

    def _commit(
        self, job: _Job, generation: int, table: LabelTable, before: Receipt | None = None, adopted: bool = False
    ) -> Receipt:
        """Declare a shard done. `before`: of the generation that was repaired, whose seconds are added."""
        seconds = Counter(job.clock.seconds)
        wall_s = time.perf_counter() - job.started
        if before is not None:
            seconds.update(before.stage_seconds)
            wall_s, adopted = wall_s + before.wall_s, before.adopted
        where = self.directory, self.warm_up().identity, job.shard, generation
        return commit_receipt(*where, table, wall_s, seconds, job.attempt, adopted)

    def _repair(self, job: _Job, before: Receipt, generation: int) -> Receipt:
        """Do the failed images of a finished shard again, keep its other rows; `before` if nothing changed."""
        path = self.directory.label_file(job.shard, before.generation)
        with job.clock("read"):
            labels = read_labels(path)
        found = labels.column("status").to_pylist()
        failed = [position for position, status in enumerate(found) if status in self._retry_images]
        table = splice_rows(labels, failed, self._place(job, job.rows.take(failed)))
        if read_label_metadata(path).get("rows_sha256") == rows_sha256(table):
            return before
        return self._commit(job, generation, self._publish(job, generation, table), before)

    def _place(self, job: _Job, rows: ManifestRows) -> LabelTable:
        """Label rows of manifest rows: all together, or image by image if processes died at this shard."""
        loaded, shard, attempt = self.warm_up(), job.shard, job.attempt
        placer = loaded.placer
        failure = find_earlier_deaths(self.directory, shard, attempt, self.config.run.max_attempts)
        if failure is None:
            read = None if job.following is None else functools.partial(loaded.manifest.read_shard, job.following)
            return build_label_table(placer.place(rows, job.clock, read))
        images = rows.column("image_id").to_pylist()
        placed = work_one_by_one(
            *(self.directory, failure, attempt, images),
            lambda i: placer.place(rows.take([i]), job.clock)[0],
            lambda i, status, message: placer.keep_labels(rows.take([i]), status, message)[0],
        )
        return build_label_table(placed)

    def _load(self) -> _Loaded:
        manifest = Manifest.open(self.manifest_path)
        identity = files.read_identity(self.directory)
        places = find_places(self.config, manifest, self._images_root, self._depth_root)
        if missing := find_missing(self.config, manifest, places):
            raise RunDirectoryError(f"the worker {process_name()} cannot do this run: {missing[0]}")
        torch.set_num_threads(self.config.run.torch_threads)
        here = identify_run(self.config, manifest)
        if differences := describe_run_difference(identity, here):
            raise RunMismatch("\n".join([f"{process_name()} differs from {self.directory.root}:", *differences]))
        device = choose_device(self.config.run.device)
        body = fetch_body(self.config.body.model_path, self.config.body.kid_axis, device)
        perception = Perception(self.config, body, device)
        depth = None if perception.depth is not None else open_depth(self.config.depth, places.depth or "")
        centred = manifest.dataset.get("principal_point", "centre") == "centre"
        images = open_images(places.images, self.manifest_path)
        placer = ScenePlacer(SceneOptimizer(body, self.config), self.config, images, depth, perception, centred)
        facts: dict[str, str] = {
            name: text for name, text in manifest.metadata.items() if name in ("dataset", "label_files")
        }
        facts |= {"licence": str(manifest.dataset.get("licence", "")), "body_sha256": body.sha256, **perception.facts}
        return _Loaded(identity, manifest, placer, facts, files.list_generations(self.directory))


def choose_device(name: str) -> torch.device:
    """The device of `RunConfig.device`; ``auto`` = the first GPU, or the CPU. Raises: DtoError if it does not exist."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DtoError(f"device is {name!r}; expected auto, cpu, cuda or cuda:1 ...") from error
    if device.type == "cuda" and (device.index or 0) >= (gpus := torch.cuda.device_count()):
        raise DtoError(f"device is {name!r}, and torch {torch.__version__} sees {gpus} GPUs here; take auto or cpu")
    return device
