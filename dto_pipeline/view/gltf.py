"""A placed scene as a binary glTF file (GLB 2.0) that any 3D viewer opens.

glTF is y up and its cameras look along -z, so (x, y, z) of the camera frame becomes (x, -y, -z): the photograph's
camera stands at the origin unrotated. Metres. Scene 0 ("after") is shown by default, scene 1 ("before") holds the
labels as given; both hold the camera and its field of view as lines. Knows no files.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dto_pipeline import __version__
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.surface import vertex_normals
from dto_pipeline.scene import PlacedScene
from dto_pipeline.view.palette import person_colours

Y_UP = np.array([1.0, -1.0, -1.0], dtype=np.float32)
_MAGIC, _VERSION, _JSON, _BIN = 0x46546C67, 2, 0x4E4F534A, 0x004E4942
_FLOAT, _UINT = 5126, 5125  # component types
_VERTICES, _INDICES = 34962, 34963  # buffer view targets
_LINES, _TRIANGLES = 1, 4
_FRUSTUM_COLOUR = (0.2, 0.22, 0.26, 1.0)
_FRUSTUM_BEYOND = 0.5  # the lines reach this far behind the last person [m]


@dataclass
class _Builder:
    """Accumulates the document and its one buffer."""

    data: bytearray = field(default_factory=bytearray)
    views: list[dict[str, Any]] = field(default_factory=list)
    accessors: list[dict[str, Any]] = field(default_factory=list)
    materials: list[dict[str, Any]] = field(default_factory=list)
    meshes: list[dict[str, Any]] = field(default_factory=list)
    nodes: list[dict[str, Any]] = field(default_factory=list)

    def add_array(self, values: np.ndarray, kind: str, target: int) -> int:
        """Append float32 or uint32 values (n, k) or (n,) to the buffer; returns the accessor's number."""
        data = np.ascontiguousarray(values, dtype="<u4" if values.dtype.kind in "iu" else "<f4")
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": data.nbytes, "target": target}
        self.data += data.tobytes()
        self.views.append(view)
        flat = data.reshape(len(data), -1)
        accessor = {
            "bufferView": len(self.views) - 1,
            "componentType": _UINT if data.dtype.kind == "u" else _FLOAT,
            "count": len(data),
            "type": kind,
            "min": flat.min(axis=0).tolist(),
            "max": flat.max(axis=0).tolist(),
        }
        self.accessors.append(accessor)
        return len(self.accessors) - 1

    def add_material(self, colour: tuple[float, ...], unlit: bool = False) -> int:
        surface = {"baseColorFactor": list(colour), "metallicFactor": 0.0, "roughnessFactor": 0.8}
        extra: dict[str, Any] = {"extensions": {"KHR_materials_unlit": {}}} if unlit else {}
        self.materials.append({"pbrMetallicRoughness": surface, "doubleSided": True, **extra})
        return len(self.materials) - 1

    def add_mesh_node(self, name: str, attributes: dict[str, int], indices: int, material: int, mode: int) -> int:
        primitive = {"attributes": attributes, "indices": indices, "material": material, "mode": mode}
        self.meshes.append({"name": name, "primitives": [primitive]})
        self.nodes.append({"name": name, "mesh": len(self.meshes) - 1})
        return len(self.nodes) - 1


def scene_to_glb(placed: PlacedScene, body: BodyModel) -> bytes:
    """Build the file.

    Args:
        placed: a scene; people that are not finite or behind the camera are left out.
        body: model of all bodies.

    Returns:
        Bytes of a .glb file.
    """
    builder, scene = _Builder(), placed.scene
    colours = person_colours(scene.num_people) / 255.0
    materials = [builder.add_material((*_linear(colour), 1.0)) for colour in colours]
    faces = builder.add_array(body.faces.cpu().numpy().reshape(-1), "SCALAR", _INDICES)
    states = {"after": (placed.betas, placed.transl), "before": (scene.betas, scene.transl)}
    names = [_node_name(placed, person) for person in range(scene.num_people)]
    crowds = {
        state: _add_people(builder, body, state, (scene.pose, *values), faces, (names, materials))
        for state, values in states.items()
    }
    shared = [_add_frustum(builder, placed), _add_camera(builder)]
    return _pack(_document(builder, placed, {state: nodes + shared for state, nodes in crowds.items()}), builder.data)


