"""The recorded numbers of the published MA-HMR hold, and a misreading of it would be seen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dto_pipeline.cli import main
from dto_pipeline.evaluate import matching
from dto_pipeline.lab import golden_mahmr
from dto_pipeline.lab.golden_mahmr import check_mahmr_cases
from dto_pipeline.train import augment, blocks, losses, model, targets


@pytest.fixture(scope="module")
def folder(golden_folder: Path) -> Path:
    return golden_folder / "mahmr"


def failing(folder: Path) -> list[str]:
    return [case.name for case in check_mahmr_cases(folder) if not case.passed]


def test_every_recorded_number_holds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["golden", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "gradient_norms" in said
    assert "of 1e-04" in said
    results = check_mahmr_cases(folder / "golden")  # the inner folder alone does as well
    kinds = [case.name.partition("/")[0] for case in results]
    counts = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    assert counts == {"augment": 11, "eval": 8, "loss": 6, "names": 3, "network": 14}
    assert all(case.passed for case in results)


@pytest.mark.parametrize(
    ("module", "name", "value", "file", "seen_in"),
    [
        (blocks, "TEMPERATURE", 10.0, "network_cases", "network/batch"),
        (model, "LEAST_FOV", 0.1, "network_cases", "network/fov_limit"),
        (blocks, "BOX_NOISE", 0.5, "network_cases", "network/dn"),
        (losses, "BETA_FACTORS", (1.0,) * 11, "loss_cases", "loss/stage3"),
        (losses, "BODY_JOINTS", 24, "network_cases", "network/step"),
        (targets, "BOX_GROWTH", 1.0, "augment_cases", "augment/plain"),
        (augment, "MIRROR_JOINTS", tuple(range(24)), "augment_cases", "augment/flip"),
        (matching, "MIN_IOU", 0.3, "eval_cases", "eval/totals"),
    ],
)
def test_a_misread_constant_is_seen(
    folder: Path, monkeypatch: pytest.MonkeyPatch, module: object, name: str, value: object, file: str, seen_in: str
) -> None:
    monkeypatch.setattr(golden_mahmr, "_STAGES", {})
    monkeypatch.setattr(golden_mahmr, "_FILES", {file: golden_mahmr._FILES[file]})
    monkeypatch.setattr(module, name, value)
    assert seen_in in failing(folder / "golden")


def test_a_missing_file_is_a_failure_by_name(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "golden/loss_cases.npz").unlink()
    assert failing(copy) == ["loss_cases"]
    (copy / "golden/network_cases.json").write_text("{")
    assert failing(copy) == ["network_cases", "loss_cases"]


def test_other_cases_of_the_format_are_run_and_strange_ones_named(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder / "golden", tmp_path / "copy")
    said = json.loads((copy / "loss_cases.json").read_text())
    with np.load(copy / "loss_cases.npz") as archive:
        arrays = {key: archive[key] for key in archive.files}
    case = said["cases"].pop("stage3")
    renamed = {key.replace("stage3/", "fresh/"): value for key, value in arrays.items() if key.startswith("stage3/")}
    case["terms"]["fov"][0] += 1e-3
    said["cases"] = {"fresh": case}
    (copy / "loss_cases.json").write_text(json.dumps(said))
    arrays_there: dict[str, Any] = {**renamed, "odd/pred_confs": np.zeros(3)}
    np.savez(copy / "loss_cases.npz", **arrays_there)
    found = {case.name: case for case in check_mahmr_cases(copy) if not case.passed}
    assert set(found) == {"loss/fresh", "loss/odd"}
    assert any("terms (fov)" in text for text in found["loss/fresh"].failures)


def test_a_folder_of_other_families_has_no_such_cases(golden_folder: Path) -> None:
    assert check_mahmr_cases(golden_folder / "image") == []
