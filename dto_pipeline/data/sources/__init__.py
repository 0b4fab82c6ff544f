"""The sources of labels: each reads one public format.

| `source:` of a YAML | `labels:` is                            | also reads                              |
|---------------------|-----------------------------------------|-----------------------------------------|
| camerahmr           | a ``*-release.npz``                     |                                         |
| ma_hmr              | released DTO-Humans, MA-HMR's layout    |                                         |
| predictions         | npz or Parquet of any network's people  |                                         |
| labels              | a run's folder, or label files of one   | `label_values`                          |
| relative_human      | a ``*_annots.npz``                      | `predictions`, without which it refuses |

To add a source, write a module with a function `(Path, SourceOptions) -> LabelSource` and add it to `SOURCES`;
`data.people` must recognise its files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from dto_pipeline.data.sources.annots import open_ma_hmr
from dto_pipeline.data.sources.camerahmr import open_camerahmr
from dto_pipeline.data.sources.dto_labels import open_dto_labels
from dto_pipeline.data.sources.predictions import open_predictions
from dto_pipeline.data.sources.relative_human import open_relative_human
from dto_pipeline.data.sources.rows import LabelSource, SourceOptions

SOURCES: Mapping[str, Callable[[Path, SourceOptions], LabelSource]] = {
    "camerahmr": open_camerahmr,
    "labels": open_dto_labels,
    "ma_hmr": lambda path, _options: open_ma_hmr(path),
    "predictions": lambda path, _options: open_predictions(path),
    "relative_human": open_relative_human,
}
