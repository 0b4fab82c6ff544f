"""The 3D file is valid glTF 2.0 as far as its own numbers can tell, and holds the people where they are."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
import pytest
import torch

from dto_pipeline.collate import pass_through
from dto_pipeline.models.body import BodyModel
from dto_pipeline.scene import PlacedScene
from dto_pipeline.view.gltf import Y_UP, scene_to_glb
from tests.crowds import Stander, make_scene

TYPES = {5126: np.dtype("<f4"), 5125: np.dtype("<u4")}
WIDTHS = {"SCALAR": 1, "VEC3": 3}


def parse(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The document and its buffer; checks the container as the specification asks."""
    magic, version, total = struct.unpack_from("<4sII", data)
    assert (magic, version, total) == (b"glTF", 2, len(data))
    length, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON"
    assert length % 4 == 0
    document = json.loads(data[20 : 20 + length])
    size, kind = struct.unpack_from("<I4s", data, 20 + length)
    assert kind == b"BIN\0"
    assert size % 4 == 0
    buffer = data[28 + length :]
    assert len(buffer) == size == document["buffers"][0]["byteLength"]
    return document, buffer


def read_accessor(document: dict[str, Any], buffer: bytes, number: int) -> np.ndarray:
    accessor = document["accessors"][number]
    view = document["bufferViews"][accessor["bufferView"]]
    kind, width = TYPES[accessor["componentType"]], WIDTHS[accessor["type"]]
    assert view["byteOffset"] % kind.itemsize == 0
    assert view["byteLength"] == accessor["count"] * width * kind.itemsize
    assert view["byteOffset"] + view["byteLength"] <= len(buffer)
    values = np.frombuffer(buffer, kind, accessor["count"] * width, view["byteOffset"]).reshape(-1, width)
    assert values.min(axis=0).tolist() == accessor["min"]
    assert values.max(axis=0).tolist() == accessor["max"]
    return values


@pytest.fixture(scope="module")
def placed(body: BodyModel) -> PlacedScene:
    """Three people, the second of whom was moved by hand and the third of whom cannot be drawn."""
    people = [Stander(x=-0.7, z=4.0), Stander(x=0.7, z=5.0), Stander(x=0.0, z=6.0)]
    scene = make_scene(body, people)
    placed = pass_through(scene)
    placed.transl = scene.transl.copy()
    placed.transl[1] *= 1.5
    scene.pose[2, 4] = np.nan
    return placed


@pytest.fixture(scope="module")
def glb(placed: PlacedScene, body: BodyModel) -> bytes:
    return scene_to_glb(placed, body)


def test_accessors_keep_their_bounds_and_indices_their_range(glb: bytes) -> None:
    document, buffer = parse(glb)
    for mesh in document["meshes"]:
        (primitive,) = mesh["primitives"]
        points = read_accessor(document, buffer, primitive["attributes"]["POSITION"])
        indices = read_accessor(document, buffer, primitive["indices"])
        assert indices.max() < len(points)
        assert len(indices) % (3 if primitive["mode"] == 4 else 2) == 0
        assert primitive["material"] < len(document["materials"])
        if "NORMAL" in primitive["attributes"]:
            normals = read_accessor(document, buffer, primitive["attributes"]["NORMAL"])
            np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-4)
    used = sum(view["byteLength"] for view in document["bufferViews"])
    assert used == len(buffer)


def test_every_node_of_both_scenes_exists_and_the_result_is_shown_first(glb: bytes) -> None:
    document, _ = parse(glb)
    assert document["asset"]["version"] == "2.0"
    assert document["scenes"][document["scene"]]["name"] == "after"
    names = {
        scene["name"]: [document["nodes"][node]["name"] for node in scene["nodes"]] for scene in document["scenes"]
    }
    assert names["after"] == [
        "person 1 (not run), after",
        "person 2 (not run), after",
        "field of view",
        "camera of the photograph",
    ]
    assert len(names["before"]) == 4
    assert "KHR_materials_unlit" in document["extensionsUsed"]


def test_people_stand_upright_in_the_y_up_frame_where_their_labels_put_them(
    glb: bytes, placed: PlacedScene, body: BodyModel
) -> None:
    document, buffer = parse(glb)
    node = next(n for n in document["nodes"] if n["name"].startswith("person 2") and n["name"].endswith("after"))
    primitive = document["meshes"][node["mesh"]]["primitives"][0]
    found = read_accessor(document, buffer, primitive["attributes"]["POSITION"])
    label = (torch.from_numpy(value[1]) for value in (placed.scene.pose, placed.betas, placed.transl))
    np.testing.assert_allclose(found * Y_UP, body.vertices(*label).numpy(), atol=1e-5)
    head = found[int(body.vertices(torch.zeros(72), torch.zeros(11), torch.zeros(3))[:, 1].argmax())]
    assert head[1] == pytest.approx(found[:, 1].max(), abs=1e-3)
    assert found[:, 2].max() < 0  # before a camera that looks along -z


def test_the_camera_sees_what_the_photograph_saw(glb: bytes, placed: PlacedScene) -> None:
    document, buffer = parse(glb)
    camera = document["cameras"][0]["perspective"]
    assert camera["aspectRatio"] == pytest.approx(320 / 240)
    assert math.tan(camera["yfov"] / 2) == pytest.approx(120 / placed.scene.intrinsics[1, 1])
    lines = next(mesh for mesh in document["meshes"] if mesh["name"] == "field of view")["primitives"][0]
    corners = read_accessor(document, buffer, lines["attributes"]["POSITION"])[1:] * Y_UP
    pixels = corners @ placed.scene.intrinsics.T
    np.testing.assert_allclose(pixels[:, :2] / pixels[:, 2:], [[0, 0], [320, 0], [320, 240], [0, 240]], atol=1e-3)


def test_materials_are_one_per_person_and_differ(glb: bytes) -> None:
    document, _ = parse(glb)
    colours = [tuple(m["pbrMetallicRoughness"]["baseColorFactor"]) for m in document["materials"][:3]]
    assert len(set(colours)) == 3
    assert all(0 <= channel <= 1 for colour in colours for channel in colour)


def test_a_scene_without_anybody_is_still_a_file(placed: PlacedScene, body: BodyModel) -> None:
    empty = make_scene(body, [Stander(x=0, z=4)])
    empty.transl[:] = np.nan
    document, _ = parse(scene_to_glb(pass_through(empty), body))
    assert [mesh["name"] for mesh in document["meshes"]] == ["field of view"]
