"""A run over tars, and over places behind URIs, makes the labels it makes over plain files."""

from __future__ import annotations

import dataclasses

import pyarrow.parquet as pq

from dto_pipeline.data.labels import read_labels
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.run.driver import run_pipeline
from tests.memory_store import put, upload
from tests.run.chaos import tiny_config
from tests.tars import write_tar


def labels_of(run_dir):
    tables = [read_labels(path) for path in sorted((run_dir / "labels").glob("*.parquet"))]
    return [row for table in tables for row in table.drop_columns(["persons", "message"]).to_pylist()]


def test_images_in_tars_give_the_same_labels_as_files(tiny, undisturbed, tmp_path):
    root = tiny.dataset.root
    files = {path.name: path.read_bytes() for path in sorted((root / "images").iterdir())}
    half = len(files) // 2
    write_tar(tmp_path / "tars/0.tar", dict(list(files.items())[:half]))
    write_tar(tmp_path / "tars/1.tar", dict(list(files.items())[half:]))
    dataset = dataclasses.replace(tiny.dataset, images_in="tars", places={"images": tmp_path / "tars"})
    build_manifest(dataset, tmp_path / "tars.parquet", progress=False)
    run_pipeline(tmp_path / "tars.parquet", tmp_path / "run", tiny_config(), progress=False)
    (tmp_path / "expected/labels").mkdir(parents=True)
    for name, data in undisturbed.items():
        (tmp_path / "expected/labels" / name.rpartition("/")[2]).write_bytes(data)
    assert str(labels_of(tmp_path / "run")) == str(labels_of(tmp_path / "expected"))


def test_a_run_starts_from_a_manifest_and_images_behind_uris(tiny, undisturbed, tmp_path):
    upload(tiny.dataset.root / "images", "tiny/images")
    put("tiny/m.parquet", tiny.manifest.read_bytes())
    manifest = "memory://tiny/m.parquet"
    assert Manifest.open(manifest).num_images == tiny.images
    run_pipeline(manifest, tmp_path / "run", tiny_config(), images_root="memory://tiny/images", progress=False)
    found = {path.name: pq.read_table(path) for path in (tmp_path / "run/labels").glob("*.parquet")}
    assert len(found) == len(undisturbed)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run/labels").glob("*.parquet")} == {
        name.rpartition("/")[2]: data for name, data in undisturbed.items()
    }
