"""The column table is the one place where a column of the labels is spelled: a line added there is found everywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dto_pipeline.schema

_WIDER = """
import sys
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

# the table with some lines more
source = Path(sys.argv[1]).read_text()
for table, line in (
    ("PERSON_COLUMNS", 'Column("sway", pa.float32(), "how far the person leans", "m", "extra.sway")'),
    ("PERSON_COLUMNS", 'Column("steps", pa.int32(), "steps taken", "", "extra.steps")'),
    ("PERSON_COLUMNS", 'Column("seated", pa.bool_(), "sits", "", "extra.seated")'),
    ("PERSON_COLUMNS", 'Column("gaze", pa.list_(pa.float32(), 3), "looks there", "", "extra.gaze")'),
    ("PERSON_COLUMNS", 'Column("mood", pa.string(), "in a word", "", "extra.mood")'),
    ("IMAGE_COLUMNS", 'Column("haze", pa.float32(), "how dim the picture is", "", "extra.haze")'),
):
    begin = f"{table} = (\\n"
    assert source.count(begin) == 1
    source = source.replace(begin, begin + f"    {line},\\n")
module = module_from_spec(spec_from_loader("dto_pipeline.schema", None))
sys.modules["dto_pipeline.schema"] = module
exec(source, module.__dict__)

import numpy as np
import pyarrow.parquet as pq
from dto_pipeline.data.exports.hugging_face import dataset_card
from dto_pipeline.data.exports.compacted import person_rows
from dto_pipeline.data.exports.job import Selection, Subset
from dto_pipeline.data.label_files import flatten_table
from dto_pipeline.data.labels import build_label_table, read_labels, read_placed, write_label_shard
from dto_pipeline.collate import keep_labels
from dto_pipeline.models.body import load_body
from tests.crowds import Stander, make_scene

placed, bare = (
    keep_labels(make_scene(load_body("demo"), [Stander(-0.5, 3.0), Stander(0.5, 3.5)])) for _ in range(2)
)
placed.extra = {"sway": np.array([0.5, 0.25], np.float32), "haze": 0.75, "steps": np.array([3, 4], np.int32)}
placed.extra |= {"seated": np.array([True, False]), "gaze": np.eye(2, 3, dtype=np.float32), "mood": ["calm", None]}
path = Path(sys.argv[2]) / "wider.parquet"
assert write_label_shard(build_label_table([placed]), path, {})

assert pq.read_table(path)["persons"][0][1]["sway"].as_py() == 0.25
(back,) = read_placed(path)
assert back.extra["haze"] == 0.75
assert back.extra["sway"].tolist() == [0.5, 0.25]
flat = person_rows(read_labels(path))
assert (flat["sway"].to_pylist(), flat["haze"].to_pylist()) == ([0.5, 0.25], [0.75, 0.75])
assert flatten_table(read_labels(path)).people["sway"].tolist() == [0.5, 0.25]
assert "| `persons[].sway` | float32 | m | how far the person leans |" in dataset_card(
    [Subset("any", [])], Selection()
)
assert "`sway`" in [column.row()[0] for column in module.PERSON_COLUMNS]  # what docs/labels.md is held against

# one image has them, the other was never optimised: nothing is made up for it
path = Path(sys.argv[2]) / "bare.parquet"
assert write_label_shard(build_label_table([placed, bare]), path, {})
back, none = (scene.extra for scene in read_placed(path))
assert (back["steps"].tolist(), back["seated"].tolist(), back["mood"]) == ([3, 4], [True, False], ["calm", None])
assert (none["haze"], none["steps"].tolist(), none["seated"].tolist()) == (None, [-1, -1], [False, False])
assert none["mood"] == [None, None]
assert back["gaze"].tolist() == np.eye(2, 3).tolist()
assert np.isnan(none["gaze"]).all() and none["gaze"].shape == (2, 3)
"""


def test_a_column_added_to_the_table_is_in_written_labels_read_scenes_flat_exports_and_docs(tmp_path: Path) -> None:
    table = Path(dto_pipeline.schema.__file__)
    command = [sys.executable, "-c", _WIDER, str(table), str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_every_column_is_named_once_and_has_a_place_or_is_computed() -> None:
    computed = {"person_index", "beta_init", "height_class", "fx", "fy", "cx", "cy", "num_persons"}
    for table in (dto_pipeline.schema.IMAGE_COLUMNS, dto_pipeline.schema.PERSON_COLUMNS):
        names = [column.name for column in table]
        assert len(set(names)) == len(names)
        assert {column.name for column in table if not column.place} <= computed
