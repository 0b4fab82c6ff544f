"""Networks of the Hugging Face hub or of a local folder: found, pinned, identified, loaded.

Knows names, revisions and files; knows nothing of what a network computes. A hub name needs the commit it is pinned to,
so that every worker and every rerun sees the same weights; a folder is identified by the sha256 of its weight files.
Code from a repository runs only where the caller says so, and then only from a pinned commit or a local folder.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils.logging import disable_progress_bar

_COMMIT = re.compile("[0-9a-f]{40}")
_WEIGHTS = ("*.safetensors", "*.bin")


class ModelError(ValueError):
    """A network that cannot be loaded as asked; the message says what is missing and what to do."""


class ModelMissing(ModelError):
    """The network's files are not on this machine and could not be fetched."""


@dataclass(frozen=True)
class ModelReference:
    """Which network: what a config says."""

    name: str  # hub name, like depth-anything/Depth-Anything-V2-Small-hf, or a folder that holds config.json
    revision: str = ""  # commit of the hub repository, 40 hexadecimal digits; not used for folders
    offline: bool = False  # never ask the hub, use what its cache on this machine holds
    trust_remote_code: bool = False  # run Python code of the repository
    knob: str = "depth"  # room of the config, for messages

    @property
    def is_folder(self) -> bool:
        """True where `name` is a path; a hub name is exactly two words with one slash, and no such folder exists."""
        return Path(self.name).is_dir() or self.name.startswith((".", "/", "~")) or self.name.count("/") != 1


@dataclass(frozen=True)
class ModelIdentity:
    """Which weights a network really has, for label metadata. Equal on every machine: no paths."""

    name: str  # hub name, or the folder's own name
    revision: str  # commit of the hub repository; empty for a folder
    sha256: str  # over a folder's weight files; empty for the hub, whose commit fixes them

    @property
    def short(self) -> str:
        """Name and the first digits of what pins it, for columns and logs."""
        return f"{self.name}@{(self.revision or self.sha256)[:12]}"


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
        network = auto_class.from_pretrained(_located(reference), dtype=torch.float32, **options)
    except (OSError, ConnectionError) as error:
        raise ModelMissing(_missing_text(reference, error, hint)) from error
    except (ValueError, KeyError, RuntimeError, TypeError, ImportError) as error:
        raise ModelError(
            f"{reference.knob}.model {reference.name!r} cannot be loaded: {_first_line(error)}; expected a network "
            f"saved by transformers for {getattr(auto_class, '__name__', auto_class)}"
        ) from error
    return network.eval().to(device), identify(reference)


def read_preprocessing(reference: ModelReference) -> dict[str, Any]:
    """The network's preprocessor_config.json; empty where it has none."""
    options: dict[str, Any] = {"local_files_only": reference.is_folder or reference.offline}
    if not reference.is_folder:
        options["revision"] = reference.revision
    try:
        found, _ = ImageProcessingMixin.get_image_processor_dict(_located(reference), **options)
    except OSError:  # such a file is optional: callers have defaults
        return {}
    return found


def check_reference(reference: ModelReference) -> None:
    """Refuse what is not pinned, before anything is downloaded.

    Raises:
        ModelError: no name, a folder without config.json, or a hub name without a commit.
    """
    if not reference.name:
        raise ModelError(f"{reference.knob}.model is empty; set it to a hub name or a folder")
    if reference.is_folder:
        if not (Path(_located(reference)) / "config.json").is_file():
            raise ModelMissing(_missing_text(reference, None, ""))
        return
    if not _COMMIT.fullmatch(reference.revision):
        raise ModelError(
            f"{reference.knob}.revision is {reference.revision!r}; a hub model must be pinned to a commit (40 "
            f"hexadecimal digits), see https://huggingface.co/{reference.name}/commits/main"
        )


def identify(reference: ModelReference) -> ModelIdentity:
    """The identity of a network whose files are there."""
    if not reference.is_folder:
        return ModelIdentity(reference.name, reference.revision, "")
    folder = Path(_located(reference))
    digest = hashlib.sha256()
    for path in sorted(found for pattern in _WEIGHTS for found in folder.glob(pattern)):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return ModelIdentity(folder.name, "", digest.hexdigest())


def _located(reference: ModelReference) -> str:
    return str(Path(reference.name).expanduser()) if reference.is_folder else reference.name


def _missing_text(reference: ModelReference, error: BaseException | None, hint: str) -> str:
    knob, name = reference.knob, reference.name
    reason = f" ({_first_line(error)})" if error else ""
    if reference.is_folder:
        text = f"{knob}.model: folder {name!r} holds no network saved by transformers{reason}; expected config.json "
        text += "and model.safetensors there"
    else:
        text = f"{knob}.model: {name} at {reference.revision} is not on this machine{reason}; on a machine with "
        text += f"internet run `hf download {name} --revision {reference.revision} --local-dir FOLDER`, copy FOLDER "
        text += f"here and set {knob}.model=FOLDER"
    return f"{text}. {hint}".rstrip(". ") + "."


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .;:")
