"""Networks loaded through transformers, for inference. See `models.networks` for how they are found and pinned.

Knows nothing of what a network computes. Code from a repository runs only where the caller says so, and then only from
a pinned commit or a local folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, Dinov2Model
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

_NAMES_SHOWN = 8  # of weights, in a message
# ends of names that files may lack: computed from the config alone, or used in training only
_NOT_LEARNT = (
    "relative_position_index",
    "relative_coords_table",
    "position_ids",
    "num_batches_tracked",
    "empty_weight",
)


def load_pretrained(
    auto_class: type[Any],
    reference: ModelReference,
    device: torch.device | str = "cpu",
    hint: str = "",
    spare_weights: bool = True,
) -> tuple[Any, ModelIdentity]:
    """Load a network for inference, in float32, on a device.

    Args:
        auto_class: transformers' AutoModelFor... class of the task.
        reference: which network.
        hint: added to the message when it is missing (licences, alternatives).
        spare_weights: whether the files may hold weights that the network has no place for (heads of other tasks).

    Raises:
        ModelMissing: it is neither in the folder, nor in the cache, nor could it be fetched.
        ModelError: the reference is not pinned, the files are no such network, or their weights are not its own.
    """
    check_reference(reference)
    disable_progress_bar()  # a bar per worker and model is noise
    options: dict[str, Any] = {"trust_remote_code": reference.trust_remote_code}
    if reference.is_folder:
        options["local_files_only"] = True
    else:
        options |= {"revision": reference.revision, "local_files_only": reference.offline}
    try:
        for path in Path(located(reference)).iterdir() if reference.is_folder else ():
            if not path.is_dir():
                check_regular(path)  # a pipe or a device, which transformers would wait for
        network, loading = auto_class.from_pretrained(
            located(reference), dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except (OSError, ConnectionError) as error:
        raise ModelMissing(missing_text(reference, error, hint)) from error
    except Exception as error:  # transformers, safetensors and the hub have many classes for files that do not fit
        raise ModelError(
            f"{reference.option}.model {reference.name!r} cannot be loaded: {first_line(error)}; expected a network "
            f"saved by transformers for {getattr(auto_class, '__name__', auto_class)}"
        ) from error
    # transformers only warns of weights it did not find, and draws them at random
    phrases = {"missing_keys": "lacks", "mismatched_keys": "has in another shape"}
    if not spare_weights:
        phrases["unexpected_keys"] = "holds, beyond what config.json tells of,"
    problems = []
    for key, phrase in phrases.items():
        told = (str(one[0]) if isinstance(one, tuple) else str(one) for one in loading.get(key) or ())  # with shapes
        names = sorted(name for name in told if not name.endswith(_NOT_LEARNT))
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        problems += [f"{phrase} {', '.join(names[:_NAMES_SHOWN])}{more}"] if names else []
    if problems:
        raise ModelError(
            f"{reference.option}.model {reference.name!r}: its weight file {' and '.join(problems)}; it would not be "
            "the network that was named, and random numbers would stand in for what it lacks. Take a folder whose "
            "config.json and weights belong together, with the names that transformers gives them (converted weights: "
            "the *-hf repositories)"
        )
    return network.eval().to(device), identify(reference)


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


def load_dinov2(reference: ModelReference) -> tuple[dict[str, torch.Tensor], int]:
    """Weights by the names that the installed transformers gives them, and how many heads each layer has.

    Raises:
        ModelMissing, ModelError: see `load_pretrained`; also when the network is no DINOv2.
    """
    network, _ = load_pretrained(AutoModel, reference)
    if not isinstance(network, Dinov2Model):
        found = type(network).__name__
        raise ModelError(f"{reference.option}.encoder {reference.name!r} is a {found}; expected a DINOv2 (Dinov2Model)")
    return dict(network.state_dict()), int(network.config.num_attention_heads)
