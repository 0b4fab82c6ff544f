"""The readers and decoders that get damaged files, each with whole files to start from."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import yaml
from PIL import Image

from dto_pipeline.config import load_config
from dto_pipeline.data.dataset import load_dataset
from dto_pipeline.data.images import decode_image, read_image
from dto_pipeline.data.inert_pickle import PickleRefused
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.npz import NpzFile
from dto_pipeline.data.receipts import parse_receipt
from dto_pipeline.data.rle import RleError, decode_rle, encode_rle, measure_rles
from dto_pipeline.data.safe_pickle import NUMPY_ONLY, SMPL_FILE, safe_loads
from dto_pipeline.data.smpl_file import read_smpl
from dto_pipeline.data.tar_walk import walk_tar
from dto_pipeline.data.tars import TarImages, build_tar_index
from dto_pipeline.data.torch_files import read_torch_file
from dto_pipeline.errors import DtoError
from dto_pipeline.models.body import load_body
from dto_pipeline.models.depth import DepthFiles
from dto_pipeline.paths import UnsafePath
from dto_pipeline.run.deaths import NOTE_SCHEMA, note_name, read_note
from dto_pipeline.run.folder import Failure, RunDirectory, open_run, parse_failure, read_identity
from dto_pipeline.status import UnusableImage
from dto_pipeline.train.checkpoint import FORMAT, VERSIONS, make_network, read_checkpoint, restore_network
from dto_pipeline.train.config import load_train_config
from tests.audit_watch import AuditWatch
from tests.data.small_set import build_small, write_image
from tests.fuzz.damage import damage_bytes, damage_value, damage_zip
from tests.fuzz.seeds import LIMITS, PICKLES, PIECES, SEEDS, TAR, predictions, read_everything, save_npz
from tests.run.fakes import make_receipt
from tests.run.test_directory import _identity

NAMED = (DtoError, UnusableImage, UnsafePath)  # what a reader may raise
SIDE = 24  # of images and depth maps [px]

Damage = Callable[[random.Random, bytes, Sequence[bytes]], bytes]


@dataclass(frozen=True)
class Target:
    """One kind of file."""

    seeds: Callable[[Path], list[bytes]]  # whole files; the folder is for making them
    read: Callable[[Path], object]  # reads the file at the path; raises `NAMED` or nothing
    damage: Damage = damage_bytes
    suffix: str = ""
    named: bool = False  # what is said against a file names it


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _images(folder: Path) -> list[bytes]:
    noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 4), dtype=np.uint8)
    rgb, rgba = Image.fromarray(noise[..., :3]), Image.fromarray(noise)
    grey = Image.fromarray(noise.view(np.uint16)[..., 0].copy())
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        *(_saved(rgb.convert(mode), "JPEG", progressive=p) for mode in ("RGB", "L", "CMYK") for p in (False, True)),
        _saved(rgb, "JPEG", exif=exif, icc_profile=bytes(300)),
        _saved(rgb, "MPO", save_all=True, append_images=[rgb]),
        *(_saved(rgba.convert(mode), "PNG") for mode in ("RGB", "RGBA", "L", "LA", "P", "1")),
        *(_saved(grey, "PNG"), _saved(rgb, "PNG", save_all=True, append_images=[rgb])),
        *(_saved(rgb, "WEBP"), _saved(rgba, "WEBP", lossless=True), _saved(rgba, "WEBP")),
        *(_saved(rgb, "WEBP", save_all=True, append_images=[rgb]), _saved(rgb, "WEBP", exif=exif)),
        *(_saved(rgb, "BMP"), _saved(rgb.convert("P"), "BMP"), _saved(rgb.convert("1"), "BMP")),
        *(_saved(rgb, kind) for kind in ("GIF", "TIFF", "PPM", "EPS")),
    ]


def _read_image(path: Path) -> None:
    decode_image(path.read_bytes(), "x")
    read_image(path)


def _depth(folder: Path) -> list[bytes]:
    ramp = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE)
    npy, packed, plain = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(npy, ramp.astype(np.float16))
    np.savez_compressed(packed, disparity=ramp, other=ramp)
    np.savez(plain, disparity=ramp.astype(np.float32))
    png = _saved(Image.fromarray((ramp * 65535).astype(np.uint16)), "PNG")
    return [npy.getvalue(), packed.getvalue(), plain.getvalue(), png]


def _read_depth(path: Path) -> None:
    data = path.read_bytes()
    for name in ("x.npy", "x.npz", "x.png"):
        (path.parent / name).write_bytes(data)
        try:
            DepthFiles(path.parent).load(name, SIDE, SIDE)
        except UnusableImage:
            continue


def _zip_or_bytes(random_: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    inside = data[:2] == b"PK" and random_.random() < 0.7
    return damage_zip(random_, data) if inside else damage_bytes(random_, data, others)


@cache
def _stand_in() -> dict[str, np.ndarray]:
    with np.load(str(files("dto_pipeline.assets") / "SMPL_NEUTRAL.npz")) as archive:
        return dict(archive)


def _bodies(folder: Path) -> list[bytes]:
    few, npz = {key: array[..., :1] for key, array in _stand_in().items()}, io.BytesIO()
    np.savez(npz, **few)  # type: ignore[arg-type]  # of wrong shapes, so that its headers are what changes
    found = [(files("dto_pipeline.assets") / "SMPL_NEUTRAL.npz").read_bytes(), npz.getvalue(), pickle.dumps(few, 2)]
    stream = io.BytesIO()
    torch.save({key: torch.from_numpy(array.astype(np.float32)) for key, array in few.items()}, stream)
    return [*found, stream.getvalue()]


def _read_body(path: Path) -> None:
    for read in (load_body, read_smpl):
        try:
            read(path)
        except DtoError:
            continue


def _torch_files(folder: Path) -> list[bytes]:
    network = torch.nn.Linear(3, 2)
    state = {
        "weights": network.state_dict(),
        "bf": torch.ones(3, dtype=torch.bfloat16),
        "b": torch.ones(2) > 0,
        "n": [1],
    }
    stream = io.BytesIO()
    torch.save(state, stream)
    return [stream.getvalue()]


@cache
def _checkpoint() -> dict[str, Any]:
    sizes = ["model.width=16", "model.heads=2", "model.layers=1", "model.queries=3", "model.hidden=8"]
    sizes += ["encoder.width=8", "encoder.layers=2", "encoder.heads=2", "data.input_size=56"]
    config = load_train_config(None, sizes)
    return {
        "format": FORMAT,
        "config": config.to_dict(),
        "init": {},
        "weights": dict(make_network(config).state_dict()),
        "optimizer": {},
        "position": {"step": 1, "epoch": 0, "batch": 0},
        "versions": VERSIONS,
        "body_sha256": "0" * 64,
    }


def _damage_checkpoint(random_: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    if random_.random() < 0.3:
        return damage_zip(random_, data)
    content, stream = _checkpoint(), io.BytesIO()
    part = random_.choice(("config", "weights", "position", "config"))
    torch.save({**content, part: damage_value(random_, content[part])}, stream)
    return stream.getvalue()


def _saved_checkpoint(folder: Path) -> list[bytes]:
    stream = io.BytesIO()
    torch.save(_checkpoint(), stream)
    return [stream.getvalue()]


@cache
def _watch() -> AuditWatch:
    for protocol in range(6):  # codecs load on first use
        safe_loads(pickle.dumps(["\u20ac", 1.5, np.zeros(1)], protocol))
    return AuditWatch()


def _read_pickle(path: Path) -> None:
    """Whatever the bytes, a value or a short refusal comes out, and nothing runs."""
    watch, data = _watch(), path.read_bytes()
    with watch.listening() as heard:
        try:
            safe_loads(data, SMPL_FILE, LIMITS, object_arrays=True)
        except PickleRefused as refusal:
            if len(str(refusal)) >= 500:
                raise ValueError("a refusal that nobody reads to its end") from refusal
            raise
        finally:
            assert heard == []


def _damage_pickle(random_: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    if random_.random() < 0.4:  # a program nobody wrote
        return b"".join(random_.choices(PIECES, k=random_.randrange(26))) + b"."
    for _ in range(random_.randint(1, 4)):
        at, piece = random_.randrange(len(data) + 1), random_.choice((*PIECES, random_.randbytes(4)))
        data = data[:at] + piece + data[at + random_.randrange(5) :]
    return data


def _read_tar(path: Path) -> None:
    """No member reaches beyond the file, or out of the folder."""
    data = path.read_bytes()
    for member in walk_tar(pa.BufferReader(data))[0]:
        if member.problem is None:
            assert 0 <= member.offset <= member.offset + member.size <= len(data)
            assert not member.name.startswith("/")
            assert ".." not in member.name.split("/")


def _npz(folder: Path) -> list[bytes]:
    found = []
    for save in (np.savez, np.savez_compressed):
        stream = io.BytesIO()
        arrays: dict[str, Any] = {"annots": np.array({"a": [np.ones(2)]}, object), "pose": np.zeros((2, 3))}
        save(stream, **arrays)
        found.append(stream.getvalue())
    return found


def _read_npz(path: Path) -> None:
    npz = NpzFile(path, 1 << 24)
    for key in npz.keys:
        npz.array(key, NUMPY_ONLY)


def _indices(folder: Path) -> list[bytes]:
    (folder / "0.tar").write_bytes(TAR)
    build_tar_index(folder, folder / "index")
    return [(folder / "index").read_bytes()]


def _read_index(path: Path) -> None:
    index = TarImages(path, path.parent)
    for summary in index.summaries:
        index.rows(summary.tar)
    list(index.members())


def _manifests(folder: Path) -> list[bytes]:
    for name in ("a.jpg", "b.jpg"):
        write_image(folder, name)
    build_small(folder, ["a.jpg", "a.jpg", "b.jpg"], depth="")
    return [(folder / "small.parquet").read_bytes()]


def _read_manifest(path: Path) -> None:
    manifest = Manifest.open(path)
    for shard in range(min(manifest.num_shards, 100)):
        manifest.read_shard(shard)


def _label_file(kind: str, write: Callable[[Path], object]) -> Target:
    def seeds(folder: Path) -> list[bytes]:
        write(folder / "seed")
        return [(folder / "seed").read_bytes()]

    def read(path: Path) -> None:
        helper = path.parent / "p.npz"
        if not helper.exists():
            save_npz(**predictions())(helper)
        read_everything(kind, path, helper)

    return Target(seeds, read, _zip_or_bytes, named=True)


def _json_damage(random_: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    if random_.random() < 0.4:
        return damage_bytes(random_, data, others)
    value = json.loads(data)
    for _ in range(random_.randint(1, 3)):
        value = damage_value(random_, value)
    text = json.dumps(value)
    return ("[" * 100_000 if random_.random() < 0.02 else text).encode()


def _records(folder: Path) -> list[bytes]:
    failure = Failure(0, 1, True, "x", "host:1", 1.0, suspects={"a": 1})
    hand = {"schema": NOTE_SCHEMA, "shard": 0, "attempt": 1, "image": "a", "survived": ["b"]}
    return [json.dumps(record).encode() for record in (make_receipt(0).to_dict(), failure.to_dict(), hand)]


def _read_records(path: Path) -> None:
    data = path.read_bytes()
    directory = RunDirectory(path.parent)
    directory.create_folders()
    (path.parent / note_name(0)).write_bytes(data)
    read_note(directory, 0)
    for parse in (parse_receipt, parse_failure):
        try:
            parse(data, path)
        except DtoError:
            continue


def _runs(folder: Path) -> list[bytes]:
    directory = RunDirectory(folder / "run")
    open_run(directory, _identity())
    return [(folder / "run" / "run.json").read_bytes()]


def _read_run(path: Path) -> None:
    (path.parent / "run.json").write_bytes(path.read_bytes())
    read_identity(RunDirectory(path.parent))


def _masks(folder: Path) -> list[bytes]:
    random_ = np.random.default_rng(0)
    return [encode_rle(random_.random((SIDE, SIDE)) < share) for share in (0.0, 0.01, 0.5, 1.0)]


def _read_mask(path: Path) -> None:
    data = path.read_bytes()
    places = np.arange(SIDE)
    for read in (
        lambda: decode_rle(data, SIDE, SIDE),
        lambda: decode_rle(data, 1 << 14, 1 << 14),
        lambda: decode_rle(data, SIDE, SIDE, places, places),
        lambda: measure_rles(np.frombuffer(data, np.uint8), np.array([0, len(data)])),
    ):
        try:
            read()
        except RleError:
            continue


def _configs(folder: Path) -> list[bytes]:
    run = yaml.safe_dump(load_config().to_dict()).encode()
    dataset = (files("dto_pipeline.assets") / "demo.yaml").read_bytes()
    return [run, dataset, yaml.safe_dump(load_train_config().to_dict()).encode()]


def _damage_yaml(random_: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    if random_.random() < 0.3:
        return damage_bytes(random_, data, others)
    return yaml.safe_dump(damage_value(random_, yaml.safe_load(data))).encode()


def _read_config(path: Path) -> None:
    for read in (load_config, load_train_config, lambda path: load_dataset(path, path.parent)):
        try:
            read(path)
        except DtoError:
            continue


TARGETS: dict[str, Target] = {
    "images": Target(_images, _read_image),
    "depth": Target(_depth, _read_depth, _zip_or_bytes),
    "bodies": Target(_bodies, _read_body, _zip_or_bytes, ".pth"),
    "torch_files": Target(_torch_files, read_torch_file, _zip_or_bytes),
    "checkpoints": Target(_saved_checkpoint, lambda path: restore_network(read_checkpoint(path)), _damage_checkpoint),
    "pickles": Target(lambda folder: PICKLES, _read_pickle, _damage_pickle),
    "npz": Target(_npz, _read_npz, _zip_or_bytes, named=True),
    "tars": Target(lambda folder: [TAR], _read_tar),
    "tar_indices": Target(_indices, _read_index, named=True),
    "manifests": Target(_manifests, _read_manifest),
    "records": Target(_records, _read_records, _json_damage),
    "runs": Target(_runs, _read_run, _json_damage),
    "masks": Target(_masks, _read_mask),
    "configs": Target(_configs, _read_config, _damage_yaml),
    **{f"labels_{name}": _label_file(*seed) for name, seed in SEEDS.items()},
}
"""Every kind of file, by name."""


class FuzzFault(Exception):
    """A reader raised what it does not promise; the cause is that exception."""


def try_one(target: Target, path: Path) -> bool:
    """Read a damaged file; True if it was refused.

    Raises:
        FuzzFault: it was neither read nor refused by name, or what refused it does not say which file it is.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(path)
    except NAMED as refusal:
        if target.named and str(path) not in str(refusal):
            raise FuzzFault(f"names no file: {refusal}"[:300]) from refusal
        return True
    except Exception as error:
        raise FuzzFault(f"{type(error).__name__}: {error}"[:300]) from error
    return False


def damaged_files(name: str, seed: int, count: int | None, path: Path) -> Iterator[Path]:
    """The same file, damaged anew each time; the same seed gives the same damages."""
    target, random_ = TARGETS[name], random.Random(f"{name} {seed}")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seeds = target.seeds(Path(folder))
    for _ in range(count) if count is not None else itertools.count():
        path.write_bytes(target.damage(random_, random_.choice(seeds), seeds))
        yield path
