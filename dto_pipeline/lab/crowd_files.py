"""Synthetic crowds as files in the public formats, with their truth: for `dto synth`, the demo and the benches.

Files of a data set of `dto synth` (the demo's marker and labels are `DEMO_PLACES`, its images have CameraHMR's names):

    images/<a>/<number>.jpg     pictures
    labels/release.npz          labels as CameraHMR publishes them
    labels/sidecar.parquet      masks, ages, male probabilities
    depth/<a>/<number>.npy      disparity, float32 (the demo's: float16), of the picture's size
    dataset.yaml                for `dto manifest build`
    truth.npz                   what is true, one row per label row (`TRUTH_COLUMNS`)
    README.md                   what it is, how it was made, how to evaluate
    synth.json                  the marker: settings and counts; written last: where it exists, the data set is whole

Equal settings and body model give identical bytes. `dto eval benchmark` measures exactly the scenes of `dto synth`,
whose depth maps show people, level ground and a backdrop 40 m away, not the painted scenery. Metres, pixels, camera
frame.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import simplejpeg

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.config import METRES_PER_DEPTH, STAND_IN_BODY
from dto_pipeline.data.dataset import SYNTHETIC, dataset_from_dict
from dto_pipeline.data.files import sha256_file, write_bytes_atomic, write_json_atomic
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.data.rle import encode_rle
from dto_pipeline.data.sources.camerahmr import write_release_file
from dto_pipeline.data.sources.sidecar import write_sidecar
from dto_pipeline.errors import DtoError
from dto_pipeline.lab.crowd import plan_crowd
from dto_pipeline.lab.difficulty import VERSION, Difficulty
from dto_pipeline.lab.foreign_bodies import load_anny
from dto_pipeline.lab.golden import read_arrays
from dto_pipeline.lab.known_scenes import CrowdScene, SynthScene
from dto_pipeline.lab.picture import Picture
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.networks import locate_body

TRUTH = "truth.npz"
SYNTH_PLACES = ("synth.json", "labels/release.npz", "labels/sidecar.parquet")  # marker, labels, sidecar
DEMO_PLACES = ("demo.json", "labels/demo-release.npz", "labels/demo-sidecar.parquet")  # as in `assets/demo.yaml`
DEMO_SEED = 7
DEMO_VERSION = 2  # raised whenever equal settings would give other files
TRUTH_COLUMNS = {
    "image_name": "image of the person, as in the label file",
    "image_number": "number of the image",
    "image_size": "height and width (n, 2) of the image [px]",
    "intrinsics": "true camera (n, 3, 3) [px]",
    "transl": "true translation (n, 3) [m]; of foreign bodies, the one that puts a label's pelvis on the true one",
    "pelvis": "true pelvis (n, 3), between the hips [m]",
    "pose": "true pose (n, 72), axis-angle [rad]; NaN for foreign bodies",
    "betas": "true shape (n, 11), kid axis last; NaN for foreign bodies",
    "height": "true height in the rest pose [m]",
    "height_class": "0 baby, 1 kid, 2 teen, 3 adult female, 4 adult male",
    "age_years": "true age",
    "label_factor": "label height / true height",
    "disparity_line": "a and b (n, 2) of disparity = a / z + b before all errors",
}  # of `dto synth`; the demo has no image_size and intrinsics, but `broken`, a key of `BREAKAGES` or empty
BREAKAGES = {
    "truncated_image": "the JPEG ends after 40 % of its bytes",
    "missing_image": "the labels name a JPEG that is not there",
    "nan_pose": "the last person's pose holds NaN",
    "wrong_size": "the label's camera belongs to an image 1.5 times as large",
    "empty_mask": "the first person's instance mask has no pixel",
    "zero_disparity": "the depth map is zero everywhere",
}  # on purpose, one image each, to show that bad input costs one item and is counted
FEWEST_IMAGES = 12  # smaller demos are left whole
_KEPT_OF_TRUNCATED = 0.4  # of the bytes
_WRONG_SIZE = 1.5  # camera of an image this many times as large
BENCH_SEED, BENCH_SIZE, BENCH_PEOPLE = 2025, (640, 480), 5  # of the benches: all pictures are alike [px]
_SHARD_IMAGES = 32
_BEGUN = ".unfinished"  # this file lies in a folder whose data set is not complete
_JPEG_QUALITY = 93

Progress = Callable[[int, int], None]  # called with (images done, all images)


class CrowdFilesError(DtoError, ValueError):
    """A folder without a complete synthetic data set, or with another one."""


@dataclass(frozen=True)
class CrowdData:
    """A data set that was written, or was there already."""

    root: Path
    created: bool  # False: the folder held this data set and nothing was written
    images: int
    persons: int
    broken: dict[str, str] = field(default_factory=dict)  # the demo's: image name -> key of `BREAKAGES`


@dataclass(frozen=True)
class PersonRows:
    """n people of one or more images, a row each."""

    labels: dict[str, np.ndarray]  # columns of label file and sidecar
    truth: dict[str, np.ndarray]  # columns of `TRUTH`


def write_synth(
    root: Path, kind: Difficulty, images: int, seed: int, body: BodyModel, progress: Progress | None = None
) -> CrowdData:
    """Write crowds of a difficulty (`difficulty.choose_difficulty`), unless they are there.

    Raises:
        CrowdFilesError: the folder holds a data set of other settings.
        AnnyMissing: people of Anny are wanted and the package is not installed.
    """
    options = dataclasses.asdict(kind)
    named = {"difficulty": options.pop("name"), "options": {k: v for k, v in options.items() if k != "meaning"}}
    identity = {"version": VERSION, "seed": seed, "images": images, "body_sha256": body.sha256, **named}

    def make(number: int) -> PersonRows:
        scene, name = SynthScene(seed, number, body, kind), f"{number // 1000:03d}/{number:06d}.jpg"
        disparity, view = scene.depth[0], scene.crowd.view
        size = {"image_size": [view.height, view.width], "intrinsics": view.intrinsics}
        write_bytes_atomic(root / "images" / name, encode_picture(scene.picture))
        write_map(root / "depth", name, METRES_PER_DEPTH / disparity if kind.metric_error else disparity)
        return person_rows(name, number, scene, size)

    if kind.bodies == "anny" and not (root / SYNTH_PLACES[0]).exists():
        load_anny()  # fails before anything is written

    def pages(persons: int) -> dict[str, str]:
        return {"dataset.yaml": _dataset(kind, body), "README.md": _readme(kind, {**identity, "persons": persons})}

    return _write_crowds(root, SYNTH_PLACES, identity, make, pages, progress)


def build_demo_data(
    root: Path,
    body: BodyModel,
    images: int = 24,
    seed: int = DEMO_SEED,
    scale: float = 1.0,
    spoilt: bool = True,
    progress: Progress | None = None,
) -> CrowdData:
    """Write the demo's data set, unless it is there; people are of model `body`.

    Args:
        images: how many, broken ones included; scale: of the pictures, 640 x 480 and alike.
        spoilt: some images are broken on purpose, if there are enough.

    Raises:
        CrowdFilesError: the folder holds a data set of other settings or another body model.
    """
    settings = {"images": images, "seed": seed, "scale": scale, "spoilt": spoilt}
    identity: dict[str, Any] = {"version": DEMO_VERSION, **settings, "body_sha256": body.sha256}
    broken = plan_breakages(images) if spoilt else {}
    names = {image_name(number): kind for number, kind in broken.items()}

    def make(number: int) -> PersonRows:
        return write_scene(root, CrowdScene(seed, number, body, scale=scale), number, broken.get(number, ""))

    return _write_crowds(
        root, DEMO_PLACES, identity, make, lambda _: {"README.md": _demo_readme(names)}, progress, names
    )


def _write_crowds(
    root: Path,
    places: tuple[str, str, str],
    identity: Mapping[str, Any],
    make: Callable[[int], PersonRows],
    pages: Callable[[int], dict[str, str]],
    progress: Progress | None,
    broken: dict[str, str] | None = None,
) -> CrowdData:
    """Write a data set, unless it is there; an incomplete one is written again.

    Args:
        identity: settings and versions that determine the data set, `images` among them; the marker holds them.
        make: writes picture and map of image `number` and returns the rows of its people.
        pages: number of people -> texts by file name, written to the same folder.
        broken: see `CrowdData`; the marker holds it too.
    """
    marker, begun, images = root / places[0], root / _BEGUN, identity["images"]
    if there := next((path for path in (marker, begun) if path.exists()), None):
        try:
            facts = dict(json.loads(there.read_text()))
            wanted = json.loads(json.dumps(identity))  # tuples become lists
            differing = [f"{k}: {facts.get(k)!r} there, {v!r} wanted" for k, v in wanted.items() if facts.get(k) != v]
            persons = facts["persons"] if there == marker and not differing else 0
        except (OSError, ValueError, TypeError, KeyError) as error:
            differing = [f"{there.name} cannot be read: {error!r}"]
        if differing:
            found = f"{root} holds another data set ({'; '.join(differing)})"
            raise CrowdFilesError(f"{found}; choose another folder or remove it")
        if there == marker:
            return CrowdData(root, False, images, persons, facts.get("broken", {}))
    elif root.is_dir() and any(not path.name.startswith(".") for path in root.iterdir()):
        raise CrowdFilesError(f"{root} holds other files and no data set of this command; choose a new folder (-o)")
    write_json_atomic(begun, identity)
    parts = []
    for number in range(images):
        parts.append(make(number))
        if progress is not None:
            progress(number + 1, images)
    persons = _write_people(root, parts, *places[1:])
    for name, text in pages(persons).items():
        write_bytes_atomic(root / name, text.encode())
    write_json_atomic(marker, {**identity, "persons": persons, **({} if broken is None else {"broken": broken})})
    begun.unlink(missing_ok=True)
    return CrowdData(root, True, images, persons, broken or {})


def encode_picture(picture: Picture) -> bytes:
    """Encode a picture as JPEG, as all synthetic data sets do."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(picture.rgb), quality=_JPEG_QUALITY)


