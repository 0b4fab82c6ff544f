"""The synthetic benchmark: the same bytes for the same settings, exact truth, heights that are not the priors'."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from dto_pipeline.axes import ADULT_MALE, KID
from dto_pipeline.config import PipelineConfig, PriorConfig
from dto_pipeline.config_tree import ConfigError
from dto_pipeline.data.people import read_people
from dto_pipeline.lab.benchmark import (
    OWN,
    POOLED,
    RECORDED,
    SWITCHES,
    BenchmarkError,
    BenchmarkSettings,
    as_page,
    measure,
    override,
)
from dto_pipeline.lab.crowd_files import CrowdFilesError, write_synth
from dto_pipeline.lab.difficulty import DIFFICULTIES, choose_difficulty
from dto_pipeline.lab.known_scenes import SynthScene
from dto_pipeline.lab.solver_outcomes import (
    ACCEPTED,
    EVERYBODY,
    METHODS,
    MOVED,
    place_all,
)
from dto_pipeline.models.body import BodyModel, load_body


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_equal_settings_give_identical_bytes_and_another_seed_other_ones(body: BodyModel, tmp_path: Path) -> None:
    kind = choose_difficulty("hard")
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        assert write_synth(tmp_path / name, kind, 2, seed, body).created
    first, second, other = (digests(tmp_path / name) for name in "abc")
    assert first == second
    assert first.keys() == other.keys()
    assert first["truth.npz"] != other["truth.npz"]
    assert set(first) >= {"labels/release.npz", "labels/sidecar.parquet", "dataset.yaml", "README.md", "synth.json"}


def test_other_files_are_not_overwritten_and_an_interrupted_data_set_is_written_again(
    body: BodyModel, tmp_path: Path
) -> None:
    def interrupt(done: int, images: int) -> None:
        raise KeyboardInterrupt

    kind = choose_difficulty("easy")
    with pytest.raises(KeyboardInterrupt):
        write_synth(tmp_path / "new", kind, 1, 5, body, interrupt)
    with pytest.raises(CrowdFilesError, match="seed: 5 there, 6 wanted; images: 1 there, 2 wanted"):
        write_synth(tmp_path / "new", kind, 2, 6, body)  # its pictures would lie among those of seed 5
    assert write_synth(tmp_path / "new", kind, 1, 5, body).created
    write_synth(tmp_path / "whole", kind, 1, 5, body)
    assert digests(tmp_path / "new") == digests(tmp_path / "whole")
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(CrowdFilesError, match="holds other files"):
        write_synth(tmp_path, kind, 1, 5, body)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_whole_data_set_is_recognised_and_another_one_refused(body: BodyModel, tmp_path: Path) -> None:
    kind = choose_difficulty("easy")
    made = write_synth(tmp_path, kind, 1, 5, body)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = write_synth(tmp_path, kind, 1, 5, body)
    assert (again.created, again.persons) == (False, made.persons)
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(CrowdFilesError, match="seed: 5 there, 6 wanted"):
        write_synth(tmp_path, kind, 1, 6, body)
    for text in ("{", "[]", "[[1]]"):
        (tmp_path / "synth.json").write_text(text)
        with pytest.raises(CrowdFilesError, match="choose another folder or remove it"):
            write_synth(tmp_path, kind, 1, 5, body)


def test_the_truth_is_that_of_the_scene_and_labels_are_what_solvers_see(body: BodyModel, tmp_path: Path) -> None:
    kind = choose_difficulty("standard")
    write_synth(tmp_path, kind, 2, 9, body)
    scenes = [SynthScene(9, number, body, kind) for number in range(2)]
    truth, labels = read_people(tmp_path), read_people(tmp_path / "labels/release.npz")
    assert np.array_equal(truth.transl, np.concatenate([scene.truth.transl for scene in scenes]))
    assert np.array_equal(labels.transl, np.concatenate([scene.known.scene.transl for scene in scenes]))
    depth = np.load(tmp_path / "depth/000/000001.npy", allow_pickle=False)
    assert np.array_equal(depth, np.asarray(scenes[1].depth[0]))
    with np.load(tmp_path / "truth.npz", allow_pickle=False) as archive:
        assert np.allclose(archive["height"], np.concatenate([scene.truth.height for scene in scenes]))


def heights_of(heights: str, wanted: int) -> np.ndarray:
    kind, body = choose_difficulty("standard", (), heights), load_body("demo")
    crowds = [SynthScene(31, number, body, kind).crowd for number in range(150)]
    return np.concatenate([crowd.height[crowd.height_class == wanted] for crowd in crowds])


def test_heights_are_the_growth_charts_unless_the_priors_are_asked_for() -> None:
    independent, priors = (heights_of(name, ADULT_MALE) for name in ("independent", "priors"))
    assert independent.std() == pytest.approx(0.0714, rel=0.15)
    error = independent.std() / np.sqrt(len(independent))
    assert independent.mean() == pytest.approx(1.7685, abs=3 * error)
    assert priors.mean() == pytest.approx(PriorConfig().mean[ADULT_MALE], abs=3 * error)
    assert not np.array_equal(np.sort(independent), np.sort(priors))
    kids = heights_of("independent", KID)
    assert 0.85 < kids.min() < kids.max() < 1.5


def test_every_difficulty_is_hard_in_its_own_way(body: BodyModel) -> None:
    def scene(name: str, *options: str) -> SynthScene:
        return SynthScene(3, 2, body, choose_difficulty(name, options))

    for name, kind in DIFFICULTIES.items():
        assert kind.bodies != "stand-in" or scene(name).known.scene.num_people >= 2
    plain, corrupt = scene("standard"), scene("standard", "wrong_labels=1")
    assert (np.abs(corrupt.labels.factor / plain.labels.factor - 1) > 1e-6).all()
    assert np.allclose(
        corrupt.labels.transl[:, 2] / plain.labels.transl[:, 2], corrupt.labels.factor / plain.labels.factor
    )
    assert np.array_equal(corrupt.truth.transl, plain.truth.transl)
    assert scene("standard", "leak=6").masks.sum() > plain.masks.sum()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("speed=3", "unknown key difficulty.speed; keys are"),
        ("leak", "'difficulty.leak' is not of the form"),
        ("leak=many", "difficulty.leak must be int"),
        ("offset=-1", "offset is -1.0; expected a finite number of at least 0"),
        ("unit=0", "unit is 0.0; expected a finite number of more than 0"),
        ("heights=tall", "choose from"),
        ("layouts=[street, moon]", "expected names of"),
        ("most_people=1", "expected a finite number of at least 2"),
        ("name=mine", "no options of a difficulty"),
    ],
)
def test_an_option_that_cannot_be_is_named(option: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("[", r"\[")):
        choose_difficulty("easy", [option])


def test_options_change_a_difficulty_and_unknown_difficulties_are_named() -> None:
    kind = choose_difficulty("easy", ["leak=4", "offset=0", "layouts=[street]"], "priors")
    assert (kind.leak, kind.offset, kind.layouts, kind.heights) == (4, 0.0, ("street",), "priors")
    with pytest.raises(ConfigError, match="'extreme'; choose from"):
        choose_difficulty("extreme")


def test_a_benchmark_leaves_a_page_in_which_each_method_and_switch_has_a_row(golden_folder: Path) -> None:
    settings = BenchmarkSettings(
        images=4, seed=9, difficulties=("standard", "children"), recorded=golden_folder, resamples=20
    )
    report = measure(settings, override(PipelineConfig(), "solver.max_height=2.2"))
    page = as_page(report)
    assert "Config changed: solver.max_height: 2.1 -> 2.2." in page
    for words in (*METHODS, "label input of people accepted by joint", *SWITCHES):
        assert f"| {words} |" in page
    numbers = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert set(numbers["difficulties"]) == {"standard", "children", OWN, POOLED, RECORDED}
    pooled = report.figures[POOLED]
    assert 0 < pooled["people"][MOVED] < pooled["people"][EVERYBODY]
    found, moved, accepted = (pooled["errors"][whom] for whom in (EVERYBODY, MOVED, ACCEPTED["joint"]))
    assert moved["label input"]["depth_error"].value < found["label input"]["depth_error"].value  # the others are worst
    for key in ("depth_error", "pair_depth_error", "height_error"):
        assert found["joint"][key].value < 0.8 * found["paper"][key].value < found["label input"][key].value
    assert accepted["joint"]["depth_error"].value < accepted["label input"]["depth_error"].value
    inside = pooled["intervals"]["z"]
    assert 0 < inside["0.50"] < inside["0.80"] < inside["0.95"] <= 1
    assert "ground evidence off" not in report.ablation["children"]["joint"]


def test_the_fair_baseline_is_paper_where_it_moves_people_and_the_height_prior_elsewhere(body: BodyModel) -> None:
    known = [SynthScene(5, number, body, choose_difficulty("pairs")).known for number in range(6)]
    assert {item.scene.num_people for item in known} == {2}
    paper = place_all(known, PipelineConfig(), "paper")
    fair, moved, prior = paper.else_prior, paper.moved, paper.prior
    assert 0 < moved.sum() < len(moved)
    for found, placed, by_prior in (
        (fair.z, paper.found.z, prior.z),
        (fair.height, paper.found.height, prior.height),
    ):
        assert np.array_equal(found[moved], placed[moved])
        assert np.array_equal(found[~moved], by_prior[~moved])


def test_labels_of_a_wrong_camera_look_the_same_in_the_picture(body: BodyModel) -> None:
    right, wrong = (
        SynthScene(5, 3, body, choose_difficulty("easy", [option])).known.scene
        for option in ("leak=0", "focal_error=0.1")
    )
    seen = [scene.transl[:, :2] / scene.transl[:, 2:] * scene.intrinsics[0, 0] for scene in (right, wrong)]
    assert np.allclose(seen[0], seen[1], rtol=1e-5)
    factor = wrong.intrinsics[0, 0] / right.intrinsics[0, 0]
    assert 0.6 < factor < 1.6
    assert abs(factor - 1) > 0.01
    assert np.allclose(wrong.transl[:, 2] / right.transl[:, 2], factor, rtol=1e-5)


def test_what_all_people_of_an_image_share_follows_a_normal_law(body: BodyModel) -> None:
    plain, taller = (choose_difficulty(name) for name in ("easy", "other-heights"))
    heights = [
        np.array([SynthScene(5, number, body, kind).crowd.height for kind in (plain, taller)], object)
        for number in range(300)
    ]
    shares = [np.log((tall / usual).astype(float)) for usual, tall in heights]
    assert abs(np.std([share[0] for share in shares]) / taller.taller - 1) < 0.15
    assert max(np.ptp(share) for share in shares) < 1e-6


def test_seeds_used_for_tuning_are_refused() -> None:
    with pytest.raises(BenchmarkError, match="seed 2"):
        BenchmarkSettings(seed=2)
    with pytest.raises(BenchmarkError, match="1 images"):
        BenchmarkSettings(images=1)
    with pytest.raises(BenchmarkError, match="no recorded images"):  # before the minutes of the others
        BenchmarkSettings(recorded=Path("nowhere"))


def test_a_switch_takes_away_just_its_part(body: BodyModel) -> None:
    known = [SynthScene(11, number, body, choose_difficulty("children")).known for number in range(4)]
    config = PipelineConfig()
    off = {name: override(config, options["paper"]) for name, (_, options) in SWITCHES.items()}
    with_ground = place_all(known, config, "paper").placed
    assert any(item.used_ground for item in with_ground)
    without = place_all(known, off["ground evidence off"], "paper").placed
    assert not any(item.used_ground for item in without)
    adults = place_all(known, off["age prior off"], "paper").placed
    assert min(float(item.prior_mean_m.min()) for item in adults) > 1.4
    changed = {name: set(_changed(config, other)) for name, other in off.items()}
    assert changed["internal depth bound off"] == {"solver.internal_constraint"}


def _changed(before: PipelineConfig, after: PipelineConfig) -> list[str]:
    old, new = dataclasses.asdict(before), dataclasses.asdict(after)
    return [f"{room}.{key}" for room in old for key in old[room] if old[room][key] != new[room][key]]
