"""The recorded cases of the metric family, and that the comparison can fail."""

import json
import shutil
from pathlib import Path

import pytest

from dto_pipeline.lab.golden_rh import check_rh_cases
from dto_pipeline.models.body import load_body

CASES = Path(__file__).parents[1] / "golden" / "rh_metric"


def edited(folder, case, edit):
    """A folder with one recorded case, changed by `edit`."""
    raw = json.loads((CASES / f"{case}.json").read_text())
    edit(raw)
    (folder / f"{case}.json").write_text(json.dumps(raw))
    return folder


def test_every_recorded_case_is_met(body):
    results = check_rh_cases(CASES, body)
    assert [r.name for r in results] == [f"case_{i:02d}" for i in range(5)]
    assert {r.name: r.failures for r in results if not r.passed} == {}
    assert max(error for r in results for key, error in r.errors.items() if key.startswith("pcdr")) < 1e-6


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda raw: raw["expected"].update(pcdr_kid=0.930), "pcdr_kid is 0.93"),
        (lambda raw: raw["expected"].update(pcdr_baby=0.5), "pcdr_baby is undefined"),
        (lambda raw: raw["expected"].update(pcdr_all=None), "recorded None"),
        (lambda raw: raw["expected"].update(missed=14), "missed is 15, recorded 14"),
        (lambda raw: raw["expected"]["pairs"].update(cd=3), "pairs cd is 17"),
        (lambda raw: raw["expected"].update(f1=0.57), "f1 is 0.5757"),
        (lambda raw: raw["images"][0].update(matches=[[0, 0], [1, 2]]), "4497397.jpg: matches"),
        (lambda raw: raw["images"][0].update(missed=[1]), "4497397.jpg: missed"),
        (lambda raw: raw["images"][0].pop("gt"), "cannot be read: KeyError"),
        (lambda raw: raw.update(expected=None), "neither expected numbers nor an error"),
    ],
)
def test_a_difference_is_a_named_failure(tmp_path, body, edit, named):
    (result,) = check_rh_cases(edited(tmp_path, "case_00", edit), body)
    assert not result.passed
    assert named in " ".join(result.failures)


def test_a_case_the_reference_cannot_do_passes_with_a_status(tmp_path, body):
    def miss_nobody(raw):
        raw.update(images=raw["images"][-1:], expected=None, error="ValueError", kind="nothing_missed")

    (result,) = check_rh_cases(edited(tmp_path, "case_00", miss_nobody), body)
    assert result.passed


def test_bodies_elsewhere_are_a_failure(tmp_path, body):
    shutil.copy(CASES / "case_04_bodies.npz", tmp_path)
    edited(tmp_path, "case_04", lambda raw: None)
    assert check_rh_cases(tmp_path, body)[0].passed
    thin = load_body("demo", kid_axis=False)
    assert "a projected joint is" in " ".join(check_rh_cases(tmp_path, thin)[0].failures)


def test_a_case_the_index_promises_must_be_there(tmp_path, body):
    (tmp_path / "index.json").write_text(json.dumps([{"case": "case_07"}]))
    (result,) = check_rh_cases(tmp_path, body)
    assert result.name == "case_07"
    assert "cannot be read: FileNotFoundError" in result.failures[0]


def test_a_folder_without_cases_is_refused(tmp_path, body):
    with pytest.raises(FileNotFoundError, match=r"no case_\*\.json"):
        check_rh_cases(tmp_path, body)


def test_cases_are_found_from_the_folder_above(body):
    assert len(check_rh_cases(CASES.parent, body)) == 5
