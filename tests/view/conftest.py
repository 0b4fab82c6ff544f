"""One finished run over a tiny data set, made once; tests that spoil it work on a copy."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dto_pipeline.data.files import sha256_file
from dto_pipeline.data.labels import build_label_table, read_label_metadata, read_placed, write_label_shard
from dto_pipeline.models.body import BodyModel
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import RunDirectory
from dto_pipeline.scene import PlacedScene
from dto_pipeline.view.run_files import RunFiles, open_run_files
from tests.run.chaos import tiny_config
from tests.tiny_dataset import TinyDataset, write_tiny_dataset

Spoil = Callable[[list[PlacedScene]], None]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, body: BodyModel) -> TinyDataset:
    """Nine images in three shards, four of them spoilt."""
    return write_tiny_dataset(tmp_path_factory.mktemp("tiny"), body)


@pytest.fixture(scope="session")
def run_dir(tiny: TinyDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run over `tiny`; not to be changed."""
    path = tmp_path_factory.mktemp("finished") / "run"
    run_pipeline(tiny.manifest, path, tiny_config(), progress=False)
    return path


@pytest.fixture(scope="session")
def run(run_dir: Path) -> RunFiles:
    return open_run_files(run_dir)


@pytest.fixture
def copy(run_dir: Path, tmp_path: Path) -> Path:
    """A copy of the run that may be spoilt."""
    return Path(shutil.copytree(run_dir, tmp_path / "copy"))


def rewrite_shard(run_dir: Path, shard: int, spoil: Spoil, footer: dict[str, str] | None = None) -> None:
    """Change the labels of one shard and let its receipt agree with the new file: only the labels are wrong then."""
    directory = RunDirectory(run_dir)
    path = directory.label_file(shard)
    metadata, placed = read_label_metadata(path), read_placed(path)
    for item in placed:  # arrays of a read table are read-only
        for part in (item, item.scene):
            for field in dataclasses.fields(part):
                if hasattr(value := getattr(part, field.name), "flags"):
                    setattr(part, field.name, value.copy())
    spoil(placed)
    path.unlink()
    write_label_shard(build_label_table(placed), path, {**metadata, **(footer or {})})
    edit_receipt(run_dir, shard, label_sha256=sha256_file(path), label_bytes=path.stat().st_size)


def edit_receipt(run_dir: Path, shard: int, **changes: object) -> None:
    path = RunDirectory(run_dir).receipt_file(shard)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def first_moved(placed: list[PlacedScene]) -> tuple[PlacedScene, int]:
    """Some image and person of a shard that was moved."""
    return next((p, i) for p in placed for i, status in enumerate(p.person_status) if status == "moved")
