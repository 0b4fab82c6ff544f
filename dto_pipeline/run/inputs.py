"""What a run reads besides its manifest: body model, networks, photographs, depth maps; where they lie, what they are.

Places are for finding, contents for telling apart: a run's identity holds hashes and commits, never a path. The driver
makes every place absolute, so that workers with another working directory look where it looked. Loads no PyTorch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from dto_pipeline.config import STAND_IN_BODY, PipelineConfig, require_body, with_body
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.storage import Location, absolute, as_location, folder_exists, local_copy
from dto_pipeline.models.body_file import BodyModelError, locate_body
from dto_pipeline.models.depth_licences import DEMO_MODEL
from dto_pipeline.models.networks import ModelReference, identify_networks, sha256_once

BODY = "body"  # its name among a run's inputs
_NETWORKS = (("depth", "model"), ("masks", "model"), ("attributes", "model"), ("attributes", "gender_model"))


@dataclass(frozen=True)
class Places:
    """Folders of a run."""

    images: Location
    depth: Location | None  # None = a network looks
    images_named: bool = False  # by an option of this start, not by the manifest
    depth_named: bool = False  # likewise, or by the config


def settle_config(config: PipelineConfig, manifest: Manifest) -> PipelineConfig:
    """The config as a run works by it: a body model named, every place absolute.

    Raises:
        ConfigError: neither the config nor the manifest's data set names a body model.
    """
    config = with_body(config, config.body.model_path or manifest.body)
    require_body(config.body)
    body = config.body.model_path
    if body != STAND_IN_BODY:
        config = with_body(config, str(absolute(body)))
    if config.depth.root:
        config = _changed(config, "depth", "root", str(absolute(config.depth.root)))
    for room, key in _NETWORKS:
        name = getattr(getattr(config, room), key)
        if name and name != DEMO_MODEL and ModelReference(name).is_folder:
            config = _changed(config, room, key, str(Path(name).expanduser().absolute()))
    return config


def find_places(
    config: PipelineConfig, manifest: Manifest, images_root: str | Path | None, depth_root: str | Path | None
) -> Places:
    """Where a run looks for photographs and depth maps.

    Args:
        images_root, depth_root: folders in place of those named by the manifest and the config.
    """
    images = absolute(images_root) if images_root else manifest.images_root
    if config.depth.source != "files":
        return Places(images, None, bool(images_root))
    named = depth_root or config.depth.root
    depth = absolute(named) if named else manifest.depth_root
    return Places(images, depth, bool(images_root), bool(named))


def find_missing(config: PipelineConfig, manifest: Manifest, places: Places) -> list[str]:
    """What every image would fail for on this machine, a sentence each; [] where all is there.

    Raises:
        StorageError: a URI that no file system opens.
    """
    missing = find_unnamed(config, manifest)
    folders = [("images", places.images, places.images_named), ("depth", places.depth, places.depth_named)]
    missing += [text for what, place, named in folders if place and (text := _why_unfit(what, place, named, manifest))]
    try:
        if isinstance(place := as_location(config.body.model_path), Path):
            locate_body(place)
    except BodyModelError as error:
        missing.append(f"body.model_path: {error}; --body names another place")
    return missing


def find_unnamed(config: PipelineConfig, manifest: Manifest) -> list[str]:
    """Why no image can have a depth map wherever it is looked for."""
    if config.depth.source != "files" or manifest.depth_root is not None:
        return []
    advice = "build it with `depth` in the data set's YAML, or look with a network: depth.source=model, depth.model"
    return [f"{manifest.path} names no depth maps; {advice}; see docs/seeing.md"]


def find_relative(manifest: Manifest, places: Places) -> list[str]:
    """Places that other machines would look for elsewhere: only manifests made before 0.4 hold such."""
    folders = (("images", places.images), ("depth", places.depth))
    return [
        f"{what} folder {place}: relative in {manifest.path}, and the workers of a cluster have another working "
        f"directory; name it with --{what}, or build the manifest again"
        for what, place in folders
        if isinstance(place, Path) and not place.is_absolute()
    ]


def identify_inputs(config: PipelineConfig) -> dict[str, str]:
    """Content of everything that decides labels besides config and manifest: name -> sha256, or NAME@COMMIT.

    Every file is read once a process and kept in mind by size and time of change.

    Raises:
        BodyModelError, ModelMissing, ModelError: one is not named, not there or not pinned.
    """
    return {BODY: _hash_body(config.body.model_path), **identify_networks(config)}


def _hash_body(path: str) -> str:
    place = as_location(path)
    if isinstance(place, Path):
        return sha256_once(locate_body(path))
    try:
        with local_copy(place, (".npz",)) as copy:
            return sha256_once(locate_body(copy))
    except FileNotFoundError as error:
        raise BodyModelError(f"no body model at {path}; expected an npz made by `dto body import`") from error


def _why_unfit(what: str, place: Location, named: bool, manifest: Manifest) -> str:
    """Why a folder cannot be the one of a run; "" where it can."""
    by = "" if named else f", which {manifest.path} names"
    advice = f"check the path, or name it where it lies now: --{what} DIR"
    if not folder_exists(place):
        return f"{what} folder {place}{by}: there is no such folder here; {advice}"
    return ""


def _changed(config: PipelineConfig, room: str, key: str, value: str) -> PipelineConfig:
    return dataclasses.replace(config, **{room: dataclasses.replace(getattr(config, room), **{key: value})})
