"""A trained network on photographs: people in front of the camera of the photograph, one `Scene` per image.

Knows how a photograph becomes the network's input and how its answer is carried back; knows no checkpoint and no label
file. The input shows the whole photograph, its longer side made S; both cameras look the same way from the same point,
so `transl` holds in either. The network thinks the principal point in the middle. Metres, radians, pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.config import BodyConfig, ConfigError
from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.sources.rows import ROW_PROBLEMS, find_row_problems
from dto_pipeline.maths.person_matching import carry_to_camera
from dto_pipeline.models.body import BodyModel
from dto_pipeline.scene import Scene
from dto_pipeline.status import ImageStatus, PersonStatus, UnusableImage
from dto_pipeline.train.augment import camera_problem, fit_size, resize
from dto_pipeline.train.model import Predictions, corners

_BOX_NOT_FINITE = "its box is not finite"


class Network(Protocol):
    """What `predict_scenes` needs of a network: `train.model.MeshNetwork` in evaluation mode."""

    def __call__(self, images: Sequence[torch.Tensor], *, by_image: bool) -> Predictions:
        """`images`: (3, h, w) uint8 RGB each, the longer side S."""
        ...


@dataclass(frozen=True)
class Trained:
    """A network ready to predict, and what a record of its predictions names."""

    network: Network  # in evaluation mode
    body: BodyModel  # of the training, on the CPU
    body_config: BodyConfig  # where it was read from
    input_size: int  # S [px]
    sha256: str  # of the weights
    device: torch.device
    by_image: bool = True  # an image's tokens never depend on its neighbours
    origin: str = ""  # where the weights are from, to be told


@dataclass(frozen=True)
class PredictConfig:
    """How images are predicted."""

    min_confidence: float = 0.3  # people below are left out (ours); a merge asks for 0.5 on top of it
    batch_images: int = 4  # images the network sees at once; changes no result but by rounding
    read_threads: int = 4  # images decoded at the same time

    def __post_init__(self) -> None:
        if not 0 <= self.min_confidence <= 1:
            raise ConfigError(f"the least confidence is {self.min_confidence}; expected 0 .. 1")
        if min(self.batch_images, self.read_threads) < 1:
            raise ConfigError("batch and reading threads must be at least 1")


@dataclass(frozen=True)
class Picture:
    """One image to predict."""

    image_id: str
    subset: str
    image_path: str
    image_file: str  # its name in the store
    intrinsics: np.ndarray | None = None  # (3, 3) float64 [px]; None = the network says
    fov: float | None = None  # vertical field of view [rad] where it is all that is known
    depth_file: str | None = None  # its depth map's name, for the manifest


class _UnusableCamera(UnusableImage):
    """The camera that was told cannot be that of the picture."""

    status = ImageStatus.LABEL_INVALID


class _UnusableAnswer(UnusableImage):
    """The network's answer says nothing about the picture."""

    status = ImageStatus.PREDICTION_INVALID


@dataclass(frozen=True)
class _Input:
    """A photograph laid out for the network."""

    image: np.ndarray  # (h, w, 3) uint8, the longer side S
    width: int  # of the photograph [px]
    height: int
    sha256: str
    camera: np.ndarray | None  # (3, 3) of the photograph; None where it is not known

    @property
    def grow(self) -> np.ndarray:
        """(2,) lengths of the input per length of the photograph."""
        return np.array([self.image.shape[1] / self.width, self.image.shape[0] / self.height])


@dataclass(frozen=True)
class _People:
    """The people of one image as the network said them, best first."""

    score: np.ndarray  # (n,)
    boxes: np.ndarray  # (n, 4) [px of the input]
    pose: np.ndarray  # (n, 72)
    betas: np.ndarray  # (n, 11)
    transl: np.ndarray  # (n, 3) [m]


