"""A tiny data set, the labels of an undisturbed run over it, and a short place for Ray's sockets."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dto_pipeline.models.body import BodyModel
from dto_pipeline.run.driver import run_pipeline
from tests.run.chaos import label_bytes, tiny_config
from tests.tiny_dataset import TinyDataset, write_tiny_dataset

TINY_OPTIONS = [
    "--set",
    "run.device=cpu",
    "--set",
    "run.max_failed_images=1",
    "--set",
    "run.batch_images=2",
    "--set",
    "body.model_path=demo",
]  # what `tiny_config` says, for the command line


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, body: BodyModel) -> TinyDataset:
    """Eighteen images in six shards, four of them spoilt."""
    return write_tiny_dataset(tmp_path_factory.mktemp("tiny"), body, images=18, shard_images=3)


@pytest.fixture(scope="session")
def undisturbed(tiny: TinyDataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Label files of a run nobody disturbed."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    run_pipeline(tiny.manifest, run_dir, tiny_config(), progress=False)
    return label_bytes(run_dir)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose name leaves room for Ray's socket paths (107 bytes in all)."""
    folder = Path(tempfile.mkdtemp(prefix="dto", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def environment() -> dict[str, str]:
    """Of subprocesses: this Python's commands first on PATH, nothing of a Ray around us."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**kept, "PATH": path, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
