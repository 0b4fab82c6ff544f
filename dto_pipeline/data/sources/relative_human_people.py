"""RelativeHuman as the start of a manifest: predicted people of the annotated images.

Its annotations hold no body and no camera, so the people come from a prediction file (see `predictions`). Nothing that
is annotated flows into the manifest: layers and ages are what the results are evaluated against. What is checked is
coverage: annotated images without a prediction and predicted images without annotation are told, none is dropped.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np

from dto_pipeline.data.inert_pickle import PickleRefused
from dto_pipeline.data.sources.predictions import PredictionFile, open_predictions
from dto_pipeline.data.sources.relative_human import read_annotations
from dto_pipeline.data.sources.rows import Finding, LabelFileError, LabelRows, SourceOptions

NOT_PREDICTED = "annotated, but nobody was predicted in it"
NOT_ANNOTATED = "predicted, but not annotated: it cannot be evaluated"
_ROWS_AT_ONCE = 1 << 16


class RelativeHumanPeople:
    """An open prediction file whose images were compared with the annotations'; see the module."""

    def __init__(self, predictions: PredictionFile, annotations: Path, annotated: list[str]) -> None:
        self._predictions = predictions
        self.files = [annotations, *predictions.files]
        self.num_rows = predictions.num_rows
        self.findings = _compare(predictions, annotated)

    def image_names(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) str."""
        return self._predictions.image_names(start, stop)

    def rows(self, index: np.ndarray) -> LabelRows:
        """The predicted people named by `index` (n,) int, in this order."""
        return self._predictions.rows(index)

    def __enter__(self) -> RelativeHumanPeople:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._predictions.close()


def open_relative_human(path: Path, options: SourceOptions) -> RelativeHumanPeople:
    """Open ``{train,val,test}_annots.npz`` and the predictions for its images.

    Raises:
        LabelFileError: no predictions are named, or one of the files cannot be used.
    """
    if options.predictions is None:
        raise LabelFileError(
            f"{path}: RelativeHuman's annotations hold no bodies and no cameras, so there is nothing to optimise; name "
            "a file of predicted people under `predictions` in the dataset YAML (--predictions), or use them for "
            "evaluation only"
        )
    try:
        annotated = list(read_annotations(path).images)
    except FileNotFoundError as error:
        raise LabelFileError(f"label file {path} does not exist; check --data-root and the dataset YAML") from error
    except (PickleRefused, OSError) as error:
        raise LabelFileError(f"{path} cannot be read: {error}") from error
    predictions = open_predictions(options.predictions)
    try:
        return RelativeHumanPeople(predictions, path, annotated)
    except BaseException:
        predictions.close()
        raise


def _compare(predictions: PredictionFile, annotated: list[str]) -> list[Finding]:
    """Images only one side knows, by their base names: annotations have no folders."""
    predicted: dict[str, str] = {}
    for start in range(0, predictions.num_rows, _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, predictions.num_rows)
        for name in set(predictions.image_names(start, stop).tolist()):
            predicted.setdefault(name.rpartition("/")[2], name)
    known = {name.rpartition("/")[2] for name in annotated}
    missing = [Finding(name, NOT_PREDICTED) for name in annotated if name.rpartition("/")[2] not in predicted]
    extra = [Finding(name, NOT_ANNOTATED) for base, name in sorted(predicted.items()) if base not in known]
    return missing + extra
