"""Write a placed scene as a binary glTF file (GLB 2.0), which 3D viewers open.

glTF is y up and its cameras look along -z, so (x, y, z) of the camera frame becomes (x, -y, -z): the photograph's
camera is at the origin, unrotated. Metres. The file holds the people as placed and the camera.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import trimesh
from trimesh.scene.cameras import Camera
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.rasterizer import vertex_normals
from dto_pipeline.scene import PlacedScene
from dto_pipeline.view.drawing import person_colours, picture_size
from dto_pipeline.view.pages import DrawnPeople

Y_UP = np.array([1.0, -1.0, -1.0], dtype=np.float32)
_CAMERA = "camera of the photograph"


def scene_to_glb(placed: PlacedScene, body: BodyModel) -> bytes:
    """Bytes of a .glb file with a node per person; people that are not finite or behind the camera are left out."""
    scene = trimesh.Scene()
    *values, present = DrawnPeople(placed.scene.pose, placed.betas, placed.transl).tensors()
    vertices = body.vertices(*(value[present] for value in values))
    normals = np.nan_to_num(vertex_normals(vertices, body.faces).numpy())
    shown = person_colours(placed.scene.num_people)
    colours = np.where(shown <= 0.04045, shown / 12.92, ((shown + 0.055) / 1.055) ** 2.4)  # materials hold linear ones
    for person, points, normal in zip(present.nonzero()[:, 0].tolist(), vertices.numpy(), normals, strict=True):
        material = PBRMaterial(
            baseColorFactor=[*colours[person], 1.0], metallicFactor=0.0, roughnessFactor=0.8, doubleSided=True
        )
        mesh = trimesh.Trimesh(
            points * Y_UP, body.faces.cpu().numpy(), vertex_normals=normal * Y_UP, process=False, validate=False
        )
        mesh.visual = TextureVisuals(material=material)
        name = f"person {person + 1} ({str(placed.person_status[person]).replace('_', ' ')})"
        scene.add_geometry(mesh, geom_name=name, node_name=name)
    width, height = picture_size((placed.scene.width, placed.scene.height), placed.scene.intrinsics)
    scene.camera = Camera(_CAMERA, resolution=(width, height), fov=(60, 60))
    scene.camera_transform = np.eye(4)
    yfov = 2 * math.atan(height / (2 * float(placed.scene.intrinsics[1, 1])))
    shape = {"yfov": yfov, "aspectRatio": width / height, "znear": 0.05}

    def set_camera(tree: dict[str, Any]) -> None:  # trimesh takes the ratio of the angles for that of the sides
        tree["cameras"] = [{"name": _CAMERA, "type": "perspective", "perspective": shape}]

    return bytes(trimesh.exchange.gltf.export_glb(scene, include_normals=True, tree_postprocessor=set_camera))
