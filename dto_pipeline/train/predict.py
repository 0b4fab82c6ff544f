"""Prediction: people of photographs by a trained network, shard by shard of a manifest.

The network sees the whole photograph, resized to a longer side of S, so `transl` is the same in both. Depends on image
stores, manifests and label files, not on runs. Metres, radians, pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.collate import keep_labels
from dto_pipeline.config import BodyConfig
from dto_pipeline.data.cameras import CAMERA_COLUMNS, camera_matrices
from dto_pipeline.data.dataset import Dataset
from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.labels import LabelsError, build_label_table, read_label_metadata, read_labels, write_label_shard
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.manifest_build.writer import write_label_manifest
from dto_pipeline.data.sources.rows import ROW_PROBLEMS, find_row_problems
from dto_pipeline.data.storage import STORAGE_ERRORS, Location, absolute, list_names
from dto_pipeline.data.tars import carry_tar_index, open_images
from dto_pipeline.errors import DtoError
from dto_pipeline.maths.camera import carry_to_camera
from dto_pipeline.models.body import BodyModel, BodyModelError
from dto_pipeline.paths import SUBSET_NAME, name_subset
from dto_pipeline.scene import Scene
from dto_pipeline.status import ImageStatus, PersonStatus, UnusableImage
from dto_pipeline.train.augment import camera_problem, fit_size, resize
from dto_pipeline.train.blocks import corners
from dto_pipeline.train.checkpoint import hash_weights, read_checkpoint, restore_network
from dto_pipeline.train.model import Predictions

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
PARTS, MANIFEST_FILE = "parts", "manifest.parquet"  # in the folder of a prediction; the parts until it is finished
_READ_THREADS = 4  # images decoded at the same time
_PERSON_ARRAYS = {"pose": (72,), "betas": (NUM_BETAS,), "transl": (3,), "bbox_xyxy": (4,), "det_score": ()}
_UNKNOWN = {"age_years": np.float32(np.nan), "male_prob": np.float32(np.nan), "source_row": np.int64(-1)}


@dataclass(frozen=True)
class Trained:
    """A network ready to predict, and what is recorded with its predictions."""

    network: Callable[..., Predictions]  # a `MeshNetwork` in evaluation mode
    body: BodyModel  # of the training, on the CPU
    body_config: BodyConfig  # where it was read from
    input_size: int  # S [px]
    sha256: str  # of the weights
    device: torch.device
    origin: str = ""  # of the weights, for messages


class Picture(NamedTuple):
    """One image to predict."""

    image_id: str
    subset: str
    image_path: str
    image_file: str  # its name in the store
    camera: tuple[float, ...] | None = None  # fx, fy, cx, cy, then w, h if known [px]; None = estimated by the network
    fov: float | None = None  # vertical field of view [rad] where only that is known


class _Photo(NamedTuple):
    """A photograph resized for the network."""

    image: np.ndarray  # (h, w, 3) uint8, the longer side S
    size: tuple[int, int]  # width and height of the photograph [px]
    sha256: str
    camera: np.ndarray | None  # (3, 3) of the photograph; None where it is not known


def load_trained(
    path: str | Path, device: torch.device, body_path: str | Path | None = None, encoder_heads: int | None = None
) -> Trained:
    """The network of a checkpoint, of the newest readable one of a training's folder, or of a released file.

    `body_path`: the training's body model, None = as in its config (needed with a released file); `encoder_heads`: of a
    released file, None = one per 64 features. Raises: CheckpointError, TorchFileError: the weights cannot be used.
    BodyModelError: no body model, or another one than that of the training.
    """
    checkpoint = read_checkpoint(path, encoder_heads)
    config, is_released = checkpoint.config, not checkpoint.body_sha256
    if is_released and body_path is None:
        raise BodyModelError(f"{path} is a released file, which names no body model; name its own with --body")
    options = dataclasses.replace(config.body, model_path=str(body_path or config.body.model_path))
    body = checkpoint.load_body(options.model_path)
    encoder, model, side = config.encoder, config.model, config.data.input_size
    origin = f"{checkpoint.path}, step {checkpoint.position.step}"
    if is_released:
        origin = f"{path}: S {side}, encoder of {encoder.layers} layers, width {encoder.width}, {encoder.heads} heads, "
        origin += f"{model.queries} queries, {model.betas} shape coefficients"
    network, sha256 = restore_network(checkpoint, device), hash_weights(checkpoint.weights)
    return Trained(network, body, options, side, sha256, device, origin)


def predict_scenes(
    trained: Trained, store: ImageStore, pictures: Iterable[Picture], min_confidence: float = 0.3, batch: int = 4
) -> Iterator[Scene]:
    """One scene per picture, in order; two batches are in memory at a time.

    A picture that cannot be read, or for which the network's output is not finite, has a `problem` and no people. A
    person with unusable numbers stays, with a problem; if all people of a picture have one, the picture has one too.
    People whose confidence (`det_score`) is below `min_confidence` are left out.
    """
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        reading = ((_empty_scene(one), pool.submit(_read, store, one, trained.input_size)) for one in pictures)
        coming = list(islice(reading, batch))
        while coming:
            some, coming = coming, list(islice(reading, batch))  # read while the network computes
            photos = [(scene, future.result()) for scene, future in some]
            answers = iter(_compute(trained, [photo for _, photo in photos if isinstance(photo, _Photo)]))
            for scene, photo in photos:
                if isinstance(photo, _Photo):
                    _fill(scene, photo, *next(answers), trained.body, min_confidence)
                else:
                    scene.problem = photo
                yield scene


def _empty_scene(picture: Picture) -> Scene:
    """A picture without people, and without a camera unless it is given."""
    empty: Any = {name: np.zeros((0, *shape), np.float32) for name, shape in _PERSON_ARRAYS.items()}
    empty |= {name: np.full(0, value) for name, value in _UNKNOWN.items()} | {"person_problem": []}
    camera = camera_matrices(np.array((picture.camera or (np.nan,) * 4)[:4], np.float64))
    return Scene(picture.image_id, picture.subset, picture.image_path, 0, 0, camera, **empty)


def _read(store: ImageStore, picture: Picture, side: int) -> _Photo | tuple[ImageStatus, str]:
    try:
        file = store.read(picture.image_file)
    except UnusableImage as error:
        return error.status, str(error)
    (height, width), given = file.rgb.shape[:2], picture.camera
    if given is None and picture.fov is not None:
        focal = height / 2 / np.tan(picture.fov / 2)
        given = (focal, focal, width / 2, height / 2)
    if given and any(given[4:]) and given[4:] != (width, height):
        return ImageStatus.SIZE_MISMATCH, f"it has {width} x {height} pixels, its camera is for {given[4]} x {given[5]}"
    camera = None if given is None else camera_matrices(np.array(given[:4], np.float64))
    if camera is not None and (problem := camera_problem(camera, width, height)):
        return ImageStatus.LABEL_INVALID, problem
    return _Photo(resize(file.rgb, fit_size(width, height, side)[0]), (width, height), file.sha256, camera)


@torch.inference_mode()
def _compute(trained: Trained, photos: list[_Photo]) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """The network's output for each photograph: `_PERSON_ARRAYS` of all queries and the camera (3, 3) of the input."""
    if not photos:
        return iter(())
    images = [torch.from_numpy(one.image.transpose(2, 0, 1).copy()).to(trained.device) for one in photos]
    answer = trained.network(images)
    last = {"bbox_xyxy": corners(answer.boxes[-1]) * trained.input_size, "pose": answer.poses[-1]}
    betas = functional.pad(answer.betas[-1], (0, NUM_BETAS - answer.betas.shape[-1]))
    last |= {"betas": betas, "transl": answer.transl[-1], "det_score": answer.confs[-1]}
    parts = {name: values.float().cpu().numpy() for name, values in last.items()}
    cameras = answer.intrinsics.double().cpu().numpy()
    return (({name: values[k] for name, values in parts.items()}, camera) for k, camera in enumerate(cameras))


