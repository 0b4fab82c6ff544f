"""What all tests share: one thread per process (two cores, many tests), and, made once, the stand-in body, a tiny data
set and the labels of an undisturbed run over it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from dto_pipeline.models.body import BodyModel, load_body
from dto_pipeline.run.driver import run_pipeline
from tests.run.chaos import label_bytes, tiny_config
from tests.tiny_dataset import TinyDataset, write_tiny_dataset

if TYPE_CHECKING:
    from tests.ray_cluster import RayNodes

torch.set_num_threads(1)
# Property tests share their cores with other work, and give the same verdict every time: jobs/fuzz.sh explores.
settings.register_profile("patient", deadline=None, derandomize=True)
settings.load_profile("patient")


# Files whose tests make whole runs, networks, benchmarks or gigabytes: most of the time of all that is not marked slow
# by itself. `jobs/test.sh quick` leaves them out.
LONG = {
    *(
        "test_api.py",
        "test_bounds.py",
        "test_company.py",
        "test_foreign_crowds.py",
        "chaos/test_judge.py",
        "maths/test_crowd_solver.py",
    ),
    *(f"commands/test_{name}.py" for name in ("cli", "eval_verbs", "released", "review_verbs", "run_verb")),
    *(f"data/test_{name}.py" for name in ("hostile_images", "pickled_items")),
    *(f"data/exports/test_{name}.py" for name in ("export", "flat_npz")),
    *(f"lab/test_{name}.py" for name in ("bench", "dataset", "golden", "golden_mahmr", "synth")),
    "jobs/test_train_demo_depth.py",
    *(f"run/test_{name}.py" for name in ("batching", "before_workers", "budget", "damaged_records", "driver")),
    *(f"run/test_{name}.py" for name in ("durability", "identity", "mended", "publishing", "ray_start")),
    *(f"run/test_{name}.py" for name in ("deaths", "remote_runs", "repairs", "seeing_ahead", "selected_runs")),
    *(f"train/test_{name}.py" for name in ("dataset", "loop", "model", "predict", "released", "train_verb")),
    *(f"view/test_{name}.py" for name in ("pages", "run_files", "report")),
}


# Files that start Ray. Of the processes that share the suite one does those that share a cluster, another one those
# that start their own: both take as long, and Ray ends itself where its agent is not up within 15 s, which several
# clusters that start at once on two cores do not reach.
RAY = {
    **dict.fromkeys((f"run/test_{name}.py" for name in ("head_elsewhere", "ray_cluster", "ray_pool")), "ray"),
    **dict.fromkeys(("jobs/test_ray_job.py", "train/test_ray_train.py"), "ray"),
    **dict.fromkeys(("chaos/test_deaths.py", "jobs/test_slurm.py"), "own ray"),
}
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ray first, then other slow files: the processes that share the suite, a file each, then end together."""
    slow = set()
    for item in items:
        if item.path.relative_to(HERE).as_posix() in LONG:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("slow"):
            slow.add(item.path)
    items.sort(key=lambda item: (item.path.relative_to(HERE).as_posix() not in RAY, item.path not in slow))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files stay whole, since their tests share fixtures; those of `RAY` in two groups."""
    from xdist.scheduler import LoadFileScheduling

    class RayTogether(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return RAY.get(file.removeprefix("tests/"), file)

    return RayTogether(config, log)


@pytest.fixture(scope="session", autouse=True)
def body() -> Iterator[BodyModel]:
    """The stand-in; who reads it in this process is given a copy, since making it costs a fifth of a tiny run."""
    found, make = load_body("demo"), BodyModel.__init__

    def make_once(self: BodyModel, arrays: dict[str, np.ndarray], kid_axis: bool = True, sha256: str = "") -> None:
        if kid_axis and sha256 == found.sha256:
            self.__dict__.update(copy.deepcopy(found).__dict__)
        else:
            make(self, arrays, kid_axis, sha256)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BodyModel, "__init__", make_once)  # the class stays itself: bodies are pickled
        yield found


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, body) -> TinyDataset:
    """Eighteen images in six shards, four of them spoilt."""
    return write_tiny_dataset(tmp_path_factory.mktemp("tiny"), body, images=18, shard_images=3)


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory) -> Path:
    """Folder of a run over `tiny` that nobody disturbed; not to be changed."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    run_pipeline(tiny.manifest, run_dir, tiny_config(), progress=False)
    return run_dir


@pytest.fixture(scope="session")
def undisturbed(finished) -> dict[str, bytes]:
    """Label files of that run."""
    return label_bytes(finished)


@pytest.fixture(scope="session")
def ray_nodes() -> Iterator[RayNodes]:
    """A cluster of two nodes for commands to join."""
    from tests.ray_cluster import serve_ray

    with serve_ray() as found:
        yield found


@pytest.fixture(scope="session")
def connected(ray_nodes: RayNodes) -> Iterator[RayNodes]:
    """This process as a driver in the cluster: `RayPool` uses the connection and leaves it open."""
    import ray

    from dto_pipeline.run.ray_start import start_ray

    start_ray(tiny_config(workers=2).run, ray_nodes.address)
    yield ray_nodes
    ray.shutdown()
