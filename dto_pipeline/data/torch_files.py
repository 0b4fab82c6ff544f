"""Files of `torch.save`: read without running anything in them and with their checksums compared; written whole or not.

`torch.load(weights_only=True)` runs no code but believes what a file says of its tensors: 2 KB with sparse indices out
of range end the process, a stride asks for any amount of memory. Here the pickle goes through the inert unpickler, and
a tensor is made only where it is a plain strided one that lies within its storage and has no more numbers. Both layouts
are read: zip files, and what torch wrote before version 1.6. Knows nothing of what the tensors mean.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dto_pipeline.array_files import BROKEN
from dto_pipeline.data.files import commit_over, staged
from dto_pipeline.data.inert_pickle import (
    PERSISTENT_ID,
    Allowlist,
    BrokenPickle,
    Global,
    Limits,
    Record,
    load_first_records,
    load_records,
    new_dict,
    only_named,
    shown,
)
from dto_pipeline.data.safe_pickle import NUMPY_ONLY, Builder, build_values
from dto_pipeline.errors import DtoError
from dto_pipeline.reading import check_regular

MOST_BYTES = 1 << 34  # of one file: the largest networks of the field with the state of their optimiser
_DTYPES = {
    **{"DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16},
    **{"BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32},
    **{"ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool},
}
_MOST_DIMENSIONS = 16
_LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."  # torch's number and 1001, its version


class _StoredTensor(NamedTuple):
    """A tensor as a pickle describes it; the numbers are of the right types and not negative, and not compared."""

    kind: str  # name of the class of its storage
    key: str  # of the storage
    stored: int  # items of the storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def storage_bytes(self) -> int:
        return self.stored * _DTYPES[self.kind].itemsize


class TorchFileError(DtoError, ValueError):
    """A file that `torch.save` did not write, that is damaged, or that holds more than tensors and plain values."""


def read_torch_file(path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """Tensors and plain values of a file, tensors on the CPU; those that shared a storage share it still.

    `torch.load` itself reads changed bytes of a tensor as if nothing were wrong; here every part's CRC-32 is compared
    (files from before torch 1.6 have none).

    Args:
        most_bytes: a longer file is refused; tensors take no more memory than their file has bytes.

    Raises:
        TorchFileError: see there. FileNotFoundError.
    """
    try:
        check_regular(path)
        if (size := path.stat().st_size) > most_bytes:
            raise ValueError(f"it has {size} bytes, at most {most_bytes} are read")
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _read_zip(archive, size)
        return _read_legacy(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise TorchFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, *BROKEN) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TorchFileError(f"{path} is no file of tensors or is damaged: {reason}") from error


def _allowlist(make: Callable[[_StoredTensor], Any]) -> Allowlist:
    """The names in torch's pickles, `_rebuild_tensor_v2(storage, offset, size, stride, ...)` above all.

    What follows these four (hooks, gradients) is not kept.
    """

    def tensor(builder: Builder, node: Record, depth: int) -> Any:
        storage, offset, size, stride = node.args[:4]
        if type(storage) is not Record or (storage.what.module, storage.what.name) != PERSISTENT_ID:
            raise BrokenPickle("a tensor without storage")
        name, kind, key, _, stored, *view = storage.args[0]
        if name != "storage" or type(kind) is not Global or kind.name not in _DTYPES or any(view):
            raise BrokenPickle(f"a tensor over {shown(name)} of {shown(kind)}")
        offset, stored = builder.shape((offset, stored))
        return make(_StoredTensor(kind.name, str(key), stored, offset, builder.shape(size), builder.shape(stride)))

    return {
        **NUMPY_ONLY,
        PERSISTENT_ID: only_named,
        ("collections", "OrderedDict"): new_dict,
        ("torch._utils", "_rebuild_tensor"): tensor,
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_parameter"): lambda builder, node, depth: builder.value(node.args[0], depth),
        ("torch", "Size"): lambda builder, node, depth: builder.shape(node.args[0]),
        **{("torch", kind): only_named for kind in _DTYPES},
    }


def _read_zip(archive: zipfile.ZipFile, file_bytes: int) -> Any:
    members = {member.filename: member for member in archive.infolist()}
    if len(members) != len(archive.infolist()):
        raise ValueError("two of its parts have one name")
    if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members.values()):
        raise ValueError("it is a zip with compressed or encrypted parts, which torch does not write")
    if sum(member.file_size for member in members.values()) > file_bytes:
        raise ValueError(f"its parts claim more than the {file_bytes} bytes it has")
    if (changed := archive.testzip()) is not None:
        raise ValueError(f"the bytes of {shown(changed)} are not those that were written")
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError("it is a zip without data.pkl, or with several")
    place = pickles[0].removesuffix("data.pkl")
    if f"{place}byteorder" in members and archive.read(f"{place}byteorder") != b"little":
        raise ValueError("its numbers are big-endian")

    def read(key: str, size: int) -> bytearray:
        member = members.get(f"{place}data/{key}")
        if member is None or member.file_size != size:
            raise ValueError(f"the storage {shown(key)} is missing or has not the {size} bytes it claims")
        return bytearray(archive.read(member))

    limits, allow = Limits(max_stream_bytes=1 << 28), _allowlist(_Storages(read, file_bytes).tensor)
    return build_values(load_records(archive.read(pickles[0]), allow, limits, "data.pkl"), limits)


def _read_legacy(data: bytes) -> Any:
    """Four pickles (number, version, system, contents) and the keys of the storages, then these in that order."""
    if not data.startswith(_LEGACY_START):
        raise ValueError("it begins like nothing that torch.save writes")
    limits = Limits(max_stream_bytes=len(data))

    def load(start: int, allow: Allowlist, what: str) -> tuple[Any, int]:
        records, end = load_first_records(data, start, allow, limits, what)
        return build_values(records, limits), end

    system, contents = load(len(_LEGACY_START), NUMPY_ONLY, "system")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("its numbers are big-endian")
    kinds: dict[str, _StoredTensor] = {}  # key of a storage -> a tensor over it, which tells what it holds
    _, at = load(contents, _allowlist(lambda tensor: kinds.update({tensor.key: tensor})), "contents")
    keys, at = load(at, NUMPY_ONLY, "keys")
    begin: dict[str, int] = {}  # key -> where its numbers are
    for key in keys if isinstance(keys, list) else []:
        if str(key) not in kinds or struct.unpack_from("<q", data, at)[0] != kinds[str(key)].stored:
            raise ValueError(f"the storage {shown(key)} belongs to no tensor or has not the numbers it claims")
        begin[str(key)] = at + 8
        at += 8 + kinds[str(key)].storage_bytes

    def read(key: str, size: int) -> bytearray:
        start = begin.get(key, len(data))
        if start + size > len(data):
            raise ValueError(f"the storage {shown(key)} is missing or cut off")
        return bytearray(data[start : start + size])

    return load(contents, _allowlist(_Storages(read, len(data)).tensor), "contents")[0]


class _Storages:
    """The storages of one file, each read once, when the first tensor asks for it."""

    def __init__(self, read: Callable[[str, int], bytearray], file_bytes: int) -> None:
        self._read, self._left = read, file_bytes
        self._held: dict[tuple[str, str, int], torch.Tensor] = {}

    def tensor(self, tensor: _StoredTensor) -> torch.Tensor:
        """The tensor, a view of its storage. Raises: BrokenPickle: it reaches beyond it, or is of more numbers."""
        found = f"a tensor {shown(tensor.size)} with strides {shown(tensor.stride)} from {tensor.offset}"
        if len(tensor.size) != len(tensor.stride) or len(tensor.size) > _MOST_DIMENSIONS:
            raise BrokenPickle(f"{found}: expected as many strides as sides, at most {_MOST_DIMENSIONS}")
        numbers = math.prod(tensor.size)
        steps = ((side - 1) * stride for side, stride in zip(tensor.size, tensor.stride, strict=True))
        if numbers > tensor.stored or (numbers and tensor.offset + sum(steps) >= tensor.stored):
            raise BrokenPickle(f"{found} does not lie within its storage of {tensor.stored} numbers")
        if not numbers:
            return torch.empty(tensor.size, dtype=_DTYPES[tensor.kind])
        name = (tensor.key, tensor.kind, tensor.stored)
        if name not in self._held:
            self._left -= tensor.storage_bytes
            if self._left < 0:
                raise BrokenPickle("its tensors take more memory than the file has bytes")
            data = self._read(tensor.key, tensor.storage_bytes)
            if tensor.kind == "BoolStorage" and data.translate(None, b"\0\1"):
                raise BrokenPickle("a tensor of booleans with other values than 0 and 1")
            self._held[name] = torch.frombuffer(data, dtype=_DTYPES[tensor.kind])
        return self._held[name].as_strided(tensor.size, tensor.stride, tensor.offset)


def write_torch_file(path: Path, content: Any) -> None:
    """Write tensors and plain values, replacing what was there once all of it is on the disk.

    Raises:
        OSError: the disk is full or cannot be written, with the path; whatever bore it before is untouched.
    """
    with staged(path) as temporary:
        try:
            with temporary.open("wb") as stream:
                torch.save(content, stream)
            commit_over(temporary, path)
        except (OSError, RuntimeError) as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__cause__ or cause.__context__  # torch's writer reports a wrong position instead
            if cause is None:
                raise
            raise OSError(cause.errno, cause.strerror, str(path)) from error
