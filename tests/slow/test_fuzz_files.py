"""Damaged tars: no member reaches beyond the file, no label row is lost. Seeds of label files for `tests.fuzz.targets`.

That damaged files are read or refused by name is `test_fuzz_readers`' for every kind of file.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dto_pipeline.data.image_index import index_images
from dto_pipeline.data.labels import build_label_table, write_label_shard
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.data.rle import encode_rle
from dto_pipeline.data.sources import SOURCES
from dto_pipeline.data.sources.rows import SourceOptions
from dto_pipeline.data.sources.sidecar import Sidecar, write_sidecar
from dto_pipeline.data.tar_walk import walk_tar
from tests.data.small_set import all_rows, label_arrays, small_dataset
from tests.data.test_start_sources import placed_scene
from tests.tars import jpeg

pytestmark = pytest.mark.slow

ROWS = 6
NAMES = [f"{row // 2}.jpg" for row in range(ROWS)]


def predictions() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    numbers = {"pose": 72, "betas": 10, "transl": 3, "intrinsics": 9, "bbox_xyxy": 4, "keypoints": 51}
    arrays = {name: random.normal(size=(ROWS, size)).astype(np.float32) for name, size in numbers.items()}
    return {"image": np.array(NAMES), **arrays, "det_score": np.ones(ROWS, np.float32)}


def write_prediction_table(path: Path) -> None:
    columns = {name: values.tolist() for name, values in predictions().items()}
    pq.write_table(pa.table(columns), path, row_group_size=4)


def write_small_sidecar(path: Path) -> None:
    mask = encode_rle(np.eye(4, dtype=bool))
    size = np.full(ROWS, 4)
    ages = np.linspace(0, 90, ROWS)
    write_sidecar(path, np.arange(ROWS), age_years=ages, mask_rle=[mask] * ROWS, mask_height=size, mask_width=size)


def write_labels(path: Path) -> None:
    write_label_shard(build_label_table([placed_scene("a.jpg", 3, 0), placed_scene("b.jpg", 2, 1)]), path, {})


def save_npz(**arrays: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        path.write_bytes(buffer.getvalue())

    return write


def save_compressed(path: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **label_arrays(NAMES))  # type: ignore[arg-type]
    path.write_bytes(buffer.getvalue())


ANNOTATIONS = {"0.jpg": [{"kp2d": np.ones((14, 3)), "depth_id": 0, "age": 1, "gender": 0, "bbox": [0, 1, 2, 3]}]}
SEEDS = {
    "camerahmr": ("camerahmr", save_npz(**label_arrays(NAMES), gtkps=np.ones((ROWS, 44, 3)))),
    "camerahmr_compressed": ("camerahmr", save_compressed),
    "predictions_npz": ("predictions", save_npz(**predictions())),
    "predictions_parquet": ("predictions", write_prediction_table),
    "labels": ("labels", write_labels),
    "relative_human": ("relative_human", save_npz(annots=ANNOTATIONS)),
    "sidecar": ("sidecar", write_small_sidecar),
}


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[float, str, bytes]]:
    """Where (0 .. 1 of the file) something is overwritten, cut out or put in."""
    kinds = st.sampled_from(["overwrite", "cut", "insert", "end"])
    return draw(st.lists(st.tuples(st.floats(0, 1), kinds, st.binary(min_size=1, max_size=9)), min_size=1, max_size=4))


def damage(data: bytes, steps: list[tuple[float, str, bytes]]) -> bytes:
    for place, kind, piece in steps:
        at = int(place * len(data))
        if kind == "end":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + piece + data[at:]
        else:
            data = data[:at] + (piece if kind == "overwrite" else b"") + data[at + len(piece) :]
    return data


def read_everything(kind: str, path: Path, helper: Path) -> None:
    """All a build would read of one file."""
    if kind == "sidecar":
        sidecar = Sidecar(path, ROWS)
        sidecar.rows(np.arange(ROWS)[::-1])
        return
    options = SourceOptions(predictions=helper, keypoints=True)
    source = SOURCES[kind](path, options)
    index_images(source, 1)
    source.rows(np.arange(source.num_rows)[::-1])


_FOLDERS: dict[str, Path] = {}  # one for all examples of a test


def _folder(factory: pytest.TempPathFactory, name: str) -> Path:
    if name not in _FOLDERS:
        _FOLDERS[name] = factory.mktemp(name)
    return _FOLDERS[name]


def small_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in ("a/b/0.jpg", "l" * 120 + ".jpg", "1.jpg", "2.detection.npz"):
            info, data = tarfile.TarInfo(member), jpeg(90, 32, 24)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


TAR = small_tar()


@given(steps=damages())
@settings(max_examples=600, deadline=None)
def test_damaged_tars_are_listed_and_no_member_reaches_beyond_the_file(steps):
    data = damage(TAR, steps)
    listing = walk_tar(pa.BufferReader(data))
    for member in listing.members:
        if member.problem is None:
            assert 0 <= member.offset <= member.offset + member.size <= len(data)
            assert not member.name.startswith("/")
            assert ".." not in member.name.split("/")


@given(steps=damages())
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_build_over_a_damaged_tar_keeps_every_label_row(tmp_path_factory, steps):
    root = _folder(tmp_path_factory, "build")
    for folder in ("labels", "tars"):
        (root / folder).mkdir(exist_ok=True)
    names = ["a/b/0.jpg", "1.jpg", "3.jpg"]
    save_npz(**label_arrays(names))(root / "labels/small-release.npz")
    (root / "tars/0.tar").write_bytes(damage(TAR, steps))
    dataset = small_dataset(root, images="tars", images_in="tars", masks="detection", key_parts=3)
    report = build_manifest(dataset, root / "m.parquet", progress=False)
    rows = all_rows(Manifest.open(root / "m.parquet"))
    assert sorted(p["source_row"] for row in rows for p in row["persons"]) == [0, 1, 2]
    assert sum(report.image_problems.values()) == sum(row["problem_status"] is not None for row in rows)
