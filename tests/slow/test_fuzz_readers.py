"""All targets of jobs/fuzz.sh, a hundred inputs each from a fixed seed: the same verdict every time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS, damaged_files, try_one

pytestmark = pytest.mark.slow

COUNTS = {"bodies": 25, "checkpoints": 30}  # the others are faster


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_read_or_refused_by_name(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    refused = [
        try_one(target, path)
        for path in damaged_files(name, 1, COUNTS.get(name, 100), tmp_path / f"input{target.suffix}")
    ]
    assert len(refused) == COUNTS.get(name, 100)
