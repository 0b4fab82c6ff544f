"""SMPL model files as plain arrays: reads official pickles, plain npz and SMPL+A checkpoints, writes plain npz.

Nothing in a file is run, and chumpy is not needed. A model is a dictionary of the arrays in `_SHAPES`. Floating-point
arrays keep the precision of their file. Metres, in SMPL's own frame (y up).
"""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dto_pipeline.array_files import read_npy
from dto_pipeline.data.files import replaced
from dto_pipeline.data.inert_pickle import BrokenPickle, Limits, shown
from dto_pipeline.data.npz import NpzFile
from dto_pipeline.data.safe_pickle import SMPL_FILE, safe_loads
from dto_pipeline.data.torch_files import TorchFileError, read_torch_file
from dto_pipeline.errors import DtoError
from dto_pipeline.reading import open_regular, read_regular, read_start

NUM_VERTICES, NUM_JOINTS, NUM_FACES, NUM_POSE_DIRECTIONS = 6890, 24, 13776, 207
NUM_DIRECTIONS = 10  # shape directions that the labels use, without the kid axis
KID_HEIGHT_BELOW = 0.75  # a kid template is shorter than this share of the adult template
_MOST_BYTES = 2**30  # of one file
_MOST_ARRAY_BYTES = 2**27  # the largest, 300 directions in float64, has 50 MB
_LIMITS = Limits(max_bytes=_MOST_BYTES + 2**27, max_items=1_000_000, max_array_bytes=2**30)
_NUMPY_DTYPES = (torch.float16, torch.float32, torch.float64, torch.int32, torch.int64)  # of tensors in checkpoints
_KEYS_SHOWN = 30  # keys of a wrong file that a message lists
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can hold: no clock in the file
_LOG = logging.getLogger(__name__)

Model = dict[str, np.ndarray]
_SHAPES: dict[str, tuple[int | None, ...]] = {
    "v_template": (NUM_VERTICES, 3),  # [m]
    "shapedirs": (NUM_VERTICES, 3, None),  # 10 directions, or 11 with the kid axis last [m per unit]
    "posedirs": (NUM_VERTICES, 3, NUM_POSE_DIRECTIONS),  # [m]
    "weights": (NUM_VERTICES, NUM_JOINTS),  # of the skinning
    "J_regressor": (NUM_JOINTS, NUM_VERTICES),  # dense
    "kintree_table": (2, NUM_JOINTS),  # int64: parents (root -1), joints
    "f": (NUM_FACES, 3),  # uint32
}


class SmplFileError(DtoError, ValueError):
    """A file that is not a usable SMPL model; the message says what was found, what was expected and what to do."""


def read_smpl(path: str | Path) -> Model:
    """Read an SMPL model: an official pickle, a plain npz or an SMPL+A checkpoint, told apart by their contents.

    11 shape directions are 10 and the kid axis. Of more (version 1.1 has 300) the first 10 are kept, the ones that the
    labels use, and the log says so.

    Raises:
        SmplFileError: a damaged file, another model, missing keys, wrong shapes, numbers that are not finite.
        UnsafePickle: a pickle that needs a class or function that SMPL files do not need; it is named.
        OSError: the file cannot be read.
    """
    path = Path(path)
    try:
        found, keys = _read_any(path)
    except (BrokenPickle, TorchFileError) as error:
        raise SmplFileError(f"not a sound SMPL file: {error}") from error
    model = {key: array for key in _SHAPES if isinstance(array := found.get(key), np.ndarray)}
    if missing := [key for key in _SHAPES if key not in model]:
        held = _listed(keys) or "nothing"
        raise SmplFileError(f"{path} lacks the array {missing[0]!r}; found {held}; expected the official SMPL_NEUTRAL")
    return _checked_model(path, model)


