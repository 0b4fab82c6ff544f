"""Body model and networks that a config names: checked, found on disk and identified, without loading them.

Imports neither torch nor transformers, so that a run's driver stays light. A hub name must be pinned to a commit, so
that every worker and every rerun uses the same weights; a folder is identified by the sha256 of its files.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from dto_pipeline.config import NAME_A_BODY, STAND_IN_BODY, AttributeConfig, DepthConfig, MaskConfig, PipelineConfig
from dto_pipeline.errors import DtoError
from dto_pipeline.reading import open_regular

_COMMIT = re.compile("[0-9a-f]{40}")
_HUB_NAME = re.compile(r"(?!.*(--|\.\.))[\w.-]+/[\w.-]+")
# families (`model_type` of config.json) that each section of the config can use, and what to do with another network
FAMILIES = {"depth": ("depth_anything", "depth_pro"), "masks": ("mask2former", "maskformer", "eomt", "eomt_dinov3")}
_FAMILY = re.compile(r"[\w.-]{1,64}")
_OTHER_FAMILY = {
    "depth": "write maps of other networks to files and use depth.source=files with depth.kind",
    "masks": "bring other masks with the manifest and use masks.source=labels",
}
# all that transformers reads from a folder to build and feed a network: configs, index, code, weights
_DECIDING = ("*.json", "*.py", "*.safetensors", "*.bin")
_BODY_FILES = ("SMPLA_NEUTRAL.npz", "SMPL_NEUTRAL.npz")  # a folder's body is the first of these that exists
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
    """The npz of a body model: a file, one of `_BODY_FILES` in a folder, or "demo", the stand-in of the package.

    Raises: BodyModelError: no path, or no such file.
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
    """A network as a config names it."""

    name: str  # hub name, like depth-anything/Depth-Anything-V2-Small-hf, or a folder that holds config.json
    revision: str = ""  # commit of the hub repository, 40 hexadecimal digits; not used for folders
    offline: bool = False  # never ask the hub, use what its cache on this machine holds
    trust_remote_code: bool = False  # run Python code of the repository
    option: str = ""  # section of the config

    @property
    def is_folder(self) -> bool:
        """True where `name` is a path; a hub name is exactly two words with one slash, and no such folder exists."""
        return Path(self.name).is_dir() or self.name.startswith((".", "/", "~")) or self.name.count("/") != 1

    @property
    def located(self) -> str:
        """What transformers opens: the folder's path or the hub name."""
        if self.option == "depth" and self.name == DEMO_MODEL:
            return str(files("dto_pipeline.assets") / "depth_tiny")
        return str(Path(self.name).expanduser()) if self.is_folder else self.name


@dataclass(frozen=True)
class ModelIdentity:
    """What a network is, for label metadata: equal on every machine, without paths."""

    name: str  # hub name, or the family (model_type) in a folder's config.json
    revision: str  # commit of the hub repository; empty for a folder
    sha256: str  # over a folder's deciding files; empty for the hub, whose commit fixes them

    @property
    def full(self) -> str:
        """NAME@COMMIT of the hub, or the sha256 of a folder."""
        return f"{self.name}@{self.revision}" if self.revision else self.sha256

    @property
    def short(self) -> str:
        """Name and the first digits of what pins it, for columns and logs."""
        return f"{self.name}@{(self.revision or self.sha256)[:12]}"

    def facts(self, what: str) -> dict[str, str]:
        """Entries of the labels' metadata, `what` before each name."""
        return {f"{what}_model": self.name, f"{what}_revision": self.revision, f"{what}_sha256": self.sha256}


def identify_networks(config: PipelineConfig) -> dict[str, str]:
    """Every network a config uses -> `ModelIdentity.full`; empty where there is none.

    Raises: ModelMissing, ModelError: see `check_reference`.
    """
    references: dict[str, ModelReference] = {}
    if config.depth.source == "model":
        references["depth network"] = reference_of("depth", config.depth)
    if config.masks.source == "model":
        references["mask network"] = reference_of("masks", config.masks)
    if config.attributes.source == "model":
        for index, reference in enumerate(attribute_references(config.attributes), start=1):
            references[f"attribute network {index}"] = reference
    for reference in references.values():
        check_reference(reference)
    return {what: identify(reference).full for what, reference in references.items()}


def reference_of(option: str, section: DepthConfig | MaskConfig) -> ModelReference:
    """The network of the section `option` of a config."""
    return ModelReference(section.model, section.revision, section.offline, option=option)


