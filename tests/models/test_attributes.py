"""Ages and genders: what class names mean, what crops show, whose word counts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dto_pipeline.config import AttributeConfig, PipelineConfig
from dto_pipeline.models import people_networks as module
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.networks import ModelError, ModelReference
from dto_pipeline.models.people_networks import (
    CropClassifier,
    build_attribute_models,
    expect_attributes,
    read_class_names,
)
from dto_pipeline.models.seeing import Perception, cut_crops
from dto_pipeline.scene import Scene
from dto_pipeline.timing import StageClock
from tests.crowds import Stander, make_scene
from tests.tiny_models import save_classifier

AGES = ("0-2", "3-9", "10-19", "20-29", "more than 70")


def crowd(body: BodyModel) -> Scene:
    scene = make_scene(body, (Stander(-0.5, 4.0), Stander(0.5, 5.0), Stander(1.2, 5.0)))
    scene.image = np.random.default_rng(0).integers(0, 256, (scene.height, scene.width, 3), dtype=np.uint8)
    scene.has_mask = np.ones(3, bool)
    scene.age_years[:] = np.nan
    scene.male_prob[:] = np.nan
    return scene


def test_class_names_say_ages_genders_or_both() -> None:
    np.testing.assert_array_equal(read_class_names(dict(enumerate(AGES))).T, [[1.5, 6.5, 15, 25, 75], [np.nan] * 5])
    genders = read_class_names({0: "female", 1: "male", 2: "Woman", 3: "adult_man"})
    np.testing.assert_array_equal(genders.T, [[np.nan] * 4, [0, 1, 0, 1]])
    found = expect_attributes(np.array([[0.75, 0.25]]), read_class_names({0: "male_20-29", 1: "female_3-9"}))
    np.testing.assert_allclose(found, [[0.75 * 25 + 0.25 * 6.5, 0.75]])


def test_classes_that_say_neither_are_refused() -> None:
    with pytest.raises(ModelError, match="cat"):
        read_class_names({0: "cat", 1: "dog"})


def test_crops_are_squares_around_the_box_and_black_outside() -> None:
    image = np.zeros((10, 20, 3), np.uint8)
    image[:, 10:] = (255, 0, 0)
    crop = cut_crops(image, np.array([[8.0, 2.0, 12.0, 6.0], [16.0, 0.0, 24.0, 4.0]]), side=4)
    assert crop[0, 0].tolist() == [[0, 0, 1, 1]] * 4
    assert crop[1, 0, 2].tolist() == [1, 1, 0, 0]  # the right half lies outside the image
    assert not crop[:, 1:].any()


def test_a_mirrored_person_looks_the_same(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "ages", AGES)
    model = CropClassifier(ModelReference(str(folder)), "face", torch.device("cpu"))
    crops = torch.rand(3, 3, 40, 40)
    seen, mirrored = model.estimate(crops, crops), model.estimate(crops.flip(-1), crops)
    np.testing.assert_allclose(seen, mirrored, rtol=1e-4)
    assert np.ptp(seen[:, 0]) > 0.01


def test_unknown_people_get_what_the_network_says_and_the_column_its_name(body: BodyModel, tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "ages", AGES)
    scene = crowd(body)
    config = AttributeConfig(source="model", model=str(folder), batch=2)
    perception = Perception(PipelineConfig(attributes=config), body)
    perception.perceive([scene], StageClock())
    assert np.isfinite(scene.age_years).all()
    assert np.isnan(scene.male_prob).all()  # the network knows ages only
    assert scene.origin["attributes"] == perception.facts["attribute_models"]
    assert scene.origin["attributes"].startswith("vit@")


def test_what_labels_say_is_never_overruled(body: BodyModel, tmp_path: Path) -> None:
    ages, genders = save_classifier(tmp_path / "ages", AGES), save_classifier(tmp_path / "genders", ("female", "male"))
    scene = crowd(body)
    scene.age_years[1], scene.origin["attributes"] = 4.0, "sidecar"
    config = AttributeConfig(source="model", model=str(ages), gender_model=str(genders), crop="body")
    Perception(PipelineConfig(attributes=config), body).perceive([scene], StageClock())
    assert scene.age_years[1] == 4.0
    assert np.isfinite(scene.age_years).all()
    assert ((scene.male_prob > 0) & (scene.male_prob < 1)).all()
    assert scene.origin["attributes"].startswith("sidecar + vit@")


def test_source_none_ignores_ages_and_genders_of_the_labels(body: BodyModel) -> None:
    scene = crowd(body)
    scene.age_years[:] = 30
    Perception(PipelineConfig(attributes=AttributeConfig(source="none")), body).perceive([scene], StageClock())
    assert np.isnan(scene.age_years).all()
    assert scene.origin["attributes"] == "unknown"


def test_of_several_networks_the_first_that_knows_an_age_decides(body: BodyModel) -> None:
    scene, perception = crowd(body), Perception(PipelineConfig(), body)
    first, second = [[3.0, np.nan], [np.nan, np.nan], [5.0, np.nan]], [[9.0, 0.2], [8.0, np.nan], [7.0, 0.9]]
    networks: list[Any] = [
        SimpleNamespace(estimate=lambda *_, known=known: np.array(known), identity=SimpleNamespace(short=name))
        for name, known in (("a", first), ("b", second))
    ]
    perception._attributes = networks
    perception._device = torch.device("meta")  # all people at once, as on a GPU
    perception.perceive([scene], StageClock())
    np.testing.assert_allclose(scene.age_years, [3, 8, 5])
    np.testing.assert_allclose(scene.male_prob, [0.2, np.nan, 0.9], rtol=1e-6)
    assert scene.origin["attributes"] == "a, b"


def test_remote_code_runs_only_where_the_user_says_so_and_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    class Recorder:
        __name__ = "Recorder"

        def from_pretrained(self, name: str, **options: object) -> object:
            asked.append(options)
            raise OSError("no network in tests")

    monkeypatch.setattr(module, "AutoModelForImageClassification", Recorder())
    name, commit = "iitolstykh/mivolo_v2", "0" * 40
    for config in (
        AttributeConfig(model=name, trust_remote_code=True),  # not pinned: never asked for
        AttributeConfig(model=name, revision=commit),
        AttributeConfig(model=name, revision=commit, trust_remote_code=True),
    ):
        with pytest.raises(ModelError):
            build_attribute_models(config, "cpu")
    assert [options["trust_remote_code"] for options in asked] == [False, True]
    assert all(options["revision"] == commit for options in asked)


class FakeMiVolo:
    """Answers as MiVOLO v2 does; the left half of a face decides, so that mirroring matters."""

    def __call__(self, faces_input: torch.Tensor, body_input: torch.Tensor) -> object:
        left = faces_input[..., : faces_input.shape[-1] // 2].mean((1, 2, 3))
        return SimpleNamespace(
            age_output=(left * 100)[:, None],
            gender_class_idx=torch.ones(len(left), 1, dtype=torch.long),
            gender_probs=torch.full((len(left), 1), 0.8),
        )


def test_mivolo_sees_faces_and_bodies_both_ways_round() -> None:
    model = module.MiVolo.__new__(module.MiVolo)
    model.network, model._device, model._male = FakeMiVolo(), torch.device("cpu"), 0
    model._processor = lambda images: {"pixel_values": torch.tensor(np.stack(images)).permute(0, 3, 1, 2) / 255}
    faces = torch.zeros(1, 3, 4, 4)
    faces[..., :2] = 0.6  # bright on the left
    found = model.estimate(faces, faces)
    assert found[0, 0] == pytest.approx(30, abs=0.5)  # the mean of 60 and 0
    assert found[0, 1] == pytest.approx(0.2)  # class 1 is not the male one
