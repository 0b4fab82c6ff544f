"""Which body model and networks a config asks for: pinned, found on disk, identified; without loading them.

Knows names, revisions, files and licences; imports neither torch nor transformers, so a run's driver need not. A hub
name needs the commit it is pinned to, so that every worker and every rerun sees the same weights; a folder is
identified by the sha256 of the files that decide its answers.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from dto_pipeline.config import (
    NAME_A_BODY,
    STAND_IN_BODY,
    AttributeConfig,
    DepthConfig,
    MaskConfig,
    PipelineConfig,
)
from dto_pipeline.errors import DtoError
from dto_pipeline.reading import open_regular

_COMMIT = re.compile("[0-9a-f]{40}")
DEPTH_FAMILIES = ("depth_anything", "depth_pro")  # `model_type` of config.json; `depth_anything` knows what each wants
_FAMILY = re.compile(r"[\w.-]{1,64}")
# all that transformers reads of a folder to build and feed a network: configs, index, code, weights
_DECIDING = ("*.json", "*.py", "*.safetensors", "*.bin")
_NO_FAMILY = "network"  # of a folder whose config.json tells no model_type
_BODY_FILES = ("SMPLA_NEUTRAL.npz", "SMPL_NEUTRAL.npz")  # of a folder's body, the first that is there
DEMO_MODEL = "demo"  # name of the depth network shipped with the package
# of known depth networks, as their authors state them; labels by a CC BY-NC network may not be used commercially
LICENCES = {
    **{
        f"depth-anything/Depth-Anything-V2-{kind}{size}-hf": licence
        for kind in ("", "Metric-Indoor-", "Metric-Outdoor-")
        for size, licence in (("Small", "Apache-2.0"), ("Base", "CC BY-NC 4.0"), ("Large", "CC BY-NC 4.0"))
    },
    **{f"LiheYoung/depth-anything-{size}-hf": "Apache-2.0" for size in ("small", "base", "large")},
    "apple/DepthPro-hf": "Apple Machine Learning Research Model licence (research only)",
    DEMO_MODEL: "Apache-2.0 (trained here on synthetic crowds; for the demo's pictures only)",
}


def licence_lines() -> list[str]:
    """One line a licence, with the names of its networks."""
    licences: dict[str, list[str]] = {}
    for name, licence in LICENCES.items():
        licences.setdefault(licence, []).append(name)
    return [f"{licence}: {', '.join(names)}" for licence, names in licences.items()]


class BodyModelError(DtoError, ValueError):
    """A file that is not a usable body model; the message says what was found and what to do."""


def locate_body(path: str | Path) -> Path:
    """The npz of a body model.

    Args:
        path: npz file, or a folder holding one of `_BODY_FILES`; "demo" = the stand-in body of the package.

    Raises:
        BodyModelError: none is named, or nothing is there.
    """
    if not str(path):
        raise BodyModelError(f"no body model is named; {NAME_A_BODY}")
    place = Path(str(files("dto_pipeline.assets"))) if str(path) == STAND_IN_BODY else Path(path)
    for file in [place / name for name in _BODY_FILES] if place.is_dir() else [place]:
        if file.is_file():
            return file
    raise BodyModelError(f"no body model at {path}; expected an npz made by `dto body import`")


class ModelError(DtoError, ValueError):
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
    option: str = "depth"  # section of the config, for messages

    @property
    def is_folder(self) -> bool:
        """True where `name` is a path; a hub name is exactly two words with one slash, and no such folder exists."""
        return Path(self.name).is_dir() or self.name.startswith((".", "/", "~")) or self.name.count("/") != 1


@dataclass(frozen=True)
class ModelIdentity:
    """Which network it really is, for label metadata. Equal on every machine, wherever it lies: no paths."""

    name: str  # hub name, or what a folder's config.json calls its family (model_type)
    revision: str  # commit of the hub repository; empty for a folder
    sha256: str  # over a folder's deciding files; empty for the hub, whose commit fixes them

    @property
    def full(self) -> str:
        """All of what pins it: NAME@COMMIT of the hub, the sha256 of a folder."""
        return f"{self.name}@{self.revision}" if self.revision else self.sha256

    @property
    def short(self) -> str:
        """Name and the first digits of what pins it, for columns and logs."""
        return f"{self.name}@{(self.revision or self.sha256)[:12]}"


def identify_networks(config: PipelineConfig) -> dict[str, str]:
    """Every network a config asks for -> `ModelIdentity.full`; empty where there is none.

    Raises:
        ModelMissing, ModelError: one is not pinned, its folder is not there, or it is a depth network of a family that
            nobody here can feed.
    """
    references: dict[str, ModelReference] = {}
    if config.depth.source == "model":
        references["depth network"] = depth_reference(config.depth)
    if config.masks.source == "model":
        references["mask network"] = mask_reference(config.masks)
    if config.attributes.source == "model":
        for index, reference in enumerate(attribute_references(config.attributes), start=1):
            references[f"attribute network {index}"] = reference
    found = {}
    for what, reference in references.items():
        check_reference(reference)
        if what == "depth network":
            _check_depth_family(reference)
        found[what] = identify(reference).full
    return found


def _check_depth_family(reference: ModelReference) -> None:
    """Refuse a depth network nobody here can feed, by its config.json and before any worker starts.

    Where that file is not on this machine (a hub name that was never fetched) the first worker finds out.
    """
    if reference.is_folder:
        path = Path(located(reference)) / "config.json"
    else:
        from huggingface_hub import try_to_load_from_cache  # loads in a moment, but only when asked

        found = try_to_load_from_cache(reference.name, "config.json", revision=reference.revision)
        if not isinstance(found, str):
            return
        path = Path(found)
    if (family := _read_family(path)) not in DEPTH_FAMILIES:
        raise ModelError(unknown_family_text(family))


def unknown_family_text(family: str) -> str:
    return (
        f"depth.model is of the family {family!r}; expected depth_anything (V1, V2, relative or metric) or depth_pro; "
        "write maps of other networks to files and use depth.source=files with depth.kind"
    )


def depth_reference(config: DepthConfig) -> ModelReference:
    """The depth network of a config."""
    own = str(files("dto_pipeline.assets") / "depth_tiny")
    return ModelReference(own if config.model == DEMO_MODEL else config.model, config.revision, config.offline)


def mask_reference(config: MaskConfig) -> ModelReference:
    return ModelReference(config.model, config.revision, config.offline, option="masks")


def attribute_references(config: AttributeConfig) -> list[ModelReference]:
    """One or two networks for ages and genders. Raises: ModelError, where none is named."""
    asked = [(config.model, config.revision), (config.gender_model, config.gender_revision)]
    named = [
        ModelReference(name, revision, config.offline, config.trust_remote_code, "attributes")
        for name, revision in asked
        if name
    ]
    if not named:
        raise ModelError("attributes.source is 'model' but attributes.model is empty; set it to a hub name or a folder")
    return named


def check_reference(reference: ModelReference) -> None:
    """Refuse what is not pinned, before anything is downloaded: no name, an empty folder, a hub name without commit."""
    if not reference.name:
        raise ModelError(f"{reference.option}.model is empty; set it to a hub name or a folder")
    if reference.is_folder:
        if not (Path(located(reference)) / "config.json").is_file():
            raise ModelMissing(missing_text(reference, None, ""))
        return
    if not _COMMIT.fullmatch(reference.revision):
        raise ModelError(
            f"{reference.option}.revision is {reference.revision!r}; a hub model must be pinned to a commit (40 "
            f"hexadecimal digits), see https://huggingface.co/{reference.name}/commits/main"
        )


def identify(reference: ModelReference) -> ModelIdentity:
    """The identity of a network whose files are there."""
    if not reference.is_folder:
        return ModelIdentity(reference.name, reference.revision, "")
    folder = Path(located(reference))
    digest = hashlib.sha256()
    found = {path for pattern in _DECIDING for path in folder.glob(pattern)}
    for path in sorted(filter(Path.is_file, found)):  # no folder, and no pipe that would wait for ever
        digest.update(path.name.encode() + b"\0" + bytes.fromhex(sha256_once(path)))
    name = _NO_FAMILY  # what config.json calls it; the folder's own name says where it lies, not what it is
    with suppress(ModelError):
        family = _read_family(folder / "config.json")
        name = family if _FAMILY.fullmatch(family) else name
    return ModelIdentity(name, "", digest.hexdigest())


def _read_family(path: Path) -> str:
    """The `model_type` of a config.json. Raises: ModelError."""
    try:
        family = json.loads(path.read_bytes())["model_type"]
        if not isinstance(family, str):
            raise TypeError(f"it is {family!r:.80}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            f"depth.model: {path} tells no model_type ({error!r}); expected a network saved by transformers"
        ) from error
    return family


def sha256_once(path: Path) -> str:
    """sha256 (hex) of a file, read in pieces, and once a process as long as its size and time of change stay."""
    seen = path.stat()
    return _sha256(str(path.absolute()), (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns))


@lru_cache(maxsize=64)
def _sha256(path: str, seen: tuple[int, ...]) -> str:
    with open_regular(Path(path)) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def located(reference: ModelReference) -> str:
    return str(Path(reference.name).expanduser()) if reference.is_folder else reference.name


def missing_text(reference: ModelReference, error: BaseException | None, hint: str) -> str:
    option, name = reference.option, reference.name
    reason = f" ({first_line(error)})" if error else ""
    if reference.is_folder:
        text = f"{option}.model: folder {name!r} holds no network saved by transformers{reason}; expected config.json "
        text += "and model.safetensors there"
    else:
        text = f"{option}.model: {name} at {reference.revision} is not on this machine{reason}; on a machine with "
        text += f"internet run `hf download {name} --revision {reference.revision} --local-dir FOLDER`, copy FOLDER "
        text += f"here and set {option}.model=FOLDER"
    return f"{text}. {hint}".rstrip(". ") + "."


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .;:")
