"""Parity with the recorded reference on the cases kept in this repository, and what the command says of bad folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dto_pipeline.lab.golden import GoldenFolderError, check_golden


def test_every_recorded_case_passes(golden_folder: Path) -> None:
    report = check_golden(golden_folder)
    assert report.passed, report.as_table()
    counts = {family: entry["cases"] for family, entry in report.to_json()["families"].items()}
    assert counts == {"solver": 62, "person": 6, "image": 7, "rh_metric": 5, "depth": 6, "mahmr": 0}


def test_numbers_are_far_inside_the_tolerances(golden_folder: Path) -> None:
    worst = {family: e["worst_errors"] for family, e in check_golden(golden_folder).to_json()["families"].items()}
    assert worst["solver"]["alpha"][0] < 1e-10
    assert worst["person"]["depth_mean"][0] < 3e-7
    assert worst["image"]["z"][0] < 1e-5
    assert worst["depth"]["positions"][0] < 1e-6
    assert max(worst["depth"][name][0] for name in ("relative", "metric")) < 1e-5


def test_a_wrong_expectation_is_a_failure_by_name(golden_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(golden_folder / "solver", tmp_path / "solver")
    cases = json.loads((tmp_path / "solver" / "cases.json").read_text())
    cases[5]["output"]["alpha"] *= 1.001
    cases[6]["output"]["optimized"] += 1
    (tmp_path / "solver" / "cases.json").write_text(json.dumps(cases))
    report = check_golden(tmp_path)
    assert not report.passed
    assert set(report.to_json()["families"]["solver"]["failures"]) == {"5", "6"}
    assert "FAILED solver/5" in report.as_table()


def test_an_unreadable_case_fails_alone(golden_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(golden_folder / "person", tmp_path / "person")
    (tmp_path / "person" / "case_003.npz").write_bytes(b"PK broken")
    failures = check_golden(tmp_path).to_json()["families"]["person"]["failures"]
    assert list(failures) == ["case_003"]


def test_a_folder_without_cases_is_an_error_that_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(GoldenFolderError, match="solver, person, image, rh_metric"):
        check_golden(tmp_path)
