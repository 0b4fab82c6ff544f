"""The Python API: the examples of docs/api.md run, and one crowd in memory is placed as the pipeline places it."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dto_pipeline as dto
from dto_pipeline.collate import collate_scenes, split_batch
from dto_pipeline.config import PipelineConfig
from dto_pipeline.data.images import ImageCorrupt
from dto_pipeline.models.body import BodyModel
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.scene import Scene
from dto_pipeline.status import PersonStatus
from tests.crowds import Stander, make_scene
from tests.run.chaos import tiny_config
from tests.tiny_dataset import write_tiny_dataset

DOCS = Path(__file__).parent.parent / "docs" / "api.md"


@pytest.fixture(scope="module")
def finished(body: BodyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run in out/demo/run."""
    root = tmp_path_factory.mktemp("api")
    tiny = write_tiny_dataset(root / "data", body)
    run_pipeline(tiny.manifest, root / "out" / "demo" / "run", tiny_config(), progress=False)
    return root


@pytest.fixture
def scene(body: BodyModel) -> Scene:
    """Four people whose label sizes are wrong."""
    factors = (0.9, 1.1, 1.0, 1.15)
    return make_scene(body, [Stander(x=i - 1.5, z=4 + 0.7 * i, factor=f) for i, f in enumerate(factors)])


def arguments(scene: Scene) -> dict[str, Any]:
    assert scene.disparity is not None
    assert scene.masks is not None
    return {
        "pose": scene.pose,
        "betas": scene.betas,
        "transl": scene.transl,
        "intrinsics": scene.intrinsics,
        "disparity": scene.disparity,
        "masks": scene.masks,  # at the image's size: it is smaller than 512 px
        "ages": scene.age_years,
        "male_prob": scene.male_prob,
    }


