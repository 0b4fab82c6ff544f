"""Merging: a second source of predicted people fills the gaps of a manifest of released labels.

A prediction that is a released person already is dropped, the others are added; `maths.person_matching` says what the
same person is, `merge_rows` what becomes of one shard. Here shards are streamed from the old manifest into a new one,
so that memory holds one shard and the names of the predicted images. Beside the new manifest lie a report and the
outcome of every prediction. Equal input gives identical bytes.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from dto_pipeline.data.files import json_bytes, sha256_file
from dto_pipeline.data.image_index import ImageIndex, index_images
from dto_pipeline.data.label_files import check_one_body
from dto_pipeline.data.manifest import Manifest, ManifestError, report_path
from dto_pipeline.data.manifest_build.merge_rows import (
    MergeInputs,
    MergeOptions,
    MergeReport,
    merge_shard,
    outcome_table,
)
from dto_pipeline.data.manifest_build.writer import open_manifest_writer
from dto_pipeline.data.parquet import writer_settings
from dto_pipeline.data.recognise import schema_of
from dto_pipeline.data.sources.dto_labels import open_dto_labels
from dto_pipeline.data.sources.predictions import open_predictions
from dto_pipeline.data.sources.rows import LabelFileError, LabelSource, SourceOptions
from dto_pipeline.data.storage import Location, as_location, base_name, beside, fetch, write_bytes, written
from dto_pipeline.data.tar_images import carry_tar_index
from dto_pipeline.models.body import BodyModel
from dto_pipeline.reading import parse_json
from dto_pipeline.schema import LABELS_SCHEMA_NAME, MERGE_SCHEMA, MERGE_SCHEMA_NAME
from dto_pipeline.status import PredictionStatus

_WHOLE_NAME = 1 << 20  # parts of an image's name that make its key: all, predictions are not told apart by less
_OUTCOMES_AT_ONCE = 1 << 16


def merge_predictions(
    manifest: Location,
    predictions: Location,
    out: Location,
    body: BodyModel,
    options: MergeOptions | None = None,
    progress: bool = True,
) -> MergeReport:
    """Write a new manifest: the old one with the people it misses.

    Args:
        manifest: of released labels, see `data.manifest`.
        predictions: npz or Parquet, see `data.sources.predictions`, or a run of `dto predict`, or its label files;
            every person needs a det_score.
        out: the new manifest; its report and outcomes become <out>.report.json and <out>.predictions.parquet.
        body: model the labels and the predictions belong to.
        options: what is added.
        progress: show a progress bar on stderr.

    Raises:
        ManifestError: the manifest cannot be used, or `out` would replace it.
        LabelFileError: the prediction file cannot be used as a whole, or is of another body model.
    """
    manifest, predictions, out = (as_location(place) for place in (manifest, predictions, out))
    if out in (manifest, predictions) or (isinstance(out, Path) and out.resolve() == Path(manifest).resolve()):
        raise ManifestError(f"{out} is an input of the merge; choose another name for the new manifest (-o)")
    options, report = options or MergeOptions(), MergeReport()
    with ExitStack() as stack:
        source = Manifest.open(fetch(manifest, stack, ManifestError))
        people = _open_people(fetch(predictions, stack, LabelFileError), source, body)
        index = index_images(people, _WHOLE_NAME)
        image_of = {name: image for image, name in enumerate(index.image_name) if image not in index.problem}
        inputs = MergeInputs(people, index, image_of, body, options)
        named = {"manifest": base_name(manifest), "predictions": base_name(predictions)}
        carry_tar_index(manifest, out)
        _write(source, inputs, out, report, named, progress)
    write_bytes(report_path(out), json_bytes(report.to_json()))
    return report


def outcomes_path(manifest: Location) -> Location:
    """Where the outcome of every prediction lies, beside the merged manifest."""
    return beside(as_location(manifest), ".predictions.parquet")


def _open_people(path: Path, source: Manifest, body: BodyModel) -> LabelSource:
    """Predicted people in either form; they, and those of earlier merges, must be of the body model, if they tell one.

    Raises:
        LabelsError: label files of two body models, both named.
        LabelFileError: of another one than `body`, or no file that is read.
    """
    told = {f"the people merged into {source.path}": entry["body_sha256"] for entry in _earlier_merges(source)}
    if path.is_dir() or schema_of(path) == LABELS_SCHEMA_NAME:
        people = open_dto_labels(path, SourceOptions())
        told[f"{people.files[0]}"] = check_one_body(people.files)
    else:
        people = open_predictions(path)
    for what, sha in told.items():
        if sha and sha != body.sha256:
            raise LabelFileError(
                f"{what} belong to the body model of sha256 {sha}, body.model_path names that of {body.sha256}; name "
                "the body model of both (--set body.model_path=PATH)"
            )
    return people


def _write(
    source: Manifest, inputs: MergeInputs, out: Location, report: MergeReport, named: dict[str, str], progress: bool
) -> None:
    """Stream the shards; the outcomes get their name first, the manifest last."""
    taken = np.zeros(inputs.index.num_images, dtype=bool)
    with (
        open_manifest_writer(out) as writer,
        written(outcomes_path(out)) as told,
        pq.ParquetWriter(told, MERGE_SCHEMA, **writer_settings(MERGE_SCHEMA)) as outcomes,
    ):
        for shard in tqdm(range(source.num_shards), unit="shard", desc=source.subset, disable=not progress):
            table, rows = merge_shard(source.read_shard(shard), inputs, taken, report)
            writer.add(table)
            outcomes.write_table(rows)
        _write_unknown(outcomes, inputs.predictions, inputs.index, taken, report)
        report.fingerprint = writer.fingerprint
        writer.finish({"merged": _merges(source, inputs, report, named)}, source.metadata)
        outcomes.add_key_value_metadata({"schema": MERGE_SCHEMA_NAME, "manifest_fingerprint": report.fingerprint})


def _write_unknown(
    outcomes: pq.ParquetWriter, predictions: LabelSource, index: ImageIndex, taken: np.ndarray, report: MergeReport
) -> None:
    """Tell of the predictions whose image no shard has."""
    counts = np.diff(index.offsets)
    owner = np.repeat(np.arange(index.num_images), counts)
    missing = np.flatnonzero(~taken[owner])
    for start in range(0, missing.size, _OUTCOMES_AT_ONCE):
        some = missing[start : start + _OUTCOMES_AT_ONCE]
        rows, images = index.rows[some], owner[some].tolist()
        told = predictions.rows(rows).seen
        assert told is not None  # a prediction file always tells it
        names, nobody = [index.image_name[image] for image in images], np.full(rows.size, -1)
        status, messages = [str(PredictionStatus.IMAGE_UNKNOWN)] * rows.size, [index.problem.get(i) for i in images]
        outcomes.write_table(outcome_table(rows, names, status, messages, told.det_score, nobody, nobody))
    report.predictions += missing.size
    if missing.size:
        report.count(PredictionStatus.IMAGE_UNKNOWN, None, missing.size)


def _merges(source: Manifest, inputs: MergeInputs, report: MergeReport, named: dict[str, str]) -> list[dict[str, Any]]:
    """What was merged, one entry per merge so far."""
    files = {"manifest": [Path(source.path)], "predictions": list(inputs.predictions.files)}
    merge = {role: {"file": named[role], **_fingerprint(paths)} for role, paths in files.items()}
    merge["manifest"]["fingerprint"] = source.fingerprint
    entry = {**merge, "body_sha256": inputs.body.sha256, "options": asdict(inputs.options), "outcomes": report.outcomes}
    return [*_earlier_merges(source), entry]


def _earlier_merges(source: Manifest) -> list[Any]:
    try:
        return list(parse_json(source.metadata.get("merged", "[]")))
    except (ValueError, TypeError) as error:
        raise ManifestError(
            f"{source.path}: footer garbles what was merged before ({error}); build it again"
        ) from error


def _fingerprint(paths: list[Path]) -> dict[str, Any]:
    """Size and sha256 of a file; of several, their sum and the sha256 over each one's."""
    hashes = [sha256_file(path) for path in paths]
    whole = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    return {"bytes": sum(path.stat().st_size for path in paths), "sha256": whole}
