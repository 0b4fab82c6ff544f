"""A trained network on photographs: people in front of the camera of the photograph, image by image and shard by shard.

The input shows the whole photograph, its longer side made S; both cameras look the same way from the same point, so
`transl` holds in either. The network thinks the principal point in the middle. A shard that was predicted stays beside
the result until all are, so that a killed prediction goes on where it was; a part is only taken up if checkpoint,
options and pictures are the same. Knows image stores, manifests and label files; knows no run. Metres, radians, pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.collate import keep_labels
from dto_pipeline.config import STAND_IN_BODY, BodyConfig
from dto_pipeline.data.cameras import read_cameras
from dto_pipeline.data.dataset import Dataset
from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.labels import LabelsError, build_label_table, read_label_metadata, read_labels, write_label_shard
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.manifest_build.writer import write_label_manifest
from dto_pipeline.data.sources.rows import ROW_PROBLEMS, find_row_problems
from dto_pipeline.data.storage import STORAGE_ERRORS, Location, absolute, as_location, list_names
from dto_pipeline.data.tars import carry_tar_index, open_images
from dto_pipeline.errors import DtoError
from dto_pipeline.maths.person_matching import carry_to_camera
from dto_pipeline.models.body import BodyModel, BodyModelError, load_body
from dto_pipeline.paths import SUBSET_NAME, name_subset
from dto_pipeline.scene import PlacedScene, Scene
from dto_pipeline.status import ImageStatus, PersonStatus, UnusableImage
from dto_pipeline.train.augment import camera_problem, fit_size, resize
from dto_pipeline.train.blocks import corners
from dto_pipeline.train.checkpoint import hash_weights, read_checkpoint, restore_network
from dto_pipeline.train.model import Predictions

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
PARTS, MANIFEST_FILE = "parts", "manifest.parquet"  # in the folder of a prediction; the former until it is finished
_NO_BOX = "its box is not finite"
_READ_THREADS = 4  # images decoded at the same time
People = dict[str, np.ndarray]  # of one image, best first: det_score, bbox_xyxy, pose, betas, transl as in a `Scene`


class PredictError(DtoError):
    """Pictures that cannot be predicted; the message says why and the next step."""


@dataclass(frozen=True)
class Trained:
    """A network ready to predict, and what a record of its predictions names."""

    network: Callable[..., Predictions]  # a `MeshNetwork` in evaluation mode
    body: BodyModel  # of the training, on the CPU
    body_config: BodyConfig  # where it was read from
    input_size: int  # S [px]
    sha256: str  # of the weights
    device: torch.device
    by_image: bool = True  # an image's tokens never depend on its neighbours
    origin: str = ""  # where the weights are from, to be told


class Picture(NamedTuple):
    """One image to predict."""

    image_id: str
    subset: str
    image_path: str
    image_file: str  # its name in the store
    intrinsics: np.ndarray | None = None  # (3, 3) float64 [px]; None = the network says
    fov: float | None = None  # vertical field of view [rad] where it is all that is known
    depth_file: str | None = None  # its depth map's name, for the manifest


@dataclass(frozen=True)
class PictureSet:
    """Pictures in shards, and where they and their depth maps are."""

    subset: str
    images_root: Location
    depth_root: Location | None
    shard_images: int
    num_images: int
    num_shards: int
    read_shard: Callable[[int], list[Picture]]
    manifest: Location | None = None  # the pictures are those of this one, its tar index too

    def open_store(self) -> ImageStore:
        """Where the pictures are read from."""
        return open_images(self.images_root, self.manifest or Path("none"))


class _UnusableCamera(UnusableImage):
    status = ImageStatus.LABEL_INVALID


class _UnusableAnswer(UnusableImage):
    status = ImageStatus.PREDICTION_INVALID


class _Input(NamedTuple):
    """A photograph laid out for the network."""

    image: np.ndarray  # (h, w, 3) uint8, the longer side S
    size: tuple[int, int]  # width and height of the photograph [px]
    sha256: str
    camera: np.ndarray | None  # (3, 3) of the photograph; None where it is not known


def load_trained(
    path: str | Path, device: torch.device, body_path: str | Path | None = None, encoder_heads: int | None = None
) -> Trained:
    """Read weights to predict with: a checkpoint, the newest of a training's folder, or a released file.

    Args:
        path, device: of the weights; where the network shall compute.
        body_path: the training's body model where it lies now; None = as in its config. A released file names none.
        encoder_heads: of a released file, whose shapes do not tell it; None = one per 64 features.

    Raises:
        CheckpointError, TorchFileError: there are no weights, or they cannot be used.
        BodyModelError: the body model cannot be read, or is another one than the network was trained with.
    """
    checkpoint = read_checkpoint(path, encoder_heads)
    config, is_released = checkpoint.config, not checkpoint.body_sha256
    if is_released and body_path is None:
        raise BodyModelError(f"{path} is a released file, which names no body model; name its own with --body")
    named = body_path or config.body.model_path or STAND_IN_BODY  # until 0.3.0 who named none had the stand-in
    options = dataclasses.replace(config.body, model_path=str(named))
    body = load_body(options.model_path, options.kid_axis)
    if not is_released and body.sha256 != checkpoint.body_sha256:
        found = f"sha256 {body.sha256[:16]}, the network was trained with {checkpoint.body_sha256[:16]}"
        raise BodyModelError(f"the body model has {found}; name the right one with --body")
    encoder, model, side = config.encoder, config.model, config.data.input_size
    sizes = f"S {side}, encoder of {encoder.layers} layers, width {encoder.width}, {encoder.heads} heads, "
    sizes += f"{model.queries} queries, {model.betas} shape coefficients"
    origin = f"{path}: {sizes}" if is_released else f"{checkpoint.path}, step {checkpoint.position.step}"
    network, sha256 = restore_network(checkpoint, device), hash_weights(checkpoint.weights)
    return Trained(network, body, options, side, sha256, device, model.prune_by_image, origin)


def predict_scenes(
    trained: Trained, store: ImageStore, pictures: Iterable[Picture], min_confidence: float = 0.3, batch: int = 4
) -> Iterator[Scene]:
    """One scene per picture, in order; a few batches are in memory at a time.

    A picture that cannot be read, or whose answer is not finite, gives a scene with `problem` and nobody. A person
    whose numbers cannot be used stays, with its problem; where that is everybody, the picture has one too. `det_score`
    is the confidence; people below the least one are left out (ours; a merge asks for 0.5 on top of it).
    """
    rest = iter(pictures)
    with ThreadPoolExecutor(_READ_THREADS) as pool:

        def read_next() -> list[tuple[Picture, Future[_Input | UnusableImage]]]:
            some = islice(rest, batch)
            return [(one, pool.submit(_lay_out, store, one, trained.input_size)) for one in some]

        coming = read_next()
        while coming:
            some, coming = coming, read_next()  # the next batch is read while the network sees this one
            laid_out = [(picture, future.result()) for picture, future in some]
            answers = iter(_ask(trained, [laid for _, laid in laid_out if isinstance(laid, _Input)], min_confidence))
            for picture, laid in laid_out:
                if isinstance(laid, _Input):
                    yield _make_scene(picture, laid, next(answers), trained.body)
                else:
                    yield _make_scene(picture, None, laid, trained.body)


def _lay_out(store: ImageStore, picture: Picture, side: int) -> _Input | UnusableImage:
    try:
        file = store.read(picture.image_file)
    except UnusableImage as error:
        return error
    (height, width), camera = file.rgb.shape[:2], picture.intrinsics
    if camera is None and picture.fov is not None:
        focal = height / 2 / np.tan(picture.fov / 2)
        camera = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    if camera is not None and (problem := camera_problem(camera, width, height)):
        return _UnusableCamera(problem)
    return _Input(resize(file.rgb, fit_size(width, height, side)[0]), (width, height), file.sha256, camera)


@torch.inference_mode()
def _ask(
    trained: Trained, inputs: list[_Input], min_confidence: float
) -> list[tuple[People, np.ndarray] | UnusableImage]:
    """People and camera (3, 3) of each input, in its pixels, or why its answer says nothing of them."""
    if not inputs:
        return []
    images = [torch.from_numpy(one.image.transpose(2, 0, 1).copy()).to(trained.device) for one in inputs]
    answer = trained.network(images, by_image=trained.by_image)
    last = {"bbox_xyxy": corners(answer.boxes[-1]) * trained.input_size, "pose": answer.poses[-1]}
    betas = functional.pad(answer.betas[-1], (0, NUM_BETAS - answer.betas.shape[-1]))
    last |= {"betas": betas, "transl": answer.transl[-1], "det_score": answer.confs[-1]}
    parts = {name: values.float().cpu().numpy() for name, values in last.items()}
    found: list[tuple[People, np.ndarray] | UnusableImage] = []
    for image, camera in enumerate(answer.intrinsics.double().cpu().numpy()):
        score = parts["det_score"][image]
        if not np.isfinite(score).all():  # nobody knows who would be sure enough
            found.append(_UnusableAnswer("the network's confidences are not finite"))
        elif not np.isfinite(camera).all():
            found.append(_UnusableAnswer("the network's camera is not finite"))
        else:
            order = np.argsort(-score, kind="stable")
            order = order[score[order] >= min_confidence]
            found.append(({name: values[image, order] for name, values in parts.items()}, camera))
    return found


def _make_scene(
    picture: Picture, laid: _Input | None, answer: tuple[People, np.ndarray] | UnusableImage, body: BodyModel
) -> Scene:
    """A picture's people; of one that was not read or answered nobody, and no camera unless it was told."""
    shapes: dict[str, tuple[int, ...]] = {"det_score": (), "bbox_xyxy": (4,), "pose": (72,), "betas": (11,)}
    people: Any = {name: np.zeros((0, *shape), np.float32) for name, shape in (shapes | {"transl": (3,)}).items()}
    camera = np.array([[np.nan, 0, np.nan], [0, np.nan, np.nan], [0, 0, 1]])
    problem: tuple[ImageStatus, str] | None = None
    texts: list[str] = []
    if isinstance(answer, UnusableImage):
        camera, problem = camera if picture.intrinsics is None else picture.intrinsics, (answer.status, str(answer))
    elif laid is not None:
        people, camera = _carry_back(*answer, laid, body)
        codes = find_row_problems(people["pose"], people["betas"], people["transl"])
        boxed = np.isfinite(people["bbox_xyxy"]).all(axis=1).tolist()
        texts = [ROW_PROBLEMS[code] or _NO_BOX * (not has) for code, has in zip(codes, boxed, strict=True)]
        if texts and all(texts):
            problem = ImageStatus.PREDICTION_INVALID, f"nobody can be used: {texts[0]}"
    count, (width, height) = len(people["pose"]), laid.size if laid else (0, 0)
    return Scene(
        image_id=picture.image_id,
        subset=picture.subset,
        image_path=picture.image_path,
        width=width,
        height=height,
        intrinsics=camera,
        **people,
        age_years=np.full(count, np.nan, np.float32),
        male_prob=np.full(count, np.nan, np.float32),
        source_row=np.full(count, -1, np.int64),
        image_sha256=laid.sha256 if laid else "",
        person_problem=[(PersonStatus.INVALID_LABEL, text) if text else None for text in texts],
        problem=problem,
    )


