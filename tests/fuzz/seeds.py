"""Whole label files, tars and pickles that `targets` damages, and what a build reads of a label file."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dto_pipeline.data.image_index import index_images
from dto_pipeline.data.inert_pickle import Limits
from dto_pipeline.data.labels import build_label_table, write_label_shard
from dto_pipeline.data.rle import encode_rle
from dto_pipeline.data.safe_pickle import SMPL_FILE
from dto_pipeline.data.sources import SOURCES
from dto_pipeline.data.sources.rows import SourceOptions
from dto_pipeline.data.sources.sidecar import Sidecar, write_sidecar
from tests.data.small_set import label_arrays
from tests.data.test_start_sources import placed_scene
from tests.pickle_streams import F8, HOSTILE, array, attributes, buffer, call, instance, integer, name, text
from tests.released_files import released_annots
from tests.tars import jpeg

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
    "ma_hmr": ("ma_hmr", save_npz(annots=released_annots(4, 2))),
    "relative_human": ("relative_human", save_npz(annots=ANNOTATIONS)),
    "sidecar": ("sidecar", write_small_sidecar),
}


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


def small_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in ("a/b/0.jpg", "l" * 120 + ".jpg", "1.jpg", "2.detection.npz"):
            info, data = tarfile.TarInfo(member), jpeg(90, 32, 24)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


TAR = small_tar()

LIMITS = Limits(max_array_bytes=2**24, max_items=100_000)
VALUE = {"a": [np.arange(3.0), np.float32(1), "text", -5, 2**40, None], "b": (b"raw", {1: True}), "c": np.array(["x"])}
PICKLES = [pickle.dumps(VALUE, protocol) for protocol in range(6)] + [stream.data for stream in HOSTILE if stream.data]
NUMBERS = array(b"K\x03\x85", F8, buffer(bytes(24)))
# every opcode with a small argument, every allowed name, and a few whole objects
PIECES = [
    *(bytes([code]) for code in range(256)),
    *(name(*allowed) for allowed in SMPL_FILE),
    *(text("latin1"), text("b"), text("f8"), text("O8"), text("x"), buffer(b"ab"), integer(2**40), integer(-1)),
    *(b"K\x01", b"q\x00", b"h\x00", b"q\x01", b"h\x01", b"(", b"t", b"R", b"b", b"\x81", b")", b"]", b"}"),
    *(
        NUMBERS,
        F8,
        instance("chumpy.ch", "Ch", attributes(x=NUMBERS)),
        call("_codecs", "encode", text("a"), text("latin1")),
    ),
]