def _read_any(path: Path) -> tuple[Mapping[str, Any], Iterable[Any]]:
    """The contents of a file by SMPL's keys, and all its keys."""
    is_zip = read_start(path, 4) == b"PK\x03\x04"
    if is_zip and (npz := NpzFile(path, _MOST_ARRAY_BYTES)).keys:
        return {key: npz.array(key, SMPL_FILE, _LIMITS) for key in _SHAPES if key in npz.keys}, npz.keys
    if is_zip or path.suffix in (".pth", ".pt"):
        return _read_checkpoint(path)
    if path.stat().st_size > _MOST_BYTES:
        raise SmplFileError(f"{path} has {path.stat().st_size} bytes, more than any SMPL file")
    found = safe_loads(read_regular(path, _MOST_BYTES), SMPL_FILE, _LIMITS, where=str(path))
    if not isinstance(found, dict):
        raise SmplFileError(f"{path} holds a {type(found).__name__}, expected a dict with SMPL's arrays")
    return found, found


def _read_checkpoint(path: Path) -> tuple[Mapping[str, Any], Iterable[Any]]:
    """An SMPL+A checkpoint as ROMP and BEV prepare it; its arrays are brought into SMPL's layout.

    Their public converter (no released file was at hand) writes a dict of tensors: `smpla_shapedirs` (6890, 3, 11)
    besides the ten `shapedirs`, `posedirs` as (207, 20670) like smplx, `kintree_table` with the 24 parents only, `f` as
    floats. SMPL's own shapes are accepted too.
    """
    found = read_torch_file(path, _MOST_BYTES)
    tensors = found if isinstance(found, dict) else {}
    arrays = {
        key: tensor.numpy()
        for key in ("smpla_shapedirs", *_SHAPES)
        if isinstance(tensor := tensors.get(key), torch.Tensor) and tensor.dtype in _NUMPY_DTYPES
    }
    if "smpla_shapedirs" in arrays:
        arrays["shapedirs"] = arrays["smpla_shapedirs"]
    if "posedirs" in arrays and arrays["posedirs"].shape == (NUM_POSE_DIRECTIONS, NUM_VERTICES * 3):
        arrays["posedirs"] = arrays["posedirs"].T.reshape(NUM_VERTICES, 3, NUM_POSE_DIRECTIONS)
    if "kintree_table" in arrays and arrays["kintree_table"].shape == (NUM_JOINTS,):
        arrays["kintree_table"] = np.stack([arrays["kintree_table"], np.arange(NUM_JOINTS)])
    return arrays, tensors


def _listed(keys: Iterable[Any]) -> str:
    return ", ".join(shown(name) for name in list(keys)[:_KEYS_SHOWN])


def _checked_model(path: Path, model: Model) -> Model:
    for key, expected in _SHAPES.items():
        array = model[key]
        if array.ndim != len(expected) or any(e not in (None, s) for e, s in zip(expected, array.shape, strict=True)):
            advice = "expected SMPL_NEUTRAL, not SMPL-X, SMPL-H or MANO"
            raise SmplFileError(f"{path}: {key} has shape {array.shape}, not {expected} (None = any); {advice}")
        if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
            raise SmplFileError(f"{path}: {key} holds {array.dtype} values that are not all finite numbers")
    directions = model["shapedirs"].shape[-1]
    if directions < NUM_DIRECTIONS:
        raise SmplFileError(f"{path} has {directions} shape directions, at least {NUM_DIRECTIONS} are needed")
    if directions > NUM_DIRECTIONS + 1:
        model["shapedirs"] = model["shapedirs"][..., :NUM_DIRECTIONS]
        _LOG.warning("%s has %d shape directions; the first %d are kept", path, directions, NUM_DIRECTIONS)
    faces = model["f"]
    if faces.min() < 0 or faces.max() >= NUM_VERTICES or (faces != np.floor(faces)).any():
        raise SmplFileError(f"{path}: f holds indices outside the {NUM_VERTICES} vertices")
    tree = model["kintree_table"].astype(np.int64)
    tree[0, 0] = -1
    parents, joints = tree
    if (joints != np.arange(NUM_JOINTS)).any() or (parents[1:] < 0).any() or (parents >= joints).any():
        found = model["kintree_table"][0]
        raise SmplFileError(f"{path}: kintree_table is not a tree with every joint after its parent: {found}")
    return {**model, "f": faces.astype(np.uint32), "kintree_table": tree}


