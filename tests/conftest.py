"""What all tests share: one thread per process (two cores, many tests), and, made once, the stand-in body, a tiny data
set and the labels of an undisturbed run over it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import settings

from dto_pipeline.models.body import BodyModel, load_body
from dto_pipeline.run.driver import run_pipeline
from tests.run.chaos import label_bytes, tiny_config
from tests.tiny_dataset import TinyDataset, write_tiny_dataset

torch.set_num_threads(1)
# Property tests share their cores with other work, and give the same verdict every time: jobs/fuzz.sh explores.
settings.register_profile("patient", deadline=None, derandomize=True)
settings.load_profile("patient")


# Files whose tests make whole runs, networks, benchmarks or gigabytes: two thirds of the time of all that is not marked
# slow by itself. `jobs/test.sh quick` leaves them out.
LONG = {
    *("test_api.py", "test_bounds.py", "test_company.py", "chaos/test_judge.py"),
    *(f"commands/test_{name}.py" for name in ("eval_verbs", "released", "review_verbs", "run_verb", "several")),
    *(f"data/test_{name}.py" for name in ("hostile_images", "pickled_items")),
    *(f"data/exports/test_{name}.py" for name in ("camerahmr", "export", "json_text")),
    *(f"lab/test_{name}.py" for name in ("bench", "compare_solvers", "dataset", "depth_bench", "depth_training")),
    *(f"lab/test_{name}.py" for name in ("golden_mahmr", "synth")),
    *(f"run/test_{name}.py" for name in ("budget", "driver", "durability", "mended", "publishing", "ray_start")),
    *(f"run/test_{name}.py" for name in ("remote_runs", "repairs", "seeing_ahead", "selected_runs", "suspects")),
    *(f"train/test_{name}.py" for name in ("dataset", "loop", "model", "predict", "released", "train_verb")),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first: the processes that share the suite, a file each, then end together."""
    here = Path(__file__).parent
    assert all((here / name).is_file() for name in LONG), "LONG names a file that is not there"
    slow = set()
    for item in items:
        if item.path.relative_to(here).as_posix() in LONG:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("slow"):
            slow.add(item.path)
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def body() -> BodyModel:
    return load_body("demo")


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, body) -> TinyDataset:
    """Eighteen images in six shards, four of them spoilt."""
    return write_tiny_dataset(tmp_path_factory.mktemp("tiny"), body, images=18, shard_images=3)


@pytest.fixture(scope="session")
def undisturbed(tiny, tmp_path_factory) -> dict[str, bytes]:
    """Label files of a run nobody disturbed."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    run_pipeline(tiny.manifest, run_dir, tiny_config(), progress=False)
    return label_bytes(run_dir)
