"""An export's memory does not grow with the runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dto_pipeline.data.columns import build_table, ragged_column, single_array
from dto_pipeline.data.files import sha256_file
from dto_pipeline.data.labels import write_label_shard
from dto_pipeline.schema import LABELS_SCHEMA

SHARDS, IMAGES = 4, 4096
ROOT = Path(__file__).parents[3]
PLAIN = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}  # allocators that hoard little
ALLOWED_MB = 40  # allocators differ by that much from run to run; three shards more hold over 50 MB of numbers
EXPORT = """
import json, re, sys
from pathlib import Path
from dto_pipeline.data.exports.formats import export_labels
from dto_pipeline.data.label_files import LabelFile, RunLabels
files = tuple(LabelFile(Path(path), *rest) for path, *rest in json.loads(sys.argv[1]))
for count in (1, len(files)):
    run = RunLabels("big", "aic", Path("none"), "", "", count, files[:count])
    export_labels([run], sys.argv[2], f"{sys.argv[3]}/{count}", progress=False)
    # Not getrusage: its maximum is inherited from the process that started this one.
    print(int(re.search("VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024)
"""


@pytest.fixture(scope="module")
def big_shards(labels, tmp_path_factory) -> list[tuple[str, int, int, str]]:
    """Shards of accepted images, each person four times: 40,000 people a shard."""
    folder = tmp_path_factory.mktemp("big")
    accepted = labels["mpii"].filter(labels["mpii"]["is_accepted"])
    shards = []
    for shard in range(SHARDS):
        table = accepted.take(np.random.default_rng(shard).integers(0, accepted.num_rows, IMAGES)).combine_chunks()
        counts, people = 4 * table["num_persons"].to_numpy(), single_array(table["persons"]).flatten()
        crowd = people.take(pa.array(np.repeat(np.arange(len(people)), 4)))
        names = [f"{shard}-{row}.jpg" for row in range(IMAGES)]
        persons = ragged_column(counts, crowd, LABELS_SCHEMA.field("persons").type)
        changed = {"image_id": names, "image_path": names, "num_persons": counts, "persons": persons}
        columns = {name: changed.get(name, table[name]) for name in table.column_names}
        path = folder / f"shard-{shard:05d}.parquet"
        write_label_shard(build_table(LABELS_SCHEMA, columns), path, {})
        shards.append((str(path), shard, IMAGES, sha256_file(path)))
    return shards


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("name", ["parquet", "persons", "ma-hmr", "webdataset", "hf"])
def test_memory_is_the_same_for_four_times_the_images(name, big_shards, tmp_path) -> None:
    command = [sys.executable, "-c", EXPORT, json.dumps(big_shards), name, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=PLAIN, capture_output=True, text=True, check=True)
    one, all_shards = map(float, done.stdout.split())
    assert all_shards - one < ALLOWED_MB, done.stdout
