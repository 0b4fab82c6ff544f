"""Whether run.json says what a run can be: the numbers, and the part of the config that readers of results ask for.

A run of another version may have other keys; only what is read here must be there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dto_pipeline.config import PipelineConfig, build_rooms, shorten
from dto_pipeline.run.receipt import impossible_fields

_MOST_SHARDS = 10_000_000  # a run of a hundred billion images; more is damage
_READ = {
    "body": ("model_path", "kid_axis"),
    "depth": ("kind", "scale", "root"),
    "joint": ("hold_z_sigma",),
    "refine": ("accept_below",),
    "solver": ("mode", "max_height"),
}  # room of the config -> keys that readers of finished runs ask for


def check_run_record(config: Mapping[str, Any], values: Mapping[str, Any], record: type) -> None:
    """Check what run.json holds.

    Args:
        config: as recorded.
        values: the fields of `record`, a dataclass.

    Raises:
        KeyError, TypeError or ValueError: a value is missing, or none that a run can have; the text says which.
    """
    if wrong := impossible_fields({name: value for name, value in values.items() if name != "config"}, record):
        raise ValueError(f"{wrong[0]} is {shorten(values[wrong[0]])}")
    if values["shards"] > _MOST_SHARDS:
        raise ValueError(f"shards is {values['shards']}")
    known = {room: {key: config[room][key] for key in keys} for room, keys in _READ.items()}
    build_rooms(PipelineConfig, known)  # their types
