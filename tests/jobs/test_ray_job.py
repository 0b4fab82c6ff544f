"""`jobs/generate.sh` against a real Ray cluster on this machine: submitted, run to its end, submitted again."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.jobs.conftest import TINY_OPTIONS
from tests.ray_cluster import RayNodes
from tests.run.chaos import label_bytes
from tests.tiny_dataset import TinyDataset

ROOT = Path(__file__).parents[2]
START_S = 120.0  # a loaded machine takes long to bring a dashboard up


def _submit(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The script's answer; a cluster whose agents are still coming up is asked again."""
    command, deadline = ["bash", "jobs/generate.sh", *arguments], time.monotonic() + START_S
    while True:
        answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if "No available agent" not in answer.stderr + answer.stdout or time.monotonic() > deadline:
            return answer
        time.sleep(1.0)


@pytest.mark.slow
def test_a_submitted_job_writes_what_an_undisturbed_run_writes_and_a_second_finds_nothing_to_do(
    tiny: TinyDataset,
    undisturbed: dict[str, bytes],
    ray_nodes: RayNodes,
    short_folder: Path,
    environment: dict[str, str],
) -> None:
    plain = yaml.safe_load((ROOT / "jobs/generate.yaml").read_text())
    del plain["pip"]  # this machine has the packages, and no network
    (short_folder / "environment.yaml").write_text(yaml.safe_dump(plain))
    environment["DTO_RUNTIME_ENV"] = str(short_folder / "environment.yaml")
    run_dir = short_folder / "run"
    arguments = [ray_nodes.jobs, str(tiny.manifest), str(run_dir), "--workers", "2", *TINY_OPTIONS]

    first = _submit(arguments, environment)
    again = _submit(arguments, environment)

    assert first.returncode == 0, first.stdout + first.stderr
    assert "shard 5 done in" in first.stdout
    assert label_bytes(run_dir) == undisturbed
    assert again.returncode == 0, again.stdout + again.stderr
    assert "nothing to do" in again.stdout


def test_a_relative_place_is_refused_before_anything_is_submitted(environment: dict[str, str]) -> None:
    answer = _submit(["http://127.0.0.1:1", "lists/coco.parquet", "/shared/run"], environment)

    assert answer.returncode == 2
    assert "lists/coco.parquet is relative" in answer.stderr


def test_too_few_arguments_are_answered_with_the_usage(environment: dict[str, str]) -> None:
    answer = _submit(["http://127.0.0.1:1"], environment)

    assert answer.returncode == 2
    assert "usage: bash jobs/generate.sh" in answer.stderr
