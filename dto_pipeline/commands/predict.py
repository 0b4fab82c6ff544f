"""`dto predict`: a trained network on photographs."""

from __future__ import annotations

import argparse
import dataclasses
import math
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dto_pipeline.commands.options import measure, positive, share
from dto_pipeline.commands.output import local_place
from dto_pipeline.config import PipelineConfig, RunConfig
from dto_pipeline.errors import DtoError
from dto_pipeline.status import UnusableImage

_LOOKED_AT = 200  # headers of photographs

if TYPE_CHECKING:
    from dto_pipeline.data.manifest import Manifest
    from dto_pipeline.train.predict import Trained


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "predict",
        help="find the people of photographs with a trained network; writes a run",
        description="Runs a trained network over photographs and writes a folder that is a finished run: labels of "
        "schema dto-labels/1 (one row per image, those that cannot be read too), receipts, and manifest.parquet. dto "
        "view, verify, report and export read it; dto manifest merge LABELS_MANIFEST DIR adds its people where labels "
        "miss them; dto run DIR/manifest.parquet places them. Started again, it goes on where it was killed. Exit code "
        "1: written, but more than --max-failed-images could not be predicted, or nobody was found in any image.",
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a training's folder (its newest checkpoint that can be read), one file of its checkpoints/, or a "
        "released MA-HMR file of weights (pytorch_model.bin, .pth), which needs --body",
    )
    parser.add_argument(
        "images", metavar="IMAGES", help="folder or URI of images, subfolders too, or a manifest (*.parquet)"
    )
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="folder to make, local")
    camera = parser.add_mutually_exclusive_group()
    camera.add_argument(
        "--fov",
        type=measure,
        metavar="DEG",
        help="vertical field of view of all images in degrees, if known; otherwise the network estimates it",
    )
    camera.add_argument("--keep-camera", action="store_true", help="take the manifest's cameras, not the network's")
    parser.add_argument(
        "--min-confidence", type=share, default=0.3, metavar="C", help="leave out people below this, 0 .. 1 (0.3)"
    )
    parser.add_argument("--subset", default="", metavar="NAME", help="name of a folder's set, by default the folder's")
    parser.add_argument("--image-root", default="", metavar="DIR", help="where a manifest's images are now, if moved")
    parser.add_argument(
        "--depth",
        default="",
        metavar="DIR",
        help="depth maps of a folder's images, NAME.npy each: noted in the manifest for dto run, not read here",
    )
    parser.add_argument("--body", metavar="NPZ", help="where the training's body model is now, if moved")
    parser.add_argument(
        "--encoder-heads",
        type=positive,
        metavar="N",
        help="attention heads of a released file's encoder, if not one per 64 features",
    )
    parser.add_argument(
        "--batch",
        type=positive,
        default=4,
        metavar="N",
        help="images the network sees at once; fewer need less memory (4)",
    )
    parser.add_argument("--device", default="auto", metavar="D", help="cpu, cuda, cuda:1 ...; auto = a GPU, if any")
    parser.add_argument(
        "--max-failed-images",
        type=share,
        default=RunConfig.max_failed_images,
        metavar="SHARE",
        help="end with exit code 1 if more than this share of the images cannot be predicted (default %(default)g; "
        "1 = never); the predictions are written all the same",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress line")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dto_pipeline.run.folder import RunDirectory, find_foreign_files
    from dto_pipeline.run.report import read_status
    from dto_pipeline.run.worker import choose_device
    from dto_pipeline.status import ImageStatus
    from dto_pipeline.train.predict import PARTS, load_trained

    out = local_place(arguments.out)
    if not (out / PARTS).is_dir():  # else an unfinished prediction
        if RunDirectory(out).is_run():
            raise DtoError(f"{arguments.out} is a finished run already; choose another folder (-o)")
        if reason := find_foreign_files(RunDirectory(out)):
            raise DtoError(reason)
    fov = None if arguments.fov is None else math.radians(arguments.fov)
    if fov is not None and not 0 < fov < math.pi:
        raise DtoError(f"--fov is {arguments.fov}; expected a field of view between 0 and 180 degrees")
    device = choose_device(arguments.device)
    trained = load_trained(arguments.checkpoint, device, arguments.body, arguments.encoder_heads)
    pictures = _find_pictures(arguments, out)
    print(f"the network of {trained.origin}")
    options = {"keep_camera": arguments.keep_camera, "fov": fov, "progress": not arguments.quiet}
    manifest = predict_run(trained, pictures, out, arguments.min_confidence, batch=arguments.batch, **options)
    failed = {word: n for word, n in read_status(out).image_status.items() if ImageStatus(word).is_failure}
    causes = ", ".join(f"{n} {word}" for word, n in failed.items())
    note = f", of which could not be predicted: {causes} (see their messages)" if failed else ""
    print(f"{arguments.out}: {manifest.num_people} people in {manifest.num_images} images{note}")
    depth = "" if manifest.depth_root else " --set depth.source=model --set depth.model=NAME"
    body = f" --set body.model_path={trained.body_config.model_path}"
    print(f"to place them: dto run {manifest.path} -o RUN{body}{depth}")
    most = arguments.max_failed_images
    if sum(failed.values()) <= most * manifest.num_images:
        if manifest.num_people:
            return 0
        found = f"nobody was found in any of {manifest.num_images} images"
        advice = "lower --min-confidence and predict into another folder, or look at the training's evaluation"
        print(f"dto predict: {found} with a confidence of {arguments.min_confidence:g}; {advice}", file=sys.stderr)
        return 1
    advice = "mend them and predict into another folder, or take it as it is with --max-failed-images 1"
    print(f"dto predict: more than {most:.3g} of the images could not be predicted; {advice}", file=sys.stderr)
    return 1


def _find_pictures(arguments: argparse.Namespace, out: Path) -> Manifest:
    """The images of the arguments. Raises: DtoError: an option that does not apply to them, or what opening raises."""
    from dto_pipeline.data.manifest import Manifest
    from dto_pipeline.data.storage import as_location
    from dto_pipeline.train.predict import list_pictures

    is_manifest = arguments.images.endswith(".parquet")
    names = ("subset", "depth") if is_manifest else ("image_root", "keep_camera")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name)]
    if given:
        found, other = ("a manifest", "a folder of images") if is_manifest else ("a folder", "a manifest")
        raise DtoError(f"IMAGES is {found}, and {' and '.join(given)} would need {other}; leave it out")
    if not is_manifest:
        pictures = list_pictures(arguments.images, out, arguments.subset, arguments.depth)
        _warn_of_turned(pictures)
        return pictures
    manifest = Manifest.open(as_location(arguments.images))
    return dataclasses.replace(manifest, images_root=as_location(arguments.image_root or manifest.images_root))


