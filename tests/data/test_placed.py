"""Label rows back into scenes: what was written is what is read, and the changes can be undone exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dto_pipeline.collate import collate_scenes, keep_labels, split_batch
from dto_pipeline.config import PipelineConfig
from dto_pipeline.data.labels import build_label_table, read_placed, write_label_shard
from dto_pipeline.models.body import BodyModel
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.scene import PlacedScene
from dto_pipeline.status import ImageStatus
from tests.crowds import Stander, make_scene


def written_and_read(body: BodyModel, folder: Path) -> tuple[list[PlacedScene], list[PlacedScene]]:
    config = PipelineConfig()
    crowd = [Stander(-0.8, 2.8, 1.12, 1.4, age=5), Stander(0, 3.6, 1.7), Stander(0.8, 3.2, 1.6, 1.1)]
    scenes = [make_scene(body, crowd), make_scene(body, crowd[:1], name="alone")]
    broken = make_scene(body, crowd[1:], name="broken")
    broken.problem = (ImageStatus.IMAGE_CORRUPT, "cut off")
    placed = split_batch(scenes, SceneOptimizer(body, config)(collate_scenes(scenes)), config)
    placed.append(keep_labels(broken))
    write_label_shard(build_label_table(placed), folder / "shard.parquet", {})
    return placed, read_placed(folder / "shard.parquet")


def test_what_was_written_is_what_is_read(body: BodyModel, tmp_path: Path) -> None:
    for before, after in zip(*written_and_read(body, tmp_path), strict=True):
        assert after.status is before.status
        assert after.person_status == before.person_status
        assert after.message == before.message
        for name in ("betas", "transl", "scale", "height_class", "height_m", "mask_pixels", "depth_group"):
            assert np.array_equal(getattr(after, name), getattr(before, name), equal_nan=True), name
        assert np.allclose(after.alpha, before.alpha, equal_nan=True)


def test_the_input_labels_come_back_exactly(body: BodyModel, tmp_path: Path) -> None:
    for before, after in zip(*written_and_read(body, tmp_path), strict=True):
        for name in ("pose", "betas", "transl", "age_years", "source_row", "intrinsics"):
            assert np.array_equal(getattr(after.scene, name), getattr(before.scene, name)), name
