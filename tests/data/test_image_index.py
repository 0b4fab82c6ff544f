"""Names of a label file, grouped by image: whatever stands in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dto_pipeline.data.image_index import index_images
from dto_pipeline.data.sources import SOURCES
from dto_pipeline.data.sources.rows import LabelFileError, SourceOptions
from tests.data.small_set import label_arrays, write_labels_file


def test_codes_that_are_no_characters_in_a_name_are_refused_with_their_row(tmp_path: Path) -> None:
    names = np.array(["a.jpg", "b.jpg"])
    names.view(np.uint32)[6] = 0x110000
    path = write_labels_file(tmp_path, {**label_arrays(["a.jpg", "b.jpg"]), "imgname": names})
    source = SOURCES["camerahmr"](path, SourceOptions())
    with pytest.raises(LabelFileError, match=r"row 1: .*0x110000 is no character"):
        index_images(source, 1)