def write_map(folder: Path, name: str, values: np.ndarray) -> None:
    """Write the (H, W) map of an image as npy, named as the image is."""
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    write_bytes_atomic((folder / name).with_suffix(".npy"), buffer.getvalue())


def write_scene(root: Path, scene: CrowdScene, number: int, broken: str = "") -> PersonRows:
    """Write picture and map of image `number`, damaged as `broken` (of `BREAKAGES`) says; the rows of its people."""
    name, jpeg, disparity = image_name(number), encode_picture(scene.picture), scene.depth[0]
    rows = person_rows(name, number, scene)
    rows.truth["broken"] = np.full(scene.crowd.num_people, broken)
    if broken == "truncated_image":
        jpeg = jpeg[: int(_KEPT_OF_TRUNCATED * len(jpeg))]
    if broken == "nan_pose":
        rows.labels["pose"][-1, 5] = np.nan
    if broken == "wrong_size":
        rows.labels["intrinsics"] *= [[_WRONG_SIZE], [_WRONG_SIZE], [1.0]]
    if broken == "empty_mask":
        rows.labels["mask_rle"][0] = encode_rle(np.zeros_like(scene.masks[0]))
    if broken != "missing_image":
        write_bytes_atomic(root / "images" / name, jpeg)
    write_map(root / "depth", name, np.zeros_like(disparity) if broken == "zero_disparity" else disparity)
    return rows