def _fill(
    scene: Scene, photo: _Photo, people: dict[str, np.ndarray], camera: np.ndarray, body: BodyModel, least: float
) -> None:
    """Put the confident people, best first, and the camera into a scene, in the photograph's frame."""
    (scene.width, scene.height), scene.image_sha256, score = photo.size, photo.sha256, people["det_score"]
    for what, numbers in (("confidences are", score), ("camera is", camera)):
        if not np.isfinite(numbers).all():
            scene.problem = ImageStatus.PREDICTION_INVALID, f"the network's {what} not finite"
            return
    order = np.argsort(-score, kind="stable")
    order = order[score[order] >= least]
    vars(scene).update({name: values[order] for name, values in people.items()})
    vars(scene).update({name: np.full(len(order), value) for name, value in _UNKNOWN.items()})

    grow = np.array(photo.image.shape[1::-1]) / photo.size  # lengths of the input per length of the photograph
    finite = np.isfinite(scene.bbox_xyxy).all(axis=1)
    boxes = np.where(finite[:, None], scene.bbox_xyxy, np.nan).reshape(-1, 2, 2)
    scene.bbox_xyxy = np.clip(boxes / grow, 0, photo.size).reshape(-1, 4).astype(np.float32)
    scene.intrinsics = np.diag([*(1 / grow), 1]) @ camera
    if photo.camera is not None:
        if len(order):  # each pelvis keeps its place in the picture, its distance scales with the focal length
            pose, betas, transl = map(torch.from_numpy, (scene.pose, scene.betas, scene.transl))
            pelvis = body.joints(pose, betas, transl)[:, 0]
            own, wanted = (torch.from_numpy(k).expand(len(order), 3, 3) for k in (scene.intrinsics, photo.camera))
            scene.transl = carry_to_camera(transl.double(), pelvis.double(), own, wanted).float().numpy()
        scene.intrinsics = photo.camera
    problems = [ROW_PROBLEMS[code] for code in find_row_problems(scene.pose, scene.betas, scene.transl)]
    texts = [text or "its box is not finite" * (not has) for text, has in zip(problems, finite.tolist(), strict=True)]
    scene.person_problem = [(PersonStatus.INVALID_LABEL, text) if text else None for text in texts]
    if texts and all(texts):
        scene.problem = ImageStatus.PREDICTION_INVALID, f"no person can be used: {texts[0]}"


