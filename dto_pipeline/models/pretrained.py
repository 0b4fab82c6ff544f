"""Networks loaded through transformers, for inference. See `models.networks` for how they are found and pinned.

Knows nothing of what a network computes. Code from a repository runs only where the caller says so, and then only from
a pinned commit or a local folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils.logging import disable_progress_bar

from dto_pipeline.models.networks import (
    ModelError,
    ModelIdentity,
    ModelMissing,
    ModelReference,
    check_reference,
    first_line,
    identify,
    located,
    missing_text,
)
from dto_pipeline.reading import check_regular


def load_pretrained(
    auto_class: type[Any], reference: ModelReference, device: torch.device | str = "cpu", hint: str = ""
) -> tuple[Any, ModelIdentity]:
    """Load a network for inference, in float32, on a device.

    Args:
        auto_class: transformers' AutoModelFor... class of the task.
        reference: which network.
        hint: added to the message when it is missing (licences, alternatives).

    Raises:
        ModelMissing: it is neither in the folder, nor in the cache, nor could it be fetched.
        ModelError: the reference is not pinned, or the files are no such network.
    """
    check_reference(reference)
    disable_progress_bar()  # a bar per worker and model is noise
    options: dict[str, Any] = {"trust_remote_code": reference.trust_remote_code}
    if reference.is_folder:
        options["local_files_only"] = True
    else:
        options |= {"revision": reference.revision, "local_files_only": reference.offline}
    try:
        if reference.is_folder:
            check_files(located(reference))
        network = auto_class.from_pretrained(located(reference), dtype=torch.float32, **options)
    except (OSError, ConnectionError) as error:
        raise ModelMissing(missing_text(reference, error, hint)) from error
    except (ValueError, KeyError, RuntimeError, TypeError, ImportError) as error:
        raise ModelError(
            f"{reference.knob}.model {reference.name!r} cannot be loaded: {first_line(error)}; expected a network "
            f"saved by transformers for {getattr(auto_class, '__name__', auto_class)}"
        ) from error
    return network.eval().to(device), identify(reference)


def check_files(folder: str) -> None:
    """Refuse a folder that holds pipes or devices, which transformers would wait for. Raises: OSError."""
    for path in Path(folder).iterdir():
        if not path.is_dir():
            check_regular(path)


def read_preprocessing(reference: ModelReference) -> dict[str, Any]:
    """The network's preprocessor_config.json; empty where it has none."""
    options: dict[str, Any] = {"local_files_only": reference.is_folder or reference.offline}
    if not reference.is_folder:
        options["revision"] = reference.revision
    try:
        found, _ = ImageProcessingMixin.get_image_processor_dict(located(reference), **options)
    except OSError:  # such a file is optional: callers have defaults
        return {}
    return found
