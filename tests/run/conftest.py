"""A tiny data set and the labels of an undisturbed run over it, made once for all tests of this room."""

from __future__ import annotations

import pytest

from dto_pipeline.run.driver import run_pipeline
from tests.run.chaos import label_bytes, tiny_config
from tests.tiny_dataset import TinyDataset, write_tiny_dataset


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, body) -> TinyDataset:
    """Eighteen images in six shards, four of them spoilt."""
    return write_tiny_dataset(tmp_path_factory.mktemp("tiny"), body, images=18, shard_images=3)


@pytest.fixture(scope="session")
def undisturbed(tiny, tmp_path_factory) -> dict[str, bytes]:
    """Label files of a run nobody disturbed."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    run_pipeline(tiny.manifest, run_dir, tiny_config(), progress=False)
    return label_bytes(run_dir)
