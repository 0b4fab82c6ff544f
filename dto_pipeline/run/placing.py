"""Place the scenes of a shard: load them ahead, run the networks, optimise batch by batch; one row per image, in order.

While window n is optimised, the networks process window n + 1 and window n + 2 is loaded, each in its own thread; the
first window of the next shard is loaded after the last one of a shard. Windows depend on the config alone, because on a
GPU the other images of a network's batch can change an image's last bits. After an error of a network or of the
optimiser the other scenes are done again without the one that causes it. Pixels.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from dto_pipeline.axes import KID_AXIS
from dto_pipeline.collate import collate_scenes, keep_labels, split_batch
from dto_pipeline.config import BY_DEVICE, PipelineConfig
from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.scenes import MENDABLE, SceneLoader, read_label_scenes
from dto_pipeline.errors import DeviceLost, lacks_memory, one_line
from dto_pipeline.models.depth import DepthFiles
from dto_pipeline.models.seeing import Perception
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.scene import PlacedScene, Scene
from dto_pipeline.status import ImageStatus, PersonStatus
from dto_pipeline.timing import StageClock

_LOG = logging.getLogger(__name__)
_BATCHES_PER_WINDOW = 4  # of a network: images of one shape are batched within a window
_LEAST_THREADS_GPU = 4  # that decode, however few cores there are
MAX_PADDING = 1.5  # padded pixels of a batch per pixel of its images: beyond it a new batch is cheaper
MAX_BATCH_PIXELS = 1 << 26  # padded pixels of a batch: bounds the disparity tensor to 256 MB
# people times pixels of their maps, padded: bounds masks to 256 MB, and all else of 1,365 people to 1.4 GB
MAX_BATCH_MASKS = 1 << 28
MAX_WINDOW_PIXELS = 1 << 27  # of images loaded together, with their disparity 0.9 GB: those of 100 Mpx come one by one
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
ManifestRows = Any  # a pyarrow.Table of schema.MANIFEST_SCHEMA; pyarrow itself is imported in data/ only
_Ahead = Future[tuple[ManifestRows, list[Scene], StageClock]]  # rows, their scenes, and what loading them took


class SceneSize(NamedTuple):
    """Size of one image, for planning batches."""

    height: int  # [px], 0 = unknown
    width: int  # [px], 0 = unknown
    people: int


class ScenePlacer:
    """Owns the optimiser, the networks, and the threads that load scenes and run networks."""

    def __init__(
        self,
        optimizer: SceneOptimizer,
        config: PipelineConfig,
        images: ImageStore,
        depth: DepthFiles | None,
        perception: Perception | None = None,
        centred: bool = True,
    ) -> None:
        """`depth`: maps from files, None if a network makes them; `centred`: see `SceneLoader`."""
        self._optimizer = optimizer
        self._config = config
        masks, decode_mb = config.masks.source == "labels", config.run.decode_memory_mb
        self._loader = SceneLoader(images, depth, config.evidence.render_max_side, masks, centred, decode_mb)
        self._device = optimizer.body.faces.device
        on_gpu = self._device.type != "cpu"
        self._sizes = {option: size_on(config, option, on_gpu) for option in BY_DEVICE}
        self._decoders = ThreadPoolExecutor(self._sizes["run.decode_threads"], thread_name_prefix="decode")
        self._perception = perception or Perception(config, optimizer.body, self._device)
        self._loading = ThreadPoolExecutor(1, thread_name_prefix="loading")
        # on a GPU the next window's images are copied there while the networks process this one's
        self._perceiving = ThreadPoolExecutor(1 + on_gpu, thread_name_prefix="networks")
        self._ahead: _Ahead | None = None  # the first window of the next shard
        self.images_done = 0  # for progress only; the caller resets it

    def place(
        self, rows: ManifestRows, clock: StageClock, following: Callable[[], ManifestRows] | None = None
    ) -> list[PlacedScene]:
        """Load and optimise the scenes of manifest rows: one placed scene per row, in their order.

        Args:
            clock: gets the seconds of each stage.
            following: returns the rows that probably come next; called in another thread.

        Raises:
            DeviceLost: the accelerator failed; this process cannot go on.
        """
        self._optimizer.clock = clock
        batches, windows = self._plan(rows)
        placed: dict[int, PlacedScene] = {}
        coming = self._see_ahead(map(rows.take, windows), clock, following)
        for positions in batches:
            with clock("wait for scenes"):
                scenes = [next(coming) for _ in positions]
            placed.update(zip(positions, self._place_batch(scenes, clock), strict=True))
            self.images_done += len(positions)
        return [placed[position] for position in range(rows.num_rows)]

    def keep_labels(self, rows: ManifestRows, status: ImageStatus, message: str) -> list[PlacedScene]:
        """One placed scene per manifest row with its labels as given; opens no image."""
        scenes = read_label_scenes(rows)
        for scene in scenes:
            scene.problem = (status, message)
        self.images_done += len(scenes)
        return [keep_labels(scene) for scene in scenes]

    def _plan(self, rows: ManifestRows) -> tuple[list[list[int]], list[list[int]]]:
        """Positions in `rows` that are optimised together, and that are loaded together, in the same order.

        Options of the section `run` count for what is loaded together only if no network processes it.
        """
        config, sizes, images = self._config, scene_sizes(rows), self._sizes["run.batch_images"]
        batches = plan_batches(sizes, images, config.evidence.render_max_side)
        if config.depth.source == "model":
            images = _BATCHES_PER_WINDOW * self._sizes["depth.batch"]
        elif config.masks.source == "model":
            images = _BATCHES_PER_WINDOW * config.masks.batch
        return batches, cut_windows(sizes, [position for batch in batches for position in batch], images)

    def _see_ahead(
        self, windows: Iterable[ManifestRows], clock: StageClock, following: Callable[[], ManifestRows] | None
    ) -> Iterator[Scene]:
        """The scenes of windows, loaded and processed by networks; then the first window of `following` is loaded."""

        def items() -> Iterator[tuple[ManifestRows, _Ahead | None]]:
            ahead, self._ahead = self._ahead, None
            for window in windows:
                yield window, ahead
                ahead = None
            if following is not None:
                self._ahead = self._loading.submit(self._load_first, following)

        loaded = run_ahead(self._loading, lambda item: self._load(*item, clock), items())
        for scenes in run_ahead(self._perceiving, lambda scenes: self._perceive(scenes, clock), loaded):
            yield from scenes

    def _load(self, window: ManifestRows, ahead: _Ahead | None, clock: StageClock) -> list[Scene]:
        """The scenes of a window, loaded ahead if they are of these images."""
        if ahead is not None and ahead.exception() is None:
            expected, scenes, spent = ahead.result()
            if expected.column("image_id").equals(window.column("image_id")):  # names are unique; NaN equals nothing
                clock.add(spent)
                return scenes
        return self._loader.load(window, self._decoders, clock)

    def _load_first(self, following: Callable[[], ManifestRows]) -> tuple[ManifestRows, list[Scene], StageClock]:
        rows, clock = following(), StageClock()
        window = rows.take(self._plan(rows)[1][0])
        return window, self._loader.load(window, self._decoders, clock), clock

    def _perceive(self, scenes: Sequence[Scene], clock: StageClock) -> Sequence[Scene]:
        """Run the networks on scenes."""

        def work(some: Sequence[Scene]) -> Sequence[Scene]:
            self._perception.perceive(some, clock)
            return some

        return self._isolate_errors(scenes, work, lambda scene: scene)

    def _place_batch(self, scenes: Sequence[Scene], clock: StageClock) -> list[PlacedScene]:
        """One placed scene per scene; those with a problem, or without people, keep their labels."""

        def work(some: Sequence[Scene]) -> Sequence[PlacedScene]:
            with clock("collate"):
                batch = collate_scenes(some, self._device)
            optimized = self._optimizer(batch)
            with clock("split"):
                return split_batch(some, optimized, self._config)

        if not self._optimizer.body.has_kid_axis:
            refuse_kid_axis(scenes)
        able = [i for i, scene in enumerate(scenes) if scene.problem is None and scene.num_people > 0]
        placed = self._isolate_errors([scenes[i] for i in able], work, keep_labels) if able else []
        results = dict(zip(able, placed, strict=True))
        for scene in scenes:
            # a shard's pixels do not fit into memory
            scene.image = scene.disparity = scene.disparity_there = scene.masks = None
        return [results[i] if i in results else keep_labels(scene) for i, scene in enumerate(scenes)]

    def _isolate_errors(
        self,
        scenes: Sequence[Scene],
        work: Callable[[Sequence[Scene]], Sequence[_Result]],
        failed: Callable[[Scene], _Result],
    ) -> Sequence[_Result]:
        """Results of `work`; after an error in halves (memory) or one by one, to lose only the scene that causes it.

        `failed`: the result of a scene whose `problem` says what happened. Raises: DeviceLost if the CUDA context can
        no longer be used.
        """
        try:
            return work(scenes)
        except Exception as error:
            failure = one_line(error)
            if isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error):
                raise DeviceLost(failure) from error
            memory = isinstance(error, torch.OutOfMemoryError) or lacks_memory(error)
        # Outside the handler: the traceback held every tensor of the failed batch.
        _LOG.warning("%d scenes, first %s: %s", len(scenes), scenes[0].image_id, failure)
        if len(scenes) == 1:
            scenes[0].problem = (ImageStatus.OUT_OF_MEMORY if memory else ImageStatus.INTERNAL_ERROR), failure
            return [failed(scenes[0])]
        step = (len(scenes) + 1) // 2 if memory else 1
        parts = [scenes[start : start + step] for start in range(0, len(scenes), step)]
        return [result for part in parts for result in self._isolate_errors(part, work, failed)]


def run_ahead(executor: Executor, work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """`map` that starts the next item before it yields the result of the previous one; errors are raised in order."""
    coming: Future[_Result] | None = None
    for item in items:
        following = executor.submit(work, item)
        if coming is not None:
            yield coming.result()
        coming = following
    if coming is not None:
        yield coming.result()


def refuse_kid_axis(scenes: Sequence[Scene]) -> None:
    """Mark people whose label uses the kid axis, which the body model lacks, as invalid."""
    problem = (
        PersonStatus.INVALID_LABEL,
        "the label uses the kid axis, which the body model lacks; see dto body import",
    )
    for scene in scenes:
        for person in np.flatnonzero(scene.betas[:, KID_AXIS] != 0):
            scene.person_problem[person] = scene.person_problem[person] or problem


def scene_sizes(rows: ManifestRows) -> list[SceneSize]:
    """Sizes of the images of manifest rows; unknown for an image whose file could not be used."""
    columns = (rows.column(name).to_pylist() for name in ("problem_status", "height", "width", "num_persons"))
    return [
        SceneSize(0, 0, people) if unfit in MENDABLE else SceneSize(height, width, people)
        for unfit, height, width, people in zip(*columns, strict=True)
    ]


def size_on(config: PipelineConfig, option: str, on_gpu: bool) -> int:
    """The value of an option of `config.BY_DEVICE` on a device; decoding threads are at most half the cores."""
    configured, by_device = int(config.option(option)), BY_DEVICE[option][on_gpu]
    if configured or option != "run.decode_threads" or not on_gpu:
        return configured or by_device
    return max(_LEAST_THREADS_GPU, min(by_device, (os.cpu_count() or 1) // 2))


def plan_batches(sizes: Sequence[SceneSize], batch_images: int, map_side: int = 512) -> list[list[int]]:
    """Cut a shard into batches of at most `batch_images`: lists of positions in `sizes`, each exactly once.

    Images of a batch have similar shapes, as padding costs time and memory, and similar numbers of people. `map_side`:
    longest side of a person map [px], see `EvidenceConfig.render_max_side`.
    """
    batches: list[list[int]] = []
    for position in sorted(range(len(sizes)), key=lambda i: (sizes[i], i)):
        together = [*batches[-1], position] if batches else []
        if 0 < len(together) <= batch_images and _fit_together([sizes[i] for i in together], map_side):
            batches[-1] = together
        else:
            batches.append([position])
    return batches


def _fit_together(sizes: Sequence[SceneSize], map_side: int) -> bool:
    """Whether images may be one batch: not too much padding, not too many pixels or masks of people, padded."""
    own = [size.height * size.width for size in sizes]
    if 0 in own:
        return False  # of unknown size: it must not add to the memory of others
    height, width = max(size.height for size in sizes), max(size.width for size in sizes)
    padded = len(sizes) * height * width
    masks = padded * min(1.0, map_side / max(height, width)) ** 2 * max(size.people for size in sizes)
    return padded <= min(MAX_BATCH_PIXELS, MAX_PADDING * sum(own)) and masks <= MAX_BATCH_MASKS


def cut_windows(sizes: Sequence[SceneSize], order: Sequence[int], images: int) -> list[list[int]]:
    """Cut positions into windows that are loaded together: at most `images`, or `MAX_WINDOW_PIXELS` unless alone."""
    windows: list[list[int]] = []
    pixels = 0
    for position in order:
        own = sizes[position].height * sizes[position].width
        if not windows or len(windows[-1]) == images or pixels + own > MAX_WINDOW_PIXELS:
            windows.append([])
            pixels = 0
        windows[-1].append(position)
        pixels += own
    return windows
