"""Loading networks of transformers, and checks that weights are those of the network that they are put into.

Missing weights are refused, because transformers would draw them at random. Code from a repository runs only where the
config allows it, and only from a pinned commit or a folder. transformers is imported where it is needed, because it
takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from dto_pipeline.models.networks import (
    FAMILIES,
    ModelError,
    ModelIdentity,
    ModelMissing,
    ModelReference,
    check_family,
    check_reference,
    first_line,
    identify,
    missing_text,
)
from dto_pipeline.reading import check_regular

_NAMES_SHOWN = 8  # of weights, in a message
# last parts of names that files may lack: computed from the config alone, or used in training only
_NOT_LEARNT = (
    *("relative_position_index", "relative_coords_table", "position_ids"),
    *("num_batches_tracked", "empty_weight"),
)


def load_pretrained(
    auto_class: type[Any], reference: ModelReference, device: torch.device | str = "cpu", spare_weights: bool = True
) -> tuple[Any, ModelIdentity]:
    """Load a network for inference, in float32, on a device.

    Args:
        auto_class: transformers' AutoModelFor... class of the task.
        spare_weights: whether the files may hold weights that the network has no place for (heads of other tasks).

    Raises:
        ModelMissing: it is neither in the folder nor in the cache, and could not be fetched.
        ModelError: the reference cannot be used (`check_reference`), or the files do not hold such a network.
    """
    from transformers import AutoConfig
    from transformers.utils.logging import disable_progress_bar

    check_reference(reference)
    disable_progress_bar()  # a bar per worker and model is noise
    options = {"trust_remote_code": reference.trust_remote_code, **source_options(reference)}
    try:
        if reference.is_folder:
            for path in Path(reference.located).iterdir():
                if not path.is_dir():
                    check_regular(path)  # transformers would wait for a pipe or a device
        elif reference.option in FAMILIES:  # before the weights are fetched
            check_family(reference.option, AutoConfig.from_pretrained(reference.located, **options).model_type)
        network, loading = auto_class.from_pretrained(
            reference.located, output_loading_info=True, ignore_mismatched_sizes=True, dtype=torch.float32, **options
        )
    except ModelError:
        raise
    except OSError as error:
        raise ModelMissing(missing_text(reference, error)) from error
    except Exception as error:  # transformers, safetensors and the hub have many classes for files that do not fit
        raise ModelError(
            f"{reference.option}.model {reference.name!r} cannot be loaded: {first_line(error)}; expected a network "
            f"saved by transformers for {getattr(auto_class, '__name__', auto_class)}"
        ) from error
    # transformers only warns of weights that it did not find
    kinds = {"missing": "missing_keys", "of another shape": "mismatched_keys"}
    kinds |= {} if spare_weights else {"unexpected": "unexpected_keys"}
    found = {kind: [one if isinstance(one, str) else one[0] for one in loading[key]] for kind, key in kinds.items()}
    if differing := name_weights({k: [n for n in names if not n.endswith(_NOT_LEARNT)] for k, names in found.items()}):
        raise ModelError(
            f"{reference.option}.model {reference.name!r}: its weights do not fit its config.json, {differing}; random "
            "numbers would stand in for what is missing. Take a folder whose config.json and weights belong together, "
            "with transformers' own names (converted weights: the *-hf repositories)"
        )
    return network.eval().to(device), identify(reference)


def source_options(reference: ModelReference) -> dict[str, Any]:
    """Arguments of transformers' from_pretrained: the commit, and whether the hub may be asked."""
    if reference.is_folder:
        return {"local_files_only": True}
    return {"revision": reference.revision, "local_files_only": reference.offline}


def load_dinov2(reference: ModelReference) -> tuple[dict[str, torch.Tensor], int]:
    """Weights of a DINOv2 by the names of the installed transformers, and the number of heads of each layer.

    Raises: ModelMissing, ModelError: see `load_pretrained`; also for another kind of network.
    """
    from transformers import AutoModel

    network, _ = load_pretrained(AutoModel, reference)
    if network.config.model_type != "dinov2":
        found = type(network).__name__
        raise ModelError(f"{reference.option}.encoder {reference.name!r} is a {found}; expected a DINOv2 (Dinov2Model)")
    return dict(network.state_dict()), int(network.config.num_attention_heads)


def check_weights(found: Any, where: str) -> dict[str, torch.Tensor]:
    """The same dict, if it maps names to dense tensors of finite numbers. Raises: ModelError: it does not."""
    if not isinstance(found, dict):
        raise ModelError(f"{where}: its weights are a {type(found).__name__}; expected names of tensors")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            raise ModelError(f"{where}: the weight {name!r:.80} is no dense tensor; is the file whole?")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ModelError(f"{where}: the weight {name!r:.80} holds numbers that are not finite; take another one")
    return found


def compare_weights(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """Names of weights that are missing, unexpected, or of another shape (with both shapes)."""
    shapes = {n: (tuple(found[n].shape), tuple(v.shape)) for n, v in expected.items() if n in found}
    return {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {own}, expected {other}" for name, (own, other) in shapes.items() if own != other
        ],
    }


def name_weights(differing: Mapping[str, Iterable[str]]) -> str:
    """The result of `compare_weights` as text; "" where nothing differs."""
    parts = []
    for kind, names in differing.items():
        shown = sorted(names)
        more = f" and {len(shown) - _NAMES_SHOWN} more" if len(shown) > _NAMES_SHOWN else ""
        parts += [f"{kind} ({len(shown)}): {', '.join(shown[:_NAMES_SHOWN])}{more}"] if shown else []
    return "; ".join(parts)
