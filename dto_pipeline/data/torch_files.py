"""Files of `torch.save`: read without running anything in them, with checksums compared; written whole or not at all.

`torch.load(weights_only=True)` runs no code but trusts what a file says about its tensors: 2 KB with sparse indices out
of range end the process, and strides can ask for any amount of memory. Here the inert unpickler reads the pickle, and
every tensor must be a plain strided one that lies within its storage and has no more numbers than that.
"""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dto_pipeline.array_files import BROKEN
from dto_pipeline.data.files import replaced
from dto_pipeline.data.inert_pickle import PERSISTENT_ID, Allowlist, BrokenPickle, Limits, Name, StandIn, shown
from dto_pipeline.data.safe_pickle import NUMPY_ONLY, checked_shape, safe_loads
from dto_pipeline.errors import DtoError
from dto_pipeline.reading import check_regular, read_start

MOST_BYTES = 1 << 34  # of one file: the largest networks of the field with the state of their optimiser
_DTYPES = {
    **{"DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16},
    **{"BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32},
    **{"ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool},
}
_LIMITS = Limits(max_bytes=1 << 29)  # of what lies between the tensors
_MOST_DIMENSIONS = 16
_LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number that torch began its files with


class TorchFileError(DtoError, ValueError):
    """A file that `torch.save` did not write, that is damaged, or that holds more than tensors and plain values."""


def read_torch_file(path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """Tensors (on the CPU) and plain values of a file; tensors that shared a storage still share it.

    Unlike `torch.load`, it compares the CRC-32 of every part, so that damaged weights are noticed.

    Args:
        most_bytes: a longer file is refused; its tensors take no more memory than it has bytes.

    Raises:
        TorchFileError, FileNotFoundError.
    """
    try:
        check_regular(path)
        if (size := path.stat().st_size) > most_bytes:
            raise ValueError(f"it has {size} bytes, at most {most_bytes} are read")
        if read_start(path, len(_LEGACY_START)) == _LEGACY_START:
            raise ValueError("torch before 1.6 wrote it; torch.load it and torch.save it again with a newer one")
        with zipfile.ZipFile(path) as archive:
            return _Reader(archive, size).content()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise TorchFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, *BROKEN) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TorchFileError(f"{path} is no file of tensors or is damaged: {reason}") from error


@dataclass(frozen=True)
class _Storage(StandIn):
    """A storage as the pickle describes it; its numbers are in another part of the file."""

    word: Any
    kind: Any
    key: Any
    device: Any
    count: Any
    view: Any = None


class _Reader:
    """One file; each storage is read once, when the first tensor asks for it."""

    def __init__(self, archive: zipfile.ZipFile, file_bytes: int) -> None:
        self._archive, self._left = archive, file_bytes
        self._members = members = {member.filename: member for member in archive.infolist()}
        self._held: dict[tuple[str, str, int], torch.Tensor] = {}
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
        self._place = pickles[0].removesuffix("data.pkl")
        if f"{self._place}byteorder" in members and archive.read(f"{self._place}byteorder") != b"little":
            raise ValueError("its numbers are big-endian")

    def content(self) -> Any:
        allow: Allowlist = {
            **NUMPY_ONLY,
            PERSISTENT_ID: lambda _, pid: _Storage(*pid),
            ("collections", "OrderedDict"): lambda _: {},
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): lambda _, tensor, *rest: tensor,
            ("torch", "Size"): lambda _, sides: checked_shape(sides),
            **{("torch", kind): None for kind in _DTYPES},
        }
        return safe_loads(self._archive.read(f"{self._place}data.pkl"), allow, _LIMITS, "data.pkl")

    def _tensor(self, _: Any, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> torch.Tensor:
        """`_rebuild_tensor_v2(storage, offset, size, stride, ...)`: a view of its storage; the rest is ignored."""
        if type(storage) is not _Storage or storage.word != "storage":
            raise BrokenPickle("a tensor without storage")
        if type(storage.kind) is not Name or storage.kind.name not in _DTYPES or storage.view is not None:
            raise BrokenPickle(f"a tensor over {shown(storage.kind)}")
        (offset, stored), size, stride = map(checked_shape, ((offset, storage.count), size, stride))
        found = f"a tensor {shown(size)} with strides {shown(stride)} from {offset}"
        if len(size) != len(stride) or len(size) > _MOST_DIMENSIONS:
            raise BrokenPickle(f"{found}: expected as many strides as sides, at most {_MOST_DIMENSIONS}")
        steps = ((side - 1) * step for side, step in zip(size, stride, strict=True))
        items: int = math.prod(size)
        if items > stored or (items and offset + sum(steps) >= stored):
            raise BrokenPickle(f"{found} does not lie within its storage of {stored} numbers")
        kind = storage.kind.name
        if not items:
            return torch.empty(size, dtype=_DTYPES[kind])
        return self._storage(str(storage.key), kind, stored).as_strided(size, stride, offset)

    def _storage(self, key: str, kind: str, stored: int) -> torch.Tensor:
        if (key, kind, stored) not in self._held:
            member, needed = self._members.get(f"{self._place}data/{key}"), stored * _DTYPES[kind].itemsize
            if member is None or member.file_size != needed:
                raise BrokenPickle(f"the storage {shown(key)} is missing or has not the {needed} bytes it claims")
            self._left -= needed
            if self._left < 0:
                raise BrokenPickle("its tensors take more memory than the file has bytes")
            data = bytearray(self._archive.read(member))
            if kind == "BoolStorage" and data.translate(None, b"\0\1"):
                raise BrokenPickle("a tensor of booleans with other values than 0 and 1")
            self._held[key, kind, stored] = torch.frombuffer(data, dtype=_DTYPES[kind])
        return self._held[key, kind, stored]


def write_torch_file(path: Path, content: Any) -> None:
    """Write tensors and plain values, replacing what was there once all of it is on the disk.

    Raises:
        OSError: the disk is full or cannot be written; it names the path, and an older file stays.
    """
    with replaced(path) as temporary:
        try:
            with temporary.open("wb") as stream:
                torch.save(content, stream)
        except RuntimeError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__cause__ or cause.__context__  # torch's writer reports a wrong position instead
            raise cause or error from error