def predict_scenes(
    trained: Trained, store: ImageStore, pictures: Iterable[Picture], config: PredictConfig
) -> Iterator[Scene]:
    """One scene per picture, in order; a few batches are in memory at a time.

    A picture that cannot be read, or whose answer is not finite, gives a scene with `problem` and nobody. A person
    whose numbers cannot be used stays, with its problem; where that is everybody, the picture has one too. `det_score`
    is the confidence.

    Args:
        trained: the network.
        store: where the pictures are.
        pictures: what to predict.
        config: knobs.
    """
    with ThreadPoolExecutor(config.read_threads) as pool:
        waiting = _read_ahead(pool, store, pictures, trained.input_size, 2 * config.batch_images)
        while some := list(islice(waiting, config.batch_images)):
            inputs = [laid for _, laid in some if isinstance(laid, _Input)]
            answers = iter(_ask(trained, inputs, config.min_confidence) if inputs else ())
            for picture, laid in some:
                if isinstance(laid, UnusableImage):
                    yield _broken_scene(picture, None, laid)
                elif isinstance(answer := next(answers), UnusableImage):
                    yield _broken_scene(picture, laid, answer)
                else:
                    yield _scene(picture, laid, *_carry_back(*answer, laid, trained.body))


def photograph_camera(input_camera: np.ndarray, grow: np.ndarray) -> np.ndarray:
    """The camera of a photograph whose input has this one: (3, 3), `grow` (2,) from photograph to input."""
    return np.diag([*(1 / grow), 1]) @ input_camera


def _read_ahead(
    pool: ThreadPoolExecutor, store: ImageStore, pictures: Iterable[Picture], size: int, most: int
) -> Iterator[tuple[Picture, _Input | UnusableImage]]:
    """Pictures laid out by threads, in order, at most `most` ahead."""
    ahead: deque[tuple[Picture, Future[_Input | UnusableImage]]] = deque()
    for picture in pictures:
        ahead.append((picture, pool.submit(_lay_out, store, picture, size)))
        if len(ahead) > most:
            first, result = ahead.popleft()
            yield first, result.result()
    for first, result in ahead:
        yield first, result.result()


def _lay_out(store: ImageStore, picture: Picture, size: int) -> _Input | UnusableImage:
    try:
        file = store.read(picture.image_file)
    except UnusableImage as error:
        return error
    height, width = file.rgb.shape[:2]
    camera = _known_camera(picture, width, height)
    if camera is not None and (problem := camera_problem(camera, width, height)):
        return _UnusableCamera(problem)
    image = resize(file.rgb, fit_size(width, height, size)[0])
    return _Input(image, width, height, file.sha256, camera)


def _known_camera(picture: Picture, width: int, height: int) -> np.ndarray | None:
    if picture.intrinsics is not None:
        return picture.intrinsics
    if picture.fov is not None:
        return _centred_camera(height / 2 / np.tan(picture.fov / 2), width, height)
    return None


def _centred_camera(focal: float, width: int, height: int) -> np.ndarray:
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])


@torch.inference_mode()
def _ask(
    trained: Trained, inputs: list[_Input], min_confidence: float
) -> list[tuple[_People, np.ndarray] | UnusableImage]:
    """People and camera of each input, or why its answer says nothing of them."""
    images = [
        torch.from_numpy(np.ascontiguousarray(laid.image.transpose(2, 0, 1))).to(trained.device) for laid in inputs
    ]
    answer = trained.network(images, by_image=trained.by_image)
    last = {"boxes": corners(answer.boxes[-1]) * trained.input_size, "pose": answer.poses[-1]}
    betas = functional.pad(answer.betas[-1], (0, NUM_BETAS - answer.betas.shape[-1]))
    last |= {"betas": betas, "transl": answer.transl[-1]}
    parts = {name: values.float().cpu().numpy() for name, values in last.items()}
    scores, seen_with = answer.confs[-1].float().cpu().numpy(), answer.intrinsics.double().cpu().numpy()
    found: list[tuple[_People, np.ndarray] | UnusableImage] = []
    for image, (score, camera) in enumerate(zip(scores, seen_with, strict=True)):
        if not np.isfinite(score).all():  # nobody knows who would be sure enough
            found.append(_UnusableAnswer("the network's confidences are not finite"))
        elif not np.isfinite(camera).all():
            found.append(_UnusableAnswer("the network's camera is not finite"))
        else:
            order = np.argsort(-score, kind="stable")
            order = order[score[order] >= min_confidence]
            people = {name: values[image, order] for name, values in parts.items()}
            found.append((_People(score[order], **people), camera))
    return found


