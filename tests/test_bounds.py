"""Labels and cameras that are finite and cannot be: whoever bears them is refused in words, and harms nobody."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dto_pipeline.api import SceneInputError, optimize_scene
from dto_pipeline.bounds import ASIDE, BETAS, DISTANCE, FOCAL, HEIGHT, POSE
from dto_pipeline.collate import collate_scenes, split_batch
from dto_pipeline.config import PipelineConfig, config_from_dict, load_config
from dto_pipeline.config_tree import ConfigError
from dto_pipeline.data.scenes import read_label_scenes
from dto_pipeline.data.sources.rows import ROW_PROBLEMS, find_row_problems
from dto_pipeline.models.body import BodyModel
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.scene import PlacedScene, Scene
from dto_pipeline.status import PLACED, ImageStatus, PersonStatus
from tests.crowds import Stander, make_scene, reorder
from tests.data.small_set import build_small, write_image

CROWD = (Stander(-0.9, 3.0, 1.75), Stander(0.0, 3.5, 1.6, 1.1), Stander(0.9, 4.0, 1.8, 0.9), Stander(0.3, 5.0, 1.1))
MODES = {mode: load_config(overrides=[f"solver.mode={mode}"]) for mode in ("paper", "joint")}
ABSURD = st.sampled_from([1e-30, 1e-3, 0.5, 5.0, 12.0, 25.0, 50.0, 1e3, 1e6, 1e20, 1e30, 3e38])
SIGNED = st.builds(lambda sign, size: sign * size, st.sampled_from([-1.0, 1.0]), ABSURD)


@pytest.fixture(scope="module")
def crowd(body: BodyModel) -> Scene:
    return make_scene(body, CROWD, size=(120, 160), focal=150.0)


def place(scene: Scene, body: BodyModel, config: PipelineConfig) -> PlacedScene:
    """Straight into the optimiser: no reader of labels stands before it."""
    return split_batch([scene], SceneOptimizer(body, config)(collate_scenes([scene])), config)[0]


def spoil(scene: Scene, person: int, **numbers: float) -> Scene:
    """The scene with numbers like ``betas_3`` of one person changed."""
    changed = {name: getattr(scene, name).copy() for name in ("pose", "betas", "transl")}
    for key, value in numbers.items():
        name, index = key.split("_")
        changed[name][person, int(index)] = value
    return dataclasses.replace(scene, **changed, person_problem=list(scene.person_problem))


def check(placed: PlacedScene) -> None:
    """Everything that comes out is a number, and whoever has a new place could stand there."""
    for people in (placed.betas, placed.transl, placed.scale):
        assert np.isfinite(people).all()
    who = np.isin(placed.person_status, PLACED)
    assert HEIGHT.holds(placed.height_m[who]).all()
    assert DISTANCE.holds(placed.transl[who, 2]).all()
    assert ASIDE.holds(placed.transl[who, :2]).all()
    assert BETAS.holds(placed.betas[who]).all()
    assert np.isfinite(placed.z_sigma_m[who]).all() or np.isnan(placed.z_sigma_m).all()
    assert np.array_equal(placed.transl[~who], placed.scene.transl[~who])
    assert np.array_equal(placed.betas[~who], placed.scene.betas[~who])
    assert np.isfinite(placed.deviation)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=40)
@given(
    person=st.integers(0, 3),
    numbers=st.dictionaries(
        st.sampled_from(["pose_0", "pose_5", "betas_0", "betas_1", "betas_10", "transl_0", "transl_2"]),
        SIGNED,
        min_size=1,
        max_size=3,
    ),
)
@example(person=0, numbers={"betas_0": 1e30})
@example(person=0, numbers={"pose_5": 1e30})
@example(person=1, numbers={"betas_0": 50.0})
@example(person=2, numbers={"transl_2": 1e6})
def test_absurd_labels_never_give_nan_or_a_place_that_cannot_be(
    mode: str, crowd: Scene, body: BodyModel, person: int, numbers: dict[str, float]
) -> None:
    check(place(spoil(crowd, person, **numbers), body, MODES[mode]))


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=15)
@given(focal=ABSURD)
@example(focal=1e-3)
def test_absurd_cameras_move_nobody(mode: str, crowd: Scene, body: BodyModel, focal: float) -> None:
    camera = np.array([[focal, 0, 80.0], [0, focal, 60.0], [0, 0, 1]])
    placed = place(dataclasses.replace(crowd, intrinsics=camera), body, MODES[mode])
    check(placed)
    if not FOCAL.holds(focal / 160):
        assert set(placed.person_status) == {PersonStatus.INVALID_LABEL}
        assert "focal length beyond" in str(placed.person_message[0])
        assert not placed.is_accepted


@pytest.mark.parametrize("mode", MODES)
def test_somebody_impossible_leaves_the_others_as_if_nobody_were_there(
    mode: str, crowd: Scene, body: BodyModel
) -> None:
    broken = dataclasses.replace(crowd, person_problem=[None, (PersonStatus.INVALID_LABEL, "x"), None, None])
    expected = place(broken, body, MODES[mode])
    found = place(spoil(crowd, 1, betas_0=29.0, betas_10=-2.0), body, MODES[mode])
    assert found.person_status == expected.person_status
    assert "rest-pose height beyond 0.3 .. 3.5 m" in str(found.person_message[1])
    keep = [0, 2, 3]
    assert np.array_equal(found.transl[keep], expected.transl[keep])
    assert np.isnan(found.height_m[1])


@pytest.mark.parametrize("mode", MODES)
def test_a_fit_that_makes_what_cannot_be_is_set_aside_and_costs_the_image(
    mode: str, crowd: Scene, body: BodyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a world that ends at 3.9 m: the third person, labelled at 3.6 m, really stands at 4 m."""
    before = place(reorder(crowd, [0, 1, 2]), body, MODES[mode])
    monkeypatch.setattr("dto_pipeline.maths.refine.DISTANCE", dataclasses.replace(DISTANCE, high=3.9))
    placed = place(crowd, body, MODES[mode])
    assert placed.person_status[2:] == [PersonStatus.IMPLAUSIBLE, PersonStatus.INVALID_LABEL]
    assert np.array_equal(placed.transl[2], crowd.transl[2])
    assert np.array_equal(placed.betas[2], crowd.betas[2])
    assert (placed.scale[2], placed.beta_index[2]) == (1, -1)
    assert np.isnan(placed.z_sigma_m[2])
    assert placed.deviation > before.deviation


