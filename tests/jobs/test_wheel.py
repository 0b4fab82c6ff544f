"""What an installed package holds besides code: built as pip builds it, used from another folder."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ("-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", "wheel")


@pytest.mark.slow
def test_the_wheel_knows_the_data_sets_by_name(tmp_path):
    source = tmp_path / "source"
    skip = shutil.ignore_patterns("__pycache__")
    for folder in ("dto_pipeline", "manifests"):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, *BUILD], cwd=source, check=True, timeout=120)
    with zipfile.ZipFile(next((source / "wheel").glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "installed")
    shipped = {path.name for path in (tmp_path / "installed/dto_pipeline/manifests").iterdir()}
    assert shipped == {path.name for path in (ROOT / "manifests").glob("*.yaml")}
    command = [sys.executable, "-m", "dto_pipeline.cli", "manifest", "build", "coco", "--data-root", "DATA"]
    command += ["-o", "m.parquet"]
    environment = {"PYTHONPATH": str(tmp_path / "installed")}
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 2
    assert "DATA/labels/coco-release.npz does not exist" in answer.stderr