def add_kid_axis(model: Model, kid_template: np.ndarray) -> Model:
    """SMPL+A: an eleventh shape direction, (kid template - its mean) - v_template; 0 = adult, 1 = kid template.

    Args:
        kid_template: (6890, 3) infant template, anywhere in space [m] (the public `smpl_kid_template.npy`).

    Raises:
        SmplFileError: the model has the axis already, or the array cannot be an infant template.
    """
    if _has_kid_axis(model):
        raise SmplFileError("the model has a kid axis; leave the kid template out, or import the model without it")
    if kid_template.shape != (NUM_VERTICES, 3) or kid_template.dtype.kind != "f" or not np.isfinite(kid_template).all():
        found = f"{kid_template.dtype} {kid_template.shape}"
        raise SmplFileError(f"the kid template is {found}, expected finite floats ({NUM_VERTICES}, 3)")
    kid, adult = np.ptp(kid_template[:, 1]), np.ptp(model["v_template"][:, 1])
    if not 0 < kid < KID_HEIGHT_BELOW * adult:
        heights = f"the kid template is {kid:.3f} tall, the model's own {adult:.3f} m"
        raise SmplFileError(f"{heights}; expected the infant template in metres (smpl_kid_template.npy)")
    template, shapedirs = kid_template.astype(np.float64), model["shapedirs"]
    direction = template - template.mean(axis=0) - model["v_template"]
    wide = np.concatenate([shapedirs, direction[..., None].astype(shapedirs.dtype)], axis=-1)
    return {**model, "shapedirs": wide}


def _has_kid_axis(model: Model) -> bool:
    return model["shapedirs"].shape[-1] == NUM_DIRECTIONS + 1


def _read_template(path: Path) -> np.ndarray:
    def check(_: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        if shape != (NUM_VERTICES, 3):
            raise ValueError(f"it is {dtype} {shape}, expected ({NUM_VERTICES}, 3)")

    try:
        with open_regular(path) as stream:
            return read_npy(stream, check)
    except ValueError as error:
        raise SmplFileError(f"{path} is not a kid template: {error}; expected smpl_kid_template.npy") from error


def write_smpl_npz(model: Model, path: str | Path) -> Path:
    """Write a model as a plain npz; equal arrays give equal bytes, an existing file is replaced."""
    path = Path(path)
    with replaced(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for key in _SHAPES:
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(model[key]), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{key}.npy", _ZIP_DATE), member.getvalue())
    return path


def import_smpl(source: str | Path, out_dir: str | Path, kid_template: str | Path | None = None) -> list[Path]:
    """Convert any SMPL file to SMPL_NEUTRAL.npz, and to SMPLA_NEUTRAL.npz if there is a kid axis (`dto body import`).

    Args:
        kid_template: `smpl_kid_template.npy`, for a source without kid axis.

    Returns:
        The files written, first the one that a folder is used by. Where anything is wrong none is written, and it
        raises as `read_smpl` and `add_kid_axis`; also if another import's SMPLA_NEUTRAL.npz would hide a new model.
    """
    model, out = read_smpl(source), Path(out_dir)
    if kid_template is not None:
        model = add_kid_axis(model, _read_template(Path(kid_template)))
    without, grown = {**model, "shapedirs": model["shapedirs"][..., :NUM_DIRECTIONS]}, out / "SMPLA_NEUTRAL.npz"
    if not _has_kid_axis(model) and grown.exists():
        raise SmplFileError(
            f"{out} holds SMPLA_NEUTRAL.npz of another import, which {out} would stand for in place of this model "
            "without kid axis; choose another folder (-o), or give --kid-template"
        )
    written = [write_smpl_npz(model, grown)] if _has_kid_axis(model) else []
    return [*written, write_smpl_npz(without, out / "SMPL_NEUTRAL.npz")]
