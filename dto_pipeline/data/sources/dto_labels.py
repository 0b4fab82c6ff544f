"""Label files of this project as a source: one Parquet file, a folder of them, or a run's folder.

| value of `label_values` | transl, betas                                                        |
|-------------------------|----------------------------------------------------------------------|
| after                   | as the other run left them                                           |
| before                  | as that run got them: transl_init, and beta_init put back            |

Scores, ages and genders are taken over; label files have no masks. They name images by their published key
(image_path), not by their file: set `images` to the folder these keys are relative to, or give `image_prefixes`. Images
without people are not taken over. About 0.5 kB of memory a person. Metres, camera frame.
"""

from __future__ import annotations

from pathlib import Path

from dto_pipeline.data.cameras import CAMERA_COLUMNS
from dto_pipeline.data.label_files import find_label_files, flatten_table, initial_betas
from dto_pipeline.data.labels import read_labels
from dto_pipeline.data.sources.rows import SEEN_RANGES, LabelFileError, LabelSource, SourceOptions

_SIZE = ("width", "height")  # of the image that the labels were made on [px], 0 = unknown
_PERSON = ("pose", "betas", "transl", "bbox_xyxy", *SEEN_RANGES, "transl_init", "beta_index", "beta_init")


def open_dto_labels(path: Path, options: SourceOptions) -> LabelSource:
    """Open a label file, a folder of label files, or a run's folder, of which the label files that count are read.

    Raises: LabelsError: there is no label file, or one is damaged. LabelFileError: they hold nobody.
    """
    files = [Path(file) for file in find_label_files(path)]
    images = ("image_path", *_SIZE, *CAMERA_COLUMNS)
    columns = flatten_table(read_labels(*files, columns=images, people=_PERSON))
    people, owner = dict(columns.people), columns.owner
    if not owner.size:
        raise LabelFileError(f"{files[0]}: no label row; expected at least one person")
    if options.values == "before":
        people |= {"transl": people["transl_init"], "betas": initial_betas(columns)}
    people |= {"intrinsics": columns.intrinsics[owner]} | {name: columns.images[name][owner] for name in _SIZE}
    return LabelSource(files, columns.images["image_path"][owner], people)
