"""Scenes of a shard through the optimiser: order, overlap, and what an error costs."""

import numpy as np
import pytest
import torch

from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.scenes import SceneLoader
from dto_pipeline.errors import DeviceLost
from dto_pipeline.models.body import load_body
from dto_pipeline.models.depth import DepthFiles
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.identity import hash_settings
from dto_pipeline.run.placing import ScenePlacer
from dto_pipeline.status import ImageStatus, PersonStatus
from dto_pipeline.timing import StageClock
from tests.company import assert_same_bytes, raw_bytes
from tests.run.chaos import tiny_config
from tests.tiny_dataset import write_tiny_dataset

IMAGES = 6
CONFIG = tiny_config(batch_images=4)


class Moody:
    """The real optimiser, which raises `error` for every batch that `hates` says yes to."""

    def __init__(self, body, hates, error):
        self._real = SceneOptimizer(body, CONFIG)
        self.body, self._hates, self._error = body, hates, error
        self.batch_sizes: list[int] = []

    @property
    def clock(self):
        return self._real.clock

    @clock.setter
    def clock(self, clock):
        self._real.clock = clock

    def __call__(self, batch):
        self.batch_sizes.append(batch.pose.shape[0])
        if self._hates(batch):
            raise self._error
        return self._real(batch)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, body):
    """Six whole images in one shard."""
    tiny = write_tiny_dataset(
        tmp_path_factory.mktemp("placing"), body, images=IMAGES, shard_images=IMAGES, broken=False
    )
    return Manifest.open(tiny.manifest)


def _place(manifest, optimizer, clock=None):
    placer = ScenePlacer(optimizer, CONFIG, ImageStore(manifest.images_root), DepthFiles(manifest.depth_root))
    return placer.place(manifest.read_shard(0), clock or StageClock())


@pytest.fixture(scope="module")
def calm(manifest, body):
    return _place(manifest, SceneOptimizer(body, CONFIG))


def _only_scene(manifest, number):
    """True for batches that hold the image `number`, told by a label nobody else has."""
    transl = manifest.read_shard(0).column("persons").to_pylist()[number][0]["transl"]
    return lambda batch: bool((batch.transl[:, 0] == torch.tensor(transl)).all(-1).any())


def test_scenes_come_back_in_the_order_of_the_manifest(manifest, calm):
    assert [item.scene.image_id for item in calm] == manifest.read_shard(0).column("image_id").to_pylist()


def test_pixels_are_let_go_once_a_scene_is_placed(calm):
    assert all(item.scene.image is None and item.scene.masks is None and item.scene.disparity is None for item in calm)


def test_an_error_costs_the_scene_that_causes_it(manifest, body, calm):
    placed = _place(manifest, Moody(body, _only_scene(manifest, 3), ValueError("bad luck")))

    assert (placed[3].status, placed[3].message) == (ImageStatus.INTERNAL_ERROR, "ValueError: bad luck")
    assert set(placed[3].person_status) == {PersonStatus.NOT_RUN}
    np.testing.assert_array_equal(placed[3].transl, placed[3].scene.transl)
    for number in {*range(IMAGES)} - {3}:
        assert placed[number].status == calm[number].status
        np.testing.assert_array_equal(placed[number].transl, calm[number].transl)