def _carry_back(people: People, camera: np.ndarray, laid: _Input, body: BodyModel) -> tuple[People, np.ndarray]:
    """People and camera of the photograph.

    Where its camera is known, the people are carried to it: each pelvis keeps its place in the picture, and its
    distance changes with the focal length.
    """
    grow = np.array(laid.image.shape[1::-1]) / laid.size  # lengths of the input per length of the photograph
    boxes, transl = people["bbox_xyxy"], people["transl"]
    known = np.where(np.isfinite(boxes).all(axis=1, keepdims=True), boxes, np.nan).reshape(-1, 2, 2)
    people = people | {"bbox_xyxy": np.clip(known / grow, 0, laid.size).reshape(-1, 4).astype(np.float32)}
    camera = np.diag([*(1 / grow), 1]) @ camera
    if laid.camera is None:
        return people, camera
    if len(transl):
        pelvis = body.joints(*(torch.from_numpy(people[name]) for name in ("pose", "betas", "transl")))[:, 0]
        own, wanted = (torch.from_numpy(k).expand(len(transl), 3, 3) for k in (camera, laid.camera))
        carried = carry_to_camera(torch.from_numpy(transl).double(), pelvis.double(), own, wanted)
        people["transl"] = carried.float().numpy()
    return people, laid.camera


