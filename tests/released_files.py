"""Released DTO-Humans as its makers write it: numpy and a dictionary, nothing of ours. For tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch

from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.rasterizer import rasterize

WIDTH, HEIGHT = 64, 48  # of every picture [px]
FOCAL = 60.0


def released_person(rng: np.random.Generator, x: float, z: float, camera: dict[str, np.ndarray]) -> dict[str, Any]:
    """One person; `camera` is shared by those of an image."""
    body = {
        "shape": np.append(rng.normal(0, 0.5, 10), 0).astype(np.float32),
        "pose": np.concatenate([[np.pi, 0, 0], rng.normal(0, 0.15, 69)]).astype(np.float32),
        "trans": np.array([x, 0.2, z], np.float32),
    }
    return {"smpl_param": body, "cam_param": camera}


def released_annots(images: int, people: int = 3, prefix: str = "") -> dict[str, list[dict[str, Any]]]:
    """``{image key: [person]}``."""
    rng = np.random.default_rng(7)
    annots = {}
    for number in range(images):
        camera = {
            "focal": np.array([FOCAL, FOCAL], np.float32),
            "princpt": np.array([WIDTH / 2, HEIGHT / 2], np.float32),
        }
        crowd = [released_person(rng, 0.9 * (k - 1), 3 + rng.uniform(0, 1), camera) for k in range(people)]
        annots[f"{prefix}{number:06d}.jpg"] = crowd
    return annots


def write_released(path: Path, annots: dict[str, Any]) -> Path:
    """As np.savez leaves it."""
    np.savez(path, annots=annots)  # type: ignore[arg-type]
    return path


def write_pictures(folder: Path, names: list[str]) -> None:
    """Five small pictures, each under many names."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    models = []
    for k in range(5):
        rgb = rng.integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
        models.append(folder.with_name(f"{folder.name}-{k}.jpg"))
        models[-1].write_bytes(simplejpeg.encode_jpeg(rgb, quality=70))
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(models[number % 5], folder / name)


def rendered_disparity(crowd: list[dict[str, Any]], body: BodyModel) -> np.ndarray:
    """(H, W) float32 disparity of these bodies as they stand, 30 m of air behind them."""
    bodies = [[person["smpl_param"][key] for person in crowd] for key in ("pose", "shape", "trans")]
    vertices = body.vertices(*(torch.from_numpy(np.stack(values)) for values in bodies))
    camera = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]], dtype=torch.float64)
    present = torch.ones(1, len(crowd), dtype=torch.bool)
    raster = rasterize(vertices[None], body.faces, camera[None], torch.tensor([[HEIGHT, WIDTH]]), present)
    z = raster.z[0].numpy()
    return (500 / np.where(z > 0, z, 30.0)).astype(np.float32)
