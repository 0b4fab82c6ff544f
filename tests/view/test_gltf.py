"""The 3D file is valid glTF 2.0 as far as its own numbers can tell, and holds the people where they are."""

from __future__ import annotations

import io
import json
import math
import struct
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from dto_pipeline.collate import keep_labels
from dto_pipeline.models.body import BodyModel
from dto_pipeline.scene import PlacedScene
from dto_pipeline.view.gltf import Y_UP, scene_to_glb
from tests.crowds import Stander, make_scene


def parse(data: bytes) -> tuple[dict[str, Any], trimesh.Scene]:
    """The document itself, and its people as trimesh reads them."""
    length = struct.unpack_from("<I", data, 12)[0]
    return json.loads(data[20 : 20 + length]), trimesh.load_scene(io.BytesIO(data), file_type="glb", process=False)


@pytest.fixture(scope="module")
def placed(body: BodyModel) -> PlacedScene:
    """Three people, the second of whom was moved by hand and the third of whom cannot be drawn."""
    people = [Stander(x=-0.7, z=4.0), Stander(x=0.7, z=5.0), Stander(x=0.0, z=6.0)]
    scene = make_scene(body, people)
    placed = keep_labels(scene)
    placed.transl = scene.transl.copy()
    placed.transl[1] *= 1.5
    scene.pose[2, 4] = np.nan
    return placed


@pytest.fixture(scope="module")
def glb(placed: PlacedScene, body: BodyModel) -> bytes:
    return scene_to_glb(placed, body)


def test_the_scene_holds_everybody_who_can_be_drawn_and_the_camera(glb: bytes) -> None:
    document, _ = parse(glb)
    assert document["asset"]["version"] == "2.0"
    (scene,) = document["scenes"]
    assert [document["nodes"][node]["name"] for node in scene["nodes"]] == [
        "person 1 (not run)",
        "person 2 (not run)",
        "camera of the photograph",
    ]


def test_people_stand_upright_in_the_y_up_frame_where_their_labels_put_them(
    glb: bytes, placed: PlacedScene, body: BodyModel
) -> None:
    _, scene = parse(glb)
    found = np.asarray(scene.geometry["person 2 (not run)"].vertices)
    label = (torch.from_numpy(value[1]) for value in (placed.scene.pose, placed.betas, placed.transl))
    np.testing.assert_allclose(found * Y_UP, body.vertices(*label).numpy(), atol=1e-5)
    head = found[int(body.vertices(torch.zeros(72), torch.zeros(11), torch.zeros(3))[:, 1].argmax())]
    assert head[1] == pytest.approx(found[:, 1].max(), abs=1e-3)
    assert found[:, 2].max() < 0  # before a camera that looks along -z


def test_the_camera_sees_what_the_photograph_saw(glb: bytes, placed: PlacedScene) -> None:
    document, _ = parse(glb)
    camera = document["cameras"][0]["perspective"]
    assert camera["aspectRatio"] == pytest.approx(320 / 240)
    assert math.tan(camera["yfov"] / 2) == pytest.approx(120 / placed.scene.intrinsics[1, 1])


def test_materials_are_one_per_person_and_differ(glb: bytes) -> None:
    document, _ = parse(glb)
    colours = [tuple(m["pbrMetallicRoughness"]["baseColorFactor"]) for m in document["materials"][:2]]
    assert len(set(colours)) == 2
    assert all(0 <= channel <= 1 for colour in colours for channel in colour)


def test_a_scene_without_anybody_is_still_a_file(placed: PlacedScene, body: BodyModel) -> None:
    empty = make_scene(body, [Stander(x=0, z=4)])
    empty.transl[:] = np.nan
    document, _ = parse(scene_to_glb(keep_labels(empty), body))
    assert [node["name"] for node in document["nodes"] if "camera" in node] == ["camera of the photograph"]
    assert not document.get("meshes")
