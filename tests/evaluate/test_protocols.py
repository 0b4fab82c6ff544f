"""The protocols of 3DPW and AGORA on files; `tests/lab/test_golden_mahmr.py` shows they equal the published ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dto_pipeline.cli import main


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crowd") / "d"
    assert main(["synth", "-o", str(folder), "--images", "4", "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def regressor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("regressor") / "J_regressor_h36m.npy"
    rows = np.zeros((17, 6890))
    rows[np.arange(17), np.arange(17) * 400] = 1
    np.save(path, rows)
    return path


def measures(command: list[str], tmp_path: Path) -> dict[str, float]:
    assert main([*command, "--resamples", "0", "--body", "demo", "--json", str(tmp_path / "out.json")]) == 0
    (column,) = json.loads((tmp_path / "out.json").read_text())["measures"].values()
    return {name: found["value"] for name, found in column.items()}


def test_the_truth_has_no_errors_against_itself(crowd: Path, regressor: Path, tmp_path: Path) -> None:
    found = measures(["eval", "3dpw", str(crowd), str(crowd), "--regressor", str(regressor)], tmp_path)
    assert found["mpjpe"] == found["mve"] == 0
    assert found["recall"] == found["precision"] == found["f1"] == 1
    found = measures(["eval", "agora", str(crowd), str(crowd)], tmp_path)
    assert found["nmje"] == found["nmve"] == 0


def test_files_of_vertices_or_regressors_that_do_not_fit_the_body_are_refused(
    crowd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "small.npy", np.zeros((17, 10)))
    np.savez(tmp_path / "r.npz", J=np.ones((17, 6890)))
    (tmp_path / "cut.npy").write_bytes(b"PK\3\4")
    np.save(tmp_path / "far.npy", np.array([7000]))
    np.save(tmp_path / "share.npy", np.array([0.5]))
    np.save(tmp_path / "column.npy", np.array([[1], [2]]))
    np.save(tmp_path / "one.npy", np.array(3))
    vertices = ["far.npy", "share.npy", "column.npy", "one.npy"]
    regressor = ["small.npy", "r.npz", "cut.npy", "nowhere.npy"]
    for option, action, names in (("--vertices", "agora", vertices), ("--regressor", "3dpw", regressor)):
        for name in names:
            command = ["eval", action, str(crowd), str(crowd), "--body", "demo", option, str(tmp_path / name)]
            assert main(command) == 2
            words = "holds no numbers of vertices 0 .. 6889", "expected J_regressor_h36m.npy, (17, 6890)"
            assert words[action == "3dpw"] in capsys.readouterr().err
