"""A cluster whose head was started in `/`: relative paths are those of who typed them, absent ones are said."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dto_pipeline.run.folder import RunDirectory
from dto_pipeline.run.ray_start import ClusterUnreachable, check_reachable
from tests.run.chaos import label_bytes
from tests.tiny_dataset import TinyDataset

pytestmark = pytest.mark.slow
PATIENCE_S = 240.0


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """Address of a Ray head with two CPUs whose working directory is `/`; its process is ended by its own id."""
    folder = Path(tempfile.mkdtemp(prefix="dto", dir="/tmp"))  # Ray's socket paths end at 107 bytes
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=2"]
    command += ["--include-dashboard=false", f"--temp-dir={folder}/ray", "--object-store-memory=100000000"]
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(command, cwd="/", env=_environment(), stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_until_it_answers(f"127.0.0.1:{port}", process, folder / "head.log")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def _wait_until_it_answers(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        assert process.poll() is None, log.read_text()
        try:
            return check_reachable(address)
        except ClusterUnreachable:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)


def run_from(folder: Path, head: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`dto run WORDS` typed in a folder."""
    options = ["--address", head, "--workers=1", "--set=run.device=cpu", "--set=run.batch_images=2", "--quiet"]
    options += ["--set=run.max_failed_images=1"]  # the tiny set is broken on purpose
    command = [sys.executable, "-m", "dto_pipeline.cli", "run", *words, *options]
    return subprocess.run(
        command, cwd=folder, env=_environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def test_relative_paths_are_those_of_the_working_directory_of_who_typed_them(
    head: str, tiny: TinyDataset, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(tiny.manifest, tmp_path / "lists" / "x.parquet")
    for folder in ("images", "depth"):
        shutil.copytree(Path(tiny.dataset.root) / folder, tmp_path / folder)
    places = ["--images", "../images", "--depth", "../depth", "--body", "demo"]
    done = run_from(tmp_path / "elsewhere", head, "../lists/x.parquet", "-o", "run", *places)
    assert done.returncode == 0, done.stderr
    assert label_bytes(tmp_path / "elsewhere" / "run") == undisturbed


def test_a_folder_that_workers_do_not_see_is_one_sentence_and_no_failed_row(
    head: str, tiny: TinyDataset, tmp_path: Path
) -> None:
    words = [str(tiny.manifest), "-o", str(tmp_path / "run"), "--images", str(tmp_path / "moved")]
    refused = run_from(tmp_path, head, *words)
    assert refused.returncode == 2, refused.stdout
    assert "does not see what the run needs: images folder" in refused.stderr
    assert "--images DIR" in refused.stderr
    assert "Traceback" not in refused.stderr
    directory = RunDirectory(tmp_path / "run")
    assert not directory.store.entries("labels")
    assert not directory.store.entries("receipts")