def list_pictures(folder: str, out: Path, subset: str = "", depth: str = "", shard_images: int = 4096) -> Manifest:
    """A manifest, in the parts of `out`, of all image files in or below a folder or URI, by name, without people.

    `subset`: name of their set, "" = that of the folder; `depth`: folder of depth maps named like the images with
    ``.npy``. Raises: DtoError: no such folder, no image in it, or an unusable name of the set."""
    root = absolute(folder)
    try:
        names = sorted(list_names(root, IMAGE_ENDINGS))
    except STORAGE_ERRORS as error:
        raise DtoError(f"{folder} cannot be listed ({error}); name a folder of images or a manifest") from error
    if not names:
        raise DtoError(f"{folder} holds no image; expected files ending in {', '.join(IMAGE_ENDINGS)}")
    if subset and not SUBSET_NAME.fullmatch(subset):
        raise DtoError(f"the subset is named {subset!r}; expected one word of letters, digits, '.', '-' and '_'")
    label = subset or name_subset(str(root).rstrip("/").rpartition("/")[2])
    maps = [str(Path(name).with_suffix(".npy")) if depth else None for name in names]
    if twice := [one for one, other in pairwise(sorted(filter(None, maps))) if one == other]:
        raise DtoError(f"{folder} holds images whose names differ in the ending only: both would have {twice[0]}")

    scenes = (_empty_scene(Picture(f"{label}/{name}", label, name, name)) for name in names)
    shards = (
        (build_label_table([keep_labels(one) for one in islice(scenes, shard_images)]), names[part], maps[part])
        for part in (slice(first, first + shard_images) for first in range(0, len(names), shard_images))
    )
    places = {"images": root} | ({"depth": absolute(depth)} if depth else {})
    path = out / PARTS / "pictures.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    return _write_manifest(path, label, shard_images, places, shards)


