"""Where foreign names end: each source turns one public format into `LabelRows`.

A source is opened once per manifest build and asked for slices, so that a label file of any size fits in memory. To add
one, write a module with a function `Path -> LabelSource` and name it in `SOURCES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from dto_pipeline.data.sources.camerahmr import open_camerahmr
from dto_pipeline.data.sources.rows import LabelSource

SOURCES: Mapping[str, Callable[[Path], LabelSource]] = {"camerahmr": open_camerahmr}
