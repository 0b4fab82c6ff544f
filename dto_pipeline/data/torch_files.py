"""Files of `torch.save`, read without running anything in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from dto_pipeline.errors import DtoError


class TorchFileError(DtoError, ValueError):
    """A file that `torch.save` did not write, that is damaged, or that holds more than tensors and plain values."""


def read_torch_file(path: Path, device: torch.device | str = "cpu") -> Any:
    """Tensors and plain values of a file, tensors on a device.

    Raises:
        TorchFileError: see there. FileNotFoundError.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TorchFileError(f"{path} is no file of tensors or is damaged: {reason}") from error