def read_pictures(manifest: Manifest, shard: int, keep_camera: bool = False, fov: float | None = None) -> list[Picture]:
    """The images of a shard; `keep_camera`: with its cameras, otherwise with `fov` [rad] or no camera. Raises:
    ManifestError."""
    columns = (*CAMERA_COLUMNS, "width", "height") if keep_camera else ()
    rows = manifest.read_shard(shard, [*Picture._fields[:4], *columns]).to_pylist()
    cameras = [tuple(row.pop(name) for name in columns) or None for row in rows]
    return [Picture(**row, camera=camera, fov=fov) for row, camera in zip(rows, cameras, strict=True)]


def predict_shards(
    trained: Trained, pictures: Manifest, folder: Path, min_confidence: float = 0.3, batch: int = 4,
    keep_camera: bool = False, fov: float | None = None, progress: bool = True,
) -> None:  # fmt: skip
    """Write a label file per shard below `folder`, see `predict_scenes` and `read_pictures`.

    Files that exist are kept, unless they were made by another network, with other options or from other pictures.
    """
    store = open_images(pictures.images_root, pictures.path)
    made_by = [trained.sha256, min_confidence, str(pictures.images_root)]
    with tqdm(total=pictures.num_images, unit="image", desc=pictures.subset, disable=not progress) as bar:
        for shard in range(pictures.num_shards):
            some, path = read_pictures(pictures, shard, keep_camera, fov), part_file(folder, shard)
            key = hashlib.sha256(json.dumps([made_by, some]).encode()).hexdigest()
            with suppress(LabelsError):  # not there, or not whole
                if read_label_metadata(path).get("predict_key") == key:
                    bar.update(len(some))
                    continue
            path.unlink(missing_ok=True)
            placed = []
            for scene in predict_scenes(trained, store, some, min_confidence, batch):
                own = keep_labels(scene)
                if scene.problem is None and scene.num_people:
                    height = trained.body.rest_height(torch.from_numpy(scene.betas)).numpy().astype(np.float32)
                    own.status, own.height_init_m, own.height_m = ImageStatus.PREDICTED, height, height
                placed.append(own)
                bar.update()
            write_label_shard(build_label_table(placed), path, {"predict_key": key})


def part_file(folder: Path, shard: int) -> Path:
    """Path of a predicted shard's labels until all are predicted."""
    return folder / PARTS / f"shard-{shard:05d}.parquet"


def write_manifest(pictures: Manifest, folder: Path) -> Manifest:
    """Write the manifest of the predicted people, which `dto run` needs to place them."""
    out, depth = folder / MANIFEST_FILE, pictures.depth_root
    carry_tar_index(pictures.path, out)
    rows = (pictures.read_shard(shard, ["image_file", "depth_file"]) for shard in range(pictures.num_shards))
    files = ((one["image_file"].to_pylist(), one["depth_file"].to_pylist()) for one in rows)
    shards = ((read_labels(part_file(folder, shard)), *names) for shard, names in enumerate(files))
    places = {"images": pictures.images_root} | ({} if depth is None else {"depth": depth})
    most = max((size.images for size in pictures.shard_sizes), default=1)
    return _write_manifest(out, pictures.subset, most, places, shards)


def _write_manifest(out: Path, subset: str, shard_images: int, places: dict[str, Location], shards: Any) -> Manifest:
    free: dict[str, Any] = {"principal_point": "free", "shard_images": shard_images, "places": places}
    write_label_manifest(shards, Dataset(subset, "labels", "labels", "", Path("."), **free), out)
    return Manifest.open(out)
