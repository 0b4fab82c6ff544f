"""A tiny data set, the labels of an undisturbed run over it, and a short place for Ray's sockets."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

TINY_SETTINGS = ("run.device=cpu", "run.max_failed_images=1", "run.batch_images=2", "body.model_path=demo")
TINY_OPTIONS = [word for setting in TINY_SETTINGS for word in ("--set", setting)]  # `tiny_config` as options


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
