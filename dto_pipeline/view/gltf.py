"""Write a placed scene as a binary glTF file (GLB 2.0), which 3D viewers open.

glTF is y up and its cameras look along -z, so (x, y, z) of the camera frame becomes (x, -y, -z): the photograph's
camera is at the origin, unrotated. Metres. The file holds the people as placed, the camera, and its field of view as
lines.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import trimesh
from trimesh.scene.cameras import Camera
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.rasterizer import vertex_normals
from dto_pipeline.scene import PlacedScene
from dto_pipeline.view.drawing import person_colours, picture_size

Y_UP = np.array([1.0, -1.0, -1.0], dtype=np.float32)
_LINES, _CAMERA = "field of view", "camera of the photograph"
_FRUSTUM_COLOUR = (128, 132, 139, 255)
_FRUSTUM_BEYOND = 0.5  # the lines reach this far behind the last person [m]


def scene_to_glb(placed: PlacedScene, body: BodyModel) -> bytes:
    """Bytes of a .glb file; people that are not finite or behind the camera are left out."""
    scene = trimesh.Scene()
    _add_people(scene, placed, body)
    width, height = picture_size((placed.scene.width, placed.scene.height), placed.scene.intrinsics)
    scene.add_geometry(_frustum(placed, width, height), geom_name=_LINES, node_name=_LINES)
    scene.camera = Camera(_CAMERA, resolution=(width, height), fov=(60, 60))
    scene.camera_transform = np.eye(4)
    yfov = 2 * math.atan(height / (2 * float(placed.scene.intrinsics[1, 1])))
    shape = {"yfov": yfov, "aspectRatio": width / height, "znear": 0.05}

    def set_camera(tree: dict[str, Any]) -> None:  # trimesh takes the ratio of the angles for that of the sides
        tree["cameras"] = [{"name": _CAMERA, "type": "perspective", "perspective": shape}]

    return bytes(trimesh.exchange.gltf.export_glb(scene, include_normals=True, tree_postprocessor=set_camera))


def _add_people(scene: trimesh.Scene, placed: PlacedScene, body: BodyModel) -> None:
    """Add a node per person who can be drawn."""
    values = (placed.scene.pose, placed.betas, placed.transl)
    kept = np.flatnonzero(np.all([np.isfinite(v).all(axis=1) for v in values], axis=0) & (placed.transl[:, 2] > 0))
    vertices = body.vertices(*(torch.from_numpy(np.asarray(v[kept], np.float32)) for v in values))
    normals = np.nan_to_num(vertex_normals(vertices, body.faces))
    shown = person_colours(placed.scene.num_people)
    colours = np.where(shown <= 0.04045, shown / 12.92, ((shown + 0.055) / 1.055) ** 2.4)  # materials hold linear ones
    for person, points, normal in zip(kept.tolist(), vertices.numpy(), normals, strict=True):
        material = PBRMaterial(
            baseColorFactor=[*colours[person], 1.0], metallicFactor=0.0, roughnessFactor=0.8, doubleSided=True
        )
        mesh = trimesh.Trimesh(
            points * Y_UP, body.faces.cpu().numpy(), vertex_normals=normal * Y_UP, process=False, validate=False
        )
        mesh.visual = TextureVisuals(material=material)
        name = f"person {person + 1} ({str(placed.person_status[person]).replace('_', ' ')})"
        scene.add_geometry(mesh, geom_name=name, node_name=name)


def _frustum(placed: PlacedScene, width: float, height: float) -> Any:
    """Lines from the camera through the photograph's corners, and the photograph's border behind the people."""
    z = placed.transl[:, 2]
    far = float(z[np.isfinite(z) & (z > 0)].max(initial=1.0)) + _FRUSTUM_BEYOND
    corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]], dtype=np.float64)
    ends = corners @ np.linalg.inv(placed.scene.intrinsics).T * far * Y_UP
    lines = [(np.zeros(3), end) for end in ends] + list(zip(ends, np.roll(ends, -1, axis=0), strict=True))
    path = trimesh.load_path(np.array(lines))
    path.colors = np.tile(np.array(_FRUSTUM_COLOUR, np.uint8), (len(path.entities), 1))
    return path
