"""A trained network on photographs: people in front of the camera of the photograph, one `Scene` per image.

Knows how weights become a network, a photograph its input, and how its answer is carried back; knows no label file.
The input shows the whole photograph, its longer side made S; both cameras look the same way from the same point, so
`transl` holds in either. The network thinks the principal point in the middle. Metres, radians, pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.config import STAND_IN_BODY, BodyConfig
from dto_pipeline.config_tree import ConfigError
from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.sources.rows import ROW_PROBLEMS, find_row_problems
from dto_pipeline.data.torch_files import read_torch_file
from dto_pipeline.maths.person_matching import carry_to_camera
from dto_pipeline.models.body import BodyModel, BodyModelError, load_body
from dto_pipeline.scene import Scene
from dto_pipeline.status import ImageStatus, PersonStatus, UnusableImage
from dto_pipeline.train.augment import camera_problem, fit_size, resize
from dto_pipeline.train.checkpoint import read_checkpoint, restore_network
from dto_pipeline.train.model import Predictions, corners
from dto_pipeline.train.released import build_released, clean_names, hash_weights

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


def load_trained(
    path: str | Path, device: torch.device, body_path: str | Path | None = None, encoder_heads: int | None = None
) -> Trained:
    """Read weights to predict with.

    Args:
        path: checkpoint file, a training's folder (its newest that can be read), or a released file of weights.
        device: where the network shall compute.
        body_path: the body model of the training where it lies now; None = as in the training's config. A released
            file names none.
        encoder_heads: of a released file, whose shapes do not tell it; None = one per 64 features.

    Raises:
        CheckpointError, TorchFileError, ReleasedError: there are no weights, or they cannot be used.
        BodyModelError: the body model cannot be read, or is another one than the network was trained with.
    """
    content = read_torch_file(Path(path)) if Path(path).is_file() else None
    if isinstance(content, dict) and content and "format" not in content:
        return _load_released(clean_names(content, str(path)), str(path), device, body_path, encoder_heads)
    checkpoint = read_checkpoint(path)
    named = checkpoint.config.body.model_path or STAND_IN_BODY  # until 0.3.0 who named none had the stand-in
    options = replace(checkpoint.config.body, model_path=str(body_path or named))
    body = load_body(options.model_path, options.kid_axis)
    if body.sha256 != checkpoint.body_sha256:
        found = f"sha256 {body.sha256[:16]}, the network was trained with {checkpoint.body_sha256[:16]}"
        raise BodyModelError(f"the body model has {found}; name the right one with --body")
    return Trained(
        network=restore_network(checkpoint, device),
        body=body,
        body_config=options,
        input_size=checkpoint.config.data.input_size,
        sha256=hash_weights(checkpoint.weights),
        device=device,
        by_image=checkpoint.config.model.prune_by_image,
        origin=f"{checkpoint.path}, step {checkpoint.position.step}",
    )


def _load_released(
    weights: dict[str, torch.Tensor], path: str, device: torch.device, body_path: str | Path | None, heads: int | None
) -> Trained:
    """A released network; each image for itself, so that its people do not depend on its neighbours."""
    if body_path is None:
        raise BodyModelError(f"{path} is a released file, which names no body model; name its own with --body")
    network, config = build_released(weights, path, heads)
    encoder, model, side = config.encoder, config.model, config.data.input_size
    options = BodyConfig(model_path=str(body_path))
    body = load_body(options.model_path, options.kid_axis)
    told = f"S {side}, encoder of {encoder.layers} layers, width {encoder.width}, {encoder.heads} heads, "
    told += f"{model.queries} queries, {model.betas} shape coefficients"
    origin, sha256 = f"{path}: {told}", hash_weights(weights)
    return Trained(network.eval().to(device), body, options, side, sha256, device, origin=origin)


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
        config: options.
    """
    rest = iter(pictures)
    with ThreadPoolExecutor(config.read_threads) as pool:

        def read_next() -> list[tuple[Picture, Future[_Input | UnusableImage]]]:
            some = islice(rest, config.batch_images)
            return [(one, pool.submit(_lay_out, store, one, trained.input_size)) for one in some]

        coming = read_next()
        while coming:
            some, coming = coming, read_next()  # the next batch is read while the network sees this one
            laid_out = [(picture, future.result()) for picture, future in some]
            inputs = [laid for _, laid in laid_out if isinstance(laid, _Input)]
            answers = iter(_ask(trained, inputs, config.min_confidence) if inputs else ())
            for picture, laid in laid_out:
                if isinstance(laid, UnusableImage):
                    yield _broken_scene(picture, None, laid)
                elif isinstance(answer := next(answers), UnusableImage):
                    yield _broken_scene(picture, laid, answer)
                else:
                    yield _scene(picture, laid, *_carry_back(*answer, laid, trained.body))


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
    if picture.intrinsics is not None or picture.fov is None:
        return picture.intrinsics
    focal = height / 2 / np.tan(picture.fov / 2)
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
    camera, transl = np.diag([*(1 / laid.grow), 1]) @ seen_with, people.transl
    if laid.camera is None:
        return _People(people.score, boxes, people.pose, people.betas, transl), camera
    if len(transl):
        pelvis = body.joints(*(torch.from_numpy(v) for v in (people.pose, people.betas, transl)))[:, 0]
        own, wanted = (torch.from_numpy(k).expand(len(transl), 3, 3) for k in (camera, laid.camera))
        transl = carry_to_camera(torch.from_numpy(transl).double(), pelvis.double(), own, wanted).float().numpy()
    return _People(people.score, boxes, people.pose, people.betas, transl), laid.camera