def attribute_references(config: AttributeConfig) -> list[ModelReference]:
    """One or two networks for ages and genders. Raises: ModelError: none is named."""
    named = [(config.model, config.revision), (config.gender_model, config.gender_revision)]
    named = [pair for pair in named if pair[0]] or named[:1]  # an empty name is refused when it is checked
    return [ModelReference(*pair, config.offline, config.trust_remote_code, "attributes") for pair in named]


def check_reference(reference: ModelReference) -> None:
    """Refuse what cannot be used before anything is downloaded or loaded: no name, a hub name without a commit, a
    folder without config.json, or a family that is not supported. The family of a hub network is known only where its
    config.json was fetched before; `load_pretrained` checks it again.

    Raises: ModelMissing, ModelError.
    """
    if not reference.name:
        raise ModelError(f"{reference.option}.model is empty; set it to a hub name or a folder")
    if reference.is_folder:
        if not (Path(reference.located) / "config.json").is_file():
            raise ModelMissing(missing_text(reference))
        check_family(reference.option, _read_family(reference.option, Path(reference.located) / "config.json"))
    elif not _HUB_NAME.fullmatch(reference.name):
        raise ModelError(f"{reference.option}.model is {reference.name!r}; give a hub name (OWNER/NAME) or a folder")
    elif not _COMMIT.fullmatch(reference.revision):
        raise ModelError(
            f"{reference.option}.revision is {reference.revision!r}; a hub model must be pinned to a commit (40 "
            f"hexadecimal digits), see https://huggingface.co/{reference.name}/commits/main"
        )
    elif reference.option in FAMILIES:
        from huggingface_hub import try_to_load_from_cache  # loads in a moment, but only when needed

        config = try_to_load_from_cache(reference.name, "config.json", revision=reference.revision)
        if isinstance(config, str):
            check_family(reference.option, _read_family(reference.option, Path(config)))


def check_family(option: str, family: str) -> None:
    """Raises: ModelError: networks of this family are not supported for this section of the config."""
    if option in FAMILIES and family not in FAMILIES[option]:
        raise ModelError(
            f"{option}.model is of the family {family!r}; expected {' or '.join(FAMILIES[option])}; "
            f"{_OTHER_FAMILY[option]}"
        )


def identify(reference: ModelReference) -> ModelIdentity:
    """The identity of a network whose files are there."""
    if not reference.is_folder:
        return ModelIdentity(reference.name, reference.revision, "")
    folder = Path(reference.located)
    digest = hashlib.sha256()
    found = {path for pattern in _DECIDING for path in folder.glob(pattern)}
    for path in sorted(filter(Path.is_file, found)):  # no folder, and no pipe that would block
        digest.update(path.name.encode() + b"\0" + bytes.fromhex(sha256_once(path)))
    family = _read_family(reference.option, folder / "config.json")
    return ModelIdentity(family, "", digest.hexdigest())  # not the folder's name: machines differ


def _read_family(option: str, path: Path) -> str:
    """The `model_type` of a config.json. Raises: ModelError: there is none, or it is not one word."""
    try:
        family = json.loads(path.read_bytes())["model_type"]
        if not _FAMILY.fullmatch(family):
            raise ValueError(f"it is {family!r:.80}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{option}.model: {path} has no model_type ({error!r}); expected a network saved by transformers"
        ) from error
    return family


def sha256_once(path: Path) -> str:
    """sha256 (hex) of a file, computed once a process as long as its size and time of change stay the same."""
    now = path.stat()
    return _sha256(str(path.absolute()), (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns))


@lru_cache(maxsize=64)
def _sha256(path: str, state: tuple[int, ...]) -> str:
    with open_regular(Path(path)) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def missing_text(reference: ModelReference, error: BaseException | None = None) -> str:
    """What a `ModelMissing` says: the cause, what was expected and how to get it."""
    option, name = reference.option, reference.name
    reason = f" ({first_line(error)})" if error else ""
    text = f"{option}.model: folder {name!r} holds no network saved by transformers{reason}; expected config.json and "
    text += "model.safetensors there"
    if not reference.is_folder:
        text = f"{option}.model: {name} at {reference.revision} is not on this machine{reason}; on a machine with "
        text += f"internet run `hf download {name} --revision {reference.revision} --local-dir FOLDER`, copy FOLDER "
        text += f"here and set {option}.model=FOLDER"
    return f"{text}."


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .;:")
