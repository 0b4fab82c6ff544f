"""Finished runs over the tiny data set, made once: two subsets, with failures, several shards each."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from dto_pipeline.data.label_files import RunLabels
from dto_pipeline.data.labels import read_labels
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import read_run_labels
from tests.run.chaos import tiny_config
from tests.tars import write_tar
from tests.tiny_dataset import TinyDataset, write_tiny_dataset


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, body) -> TinyDataset:
    """Nine images in three shards, four of them spoilt."""
    return write_tiny_dataset(tmp_path_factory.mktemp("tiny"), body, images=9, shard_images=4)


@pytest.fixture(scope="session")
def run_dirs(tiny: TinyDataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same images as subsets mpii, insta1 and insta2: the last two overlap, as the real ones do."""
    root = tmp_path_factory.mktemp("runs")
    folders = {}
    for name in ("mpii", "insta1", "insta2"):
        dataset = dataclasses.replace(tiny.dataset, name=name, licence=f"licence of {name}")
        manifest = root / f"{name}.parquet"
        build_manifest(dataset, manifest, progress=False)
        run_pipeline(manifest, root / name, tiny_config(), progress=False)
        folders[name] = root / name
    return folders


@pytest.fixture(scope="session")
def runs(run_dirs: dict[str, Path]) -> dict[str, RunLabels]:
    return {name: read_run_labels(folder) for name, folder in run_dirs.items()}


@pytest.fixture(scope="session")
def tar_run(tiny: TinyDataset, tmp_path_factory: pytest.TempPathFactory) -> RunLabels:
    """A run of subset coco whose images lie in a tar; its labels and depth are those of the tiny data set."""
    root = tmp_path_factory.mktemp("tars")
    for folder in ("labels", "depth"):
        shutil.copytree(tiny.manifest.parent / folder, root / folder)
    files = {path.name: path.read_bytes() for path in sorted((tiny.manifest.parent / "images").iterdir())}
    write_tar(root / "tars/0.tar", files)
    dataset = dataclasses.replace(tiny.dataset, name="coco", root=root, images="tars", images_in="tars")
    build_manifest(dataset, root / "coco.parquet", progress=False)
    run_pipeline(root / "coco.parquet", root / "coco", tiny_config(), progress=False)
    return read_run_labels(root / "coco")


@pytest.fixture(scope="session")
def labels(runs: dict[str, RunLabels]) -> dict[str, pa.Table]:
    """All rows of each run."""
    return {name: pa.concat_tables([read_labels(file.path) for file in run.files]) for name, run in runs.items()}
