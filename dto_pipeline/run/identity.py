"""Identity of a run: everything that decides the bytes of its labels, so that a launch recognises its own run.

It holds options by value, inputs (body model, networks) by content and libraries by version, but no paths. The driver
makes every path absolute, so that workers with another working directory find the same files. Loads no PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dto_pipeline import __version__
from dto_pipeline.config import STAND_IN_BODY, PipelineConfig, config_from_dict, require_body, with_body
from dto_pipeline.config_tree import describe_difference
from dto_pipeline.data.dataset import SYNTHETIC
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.storage import Location, absolute, as_location, folder_exists, local_copy
from dto_pipeline.models.networks import (
    DEMO_MODEL,
    BodyModelError,
    ModelReference,
    identify_networks,
    locate_body,
    sha256_once,
)
from dto_pipeline.schema import LABELS_SCHEMA_NAME

BODY = "body"  # its name among a run's inputs
_NETWORKS = (("depth", "model"), ("masks", "model"), ("attributes", "model"), ("attributes", "gender_model"))
LIBRARIES = ("torch", "numpy", "pyarrow")  # another version of these may change a byte of the labels
# options with a place or a way to get a file: its content is compared instead
_PLACES = {
    "body": ("model_path",),
    "depth": ("root", "model", "revision", "offline"),
    "masks": ("model", "revision", "offline"),
    "attributes": ("model", "revision", "gender_model", "gender_revision", "offline"),
}
_ALWAYS = ("source", "unit")
# options that count only without a network; all others count only with one
_WITHOUT_NETWORK: dict[str, tuple[str, ...]] = {"depth": ("kind", "scale"), "masks": (), "attributes": ()}
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunIdentity:
    """Everything that decides the bytes of a run's labels, and their number."""

    config: dict[str, Any]  # PipelineConfig.to_dict of the first launch
    config_hash: str  # over `label_settings` and `inputs`; every receipt and label file holds it
    manifest_path: str  # at the first launch; another path with the same fingerprint is the same manifest
    manifest_fingerprint: str
    subset: str
    shards: int
    images: int
    persons: int
    versions: dict[str, str]
    inputs: dict[str, str] = field(default_factory=dict)  # see `identify_inputs`; {} in 0.3.0

    @property
    def body_sha256(self) -> str:
        """Of the body model; "" if run.json has none."""
        return self.inputs.get(BODY, "")


def identify_run(config: PipelineConfig, manifest: Manifest) -> RunIdentity:
    """Identity of a run of `config` over `manifest` with this installation.

    Raises:
        BodyModelError, ModelMissing, ModelError: a body model or network is not named, not here or not pinned.
    """
    inputs = identify_inputs(config)
    return RunIdentity(
        config=config.to_dict(),
        config_hash=hash_settings(config.to_dict(), inputs),
        manifest_path=str(absolute(manifest.path)),
        manifest_fingerprint=manifest.fingerprint,
        subset=manifest.subset,
        shards=manifest.num_shards,
        images=manifest.num_images,
        persons=manifest.num_people,
        versions={"dto_pipeline": __version__, "labels": LABELS_SCHEMA_NAME, **{n: version(n) for n in LIBRARIES}},
        inputs=inputs,
    )