def find_pictures(
    folder: str, subset: str = "", depth: str = "", fov: float | None = None, shard_images: int = 4096
) -> PictureSet:
    """Every image file in or below a folder or URI, by name.

    Args:
        folder, subset: of the images; name of their set, "" = that of the folder.
        depth: folder of depth maps named like the images with ``.npy``; "" = none.
        fov: vertical field of view [rad] of all of them; None = unknown.
        shard_images: images a shard.

    Raises:
        PredictError: no such folder, or no image in it.
    """
    root = absolute(folder)
    try:
        names = sorted(list_names(root, IMAGE_ENDINGS))
    except STORAGE_ERRORS as error:
        raise PredictError(f"{folder} cannot be listed ({error}); name a folder of images or a manifest") from error
    if not names:
        raise PredictError(f"{folder} holds no image; expected files ending in {', '.join(IMAGE_ENDINGS)}")
    if subset and not SUBSET_NAME.fullmatch(subset):
        raise PredictError(f"the subset is named {subset!r}; expected one word of letters, digits, '.', '-' and '_'")
    label = subset or name_subset(str(root).rstrip("/").rpartition("/")[2])

    def read(shard: int) -> list[Picture]:
        some = names[shard * shard_images : (shard + 1) * shard_images]
        maps = [str(Path(name).with_suffix(".npy")) if depth else None for name in some]
        return [Picture(f"{label}/{n}", label, n, n, None, fov, m) for n, m in zip(some, maps, strict=True)]

    shards = -(-len(names) // shard_images)
    return PictureSet(label, root, absolute(depth) if depth else None, shard_images, len(names), shards, read)


def manifest_pictures(path: str, images: str = "", keep_camera: bool = False, fov: float | None = None) -> PictureSet:
    """The images of a manifest (or in a folder or URI `images` in place of its own), in its shards, whatever its labels
    say of people; `keep_camera`: its cameras, otherwise `fov` [rad], or the network says. Raises: ManifestError."""
    manifest = Manifest.open(as_location(path))
    names = ("image_id", "subset", "image_path", "image_file", "depth_file")

    def read(shard: int) -> list[Picture]:
        rows = manifest.read_shard(shard, [*names, "fx", "fy", "cx", "cy"]).to_pylist()
        told = [({name: row[name] for name in names}, read_cameras(row) if keep_camera else None) for row in rows]
        return [Picture(**own, intrinsics=camera, fov=fov) for own, camera in told]

    shard_images = max((size.images for size in manifest.shard_sizes), default=1)
    places = as_location(images or manifest.images_root), manifest.depth_root
    sizes = shard_images, manifest.num_images, manifest.num_shards
    return PictureSet(manifest.subset, *places, *sizes, read, manifest.path)


def prediction_facts(trained: Trained, min_confidence: float) -> dict[str, str]:
    """All that decides an answer besides the picture: not how many are read or asked at once."""
    return {"checkpoint": trained.sha256, "min_confidence": str(min_confidence)}


def predict_shards(
    pictures: PictureSet, predict: Callable[[Sequence[Picture]], Iterator[Scene]], body: BodyModel, folder: Path,
    facts: dict[str, str], progress: bool = True,
) -> None:  # fmt: skip
    """Predict what is not there yet, one part per shard below `folder`, with a bar on stderr.

    `predict`: see `predict_scenes`; `body`: tells heights; `facts`: all that decides an answer (checkpoint, options), a
    part made with others is made again.
    """
    with tqdm(total=pictures.num_images, unit="image", desc=pictures.subset, disable=not progress) as bar:
        for shard in range(pictures.num_shards):
            some, path = pictures.read_shard(shard), part_file(folder, shard)
            named = [[one.image_id, one.image_file, one.fov] for one in some]
            cameras = [None if one.intrinsics is None else one.intrinsics.tolist() for one in some]
            told = json.dumps([facts, str(pictures.images_root), named, cameras], sort_keys=True)
            key = hashlib.sha256(told.encode()).hexdigest()
            try:
                is_done = path.exists() and read_label_metadata(path).get("predict_key") == key
            except LabelsError:  # not whole: made again
                is_done = False
            if is_done:
                bar.update(len(some))
                continue
            path.unlink(missing_ok=True)
            placed = []
            for scene in predict(some):
                placed.append(_place(scene, body))
                bar.update()
            write_label_shard(build_label_table(placed), path, {"predict_key": key})


def _place(scene: Scene, body: BodyModel) -> PlacedScene:
    """A label row's content: the people as the network said them, with the heights of their shapes."""
    placed = keep_labels(scene)
    if scene.problem is None and scene.num_people:
        height = body.rest_height(torch.from_numpy(scene.betas)).numpy().astype(np.float32)
        placed = dataclasses.replace(placed, status=ImageStatus.PREDICTED, height_init_m=height, height_m=height)
    return placed


def part_file(folder: Path, shard: int) -> Path:
    """Where the labels of one predicted shard are until all are predicted."""
    return folder / PARTS / f"shard-{shard:05d}.parquet"


def write_manifest(pictures: PictureSet, folder: Path) -> Manifest:
    """The manifest of all parts, beside them: what `dto run` needs to place the predicted people."""
    out, depth = folder / MANIFEST_FILE, pictures.depth_root
    places: dict[str, Location] = {"images": pictures.images_root} | ({} if depth is None else {"depth": depth})
    if pictures.manifest is not None:
        carry_tar_index(pictures.manifest, out)

    def shards() -> Iterator[tuple[Any, Sequence[str], Sequence[str | None]]]:
        for shard in range(pictures.num_shards):
            some = pictures.read_shard(shard)
            files, maps = [one.image_file for one in some], [one.depth_file for one in some]
            yield read_labels(part_file(folder, shard)), files, maps

    dataset = Dataset(
        pictures.subset, "labels", "labels", "", Path("."), principal_point="free", shard_images=pictures.shard_images,
        places=places,
    )  # fmt: skip
    write_label_manifest(shards(), dataset, out)
    return Manifest.open(out)
