"""Networks inside a run: the same bytes however work is moved, and what one bad image costs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dto_pipeline.config import DepthConfig, MaskConfig, PipelineConfig, RunConfig
from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.labels import read_label_metadata, read_placed
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.depth import DepthInvalid
from dto_pipeline.models.networks import ModelMissing
from dto_pipeline.models.seeing import Perception
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import RunMismatch
from dto_pipeline.run.placing import ScenePlacer, run_ahead
from dto_pipeline.scene import PlacedScene
from dto_pipeline.status import ImageStatus
from dto_pipeline.timing import StageClock
from tests.run.chaos import label_bytes
from tests.tiny_dataset import TinyDataset, write_tiny_dataset
from tests.tiny_models import save_depth_anything


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory, body: BodyModel) -> TinyDataset:
    """Nine images of two shapes in one shard, some of them broken."""
    return write_tiny_dataset(tmp_path_factory.mktemp("seeing"), body, images=9, shard_images=9)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    folder = save_depth_anything(tmp_path_factory.mktemp("models") / "tiny")
    depth = DepthConfig(source="model", model=str(folder), short_side=28, batch=2)
    return PipelineConfig(depth=depth, run=RunConfig(workers=0, batch_images=3, device="cpu"))


def place(crowd: TinyDataset, config: PipelineConfig, body: BodyModel, perception: Perception) -> list[PlacedScene]:
    manifest = Manifest.open(crowd.manifest)
    images = ImageStore(Path(manifest.images_root))
    placer = ScenePlacer(SceneOptimizer(body, config), config, images, None, perception)
    return placer.place(manifest.read_shard(0), StageClock())


def test_labels_from_a_network_have_the_same_bytes_however_work_is_moved(
    crowd: TinyDataset, config: PipelineConfig, tmp_path: Path
) -> None:
    moved = [{"batch_images": 3}, {"batch_images": 64, "torch_threads": 4}, {"batch_images": 1, "decode_threads": 4}]
    found = []
    for number, options in enumerate(moved):
        run_pipeline(crowd.manifest, tmp_path / str(number), replace(config, run=replace(config.run, **options)))  # type: ignore[arg-type]
        found.append(label_bytes(tmp_path / str(number)))
    assert found[0] == found[1] == found[2]
    (file,) = (tmp_path / "0" / "labels").glob("*.parquet")
    placed = read_placed(file)
    assert sum(item.status is ImageStatus.IMAGE_MISSING for item in placed) == 1
    done = [item for item in placed if not item.status.is_failure]
    assert {item.scene.origin["depth"] for item in done} == {done[0].scene.origin["depth"]}
    metadata = read_label_metadata(file)
    assert done[0].scene.origin["depth"] == f"disparity of depth_anything@{metadata['depth_sha256'][:12]}"


def test_a_map_the_network_got_wrong_is_that_images_status(
    crowd: TinyDataset, config: PipelineConfig, body: BodyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    perception = Perception(config, body)
    assert perception.depth is not None
    see = perception.depth.see

    def spoilt(images: list[np.ndarray], *cameras: list[float]) -> list[torch.Tensor | DepthInvalid]:
        return [DepthInvalid("not finite"), *see(images, *cameras)[1:]]

    monkeypatch.setattr(perception.depth, "see", spoilt)
    statuses = [item.status for item in place(crowd, config, body, perception)]
    windows = 2  # of eight images each; the first of every window is spoilt
    assert statuses.count(ImageStatus.DEPTH_INVALID) == windows


def test_a_network_that_raises_costs_the_scene_that_causes_it(
    crowd: TinyDataset, config: PipelineConfig, body: BodyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    perception = Perception(config, body)
    assert perception.depth is not None
    calm = place(crowd, config, body, perception)
    victim = next(item.scene.image_sha256 for item in calm if not item.status.is_failure)
    perceive = perception.perceive

    def moody(scenes, clock):
        if any(scene.image_sha256 == victim for scene in scenes):
            raise ValueError("bad luck")
        perceive(scenes, clock)

    monkeypatch.setattr(perception, "perceive", moody)
    placed = place(crowd, config, body, perception)
    for item, before in zip(placed, calm, strict=True):
        if item.scene.image_sha256 == victim:
            assert (item.status, item.message) == (ImageStatus.INTERNAL_ERROR, "ValueError: bad luck")
        else:
            assert item.status is before.status


def test_the_next_item_is_begun_before_the_one_before_is_used() -> None:
    begun: list[int] = []
    done = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item == 1:
            done.set()
        return item * 10

    with ThreadPoolExecutor(1) as executor:
        results = run_ahead(executor, work, range(3))
        assert next(results) == 0
        assert done.wait(5)
        assert list(results) == [10, 20]
    assert begun == [0, 1, 2]


def test_stages_overlap_in_time() -> None:
    together = threading.Barrier(3, timeout=60)  # broken, and raised, unless three stages are at work at once

    def meet_at(meeting: int) -> Callable[[int], int]:
        def work(item: int) -> int:
            if item == meeting:
                together.wait()
            return item

        return work

    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        seen = run_ahead(second, meet_at(1), run_ahead(first, meet_at(2), range(4)))
        assert [meet_at(0)(item) for item in seen] == [0, 1, 2, 3]


def test_an_error_is_raised_in_its_turn() -> None:
    def work(item: int) -> int:
        if item == 1:
            raise ValueError("one")
        return item

    with ThreadPoolExecutor(1) as executor:
        results = run_ahead(executor, work, range(3))
        assert next(results) == 0
        with pytest.raises(ValueError, match="one"):
            next(results)


def test_a_run_is_not_resumed_with_other_weights(crowd: TinyDataset, config: PipelineConfig, tmp_path: Path) -> None:
    folder = save_depth_anything(tmp_path / "weights")
    config = replace(config, depth=replace(config.depth, model=str(folder)))
    run_pipeline(crowd.manifest, tmp_path / "run", config, progress=False)
    save_depth_anything(folder, seed=1)
    with pytest.raises(RunMismatch, match="depth network"):
        run_pipeline(crowd.manifest, tmp_path / "run", config, progress=False)


def test_a_missing_network_stops_a_run_before_it_starts(
    crowd: TinyDataset, config: PipelineConfig, tmp_path: Path
) -> None:
    config = replace(config, depth=replace(config.depth, model=str(tmp_path / "nowhere")))
    with pytest.raises(ModelMissing, match="nowhere"):
        run_pipeline(crowd.manifest, tmp_path / "run", config, progress=False)
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_run_without_masks_takes_rendered_outlines_whatever_the_labels_hold(
    crowd: TinyDataset, tmp_path: Path
) -> None:
    config = PipelineConfig(masks=MaskConfig(source="none"), run=RunConfig(workers=0, device="cpu"))
    run_pipeline(crowd.manifest, tmp_path / "run", config, progress=False)
    (file,) = (tmp_path / "run" / "labels").glob("*.parquet")
    done = [item for item in read_placed(file) if not item.status.is_failure]
    assert {item.scene.origin["masks"] for item in done} == {"rendered"}
    assert sum(int(item.mask_pixels.sum()) for item in done) > 0
    assert all(np.isnan(item.scene.mask_score).all() for item in done)  # type: ignore[arg-type]
