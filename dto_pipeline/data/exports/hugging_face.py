"""A Hugging Face dataset folder: compacted Parquet, README.md with one configuration per subset, Croissant metadata.

``datasets.load_dataset(FOLDER, "<subset>")`` opens it from disk or, pushed as it is, from the hub. Images are named,
never included: most of these data sets may not be redistributed. Memory: one row group.
"""

from __future__ import annotations

import json
from pathlib import Path

from dto_pipeline.data.exports.card import CardSubset, dataset_card
from dto_pipeline.data.exports.croissant import croissant_metadata
from dto_pipeline.data.exports.folder import ExportedFile
from dto_pipeline.data.exports.inputs import read_footer
from dto_pipeline.data.exports.job import ExportJob
from dto_pipeline.data.exports.parquet import write_subset
from dto_pipeline.data.exports.provenance import describe_making
from dto_pipeline.data.exports.statistics import SubsetStatistics
from dto_pipeline.data.files import sha256_file

CARD, CROISSANT = "README.md", "croissant.json"


def write_hugging_face(job: ExportJob, folder: Path) -> list[ExportedFile]:
    """The Parquet files of every subset, then the card and the Croissant file that describe them."""
    files: list[ExportedFile] = []
    subsets = []
    for subset in job.subsets:
        statistics = SubsetStatistics()
        own = write_subset(job, folder, subset, statistics.add)
        footers = [read_footer(run) for run in subset.runs]
        makings = [describe_making(footer) for footer in footers if footer]
        unlike = [making for place, making in enumerate(makings) if making not in makings[:place]]
        subsets.append(CardSubset(subset.subset, statistics, footers[0], unlike, [file.path for file in own]))
        files += own
    digests = {file.path: sha256_file(folder / file.path) for file in files}
    (folder / CARD).write_text(dataset_card(subsets, job.plan.selection))
    metadata = croissant_metadata(subsets, digests)
    (folder / CROISSANT).write_text(json.dumps(metadata, indent=2, ensure_ascii=False) + "\n")
    return [*files, ExportedFile(CARD, 0, 0), ExportedFile(CROISSANT, 0, 0)]
