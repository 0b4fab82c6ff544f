"""A trained network on photographs: people in front of the camera of the photograph, one `Scene` per image.

Knows how a photograph becomes the network's input and how its answer is carried back; knows no checkpoint and no label
file. The input shows the whole photograph in a square; both cameras look the same way from the same point, so `transl`
holds in either, and a camera K' of the input is A^-1 K' of the photograph, A being the map from photograph to input.
Metres, radians, pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import torch

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.config import BodyConfig, ConfigError
from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.sources.rows import ROW_PROBLEMS, find_row_problems
from dto_pipeline.maths.person_matching import carry_to_camera
from dto_pipeline.models.body import BodyModel
from dto_pipeline.scene import Scene
from dto_pipeline.status import ImageStatus, PersonStatus, UnusableImage
from dto_pipeline.train.augment import camera_problem, view_affine, warp_image, whole_view

_BOX_NOT_FINITE = "its box is not finite"
_GUESSED_FOCAL = 1.0  # of the longer side: only to lay the picture out; the answer does not depend on it


class Answer(Protocol):
    """What a network says of B inputs and Q people each; people of low confidence are not there."""

    @property
    def confidence(self) -> torch.Tensor: ...  # (B, Q) 0 .. 1
    @property
    def boxes(self) -> torch.Tensor: ...  # (B, Q, 4) left, top, right, bottom [px of the input]
    @property
    def pose(self) -> torch.Tensor: ...  # (B, Q, 72) axis-angle, root first [rad]
    @property
    def betas(self) -> torch.Tensor: ...  # (B, Q, 11)
    @property
    def transl(self) -> torch.Tensor: ...  # (B, Q, 3) [m]
    @property
    def intrinsics(self) -> torch.Tensor: ...  # (B, 3, 3) camera the people are seen with [px of the input]


class Network(Protocol):
    """What `predict_scenes` needs of a network."""

    def __call__(self, image: torch.Tensor, intrinsics: torch.Tensor | None) -> Answer:
        """`image`: (B, 3, S, S) RGB in 0 .. 1; `intrinsics`: (B, 3, 3) its camera as far as it is known [px]."""
        ...


@dataclass(frozen=True)
class Trained:
    """A network ready to predict, and what a record of its predictions names."""

    network: Network  # in evaluation mode
    body: BodyModel  # of the training, on the CPU
    body_config: BodyConfig  # where it was read from
    input_size: int  # S [px]
    sha256: str  # of the checkpoint
    device: torch.device
    origin: str = ""  # the checkpoint's file and step, to be told


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

    image: np.ndarray  # (S, S, 3) uint8
    width: int  # of the photograph [px]
    height: int
    sha256: str
    camera: np.ndarray  # (3, 3) of the photograph; a guess where it is not known
    known: bool
    affine: np.ndarray  # (3, 3) from photograph to input

    @property
    def input_camera(self) -> np.ndarray:
        """(3, 3) float64 [px of the input]."""
        return self.affine @ self.camera


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


def photograph_camera(affine: np.ndarray, input_camera: np.ndarray) -> np.ndarray:
    """The camera of a photograph whose input has this one: (3, 3) each, `affine` from photograph to input."""
    camera = np.linalg.inv(affine) @ input_camera
    return camera / camera[2, 2]


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
    known = camera is not None
    if camera is None:
        camera = _centred_camera(_GUESSED_FOCAL * max(width, height), width, height)
    affine = view_affine(camera, whole_view(camera, width, height, size))
    image = warp_image(file.rgb, affine, size)
    return _Input(image, width, height, file.sha256, camera, known, np.vstack([affine, [0, 0, 1]]))


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
    pixels = torch.from_numpy(np.stack([laid.image for laid in inputs])).to(trained.device)
    cameras = torch.from_numpy(np.stack([laid.input_camera for laid in inputs])).float().to(trained.device)
    answer = trained.network(pixels.permute(0, 3, 1, 2).float() / 255, cameras)
    names = ("boxes", "pose", "betas", "transl")
    parts = {name: getattr(answer, name).float().cpu().numpy() for name in names}
    scores, seen_with = answer.confidence.float().cpu().numpy(), answer.intrinsics.double().cpu().numpy()
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
    inverse = np.linalg.inv(laid.affine)
    known = np.where(np.isfinite(people.boxes).all(axis=1, keepdims=True), people.boxes, np.nan)
    corners = known.reshape(-1, 2, 2) @ inverse[:2, :2].T + inverse[:2, 2]
    boxes = np.clip(corners, 0, [laid.width, laid.height]).reshape(-1, 4).astype(np.float32)
    camera, transl = photograph_camera(laid.affine, seen_with), people.transl
    if laid.known and len(transl):
        pelvis = body.joints(*(torch.from_numpy(v) for v in (people.pose, people.betas, transl)))[:, 0]
        own, wanted = (torch.from_numpy(k).expand(len(transl), 3, 3) for k in (camera, laid.camera))
        transl = carry_to_camera(torch.from_numpy(transl).double(), pelvis.double(), own, wanted).float().numpy()
    camera = laid.camera if laid.known else camera
    return _People(people.score, boxes, people.pose, people.betas, transl), camera


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
