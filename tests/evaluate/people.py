"""People made up for evaluations: a few stand-in bodies in named images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dto_pipeline.data.people import People

SIZE = (480.0, 640.0)  # H, W [px]
FOCAL = 600.0


def make_people(places: Sequence[Sequence[tuple[float, float]]], focal: float = FOCAL, **changes: object) -> People:
    """People standing at (x, z) [m], one list per image named ``0.jpg``, ``1.jpg`` ...; the head is up."""
    owner = np.repeat(np.arange(len(places)), [len(image) for image in places])
    count = len(owner)
    pose = np.zeros((count, 72), np.float32)
    pose[:, 0] = np.pi
    transl = np.array([(x, 0.0, z) for image in places for x, z in image], np.float32).reshape(-1, 3)
    intrinsics = np.array([[focal, 0, SIZE[1] / 2], [0, focal, SIZE[0] / 2], [0, 0, 1.0]])
    fields: dict[str, object] = {
        "source": "made up",
        "images": np.array([f"{number}.jpg" for number in range(len(places))], dtype=object),
        "owner": owner,
        "row": np.arange(count),
        "pose": pose,
        "betas": np.zeros((count, 11), np.float32),
        "transl": transl,
        "intrinsics": np.repeat(intrinsics[None], count, axis=0),
        "size": np.tile(SIZE, (len(places), 1)),
        "accepted": np.ones(len(places), bool),
        "status": np.full(count, "", dtype=object),
    }
    return People(**{**fields, **changes})  # type: ignore[arg-type]


def images_of(people: People, start: int, stop: int) -> People:
    """The images of a range, with their people."""
    first, last = np.searchsorted(people.owner, (start, stop))
    some = people.take(np.arange(first, last))
    images = {name: getattr(people, name)[start:stop] for name in ("images", "size", "accepted")}
    return dataclasses.replace(some, owner=some.owner - start, **images)
