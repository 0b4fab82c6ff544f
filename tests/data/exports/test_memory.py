"""An export's memory does not grow with the runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dto_pipeline.data.files import sha256_file
from dto_pipeline.data.labels import write_label_shard

ALLOWED_MB = 40  # allocators differ by that much from run to run; the larger export writes over 60 MB of numbers more
EXPORT = """
import json, resource, sys
from pathlib import Path
from dto_pipeline.data.exports.export import export_labels
from dto_pipeline.data.exports.inputs import LabelFile, RunLabels
files = tuple(LabelFile(Path(path), *rest) for path, *rest in json.loads(sys.argv[1]))
run = RunLabels("big", "aic", Path("none"), "", "", len(files), files)
export_labels([run], sys.argv[2], sys.argv[3], progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.fixture(scope="module")
def big_shards(labels, tmp_path_factory) -> list[tuple[str, int, int, str]]:
    """Eight shards of 4096 accepted images, about 10,000 people each."""
    folder = tmp_path_factory.mktemp("big")
    accepted = labels["mpii"].filter(labels["mpii"]["is_accepted"])
    shards = []
    for shard in range(8):
        table = accepted.take(np.random.default_rng(shard).integers(0, accepted.num_rows, 4096)).combine_chunks()
        names = pa.array([f"{shard}-{row}.jpg" for row in range(4096)])
        for column in ("image_id", "image_path"):
            table = table.set_column(table.schema.get_field_index(column), table.schema.field(column), names)
        path = folder / f"shard-{shard:05d}.parquet"
        write_label_shard(table, path, {})
        shards.append((str(path), shard, 4096, sha256_file(path)))
    return shards


@pytest.mark.slow
@pytest.mark.parametrize("name", ["parquet", "persons", "ma-hmr", "webdataset", "hf"])
def test_memory_is_the_same_for_eight_times_the_images(name, big_shards, tmp_path) -> None:
    peaks = []
    for count in (1, 8):
        arguments = [json.dumps(big_shards[:count]), name, str(tmp_path / str(count))]
        command = [sys.executable, "-c", EXPORT, *arguments]
        done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout))
    assert peaks[1] - peaks[0] < ALLOWED_MB, peaks
