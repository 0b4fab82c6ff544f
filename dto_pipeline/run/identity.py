"""What a run is: all that decides the bytes of its labels, so that a start tells its own run from another.

Settings by value, inputs by content, libraries by version. Where something lies, and how its path was spelled, is no
part of it. Knows no files of a run (`directory`) and loads no PyTorch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from dto_pipeline import __version__
from dto_pipeline.config import PipelineConfig, describe_difference
from dto_pipeline.run.inputs import BODY, identify_inputs
from dto_pipeline.schema import LABELS_SCHEMA_NAME

LIBRARIES = ("torch", "numpy", "pyarrow")  # another version of these may change a byte of the labels
# options that say where something lies or how it is had; its content is compared in their place
_PLACES = {
    "body": ("model_path",),
    "depth": ("root", "model", "revision", "offline"),
    "masks": ("model", "revision", "offline"),
    "attributes": ("model", "revision", "gender_model", "gender_revision", "offline"),
}
_ALWAYS = ("source", "unit")
# options that count where no network is asked for, and only there; all others count only where one is
_WITHOUT_NETWORK: dict[str, tuple[str, ...]] = {"depth": ("kind", "scale"), "masks": (), "attributes": ()}
_NO_HASHES = (
    "run.json holds no hashes of body model and networks: the run was made by version 0.3.0 or an earlier one; finish "
    "it with that version, or start a new run in another folder"
)


class ManifestFacts(Protocol):
    """What a run records of its manifest."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def subset(self) -> str: ...
    @property
    def num_shards(self) -> int: ...
    @property
    def num_images(self) -> int: ...
    @property
    def num_people(self) -> int: ...


@dataclass(frozen=True)
class RunIdentity:
    """What decides the bytes of a run's labels, and how many there will be."""

    config: dict[str, Any]  # PipelineConfig.to_dict of the first start
    config_hash: str  # over `label_settings` and `inputs`; every receipt and label file holds it
    manifest_path: str  # where it was; another place with the same fingerprint is the same manifest
    manifest_fingerprint: str
    subset: str
    shards: int
    images: int
    persons: int
    versions: dict[str, str]
    inputs: dict[str, str] = field(default_factory=dict)  # see `inputs.identify_inputs`; {} until 0.3.0

    @property
    def body_sha256(self) -> str:
        """Of the body model; "" where run.json tells none."""
        return self.inputs.get(BODY, "")


def identify_run(config: PipelineConfig, manifest: ManifestFacts, manifest_path: str | Path) -> RunIdentity:
    """What a run of `config` over `manifest` with this installation is.

    Raises:
        BodyModelError, ModelMissing, ModelError: a body model or network is not named, not here or not pinned.
    """
    inputs = identify_inputs(config)
    return RunIdentity(
        config=config.to_dict(),
        config_hash=hash_settings(config.to_dict(), inputs),
        manifest_path=str(manifest_path),
        manifest_fingerprint=manifest.fingerprint,
        subset=manifest.subset,
        shards=manifest.num_shards,
        images=manifest.num_images,
        persons=manifest.num_people,
        versions=_installed_versions(),
        inputs=inputs,
    )


def label_settings(config: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The part of a config (`PipelineConfig.to_dict`) that can change a label.

    Not in it: the `run` section, places, and options of a network or a solver that is not asked for.
    """
    kept = {section: dict(options) for section, options in config.items() if section != "run"}
    if kept.get("solver", {}).get("mode") != "joint":
        kept.pop("joint", None)
    for section, alone in _WITHOUT_NETWORK.items():
        options = kept.get(section, {})
        asked = options.get("source") == "model"
        kept[section] = {key: options[key] for key in options if key in _ALWAYS or (key in alone) != asked}
    for section, places in _PLACES.items():
        kept[section] = {key: value for key, value in kept.get(section, {}).items() if key not in places}
    return kept


def hash_settings(config: Mapping[str, Mapping[str, Any]], inputs: Mapping[str, str]) -> str:
    """sha256 (hex) over `label_settings` and inputs, stable across processes and Python versions."""
    text = json.dumps([label_settings(config), inputs], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def describe_run_difference(recorded: RunIdentity, wanted: RunIdentity) -> list[str]:
    """One line per difference that may change a label byte; the `run` section and all places may differ."""
    if not recorded.inputs:
        return [_NO_HASHES]
    lines = describe_difference(label_settings(recorded.config), label_settings(wanted.config))
    facts = {
        "manifest.fingerprint": (recorded.manifest_fingerprint, wanted.manifest_fingerprint),
        "manifest.shards": (recorded.shards, wanted.shards),
        "manifest.images": (recorded.images, wanted.images),
    }
    for name in sorted(recorded.versions.keys() | wanted.versions.keys()):
        facts[f"versions.{name}"] = (recorded.versions.get(name), wanted.versions.get(name))
    for name in sorted(recorded.inputs.keys() | wanted.inputs.keys()):
        facts[f"content of the {name}"] = (recorded.inputs.get(name), wanted.inputs.get(name))
    lines += [f"{name}: {before!r} -> {after!r}" for name, (before, after) in facts.items() if before != after]
    if not lines and recorded.config_hash != wanted.config_hash:
        lines = [f"config hash: {recorded.config_hash} -> {wanted.config_hash}"]
    return lines


def _installed_versions() -> dict[str, str]:
    own = {"dto_pipeline": __version__, "labels": LABELS_SCHEMA_NAME}
    return own | {name: version(name) for name in LIBRARIES}
