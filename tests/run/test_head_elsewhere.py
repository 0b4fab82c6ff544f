"""A cluster whose nodes were started in `/`: relative paths are those of who typed them, absent ones are said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dto_pipeline.run.folder import RunDirectory
from tests.ray_cluster import RayNodes
from tests.run.chaos import label_bytes
from tests.tiny_dataset import TinyDataset

pytestmark = pytest.mark.slow
PATIENCE_S = 600.0  # on a busy machine; nobody waits so long otherwise


def run_from(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`dto run WORDS` typed in a folder."""
    options = ["--quiet", "--set=run.device=cpu", "--set=run.batch_images=2"]
    options += ["--set=run.max_failed_images=1"]  # the tiny set is broken on purpose
    command = [sys.executable, "-m", "dto_pipeline.cli", "run", *words, *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def test_a_client_of_a_cluster_means_its_own_working_directory_by_relative_paths(
    ray_nodes: RayNodes, tiny: TinyDataset, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(tiny.manifest, tmp_path / "lists" / "x.parquet")
    for folder in ("images", "depth"):
        shutil.copytree(Path(tiny.dataset.root) / folder, tmp_path / folder)
    places = ["--images", "../images", "--depth", "../depth", "--body", "demo"]
    words = ["../lists/x.parquet", "-o", "run", *places, "--address", ray_nodes.client, "--workers=2"]
    for _ in range(3):
        done = run_from(tmp_path / "elsewhere", *words)
        if "Starting Ray client server failed" not in done.stderr:  # Ray gives it 30 s, a busy machine may need more
            break
    assert done.returncode == 0, done.stderr
    assert label_bytes(tmp_path / "elsewhere" / "run") == undisturbed
    assert "draining nodes" in done.stderr  # what does not work behind ray:// is said
    assert not list(RunDirectory(tmp_path / "elsewhere" / "run").at("failures").iterdir())


def test_a_folder_that_workers_do_not_see_is_one_sentence_and_no_failed_row(
    ray_nodes: RayNodes, tiny: TinyDataset, tmp_path: Path
) -> None:
    words = [str(tiny.manifest), "-o", str(tmp_path / "run"), "--images", str(tmp_path / "moved")]
    refused = run_from(tmp_path, *words, "--address", ray_nodes.address, "--workers=1")
    assert refused.returncode == 2, refused.stdout
    assert "cannot do this run: images folder" in refused.stderr
    assert "--images DIR" in refused.stderr
    assert "Traceback" not in refused.stderr
    directory = RunDirectory(tmp_path / "run")
    assert not directory.store.entries("labels")
    assert not directory.store.entries("receipts")