def _scene(picture: Picture, laid: _Input, people: _People, camera: np.ndarray) -> Scene:
    """The people of a picture; one of whom everybody has a problem has one too."""
    found = [ROW_PROBLEMS[code] for code in find_row_problems(people.pose, people.betas, people.transl)]
    boxed = np.isfinite(people.boxes).all(axis=1)
    problems = [text or ("" if has else _BOX_NOT_FINITE) for text, has in zip(found, boxed, strict=True)]
    nobody_left = bool(problems) and all(problems)
    return _as_scene(
        picture,
        laid,
        people,
        camera,
        person_problem=[(PersonStatus.INVALID_LABEL, text) if text else None for text in problems],
        problem=(ImageStatus.PREDICTION_INVALID, f"nobody can be used: {problems[0]}") if nobody_left else None,
    )


def _broken_scene(picture: Picture, laid: _Input | None, error: UnusableImage) -> Scene:
    """A picture that could not be read or answered: nobody, camera unknown unless it was told."""
    unknown = np.array([[np.nan, 0, np.nan], [0, np.nan, np.nan], [0, 0, 1]])
    camera = unknown if picture.intrinsics is None else picture.intrinsics
    nobody = _People(*(np.zeros((0, *shape), np.float32) for shape in ((), (4,), (72,), (NUM_BETAS,), (3,))))
    return _as_scene(picture, laid, nobody, camera, person_problem=[], problem=(error.status, str(error)))


def _as_scene(picture: Picture, laid: _Input | None, people: _People, camera: np.ndarray, **problems: Any) -> Scene:
    count = len(people.score)
    return Scene(
        image_id=picture.image_id,
        subset=picture.subset,
        image_path=picture.image_path,
        width=laid.width if laid else 0,
        height=laid.height if laid else 0,
        intrinsics=camera,
        pose=people.pose,
        betas=people.betas,
        transl=people.transl,
        age_years=np.full(count, np.nan, np.float32),
        male_prob=np.full(count, np.nan, np.float32),
        source_row=np.full(count, -1, np.int64),
        bbox_xyxy=people.boxes,
        det_score=people.score,
        image_sha256=laid.sha256 if laid else "",
        **problems,
    )