def _add_people(
    builder: _Builder,
    body: BodyModel,
    state: str,
    label: tuple[np.ndarray, np.ndarray, np.ndarray],
    faces: int,
    looks: tuple[list[str], list[int]],
) -> list[int]:
    """One node per person who can be drawn. label: pose, betas, transl; looks: names and materials, one per person."""
    usable = np.all([np.isfinite(value).all(axis=1) for value in label], axis=0) & (label[2][:, 2] > 0)
    kept = np.flatnonzero(usable)
    vertices = body.vertices(*(torch.from_numpy(np.asarray(value[kept], np.float32)) for value in label))
    normals = vertex_normals(vertices, body.faces)
    nodes = []
    for person, points, normal in zip(kept.tolist(), vertices.numpy(), normals.numpy(), strict=True):
        unit = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
        attributes = {
            "POSITION": builder.add_array(points * Y_UP, "VEC3", _VERTICES),
            "NORMAL": builder.add_array(np.where(np.isfinite(unit), unit, 0) * Y_UP, "VEC3", _VERTICES),
        }
        name = f"{looks[0][person]}, {state}"
        nodes.append(builder.add_mesh_node(name, attributes, faces, looks[1][person], _TRIANGLES))
    return nodes


def _add_frustum(builder: _Builder, placed: PlacedScene) -> int:
    """Lines from the camera through the photograph's corners, and the photograph's border behind the people."""
    scene = placed.scene
    z = np.concatenate([scene.transl[:, 2], placed.transl[:, 2]])
    far = float(z[np.isfinite(z) & (z > 0)].max(initial=1.0)) + _FRUSTUM_BEYOND
    width, height = _image_size(placed)
    corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]], dtype=np.float64)
    ends = corners @ np.linalg.inv(scene.intrinsics).T * far
    points = np.concatenate([np.zeros((1, 3)), ends]).astype(np.float32) * Y_UP
    lines = np.array([0, 1, 0, 2, 0, 3, 0, 4, 1, 2, 2, 3, 3, 4, 4, 1], dtype=np.uint32)
    position = builder.add_array(points, "VEC3", _VERTICES)
    indices = builder.add_array(lines, "SCALAR", _INDICES)
    material = builder.add_material(_FRUSTUM_COLOUR, unlit=True)
    return builder.add_mesh_node("field of view", {"POSITION": position}, indices, material, _LINES)


def _add_camera(builder: _Builder) -> int:
    builder.nodes.append({"name": "camera of the photograph", "camera": 0})
    return len(builder.nodes) - 1


def _document(builder: _Builder, placed: PlacedScene, scenes: dict[str, list[int]]) -> dict[str, Any]:
    width, height = _image_size(placed)
    fy = float(placed.scene.intrinsics[1, 1])
    perspective = {"yfov": 2 * math.atan(height / (2 * fy)), "aspectRatio": width / height, "znear": 0.05}
    extras = {"image_id": placed.scene.image_id, "status": str(placed.status), "frame": "x right, y up, z backwards, m"}
    return {
        "asset": {"version": "2.0", "generator": f"dto_pipeline {__version__}", "extras": extras},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"name": name, "nodes": nodes} for name, nodes in scenes.items()],
        "nodes": builder.nodes,
        "cameras": [{"type": "perspective", "perspective": perspective}],
        "meshes": builder.meshes,
        "materials": builder.materials,
        "accessors": builder.accessors,
        "bufferViews": builder.views,
        "buffers": [{"byteLength": len(builder.data)}],
    }


def _pack(document: dict[str, Any], data: bytearray) -> bytes:
    """Header, JSON chunk (padded with spaces) and binary chunk (all arrays are multiples of four bytes long)."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    total = 12 + 8 + len(text) + 8 + len(data)
    head = struct.pack("<III", _MAGIC, _VERSION, total)
    return b"".join([head, struct.pack("<II", len(text), _JSON), text, struct.pack("<II", len(data), _BIN), data])


def _node_name(placed: PlacedScene, person: int) -> str:
    return f"person {person + 1} ({str(placed.person_status[person]).replace('_', ' ')})"


def _image_size(placed: PlacedScene) -> tuple[float, float]:
    """Width and height [px]; of an image that was never read, twice its principal point."""
    scene = placed.scene
    if scene.width > 0 and scene.height > 0:
        return float(scene.width), float(scene.height)
    return max(2 * float(scene.intrinsics[0, 2]), 1.0), max(2 * float(scene.intrinsics[1, 2]), 1.0)


def _linear(colour: np.ndarray) -> list[float]:
    """sRGB 0 .. 1 as the linear values that materials hold."""
    return np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4).tolist()