def _warn_of_turned(pictures: Manifest) -> None:
    """Say how many of some photographs an EXIF note turns: the network sees them as they are stored, people lying."""
    from dto_pipeline.data.tars import open_images

    store = open_images(pictures.images_root, pictures.path)
    files = pictures.read_shard(0, ["image_file"])["image_file"].to_pylist()
    files, turned = files[:: -(-len(files) // _LOOKED_AT)], 0
    for file in files:
        with suppress(UnusableImage):
            turned += store.header(file).orientation != 1
    if turned:
        print(
            f"dto predict: {turned} of {len(files)} photographs looked at have an EXIF note that turns them; pixels "
            "are taken as stored, so that people may lie on their sides: save such photographs upright, predict again",
            file=sys.stderr,
        )


def predict_run(
    trained: Trained, pictures: Manifest, out: Path, min_confidence: float = 0.3, **options: Any
) -> Manifest:
    """Predict the images of a manifest and make `out` a finished run of them; goes on where a killed one stopped.

    `options`: of `predict.predict_shards`. Returns: the manifest of the predicted people, in `out`.
    """
    from dto_pipeline.data.labels import read_labels
    from dto_pipeline.run.folder import RunDirectory
    from dto_pipeline.run.publish import finish_run
    from dto_pipeline.train import predict

    directory, parts = RunDirectory(out), out / predict.PARTS
    directory.create_folders()
    with directory.lock() as lock:
        if directory.is_run() and not predict.part_file(out, 0).exists():
            shutil.rmtree(parts, ignore_errors=True)
            raise DtoError(f"{out} is a finished run already; choose another folder (-o)")
        predict.predict_shards(trained, pictures, out, min_confidence, **options)
        manifest = predict.write_manifest(pictures, out)
        facts = {"checkpoint": trained.sha256, "min_confidence": str(min_confidence)}
        config = PipelineConfig(body=trained.body_config)
        part = lambda shard: read_labels(predict.part_file(out, shard))  # noqa: E731
        finish_run(directory, lock, manifest, config, part, facts, trained.body.sha256)
        shutil.rmtree(parts)  # without them the prediction is finished
    return manifest
