"""Parity with the recorded reference on the cases kept here; that a difference is seen; what is said of bad folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dto_pipeline.commands.golden import check_golden
from dto_pipeline.lab import golden_labels
from dto_pipeline.lab.golden import Case, GoldenFolderError, GoldenReport
from dto_pipeline.lab.golden_labels import FAMILIES
from dto_pipeline.models.body import load_body

CASES = Path(__file__).parents[1] / "golden" / "rh_metric"  # the metric family
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def report(golden_folder: Path) -> GoldenReport:
    return check_golden(golden_folder)


def test_every_recorded_case_passes_far_inside_the_tolerances(report: GoldenReport) -> None:
    assert report.passed, report.as_table()
    families = report.to_json()["families"]
    counts = {"solver": 62, "person": 6, "image": 7, "rh_metric": 5, "depth": 6, "mahmr": 42}
    assert {family: entry["cases"] for family, entry in families.items()} == counts
    worst = {family: entry["worst_errors"] for family, entry in families.items()}
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
    (tmp_path / "depth").mkdir()
    (tmp_path / "depth" / "depth_cases.npz").write_bytes(b"PK broken")
    families = check_golden(tmp_path).to_json()["families"]
    assert list(families["person"]["failures"]) == ["case_003"]
    assert "cannot be read" in families["depth"]["failures"]["depth_cases"][0]


@pytest.mark.parametrize(
    ("found", "recorded", "failures"),
    [
        ([1.0, NAN, INF], [1.1, NAN, INF], []),  # within 0.2
        ([1.0, 2.0], [1.3, 2.0], ["z (first): 1 instead of 1.3, off by 3.0e-01, tolerance 2e-01"]),
        ([1.0, NAN], [1.0, 2.0], ["z (second): nan instead of 2, off by inf, tolerance 2e-01"]),
        ([1.0, -INF], [1.0, INF], ["z (second): -inf instead of inf, off by inf, tolerance 2e-01"]),
        ([1.0], [1.0, 2.0], ["z has shape (1,), recorded (2,)"]),
        ([], [], []),
    ],
)
def test_numbers_agree_within_a_tolerance_and_nan_with_nan(
    found: list[float], recorded: list[float], failures: list[str]
) -> None:
    case = Case("solver", "0")
    case.near("z", found, recorded, 0.2, names=("first", "second"))
    assert case.failures == failures
    case.near("only reported", 1.0, 5.0, None)
    assert case.errors["only reported"] == (4.0, None)
    assert case.failures == failures


def test_a_folder_without_cases_is_an_error_that_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(GoldenFolderError, match="solver, person, image, rh_metric"):
        check_golden(tmp_path)


def check_edited(folder: Path, case: str, edit: Callable[[dict[str, Any]], object]) -> Case:
    """One recorded case of the metric, changed by `edit`."""
    raw = json.loads((CASES / f"{case}.json").read_text())
    edit(raw)
    inner = folder / "rh_metric"
    inner.mkdir(parents=True)
    (inner / f"{case}.json").write_text(json.dumps(raw))
    if (bodies := CASES / f"{case}_bodies.npz").is_file():
        shutil.copy(bodies, inner)
    (inner / "index.json").write_text(json.dumps([{"case": case}]))
    (result,) = FAMILIES["rh_metric"](folder)
    return result


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda raw: raw["expected"].update(pcdr_kid=0.930), "pcdr_kid: 0."),
        (lambda raw: raw["expected"].update(pcdr_baby=0.5), "pcdr_baby: None instead of 0.5"),
        (lambda raw: raw["expected"].update(pcdr_all=None), "instead of nan"),
        (lambda raw: raw["expected"].update(missed=14), "missed: 15 instead of 14"),
        (lambda raw: raw["expected"]["pairs"].update(cd=3), "cd: 17 instead of 3"),
        (lambda raw: raw["expected"].update(f1=0.57), "f1: 0."),
        (lambda raw: raw["images"][0].update(matches=[[0, 0], [1, 2]]), "4497397.jpg: matches"),
        (lambda raw: raw["images"][0].update(missed=[1]), "4497397.jpg: missed"),
        (lambda raw: raw["images"][0].pop("gt"), "raised KeyError"),
        (lambda raw: raw.update(expected=None), "neither expected numbers nor an error"),
    ],
)
def test_a_difference_is_a_named_failure(tmp_path: Path, edit: Callable[[dict[str, Any]], object], named: str) -> None:
    result = check_edited(tmp_path, "case_00", edit)
    assert not result.passed
    assert named in " ".join(result.failures)


def test_a_case_the_reference_cannot_do_passes_with_a_status(tmp_path: Path) -> None:
    def miss_nobody(raw: dict[str, Any]) -> None:
        raw.update(images=raw["images"][-1:], expected=None, error="ValueError", kind="nothing_missed")

    assert check_edited(tmp_path, "case_00", miss_nobody).passed


def test_bodies_elsewhere_are_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_edited(tmp_path / "right", "case_04", lambda raw: None).passed
    monkeypatch.setattr(golden_labels, "recorded_body", lambda *_: load_body("demo", kid_axis=False))
    assert "kp2d_px: " in " ".join(check_edited(tmp_path / "thin", "case_04", lambda raw: None).failures)


def test_a_case_the_index_promises_must_be_there_and_the_index_be_one(tmp_path: Path) -> None:
    (tmp_path / "rh_metric").mkdir()
    index = tmp_path / "rh_metric/index.json"
    index.write_text(json.dumps([{"case": "case_07"}]))
    (result,) = FAMILIES["rh_metric"](tmp_path)
    assert result.name == "case_07"
    assert "raised FileNotFoundError" in result.failures[0]
    for text, said in (("{", "a list of cases"), ("[1]", "a list of cases"), ("[]", "lists no case")):
        index.write_text(text)
        with pytest.raises(GoldenFolderError, match=said):
            check_golden(tmp_path)
