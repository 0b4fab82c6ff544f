"""The verbs of `dto`, one module each: `add_parser` declares it, `run` parses nothing itself and calls one room."""

from __future__ import annotations

from types import ModuleType

from dto_pipeline.commands import bench, body, demo, export, golden, manifest, run, status

VERBS: tuple[ModuleType, ...] = (demo, manifest, run, status, export, body, golden, bench)