def test_out_of_memory_halves_the_batch_and_changes_no_label(manifest, body, calm):
    moody = Moody(body, lambda batch: batch.pose.shape[0] > 1, torch.OutOfMemoryError("too much"))
    placed = _place(manifest, moody)

    assert moody.batch_sizes == [4, 2, 1, 1, 2, 1, 1, 2, 1, 1]
    for item, expected in zip(placed, calm, strict=True):
        np.testing.assert_array_equal(item.transl, expected.transl)
        np.testing.assert_array_equal(item.betas, expected.betas)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("too much"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_scene_for_which_memory_ran_out_says_so_and_costs_itself(manifest, body, calm, error):
    placed = _place(manifest, Moody(body, _only_scene(manifest, 3), error))

    assert placed[3].status == ImageStatus.OUT_OF_MEMORY
    assert [item.status for i, item in enumerate(placed) if i != 3] == [c.status for i, c in enumerate(calm) if i != 3]


def test_a_broken_device_ends_the_process_instead_of_the_images(manifest, body):
    moody = Moody(body, lambda batch: True, RuntimeError("CUDA error: an illegal memory access was encountered"))

    with pytest.raises(DeviceLost, match="illegal memory access"):
        _place(manifest, moody)


def test_every_stage_is_timed(manifest, body):
    clock = StageClock()
    _place(manifest, SceneOptimizer(body, CONFIG), clock)

    stages = {"decode", "masks", "depth", "body", "rasterizer", "evidence", "solver", "collate", "split"}
    assert stages <= clock.seconds.keys()


class Counting(ImageStore):
    """A folder that notes with what limit it is asked, and decodes with none left."""

    def read(self, image_file, decode_memory_mb=0, least_side=0):
        ASKED.append(decode_memory_mb)
        return super().read(image_file, 0)


ASKED: list[int] = []


def test_an_image_that_takes_more_memory_than_the_option_costs_itself_and_no_label_hash(manifest, body):
    config = tiny_config(batch_images=4, decode_memory_mb=7)
    images, depth = Counting(manifest.images_root), DepthFiles(manifest.depth_root)
    placed = ScenePlacer(SceneOptimizer(body, config), config, images, depth).place(
        manifest.read_shard(0), StageClock()
    )

    assert ASKED == [7] * IMAGES
    problems = [item.scene.problem or (None, "") for item in placed]
    assert {status for status, _ in problems} == {ImageStatus.IMAGE_CORRUPT}
    assert all("raise run.decode_memory_mb" in text for _, text in problems)
    assert hash_settings(config.to_dict(), {}) == hash_settings(CONFIG.to_dict(), {})


def test_a_label_on_the_kid_axis_is_refused_by_a_model_without_one(manifest, body):
    rows = manifest.read_shard(0)
    scenes = SceneLoader(ImageStore(manifest.images_root), DepthFiles(manifest.depth_root)).load(rows)
    scenes[0].betas[0, 10] = 0.4
    placer = ScenePlacer(
        SceneOptimizer(load_body("demo", kid_axis=False), CONFIG),
        CONFIG,
        ImageStore(manifest.images_root),
        DepthFiles(manifest.depth_root),
    )
    placed = placer._place_batch(scenes, StageClock())
    assert placed[0].person_status[0] is PersonStatus.INVALID_LABEL
    assert "kid axis" in (placed[0].person_message[0] or "")
    assert all(status is not PersonStatus.INVALID_LABEL for status in placed[1].person_status)


class Watched(ImageStore):
    """`names`: of the images that were read, in order."""

    def __init__(self, root):
        super().__init__(root)
        self.names: list[str] = []

    def read(self, image_file, *options):
        self.names.append(image_file)
        return super().read(image_file, *options)


@pytest.fixture(scope="module")
def two_shards(tmp_path_factory, body):
    tiny = write_tiny_dataset(tmp_path_factory.mktemp("two"), body, images=IMAGES, shard_images=3, broken=False)
    return Manifest.open(tiny.manifest)


@pytest.fixture
def placer(two_shards, body):
    images = Watched(two_shards.images_root)
    return ScenePlacer(SceneOptimizer(body, CONFIG), CONFIG, images, DepthFiles(two_shards.depth_root))


def test_the_next_rows_are_read_behind_the_last_of_these_and_only_once(two_shards, placer):
    first, second = (two_shards.read_shard(shard) for shard in range(2))
    files = [rows.column("image_file").to_pylist() for rows in (first, second)]
    expected = [placer.place(rows, StageClock()) for rows in (first, second)]
    placer._loader.images.names.clear()

    found = [placer.place(first, StageClock(), lambda: second)]
    placer._loading.submit(int).result()  # whatever was begun is done
    assert sorted(placer._loader.images.names) == sorted(files[0] + files[1])
    clock = StageClock()
    found.append(placer.place(second, clock))

    assert sorted(placer._loader.images.names) == sorted(files[0] + files[1])
    assert clock.seconds["decode"] > 0
    for together, alone in zip(found, expected, strict=True):
        assert_same_bytes(together, [raw_bytes(item) for item in alone])


def test_rows_that_were_not_the_next_are_read_as_ever(two_shards, placer):
    first, second = (two_shards.read_shard(shard) for shard in range(2))
    placer.place(first, StageClock(), lambda: second)

    again = placer.place(first, StageClock(), lambda: two_shards.read_shard(99))  # an error of it is nobody's

    assert [item.scene.image_id for item in again] == first.column("image_id").to_pylist()
    assert [item.status for item in placer.place(second, StageClock())] == [ImageStatus.OPTIMIZED] * 3


def test_a_run_in_this_process_reads_ahead_across_its_shards(two_shards, tmp_path, monkeypatch):
    asked = []
    place = ScenePlacer.place

    def watched(self, rows, clock, following=None):
        asked.append(following and following().column("image_id").to_pylist())
        return place(self, rows, clock, following)

    monkeypatch.setattr(ScenePlacer, "place", watched)
    run_pipeline(two_shards.path, tmp_path / "run", tiny_config(workers=0), progress=False)
    assert asked == [two_shards.read_shard(1).column("image_id").to_pylist(), None]
