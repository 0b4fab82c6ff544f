"""One shard from manifest rows to a receipt: load, optimise, write, publish; or its failed images once more.

Joins data and models; knows nothing of Ray or of other shards. A shard's label bytes are a function of the manifest,
the config and the library versions: never of threads, workers, attempts or time. Seconds.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from dto_pipeline.config import PipelineConfig
from dto_pipeline.data.labels import build_label_table, read_labels
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.remote_inputs import fetch_body, open_depth
from dto_pipeline.data.splice import splice_rows
from dto_pipeline.data.storage import absolute
from dto_pipeline.data.tar_images import open_images
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.seeing import Sight
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.run.directory import RunDirectory, RunDirectoryError, RunMismatch, read_identity
from dto_pipeline.run.identity import RunIdentity, describe_run_difference, identify_run
from dto_pipeline.run.inputs import find_missing, find_places
from dto_pipeline.run.placing import ManifestRows, ScenePlacer
from dto_pipeline.run.pool import process_name
from dto_pipeline.run.publishing import (
    LabelTable,
    ShardWork,
    commit_receipt,
    find_orphan,
    label_footer,
    publish_labels,
    read_valid_receipt,
    shard_key,
    stage_repair,
)
from dto_pipeline.run.receipt import Receipt
from dto_pipeline.run.suspects import Hand, clear_hand, find_suspicion, work_one_by_one, write_hand
from dto_pipeline.timing import StageClock


@dataclass(frozen=True)
class _Workshop:
    """What a warmed-up runner owns."""

    identity: RunIdentity
    manifest: Manifest
    body: BodyModel
    placer: ScenePlacer
    networks: dict[str, str]  # what the labels' metadata says of them


@dataclass(frozen=True)
class _Job:
    """One try at one shard."""

    shard: int
    attempt: int
    key: str
    started: float  # on `time.perf_counter` [s]
    clock: StageClock

    def describe(self, before: Receipt | None = None, adopted: bool = False) -> ShardWork:
        """What the receipt tells of it, added to the receipt `before`; call it when the work is done."""
        seconds = Counter(self.clock.seconds)
        wall_s = time.perf_counter() - self.started
        if before is not None:
            seconds.update(before.stage_seconds)
            wall_s, adopted = wall_s + before.wall_s, before.adopted
        return ShardWork(
            worker=process_name(),
            attempt=self.attempt,
            adopted=adopted,
            wall_s=round(wall_s, 6),
            finished_at=time.time(),
            stage_seconds={stage: round(value, 6) for stage, value in sorted(seconds.items())},
        )


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
            images_root, depth_root: folders in place of those named by the manifest and the config.
            retry_images: statuses; images of finished shards that bear one are done again.
        """
        self.config = config
        self.manifest_path = absolute(manifest_path)
        self.directory = RunDirectory(absolute(run_dir))
        self._images_root = images_root
        self._depth_root = depth_root
        self._retry_images = frozenset(retry_images)
        self._workshop: _Workshop | None = None

    @property
    def images_done(self) -> int:
        """Images done of the shard that is being worked on."""
        return 0 if self._workshop is None else self._workshop.placer.images_done

    def warm_up(self) -> None:
        """Load the models once in this process, and check that it belongs to the run.

        Raises:
            RunMismatch: this process sees another manifest or other library versions than the run was started with.
            BodyModelError, ModelError, ManifestError, RunDirectoryError: what the run needs cannot be read here.
        """
        if self._workshop is None:
            self._workshop = self._build_workshop()

    def run(self, shard: int, attempt: int = 1) -> Receipt:
        """Do one shard: its label file and its receipt exist afterwards.

        Args:
            shard: number of the manifest's shard.
            attempt: 1 = first try. On its last tries a shard that has ended processes is worked image by image.

        Returns:
            The receipt; of a repair the one the driver is to commit, see `publishing.commit_repair`.

        Raises:
            DeviceLost: the accelerator failed; this process cannot go on.
            Exception: whatever stops a whole shard (disk full, manifest gone ...); single images never do.
        """
        workshop = self._warm()
        receipt = read_valid_receipt(self.directory, workshop.identity, shard)
        if receipt is not None and not self._is_to_be_repaired(receipt):
            return receipt
        started, clock = time.perf_counter(), StageClock()
        workshop.placer.images_done = 0
        with clock("read"):
            rows = workshop.manifest.read_shard(shard)
        image_ids = rows.column("image_id").to_pylist()
        job = _Job(shard, attempt, shard_key(workshop.identity, image_ids), started, clock)
        with self._noted(job):
            if receipt is None:
                receipt = self._finish(job, rows, image_ids)
                if not receipt.adopted or not self._is_to_be_repaired(receipt):
                    return receipt
            return self._repair(job, rows, receipt)

    def _finish(self, job: _Job, rows: ManifestRows, image_ids: list[str]) -> Receipt:
        """Adopt or write the shard's label file, and declare it done."""
        table = find_orphan(self.directory, job.shard, job.key, image_ids)
        adopted = table is not None
        if table is None:
            table = self._make_labels(job.shard, rows, job.key, job.clock, job.attempt)
        work = job.describe(adopted=adopted)
        return commit_receipt(self.directory, self._warm().identity, job.shard, job.key, table, work)

    def _is_to_be_repaired(self, receipt: Receipt) -> bool:
        return not self._retry_images.isdisjoint(receipt.image_status)

    @contextmanager
    def _noted(self, job: _Job) -> Iterator[None]:
        """Write down which shard this process is at, where no driver of its own would notice its death."""
        own = self.config.run.workers == 0
        if own:
            write_hand(self.directory, Hand(job.shard, job.attempt, "", driver=True))
        try:
            yield
        finally:
            if own or job.attempt >= self.config.run.max_attempts:
                clear_hand(self.directory, job.shard)

    def _make_labels(self, shard: int, rows: ManifestRows, key: str, clock: StageClock, attempt: int) -> LabelTable:
        workshop = self._warm()
        table = self._place(shard, rows, clock, attempt)
        with clock("write"):
            footer = label_footer(workshop.identity, shard, key, table, _footer_facts(workshop))
            publish_labels(self.directory, shard, table, footer)
        return table

    def _repair(self, job: _Job, rows: ManifestRows, before: Receipt) -> Receipt:
        """Do the failed images of a finished shard again and stage the result; its other rows stay as they are.

        The receipt tells what the labels cost in all: figures of speed would take a repair for a whole shard otherwise.
        """
        workshop, clock = self._warm(), job.clock
        with clock("read"):
            standing = read_labels(self.directory.label_file(job.shard))
        found = standing.column("status").to_pylist()
        failed = [position for position, status in enumerate(found) if status in self._retry_images]
        again = self._place(job.shard, rows.take(failed), clock, job.attempt)
        with clock("write"):
            table = splice_rows(standing, failed, again)
            footer = label_footer(workshop.identity, job.shard, job.key, table, _footer_facts(workshop))
            work = job.describe(before)
            return stage_repair(self.directory, workshop.identity, job.shard, table, footer, work)

    def _place(self, shard: int, rows: ManifestRows, clock: StageClock, attempt: int) -> LabelTable:
        """Label rows of manifest rows: all together, or one by one where the shard has ended processes."""
        workshop = self._warm()
        suspicion = find_suspicion(self.directory, shard, attempt, self.config.run.max_attempts)
        if suspicion is None:
            return build_label_table(workshop.placer.place(rows, clock))
        images = rows.column("image_id").to_pylist()
        own = self.config.run.workers == 0

        def note(image: str, survived: tuple[str, ...]) -> None:
            write_hand(self.directory, Hand(shard, attempt, image, survived, own))

        placed = work_one_by_one(images, suspicion, lambda i: workshop.placer.place(rows.take([i]), clock)[0], note)
        for position in range(len(images)):
            if position not in placed:
                scenes = workshop.placer.pass_by(rows.take([position]), *suspicion.verdict(images[position]))
                placed[position] = scenes[0]
        return build_label_table([placed[position] for position in range(len(images))])

    def _warm(self) -> _Workshop:
        self.warm_up()
        assert self._workshop is not None
        return self._workshop

    def _build_workshop(self) -> _Workshop:
        torch.set_num_threads(self.config.run.torch_threads)
        manifest = Manifest.open(self.manifest_path)
        identity = read_identity(self.directory)
        places = find_places(self.config, manifest, self._images_root, self._depth_root)
        if missing := find_missing(self.config, manifest, places):
            raise RunDirectoryError(f"the worker {process_name()} does not see what the run needs: {missing[0]}")
        here = identify_run(self.config, manifest, self.manifest_path)
        if differences := describe_run_difference(identity, here):
            raise RunMismatch("\n".join([f"{process_name()} differs from {self.directory.root}:", *differences]))
        device = choose_device(self.config.run.device)
        body = fetch_body(self.config.body.model_path, self.config.body.kid_axis, device)
        if body.sha256 != identity.body_sha256:
            raise RunMismatch(
                f"the body model {self.config.body.model_path} was changed while it was read; start again"
            )
        images = open_images(places.images, self.manifest_path)
        sight = Sight(self.config, body, device)
        depth = None if sight.depth is not None else open_depth(self.config.depth, places.depth or "")
        centred = manifest.dataset.get("principal_point", "centre") == "centre"
        placer = ScenePlacer(SceneOptimizer(body, self.config), self.config, images, depth, sight, centred)
        return _Workshop(identity, manifest, body, placer, sight.facts)


def _footer_facts(workshop: _Workshop) -> dict[str, str]:
    """What the footer tells of the inputs: the same on every machine, so no roots."""
    metadata = workshop.manifest.metadata
    facts: dict[str, str] = {name: metadata[name] for name in ("dataset", "label_files") if name in metadata}
    licence = str(workshop.manifest.dataset.get("licence", ""))
    return {**facts, "licence": licence, "body_sha256": workshop.body.sha256, **workshop.networks}


def choose_device(name: str) -> torch.device:
    """The device of `RunConfig.device`; ``auto`` = the first GPU this process sees, or the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