def _carry_back(people: _People, seen_with: np.ndarray, laid: _Input, body: BodyModel) -> tuple[_People, np.ndarray]:
    """People and camera of the photograph.

    Where its camera is known, the people are carried to it: each pelvis keeps its place in the picture, and its
    distance changes with the focal length.
    """
    known = np.where(np.isfinite(people.boxes).all(axis=1, keepdims=True), people.boxes, np.nan)
    corners_there = known.reshape(-1, 2, 2) / laid.grow
    boxes = np.clip(corners_there, 0, [laid.width, laid.height]).reshape(-1, 4).astype(np.float32)
    camera, transl = photograph_camera(seen_with, laid.grow), people.transl
    if laid.camera is None:
        return _People(people.score, boxes, people.pose, people.betas, transl), camera
    if len(transl):
        pelvis = body.joints(*(torch.from_numpy(v) for v in (people.pose, people.betas, transl)))[:, 0]
        own, wanted = (torch.from_numpy(k).expand(len(transl), 3, 3) for k in (camera, laid.camera))
        transl = carry_to_camera(torch.from_numpy(transl).double(), pelvis.double(), own, wanted).float().numpy()
    return _People(people.score, boxes, people.pose, people.betas, transl), laid.camera


def _scene(picture: Picture, laid: _Input, people: _People, camera: np.ndarray) -> Scene:
    problems, count = _person_problems(people), len(people.score)
    nobody_left = bool(problems) and all(problems)
    return Scene(
        image_id=picture.image_id,
        subset=picture.subset,
        image_path=picture.image_path,
        width=laid.width,
        height=laid.height,
        intrinsics=camera,
        pose=people.pose,
        betas=people.betas,
        transl=people.transl,
        age_years=np.full(count, np.nan, np.float32),
        male_prob=np.full(count, np.nan, np.float32),
        source_row=np.full(count, -1, np.int64),
        bbox_xyxy=people.boxes,
        det_score=people.score,
        person_problem=[(PersonStatus.INVALID_LABEL, text) if text else None for text in problems],
        image_sha256=laid.sha256,
        problem=(ImageStatus.PREDICTION_INVALID, f"nobody can be used: {problems[0]}") if nobody_left else None,
    )


def _person_problems(people: _People) -> list[str | None]:
    found = [ROW_PROBLEMS[code] for code in find_row_problems(people.pose, people.betas, people.transl)]
    boxed = np.isfinite(people.boxes).all(axis=1)
    return [text or (None if has_box else _BOX_NOT_FINITE) for text, has_box in zip(found, boxed, strict=True)]


def _broken_scene(picture: Picture, laid: _Input | None, error: UnusableImage) -> Scene:
    """A picture that could not be read or answered: nobody, camera unknown unless it was told."""
    nobody = np.zeros((0,), np.float32)
    unknown = np.array([[np.nan, 0, np.nan], [0, np.nan, np.nan], [0, 0, 1]])
    width, height, sha256 = (laid.width, laid.height, laid.sha256) if laid else (0, 0, "")
    return Scene(
        image_id=picture.image_id,
        subset=picture.subset,
        image_path=picture.image_path,
        width=width,
        height=height,
        intrinsics=unknown if picture.intrinsics is None else picture.intrinsics,
        pose=nobody.reshape(0, 72),
        betas=nobody.reshape(0, NUM_BETAS),
        transl=nobody.reshape(0, 3),
        age_years=nobody,
        male_prob=nobody,
        source_row=np.zeros(0, np.int64),
        bbox_xyxy=nobody.reshape(0, 4),
        det_score=nobody,
        person_problem=[],
        image_sha256=sha256,
        problem=(error.status, str(error)),
    )