def label_settings(config: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The part of a config (`PipelineConfig.to_dict`) that can change a label.

    Without the `run` section, places, and options of a network or a solver that is not used.
    """
    kept = {}
    for section in config.keys() - {"run"}:
        options, alone = config[section], _WITHOUT_NETWORK.get(section)
        asked = options.get("source") == "model"
        kept[section] = {
            key: value
            for key, value in options.items()
            if key not in _PLACES.get(section, ()) and (alone is None or key in _ALWAYS or (key in alone) != asked)
        }
    if config.get("solver", {}).get("mode") != "joint":
        kept.pop("joint", None)
    return kept


def hash_settings(config: Mapping[str, Mapping[str, Any]], inputs: Mapping[str, str]) -> str:
    """sha256 (hex) over `label_settings` and inputs, stable across processes and Python versions."""
    text = json.dumps([label_settings(config), inputs], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def describe_run_difference(recorded: RunIdentity, wanted: RunIdentity) -> list[str]:
    """One line per difference that may change a label byte; the `run` section and paths may differ."""
    before, after = label_settings(recorded.config), label_settings(wanted.config)
    if ("joint" in before) != ("joint" in after):  # solver.mode differs; the forty options of one mode would hide it
        before.pop("joint", None)
        after.pop("joint", None)
    lines = [*describe_difference(before, after), *describe_difference(_facts(recorded), _facts(wanted))]
    if not lines and recorded.config_hash != wanted.config_hash:
        lines = [f"config hash: {recorded.config_hash} -> {wanted.config_hash}"]
    return [line.replace("content.", "content of the ", 1) for line in lines]


def _facts(identity: RunIdentity) -> dict[str, dict[str, Any]]:
    size = {"shards": identity.shards, "images": identity.images}
    manifest = {"fingerprint": identity.manifest_fingerprint, **size}
    return {"manifest": manifest, "versions": identity.versions, "content": identity.inputs}


@dataclass(frozen=True)
class Places:
    """Folders of a run."""

    images: Location
    depth: Location | None  # None = a network makes the maps


def settle_config(config: PipelineConfig, manifest: Manifest) -> PipelineConfig:
    """The config with absolute paths and the body model named. Raises: ConfigError if none is named."""
    config = with_body(config, config.body.model_path or manifest.body)
    require_body(config.body)
    settled = config.to_dict()
    body, depth = settled["body"], settled["depth"]
    if body["model_path"] != STAND_IN_BODY:
        body["model_path"] = str(absolute(body["model_path"]))
    if depth["root"]:
        depth["root"] = str(absolute(depth["root"]))
    for section, key in _NETWORKS:
        name = settled[section][key]
        if name and name != DEMO_MODEL and ModelReference(name).is_folder:
            settled[section][key] = str(Path(name).expanduser().absolute())
    return config_from_dict(settled)


def find_places(
    config: PipelineConfig, manifest: Manifest, images_root: str | Path | None, depth_root: str | Path | None
) -> Places:
    """Folders of photographs and depth maps: as given, else those of the config or the manifest."""
    images = absolute(images_root) if images_root else manifest.images_root
    if config.depth.source != "files":
        return Places(images, None)
    named = depth_root or config.depth.root
    return Places(images, absolute(named) if named else manifest.depth_root)


def find_missing(config: PipelineConfig, manifest: Manifest, places: Places, here: bool = True) -> list[str]:
    """Inputs without which no image could be processed, a sentence each; [] if none is known to be missing.

    `here`: False if workers on other machines may see folders that this machine does not. Raises: StorageError for a
    URI of an unknown kind.
    """
    missing = []
    if config.depth.source == "files" and manifest.depth_root is None:
        advice = (
            "build it with `depth` in the data set's YAML, or let a network make them: depth.source=model, depth.model"
        )
        missing.append(f"{manifest.path} names no depth maps; {advice}; see docs/seeing.md")
    if not here:
        return missing
    for what, place in (("images", places.images), ("depth", places.depth)):
        if place and not folder_exists(place):
            advice = f"check the path, or name its new place: --{what} DIR"
            missing.append(f"{what} folder {place} of {manifest.path}: there is no such folder here; {advice}")
    try:
        if isinstance(body := as_location(config.body.model_path), Path):
            locate_body(body)
    except BodyModelError as error:
        missing.append(f"body.model_path: {error}; --body names another place")
    return missing


def warn_of_demo_network(config: PipelineConfig, manifest: Manifest) -> None:
    """Log that the demo's depth network is of no use on photographs."""
    synthetic = str(manifest.dataset.get("licence", "")).startswith(SYNTHETIC)
    if config.depth.source == "model" and config.depth.model == DEMO_MODEL and not synthetic:
        _LOG.warning(
            "depth.model=demo was trained on synthetic crowds only: on other pictures its maps, and the labels, mean "
            "nothing; take a published network (docs/seeing.md) for %s",
            manifest.subset,
        )


def identify_inputs(config: PipelineConfig) -> dict[str, str]:
    """Content of everything that decides labels besides config and manifest: name -> sha256, or NAME@COMMIT.

    Every file is read once per process, and again if its size or time of change differs.

    Raises:
        BodyModelError, ModelMissing, ModelError: one is not named, missing or not pinned.
    """
    path = config.body.model_path
    try:
        with local_copy(as_location(path), (".npz",)) as body:
            return {BODY: sha256_once(locate_body(body)), **identify_networks(config)}
    except FileNotFoundError as error:
        raise BodyModelError(f"no body model at {path}; expected an npz made by `dto body import`") from error
