"""Files of `torch.save`: read without running anything in them and with their checksums compared; written whole or not.

Knows files; knows nothing of what the tensors mean.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from dto_pipeline.data.files import commit_over, staged
from dto_pipeline.errors import DtoError
from dto_pipeline.reading import check_regular

_UNREADABLE = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError),  # of torch.load
    *(IndexError, AttributeError, TypeError, AssertionError, struct.error),  # of its unpickler on foreign bytes
    *(zipfile.BadZipFile, zlib.error),
)


class TorchFileError(DtoError, ValueError):
    """A file that `torch.save` did not write, that is damaged, or that holds more than tensors and plain values."""


def read_torch_file(path: Path) -> Any:
    """Tensors and plain values of a file, tensors on the CPU.

    `torch.load` itself reads changed bytes of a tensor as if nothing were wrong; here every part's CRC-32 is compared.

    Raises:
        TorchFileError: see there. FileNotFoundError.
    """
    try:
        check_regular(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                changed = archive.testzip()
            if changed is not None:
                raise ValueError(f"the bytes of {changed} are not those that were written")
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise TorchFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except _UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TorchFileError(f"{path} is no file of tensors or is damaged: {reason}") from error


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
            cause = _system_error(error)
            if cause is None:
                raise
            raise OSError(cause.errno, cause.strerror, str(path)) from error


def _system_error(error: BaseException | None) -> OSError | None:
    """What the system said; torch's writer reports a position that is wrong instead, while it handles it."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