def test_the_examples_of_the_documentation_run(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    text = re.sub(r"^```.*$", "", DOCS.read_text(), flags=re.MULTILINE)
    examples = doctest.DocTestParser().get_doctest(text, {}, DOCS.name, str(DOCS), 0)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(examples, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)
    assert len(examples.examples) > 20


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import dto_pipeline, sys; print(sorted({'torch', 'pyarrow', 'numpy', 'ray'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_ray_is_not_loaded_by_the_api() -> None:
    code = "import dto_pipeline as dto, sys; dto.optimize_scene; print('ray' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


def test_names_that_do_not_exist_are_refused_as_usual() -> None:
    with pytest.raises(AttributeError, match="nothing_like_it"):
        dto.nothing_like_it  # noqa: B018
    assert "optimize_scene" in dir(dto)


def test_one_crowd_in_memory_is_placed_as_the_pipeline_places_it(scene: Scene, body: BodyModel) -> None:
    config = PipelineConfig()
    found = dto.optimize_scene(**arguments(scene), body=body)
    (expected,) = split_batch([scene], SceneOptimizer(body, config)(collate_scenes([scene])), config)
    np.testing.assert_array_equal(found.transl, expected.transl)
    np.testing.assert_array_equal(found.betas, expected.betas)
    assert found.person_status == expected.person_status
    assert found.is_optimized


def test_other_shapes_of_the_same_labels_give_the_same_answer(scene: Scene, body: BodyModel) -> None:
    given = arguments(scene)
    other = {**given, "pose": scene.pose.reshape(-1, 24, 3).astype(np.float64), "betas": scene.betas[:, :10].tolist()}
    np.testing.assert_array_equal(
        dto.optimize_scene(**other, body=body).transl, dto.optimize_scene(**given, body=body).transl
    )


def test_metres_are_taken_as_metres_by_the_joint_solver(scene: Scene, body: BodyModel) -> None:
    given = arguments(scene)
    disparity = given.pop("disparity")
    config = dto.load_config(overrides=["solver.mode=joint"])
    relative = dto.optimize_scene(**given, disparity=disparity, body=body, config=config)
    right, wrong = (
        dto.optimize_scene(**given, metres=factor * 500 / disparity, body=body, config=config) for factor in (1, 1.2)
    )
    assert relative.transl[:, 2] == pytest.approx(right.transl[:, 2], rel=0.05)  # its unit happens to be the same
    assert (wrong.transl[:, 2] > right.transl[:, 2]).all()
    with pytest.raises(ValueError, match="either disparity or metres"):
        dto.optimize_scene(**given, body=body)


def test_a_broken_person_keeps_its_label_and_costs_only_itself(scene: Scene, body: BodyModel) -> None:
    given = arguments(scene)
    given["pose"] = scene.pose.copy()
    given["pose"][1, 3] = np.nan
    given["masks"][2] = False
    found = dto.optimize_scene(**given, body=body)
    assert found.person_status[1:3] == [PersonStatus.INVALID_LABEL, PersonStatus.EMPTY_MASK]
    assert found.person_status[0] == found.person_status[3] == PersonStatus.MOVED
    np.testing.assert_array_equal(found.transl[1:3], scene.transl[1:3])


def test_nobody_and_one_person_pass_through(scene: Scene, body: BodyModel) -> None:
    for count in (0, 1):
        few = {name: v if name in ("intrinsics", "disparity") else v[:count] for name, v in arguments(scene).items()}
        found = dto.optimize_scene(**few, body=body)
        assert not found.is_optimized
        np.testing.assert_array_equal(found.transl, scene.transl[:count])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("pose", np.zeros((3, 72)), "pose has shape"),
        ("betas", np.zeros((4, 9)), "betas has shape"),
        ("transl", np.zeros((4, 2)), "transl has shape"),
        ("intrinsics", np.zeros((3, 3)), "intrinsics is"),
        ("disparity", np.zeros((240, 320)), "larger is nearer"),
        ("disparity", np.zeros(7), "disparity has shape"),
        ("masks", np.zeros((4, 10, 10), bool), "masks is bool"),
        ("ages", np.zeros(5), "ages has shape"),
        ("ages", [-5, 30, 30, 30], r"ages holds \[-5.0\]; expected 0 .. 130"),
        ("male_prob", [0.1, 7, 0.5, np.nan], r"male_prob holds \[7.0\]"),
        ("transl", None, "transl holds object; expected numbers"),
        ("pose", [["a"] * 72] * 4, "pose holds <U1; expected numbers"),
        ("betas", [[1], [2, 3], [4], [5]], "betas is not an array"),
        ("intrinsics", [[300, 5, 160], [0, 300, 120], [0, 0, 1]], "expected no skew"),
        ("intrinsics", [[300, 0, 160], [0, 300, 120], [1, 0, 1]], "expected no skew"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named(
    scene: Scene, body: BodyModel, name: str, value: Any, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        dto.optimize_scene(**{**arguments(scene), name: value}, body=body)


def test_photographs_of_a_run_go_by_the_names_of_its_manifest(finished: Path) -> None:
    run = finished / "out" / "demo" / "run"
    assert dto.torch_dataset(run, images=True)[0]["image"].shape[2] == 3
    assert dto.torch_dataset(run, images=finished / "data" / "images")[0]["image"].shape[2] == 3
    assert len(dto.torch_dataset(run, select="all")) == 9
    files = sorted((run / "labels").glob("*.parquet"))
    assert len(dto.torch_dataset(files[0], images=finished / "data" / "images", select="all")) == 3
    with pytest.raises(ValueError, match="needs a run's folder"):
        dto.torch_dataset(files[0], images=True)


def test_an_item_beyond_either_end_is_an_index_error(finished: Path) -> None:
    dataset = dto.torch_dataset(finished / "out" / "demo" / "run", select="all")
    assert dataset[-9]["image_id"] == dataset[0]["image_id"] != dataset[-1]["image_id"]
    for index in (9, -10):
        with pytest.raises(IndexError):
            dataset[index]


def test_a_photograph_of_another_size_than_its_labels_is_no_item(finished: Path, tmp_path: Path) -> None:
    dataset = dto.torch_dataset(finished / "out" / "demo" / "run", images=tmp_path)
    name = dataset.image_ids[0].partition("/")[2]
    Image.new("RGB", (30, 20)).save(tmp_path / name)
    with pytest.raises(ImageCorrupt, match=r"has 30 x 20 pixels, its labels \d+ x \d+"):
        dataset[0]


def test_several_sources_are_read_one_after_the_other(finished: Path) -> None:
    run = finished / "out" / "demo" / "run"
    ids = [placed.scene.image_id for placed in dto.read_scenes(run)]
    again = [placed.scene.image_id for placed in dto.read_scenes([run / "labels" / "shard-00001.parquet", run])]
    assert again == ids[3:6] + ids
    assert dto.read_table(run, columns=["image_id"], people=()).column_names == ["image_id"]
    assert dto.read_table(run).num_rows == 9


def test_whoever_is_given_twice_is_placed_once_and_goes_along(scene: Scene, body: BodyModel) -> None:
    given = arguments(scene)
    shared = {name: given.pop(name) for name in ("intrinsics", "disparity")}
    twice: dict[str, Any] = {name: np.concatenate([value, value[:1]]) for name, value in given.items()}
    found = dto.optimize_scene(**twice, **shared, body=body)
    alone = dto.optimize_scene(**given, **shared, body=body)
    assert found.person_status[4] is PersonStatus.DUPLICATE
    np.testing.assert_array_equal(found.transl[:4], alone.transl)
    np.testing.assert_allclose(found.transl[4], found.transl[0], atol=1e-6)
    np.testing.assert_array_equal(found.betas[4], found.betas[0])
    assert not np.allclose(found.transl[0], scene.transl[0], atol=0.05)
