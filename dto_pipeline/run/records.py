"""What a run remembers besides its receipts: the failure of a shard, and what run.json must hold.

Knows fields and their JSON; knows nothing of folders, Ray or tensors. Times in seconds since 1970 UTC.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dto_pipeline.config import PipelineConfig, build_rooms, shorten
from dto_pipeline.data.receipts import impossible_fields, parse_record
from dto_pipeline.data.storage import Location

FAILURE_SCHEMA = "dto-failure/1"
_MOST_SHARDS = 10_000_000  # a run of a hundred billion images; more is damage
_READ = {
    "body": ("model_path", "kid_axis"),
    "depth": ("kind", "scale", "root"),
    "joint": ("hold_z_sigma",),
    "refine": ("accept_below",),
    "solver": ("mode", "max_height"),
}  # section of the config -> keys that readers of finished runs ask for


@dataclass(frozen=True)
class Failure:
    """What went wrong with a shard that is not done; never counts as done."""

    shard: int
    attempts: int  # that were charged to the shard
    given_up: bool  # True: quarantined until somebody asks for a retry
    error: str  # of the last attempt, one line
    worker: str
    failed_at: float  # [s since 1970 UTC]
    detail: str = ""  # trace of the last attempt
    deaths: int = 0  # of the attempts, those that ended with their process
    suspects: dict[str, int] = field(default_factory=dict)  # image_id -> processes that died with it alone in hand
    memory: dict[str, int] = field(default_factory=dict)  # image_id -> those of them for which memory ran out

    def to_dict(self) -> dict[str, Any]:
        return {"schema": FAILURE_SCHEMA, **dataclasses.asdict(self)}


def parse_failure(data: bytes, path: Location) -> Failure:
    """A failure's bytes; errors name `path`. Raises: RecordInvalid."""
    return Failure(**parse_record(data, path, FAILURE_SCHEMA, Failure))


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
    known = {section: {key: config[section][key] for key in keys} for section, keys in _READ.items()}
    build_rooms(PipelineConfig, known)  # their types
