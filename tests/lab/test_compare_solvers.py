"""The comparison of solvers on a few small sets: everything it leaves behind, and that it is worth leaving."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dto_pipeline.config import PipelineConfig
from dto_pipeline.errors import DtoError
from dto_pipeline.lab.compare_solvers import RECORDED, compare_solvers
from dto_pipeline.lab.solver_comparison import (
    METHODS,
    cover,
    label_and_prior,
    moved_people,
    paper_else_prior,
    place_all,
)
from dto_pipeline.lab.solver_report import POOLED
from dto_pipeline.lab.solver_sets import CROWD_SETS, build_known_scene, plan_set_crowd
from dto_pipeline.models.body import BodyModel

SETS = {kind.name: kind for kind in CROWD_SETS}


def test_a_small_comparison_leaves_a_report_in_which_joint_is_better(tmp_path: Path, golden_folder: Path) -> None:
    results = compare_solvers(tmp_path, 4, seed=7, sets=[SETS["plain"], SETS["children"]], golden=golden_folder)
    assert list(results) == ["plain", "children", POOLED, RECORDED]
    assert {path.name for path in tmp_path.rglob("*.*")} == {
        *("solver_comparison.md", "solver_comparison.json", "solver_errors.png", "solver_coverage.png")
    }
    assert json.loads((tmp_path / "solver_comparison.json").read_text())["sets"].keys() == results.keys()
    page = (tmp_path / "solver_comparison.md").read_text()
    assert all(method in page for method in METHODS)
    pooled = results[POOLED]["methods"]
    for measure in ("depth_error", "pair_depth_error", "height_error"):
        assert pooled["joint"][measure] < 0.8 * pooled["paper"][measure] < pooled["labels"][measure]


def test_seeds_used_for_tuning_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DtoError, match="seed 1"):
        compare_solvers(tmp_path, 1, seed=1)


def test_equal_arguments_give_equal_scenes_and_every_set_builds(body: BodyModel) -> None:
    for kind in CROWD_SETS:
        first, again = (build_known_scene(kind, 5, 2, body) for _ in range(2))
        assert np.array_equal(first.scene.transl, again.scene.transl)
        assert first.scene.disparity is not None
        assert again.scene.disparity is not None
        assert np.array_equal(first.scene.disparity, again.scene.disparity)
        assert first.scene.num_people <= kind.most_people


def test_labels_of_a_wrong_camera_look_the_same_in_the_picture(body: BodyModel) -> None:
    right, wrong = (build_known_scene(SETS[name], 5, 3, body).scene for name in ("plain", "wrong K"))
    seen = [scene.transl[:, :2] / scene.transl[:, 2:] * scene.intrinsics[0, 0] for scene in (right, wrong)]
    assert np.allclose(seen[0], seen[1], rtol=1e-5)
    factor = wrong.intrinsics[0, 0] / right.intrinsics[0, 0]
    assert 0.6 < factor < 1.6
    assert abs(factor - 1) > 0.01
    assert np.allclose(wrong.transl[:, 2] / right.transl[:, 2], factor, rtol=1e-5)


def test_what_all_people_of_an_image_share_follows_a_normal_law() -> None:
    crowds = [
        plan_set_crowd(kind, 5, number) for kind in (SETS["plain"], SETS["other heights"]) for number in range(300)
    ]
    shared = [np.log(other.height[0] / own.height[0]) for own, other in zip(crowds[:300], crowds[300:], strict=True)]
    assert abs(np.std(shared) / SETS["other heights"].taller - 1) < 0.15
    assert all(np.ptp(np.log(o.height / h.height)) < 1e-6 for h, o in zip(crowds[:300], crowds[300:], strict=True))


def test_the_fair_baseline_is_paper_where_it_moves_people_and_the_height_prior_elsewhere(body: BodyModel) -> None:
    known = [build_known_scene(SETS["pairs"], 5, number, body) for number in range(6)]
    paper = place_all(known, body, PipelineConfig(), "paper")
    fair, moved = paper_else_prior(paper), moved_people(paper)
    _, prior = label_and_prior(paper.placed)
    assert 0 < moved.sum() < len(moved)
    assert np.array_equal(fair.z[moved], paper.placement.z[moved])
    assert np.array_equal(fair.z[~moved], prior.z[~moved])
    assert np.array_equal(fair.height[~moved], prior.height[~moved])


def test_coverage_counts_errors_inside_normal_intervals() -> None:
    assert cover(np.array([0.1, -0.6, 1.0, 1.9, 5.0])) == {"0.50": 0.4, "0.80": 0.6, "0.95": 0.8}
