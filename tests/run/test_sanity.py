"""Runs whose numbers no sound run shows say so, from receipts alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dto_pipeline.cli import main
from dto_pipeline.commands.status import status_facts
from dto_pipeline.config import PipelineConfig, load_config
from dto_pipeline.data.labels import read_labels
from dto_pipeline.data.receipts import parse_receipt
from dto_pipeline.models.networks import locate_body
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import RunDirectory
from dto_pipeline.run.identity import identify_run
from dto_pipeline.run.report import RunSummary, read_status
from dto_pipeline.run.sanity import ALONE_SHARE, MOST, TOO_TALL_SHARE, Sanity, count_signs, judge_run
from dto_pipeline.view.report import write_report
from dto_pipeline.view.run_files import open_run_files
from tests.run.chaos import read_receipt
from tests.run.fakes import make_manifest, make_receipt
from tests.tiny_dataset import TinyDataset, write_tiny_dataset

Change = Callable[[np.ndarray], np.ndarray]
CONFIG = ["run.workers=0", "run.device=cpu", "body.model_path=demo"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, body) -> TinyDataset:
    """Twelve whole images in two shards."""
    return write_tiny_dataset(tmp_path_factory.mktemp("sound"), body, 12, 6, broken=False)


def run(sound: TinyDataset, folder: Path, depth: Change | None = None, mode: str = "paper", *more: str) -> RunSummary:
    """A run, with its depth maps changed."""
    root = None if depth is None else folder / "depth"
    if root is not None and depth is not None:
        for path in (sound.manifest.parent / "depth").rglob("*.npy"):
            root.mkdir(parents=True, exist_ok=True)
            np.save(root / path.name, depth(np.load(path)).astype(np.float32))
    config = load_config(overrides=[*CONFIG, f"solver.mode={mode}", *more])
    return run_pipeline(sound.manifest, folder / "run", config, progress=False, depth_root=root)


def judge(signs: dict[str, int], people: dict[str, int] | None = None, *config: str) -> Sanity:
    identity = identify_run(load_config(overrides=["body.model_path=demo", *config]), make_manifest())
    people = people or {"moved": 300}
    receipt = make_receipt(0, images=100, persons=sum(people.values()), person_status=people, signs=signs)
    return judge_run(identity, [receipt])


@pytest.mark.parametrize("mode", ["paper", "joint"])
def test_a_sound_run_has_no_warning_and_status_report_and_summary_agree(
    sound: TinyDataset, tmp_path: Path, mode: str
) -> None:
    summary = run(sound, tmp_path, mode=mode)
    assert (summary.exit_code, summary.sanity.contradictions) == (0, [])
    assert summary.sanity.median_corr is not None
    assert summary.sanity.median_corr > 0.5
    assert "used     body demo (the stand-in, not SMPL); depth files of disparity" in summary.as_table()
    assert "  median correlation of z and depth inside bodies" in summary.as_table()
    status = read_status(tmp_path / "run")
    assert status.sanity == summary.sanity
    assert json.loads(json.dumps(status.to_json()))["sanity"] == json.loads(json.dumps(summary.to_json()))["sanity"]
    page = write_report(open_run_files(tmp_path / "run"), None, None, tmp_path / "page").read_text()
    assert "State and checks" in page
    for text in ("files of disparity", *(text for figure in status.sanity.figures() for text in figure)):
        assert text in page
        assert text in summary.as_table()


@pytest.mark.parametrize("mode", ["paper", "joint"])
def test_depth_the_wrong_way_round_ends_with_1_and_says_so_everywhere(
    sound: TinyDataset, tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    summary = run(sound, tmp_path, lambda disparity: 500 / disparity, mode)
    assert summary.exit_code == 1
    (text,) = summary.sanity.contradictions
    assert "depth runs the wrong way round" in text
    assert "check depth.kind" in text
    assert f"WRONG    {text}" in summary.as_table()
    assert main(["status", str(tmp_path / "run")]) == 0
    assert text in capsys.readouterr().out
    assert main(["status", str(tmp_path / "run"), "--watch"]) == 1
    assert status_facts(read_status(tmp_path / "run"))["sanity"] == "WRONG"
    assert main(["export", str(tmp_path / "run"), "--format", "parquet", "-o", str(tmp_path / "out")]) == 0
    assert f"WRONG: {text}" in caplog.text
    page = write_report(open_run_files(tmp_path / "run"), None, None, tmp_path / "page").read_text()
    assert "depth runs the wrong way round" in page


@pytest.mark.parametrize("mode", ["paper", "joint"])
def test_flat_depth_on_which_nobody_can_be_measured_ends_with_1(sound: TinyDataset, tmp_path: Path, mode: str) -> None:
    summary = run(sound, tmp_path, lambda disparity: np.full_like(disparity, 7), mode)
    assert summary.exit_code == 1
    assert "nothing could be measured on 100 % of the people" in summary.sanity.contradictions[0]


@pytest.mark.parametrize("mode", ["paper", "joint"])
def test_maps_times_any_constant_give_the_same_labels(sound: TinyDataset, tmp_path: Path, mode: str) -> None:
    plain = run(sound, tmp_path / "1", mode=mode)
    before = read_people(tmp_path / "1" / "run")
    for factor in (0.002, 0.03, 30.0):
        other = run(sound, tmp_path / f"{factor}", partial(np.multiply, factor), mode)
        after = read_people(tmp_path / f"{factor}" / "run")
        for name in ("status", "depth_group"):
            assert [person[name] for person in after] == [person[name] for person in before]
        there, here = (np.array([person["transl"] for person in people]) for people in (after, before))
        np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-5)
        assert (plain.exit_code, other.exit_code, other.sanity.contradictions) == (0, 0, [])
        assert other.sanity.far == plain.sanity.far
        assert other.sanity.fits_at_default_bound == plain.sanity.fits_at_default_bound
        assert plain.sanity.unit is not None
        assert other.sanity.unit == pytest.approx(plain.sanity.unit * factor, rel=0.06)


def test_a_unit_that_was_told_wrong_is_a_warning(sound: TinyDataset, tmp_path: Path) -> None:
    summary = run(sound, tmp_path, lambda disparity: disparity * 1e-3, "paper", "depth.unit=published")
    assert summary.sanity.far == 1
    assert any("far_depth" in text and "the unit of depth.unit" in text for text in summary.sanity.warnings)
    assert any("take depth.unit=measured" in text for text in summary.sanity.warnings)
    assert summary.exit_code == 0


@pytest.mark.parametrize("mode", ["paper", "joint"])
@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_metres_that_contradict_the_people_end_with_1(
    sound: TinyDataset, tmp_path: Path, mode: str, factor: float
) -> None:
    metric = ["depth.kind=metric_depth"]
    right = run(sound, tmp_path / "right", lambda disparity: 500 / disparity, mode, *metric)
    assert (right.exit_code, right.sanity.contradictions) == (0, [])
    assert right.sanity.unit == pytest.approx(1, abs=0.2)
    wrong = run(sound, tmp_path / "wrong", lambda disparity: 500 * factor / disparity, mode, *metric)
    assert wrong.exit_code == 1
    (text,) = wrong.sanity.contradictions
    assert "the maps' metres contradict the people" in text
    assert right.sanity.unit is not None
    assert wrong.sanity.unit == pytest.approx(right.sanity.unit / factor, rel=0.2)


def read_people(folder: Path) -> list[dict[str, Any]]:
    rows = read_labels(*(RunDirectory(folder).label_file(shard) for shard in range(2))).to_pylist()
    return [person for row in rows for person in row["persons"]]


def test_the_signs_of_a_receipt_are_those_of_its_label_rows(sound: TinyDataset, tmp_path: Path) -> None:
    run(sound, tmp_path)
    directory = RunDirectory(tmp_path / "run")
    rows = read_labels(directory.label_file(0)).to_pylist()
    signs = read_receipt(directory.receipt_file(0)).signs
    people = [person for row in rows for person in row["persons"]]
    assert signs == count_signs(read_labels(directory.label_file(0)), PipelineConfig().to_dict())
    assert signs["accepted images"] == sum(row["is_accepted"] for row in rows)
    assert signs["people of accepted images"] == sum(len(row["persons"]) for row in rows if row["is_accepted"])
    assert signs["measured"] == sum(person["depth_group"] >= 0 for person in people)
    corr = [person["corr"] for person in people if not np.isnan(person["corr"])]
    assert sum(count for name, count in signs.items() if name.startswith("corr")) == len(corr)
    told = judge(signs).median_corr
    assert told == pytest.approx(np.median(corr), abs=0.05)


def test_receipts_of_older_versions_hold_and_tell_only_what_statuses_do() -> None:
    old = {name: value for name, value in make_receipt(0).to_dict().items() if name != "signs"}
    assert parse_receipt(json.dumps(old).encode(), Path("old.json")) == make_receipt(0)
    sanity = judge({})
    assert [name for name, _ in sanity.figures()] == [
        "people too small",
        "people too tall",
        "people alone in their group",
    ]
    assert (sanity.warnings, sanity.contradictions) == ([], [])


@pytest.mark.parametrize(
    ("signs", "people", "word"),
    [
        ({"fits": 10, "fits at the default bound": round(10 * MOST)}, None, "solver.default_alpha_min"),
        ({"measured": 100, "far": round(100 * MOST)}, None, "evidence.far_depth"),
        ({"corr 21": 100}, None, "hardly shows the bodies"),
        ({"optimised images": 100, "accepted images": 3}, None, "hardly any optimised image is accepted"),
        ({"far": 1}, {"too_tall": round(100 * TOO_TALL_SHARE), "moved": 70}, "too tall"),
        ({"compared": 100, "unmeasured": 60}, None, "measured on 60 % of the people: masks"),
        ({"factor -12": 100}, {"moved": 100}, "0.5 times the distance of their labels"),
        ({"factor 16": 100}, {"placed_by_prior": 100}, "2.5 times the distance of their labels"),
        ({"far": 1}, {"alone_in_group": round(100 * ALONE_SHARE), "moved": 50}, "alone in their group"),
    ],
)
def test_what_is_seldom_right_is_a_warning_and_of_a_few_people_nothing_is_said(
    signs: dict[str, int], people: dict[str, int] | None, word: str
) -> None:
    sanity = judge(signs, people)
    assert [word in text for text in sanity.warnings] == [True]
    assert sanity.contradictions == []
    few = {name: count // 30 for name, count in signs.items()}
    assert judge(few, people and {name: count // 30 for name, count in people.items()}).warnings == []


def test_a_run_of_images_with_one_person_each_places_nobody_and_says_so() -> None:
    def judged(images: dict[str, int], people: dict[str, int]) -> list[str]:
        identity = identify_run(load_config(overrides=["body.model_path=demo"]), make_manifest())
        counts = {"rows": sum(images.values()), "images": sum(images.values()), "persons": sum(people.values())}
        receipt = make_receipt(0, **counts, image_status=images, person_status=people, signs={"far": 1})
        return judge_run(identity, [receipt]).contradictions

    (told,) = judged({"too_few_people": 20}, {"not_run": 20})
    assert "joint.move_single=true" in told
    assert judged({"too_few_people": 19, "optimized": 1}, {"not_run": 19, "moved": 2}) == []
    assert judged({"too_few_people": 5}, {"not_run": 5}) == []  # too few to say
    assert judged({"too_few_people": 20}, {"placed_by_prior": 20}) == []
    assert judged({"predicted": 20}, {"predicted": 20}) == []


def test_a_run_that_could_compare_people_and_placed_nobody_says_so(sound: TinyDataset, tmp_path: Path) -> None:
    """Options that no fit survives left every label as it was, with exit code 0."""
    summary = run(sound, tmp_path, None, "joint", "joint.gender_power=1e9")
    assert summary.exit_code == 1
    (told,) = summary.sanity.contradictions
    assert re.search(r"nobody was placed, though \d+ people could be compared; \d+ of them are no_fit \(.*--set", told)
    assert judge({"compared": 100}, {"too_tall": 99, "moved": 1}).contradictions == []
    assert judge({"compared": 3}, {"too_tall": 3}).contradictions == []  # too few to say
    (told,) = judge({"compared": 12}, {"alone_in_group": 12}).contradictions  # of each pair one near and one far
    assert "or take solver.mode=joint, which has no groups; then" in told


def test_a_weak_map_is_not_taken_for_one_the_wrong_way_round() -> None:
    """Blurred maps: a third of the bodies are negative, or half of them and far so."""
    assert judge({"corr 05": 33, "corr 30": 67}).contradictions == []
    assert judge({"corr 05": 55, "corr 38": 45}).contradictions == []
    assert len(judge({"corr 05": 80, "corr 38": 20}).contradictions) == 1
    assert judge({"corr 05": 8}).contradictions == []  # too few to say


def test_maps_of_two_kinds_in_one_folder_end_with_1(sound: TinyDataset, tmp_path: Path) -> None:
    number = iter(range(12))
    summary = run(sound, tmp_path, lambda disparity: 500 / disparity if next(number) % 4 == 0 else disparity, "joint")
    assert summary.exit_code == 1
    assert "the wrong way round in 3 of 12 images and the right way in 9" in summary.sanity.contradictions[0]
    weak = {"images of several bodies": 100, "images forwards": 20, "images backwards": 16}  # bodies hardly shown
    assert judge(weak).contradictions == []


def test_people_labelled_twice_are_not_taken_for_people_without_a_measurement(
    sound: TinyDataset, tmp_path: Path
) -> None:
    run(sound, tmp_path)
    rows = read_labels(RunDirectory(tmp_path / "run").label_file(0))
    measured = count_signs(rows, PipelineConfig().to_dict())["compared"]
    field = rows.schema.field("persons")
    people = [[{**person, "status": "duplicate"} for person in row] for row in rows["persons"].to_pylist()]
    place = rows.schema.get_field_index("persons")
    repeated = rows.set_column(place, field, pa.array(people, field.type))
    assert measured > 0
    assert "compared" not in count_signs(repeated, PipelineConfig().to_dict())


def test_the_network_that_was_used_is_named() -> None:
    body = str(locate_body("demo"))
    sanity = judge({}, None, "depth.source=model", "depth.model=demo", f"body.model_path={body}")
    assert sanity.depth.startswith("network demo (sha256 ")
    assert sanity.body == body