def plan_breakages(images: int) -> dict[int, str]:
    """Number of the image -> key of `BREAKAGES`, spread evenly; empty below `FEWEST_IMAGES` images."""
    if images < FEWEST_IMAGES:
        return {}
    return {(2 * k + 1) * images // (2 * len(BREAKAGES)): name for k, name in enumerate(BREAKAGES)}


def image_name(number: int) -> str:
    """Name of an image of the demo in the label file, relative to the images folder."""
    return f"insta-train/{number // 12:02d}/{number % 12 // 4:02d}/{number:06d}.jpg"


def person_rows(
    name: str, number: int, scene: CrowdScene, of_image: Mapping[str, Any] = MappingProxyType({})
) -> PersonRows:
    """Rows of the people of one image; `of_image`: further columns of the truth, one value for all."""
    crowd, truth, labels, masks = scene.crowd, scene.truth, scene.labels, scene.masks
    people, view = crowd.num_people, crowd.view
    uv = truth.vertices[..., :2] / truth.vertices[..., 2:].clip(0.05) * view.focal + (view.width / 2, view.height / 2)
    uv = uv.clip(0, (view.width, view.height))  # boxes are of whole bodies, cut at the picture's borders
    given = {
        "pose": labels.pose,
        "betas": np.pad(labels.betas, ((0, 0), (0, NUM_BETAS - labels.betas.shape[1]))),
        "transl": labels.transl,
        "bbox_xyxy": np.concatenate([uv.min(axis=1), uv.max(axis=1)], axis=-1).astype(np.float32),
        "intrinsics": np.repeat(scene.intrinsics[None], people, axis=0),
        "keypoints": scene.keypoints,
        "age_years": labels.age,
        "male_prob": labels.male_prob,
        "mask_rle": np.array([encode_rle(mask) for mask in masks], object),
        "mask_size": np.tile(np.array(masks.shape[1:], dtype=np.int32), (people, 1)),
    }
    shared = {"image_name": name, "image_number": np.int64(number), **of_image}
    columns = {column: np.repeat(np.asarray(value)[None], people, axis=0) for column, value in shared.items()}
    columns |= {
        "transl": truth.transl,
        "pelvis": truth.joints[:, 0],
        "pose": truth.pose,
        "betas": truth.betas,
        "height": truth.height,
        "height_class": crowd.height_class.astype(np.int64),
        "age_years": crowd.age.astype(np.float64),
        "label_factor": labels.factor,
        "disparity_line": np.tile(np.array(scene.depth[1]), (people, 1)),
    }
    return PersonRows(given, columns)


def _write_people(root: Path, parts: Sequence[PersonRows], labels: str, sidecar: str) -> int:
    """Write label file, sidecar and truth below `root`; row i of each is the same person. Returns their number."""
    given, truth = (
        {name: np.concatenate([getattr(part, side)[name] for part in parts]) for name in getattr(parts[0], side)}
        for side in ("labels", "truth")
    )
    write_release_file(root / labels, truth["image_name"], given)
    write_sidecar(
        root / sidecar,
        np.arange(len(given["pose"])),
        age_years=given["age_years"],
        male_prob=given["male_prob"],
        mask_rle=given["mask_rle"].tolist(),
        mask_height=given["mask_size"][:, 0],
        mask_width=given["mask_size"][:, 1],
    )
    buffer = io.BytesIO()
    np.savez(buffer, **dict[str, Any](truth))
    write_bytes_atomic(root / TRUTH, buffer.getvalue())
    return len(given["pose"])


def read_truth(root: Path) -> dict[str, np.ndarray]:
    """The truth of a demo's data set, one row per label row.

    Raises:
        CrowdFilesError: there is no whole data set in this folder.
    """
    marker = DEMO_PLACES[0]
    if not (root / marker).exists() or not (root / TRUTH).exists():
        raise CrowdFilesError(f"{root} holds no whole demo data set (no {marker} or {TRUTH}); write it with `dto demo`")
    return read_arrays(root / TRUTH)


def build_true_pictures(data: Path, body: BodyModel) -> Iterator[tuple[str, Picture]]:
    """Names and pictures of a demo's unbroken images, drawn again (0.35 s each) because its files lack the true z.

    Only for data sets of scale 1.
    """
    facts = json.loads((data / DEMO_PLACES[0]).read_text())
    for number in range(facts["images"]):
        if image_name(number) not in facts["broken"]:
            yield image_name(number), CrowdScene(facts["seed"], number, body).picture


def bench_numbers(images: int) -> list[int]:
    """Numbers of the first scenes of `BENCH_SIZE` with `BENCH_PEOPLE` people (the published data sets have 4.8)."""
    crowds = ((number, plan_crowd(BENCH_SEED, number)) for number in itertools.count())
    alike = (
        number
        for number, crowd in crowds
        if crowd.num_people == BENCH_PEOPLE and (crowd.view.width, crowd.view.height) == BENCH_SIZE
    )
    return list(itertools.islice(alike, images))


def build_bench_data(root: Path, images: int, body: BodyModel) -> Manifest:
    """Write the first scenes of the benches with labels, masks and depth, and their manifest of one shard."""
    numbers = enumerate(bench_numbers(images))
    return write_plain_data(root, [write_scene(root, CrowdScene(BENCH_SEED, one, body), new) for new, one in numbers])


def write_plain_data(root: Path, parts: list[PersonRows]) -> Manifest:
    """Write label file, sidecar and manifest of scenes; `write_scene` wrote their pictures and maps."""
    _, labels, sidecar = DEMO_PLACES
    _write_people(root, parts, labels, sidecar)
    described: dict[str, Any] = {"name": "bench", "source": "camerahmr", "labels": labels, "sidecar": sidecar}
    described |= {"images": "images", "depth": "depth", "key_parts": 3, "shard_images": 1 << 16}
    build_manifest(dataset_from_dict(described, root), root / "manifest.parquet", progress=False)
    return Manifest.open(root / "manifest.parquet")


def _dataset(kind: Difficulty, body: BodyModel) -> str:
    own = body.sha256 == sha256_file(locate_body(STAND_IN_BODY))
    named = f"body: {STAND_IN_BODY}" if own else "# body.model_path must name the body these people were made of"
    return f"""\
# Made by `dto synth`. Build with: dto manifest build dataset.yaml --data-root FOLDER -o FOLDER/manifest.parquet
name: synth-{kind.name}
source: camerahmr
licence: {SYNTHETIC} (Apache-2.0); free to use.
{named}
labels: {SYNTH_PLACES[1]}
sidecar: {SYNTH_PLACES[2]}
images: images
depth: depth
depth_suffix: .npy
key_parts: 2
principal_point: centre
shard_images: {_SHARD_IMAGES}
"""


def _readme(kind: Difficulty, facts: dict[str, Any]) -> str:
    options = "\n".join(f"- `{name}`: {value}" for name, value in facts["options"].items())
    columns = "\n".join(f"- `{name}`: {meaning}" for name, meaning in TRUTH_COLUMNS.items())
    who = "procedural bodies"
    if kind.bodies == "anny":
        who = "bodies of Anny (code Apache-2.0, data CC0) with labels of the stand-in body fitted to what is seen"
    return f"""\
# Synthetic crowds, difficulty {kind.name}

{facts["images"]} images, {facts["persons"]} people, seed {facts["seed"]}: {kind.meaning}.
Nobody here is real: {who}, on level ground, seen by a pinhole camera. Free to use (Apache-2.0).

    dto manifest build dataset.yaml --data-root . -o manifest.parquet
    dto run manifest.parquet -o run{" --set depth.kind=metric_depth" if kind.metric_error else ""}
    dto eval synthetic run --truth . --body BODY

Options (`dto_pipeline/lab/difficulty.py` says what each means):

{options}

Columns of `truth.npz`, row i = label row i:

{columns}
"""


def _demo_readme(broken: dict[str, str]) -> str:
    listed = "\n".join(f"- `{name}`: {kind}, {BREAKAGES[kind]}" for name, kind in broken.items())
    return f"""\
# Synthetic crowds with known truth

Made by `dto demo`; `demo.json` holds the settings. Nobody here is real: procedural bodies on a ground plane, seen by a
pinhole camera. Free to use (Apache-2.0). Labels are wrong the way single-person networks are: adult-like heights, and
distances stretched by the same factor. `{TRUTH}` holds what is true, row i = label row i.

Broken on purpose, to show that bad input costs one item:

{listed or "- nothing"}
"""