@pytest.mark.parametrize("mode", MODES)
def test_an_option_of_zero_is_refused_or_gives_places_and_words(mode: str, crowd: Scene, body: BodyModel) -> None:
    """Options that are divided by, or have a logarithm, must not be found out by the first image of a run."""
    plain = MODES[mode].to_dict()
    tried = 0
    for section in ("prior", "evidence", "solver", "refine", *(["joint"] if mode == "joint" else [])):
        for key, value in plain[section].items():
            if isinstance(value, bool | str):
                continue
            zero = [0.0, *value[1:]] if isinstance(value, list) else type(value)(0)
            with contextlib.suppress(ConfigError):
                check(place(crowd, body, config_from_dict({**plain, section: {**plain[section], key: zero}})))
                tried += 1
    assert tried > 10


def test_a_camera_that_an_older_manifest_let_through_costs_its_image_at_the_run(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        write_image(tmp_path, name)
    rows = build_small(tmp_path, ["a.jpg", "b.jpg"])[0].read_shard(0)
    rows = rows.set_column(rows.schema.get_field_index("fx"), "fx", pa.array([1e-3, 40.0]))
    broken, sound = read_label_scenes(rows)
    assert broken.problem is not None
    assert broken.problem[0] is ImageStatus.LABEL_INVALID
    assert "focal length beyond 0.1 .. 100 times the longer image side" in broken.problem[1]
    assert sound.problem is None


def test_the_function_for_one_scene_refuses_such_a_camera(crowd: Scene) -> None:
    camera = np.diag([1e-3, 1e-3, 1.0])
    with pytest.raises(SceneInputError, match="focal length beyond"):
        optimize_scene(crowd.pose, crowd.betas, crowd.transl, camera, np.ones((120, 160), np.float32), body="demo")


@pytest.mark.parametrize(
    ("column", "number", "bound"),
    [("pose", 13.0, POSE), ("betas", -31.0, BETAS), ("transl", 501.0, DISTANCE), ("transl", 0.01, DISTANCE)],
)
def test_readers_of_labels_name_the_bound(column: str, number: float, bound: object) -> None:
    label = {"pose": np.zeros((1, 72)), "betas": np.zeros((1, 11)), "transl": np.array([[0.0, 0.0, 3.0]])}
    assert ROW_PROBLEMS[find_row_problems(**label)[0]] is None
    label[column][0, -1] = number
    assert ROW_PROBLEMS[find_row_problems(**label)[0]] == str(bound)
