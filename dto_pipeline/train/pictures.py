"""What a network sees in held-out images, drawn: labels and predictions over the image, both from above.

Tensors in, pictures out; opens no file.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from dto_pipeline.models.body import BodyModel
from dto_pipeline.train.batch import TrainBatch
from dto_pipeline.train.model import Predictions
from dto_pipeline.train.tokens import CONFIDENT
from dto_pipeline.view.overlay import draw_overlays
from dto_pipeline.view.panel import PanelRow, People, compose_page, ground_places
from dto_pipeline.view.plots import draw_birds_eye

_LONGEST = 480  # of an image drawn over [px]
_PLAN = (420, 480)  # of the view from above [px]


def draw_held_out(batch: TrainBatch, predictions: Predictions, index: int, body: BodyModel) -> Image.Image:
    """One page for image `index` of a batch: the labels above, the confident predictions below.

    Args:
        batch, predictions: on any device; body: on the CPU.
    """
    image = batch.images[index].permute(1, 2, 0).cpu().numpy()
    targets = batch.targets
    kept = predictions.confs[-1, index] >= CONFIDENT
    labelled = (targets.image == index) & targets.has_body
    labels = _people(targets.poses[labelled], targets.betas[labelled], targets.transl[labelled])
    betas = functional.pad(predictions.betas[-1, index][kept], (0, 11 - predictions.betas.shape[-1]))
    found = _people(predictions.poses[-1, index][kept], betas, predictions.transl[-1, index][kept])
    places = [ground_places(people, body) for people in (labels, found)]
    cameras = (batch.intrinsics[index], predictions.intrinsics[index])
    words = ("Labels", f"Predictions of confidence {CONFIDENT} and more")
    rows = []
    for people, place, camera, caption in zip((labels, found), places, cameras, words, strict=True):
        intrinsics = camera.detach().double().cpu()
        above = draw_birds_eye(place, intrinsics.numpy(), image.shape[1], _PLAN, np.concatenate(places))
        rows.append(PanelRow(_overlay(image, people, intrinsics, body), above, caption, "from above"))
    return compose_page(rows, batch.image_ids[index])


def _people(pose: torch.Tensor, betas: torch.Tensor, transl: torch.Tensor) -> People:
    return People(*(part.detach().float().cpu().numpy() for part in (pose, betas, transl)))


def _overlay(image: np.ndarray, people: People, intrinsics: torch.Tensor, body: BodyModel) -> Image.Image:
    pose, betas, transl = (torch.from_numpy(part)[None] for part in (people.pose, people.betas, people.transl))
    present = torch.ones(1, pose.shape[1], dtype=torch.bool)
    if not pose.shape[1]:
        return Image.fromarray(image).resize((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    vertices = body.vertices(pose, betas, transl)
    return draw_overlays([image], vertices, present, body.faces, intrinsics[None], _LONGEST)[0]
