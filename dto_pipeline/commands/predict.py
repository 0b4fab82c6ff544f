"""`dto predict`: a trained network on photographs."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dto_pipeline.commands.options import measure, positive, share
from dto_pipeline.config import PipelineConfig
from dto_pipeline.errors import DtoError

if TYPE_CHECKING:
    from dto_pipeline.data.manifest import Manifest
    from dto_pipeline.train.predict import PredictConfig, Trained
    from dto_pipeline.train.prediction_files import PictureSet

_LARGEST_FOV = 180.0  # [degree]


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "predict",
        help="people of photographs by a trained network, as a run",
        description="Runs a trained network over photographs and writes a folder that is a finished run: labels of "
        "schema dto-labels/1 (one row per image, those that cannot be read too), receipts, and manifest.parquet. dto "
        "view, verify, report and export read it; dto manifest merge LABELS_MANIFEST DIR adds its people where labels "
        "miss them; dto run DIR/manifest.parquet places them. A prediction that was killed goes on when it is started "
        "again.",
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
        help="vertical field of view of all images in degrees, where it is known; otherwise the network says it",
    )
    camera.add_argument("--keep-camera", action="store_true", help="take the manifest's cameras, not the network's")
    parser.add_argument("--min-confidence", type=share, metavar="C", help="leave out people below this, 0 .. 1 (0.3)")
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
        help="attention heads of a released file's encoder, which its shapes do not tell (one per 64 features)",
    )
    parser.add_argument("--batch", type=positive, metavar="N", help="images the network sees at once: memory (4)")
    parser.add_argument("--device", default="auto", metavar="D", help="cpu, cuda, cuda:1 ...; auto = a GPU if there is")
    parser.add_argument("--quiet", action="store_true", help="no progress line")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dto_pipeline.run.folder import RunDirectory, find_strangers
    from dto_pipeline.run.worker import choose_device
    from dto_pipeline.train.predict import PredictConfig, load_trained
    from dto_pipeline.train.prediction_files import is_unfinished

    if "://" in arguments.out:
        raise DtoError(f"{arguments.out} is a URI; predictions are written to a local folder, name one")
    out = Path(arguments.out)
    if RunDirectory(out).run_file.exists() and not is_unfinished(out):
        raise DtoError(f"{arguments.out} is a finished run already; choose another folder (-o)")
    if not is_unfinished(out) and (stranger := find_strangers(RunDirectory(out))):
        raise DtoError(stranger)
    pictures = _find_pictures(arguments)
    config = PredictConfig()
    if arguments.min_confidence is not None:
        config = replace(config, min_confidence=arguments.min_confidence)
    if arguments.batch is not None:
        config = replace(config, batch_images=arguments.batch)
    trained = load_trained(
        arguments.checkpoint, choose_device(arguments.device), arguments.body, arguments.encoder_heads
    )
    print(f"the network of {trained.origin}")
    manifest = predict_run(trained, pictures, out, config, not arguments.quiet)
    print(f"{arguments.out}: {manifest.num_people} people in {manifest.num_images} images{_failures(out)}")
    depth = "" if manifest.depth_root else " --set depth.source=model --set depth.model=NAME"
    body = f" --set body.model_path={trained.body_config.model_path}"
    print(f"to place them: dto run {manifest.path} -o RUN{body}{depth}")
    return 0


def predict_run(
    trained: Trained, pictures: PictureSet, out: Path, config: PredictConfig, progress: bool = True
) -> Manifest:
    """Predict all pictures and make `out` a finished run of them; goes on where a killed one stopped.

    Returns:
        The manifest of the predicted people, in `out`.
    """
    from dto_pipeline.run.finished import finish_run
    from dto_pipeline.run.folder import RunDirectory
    from dto_pipeline.train.predict import predict_scenes
    from dto_pipeline.train.prediction_files import (
        predict_shards,
        prediction_facts,
        read_part,
        remove_parts,
        write_manifest,
    )

    store, facts = pictures.open_store(), prediction_facts(trained, config)
    predict_shards(
        pictures, lambda some: predict_scenes(trained, store, some, config), trained.body, out, facts, progress
    )
    manifest = write_manifest(pictures, out)
    finish_run(
        RunDirectory(out),
        manifest,
        PipelineConfig(body=trained.body_config),
        lambda shard: read_part(out, shard),
        facts,
        trained.body.sha256,
    )
    remove_parts(out)
    return manifest


def _failures(out: Path) -> str:
    """How many images of a finished prediction failed, by status; "" where none did."""
    from dto_pipeline.run.report import read_status
    from dto_pipeline.status import ImageStatus

    counts = read_status(out).image_status
    failed = [f"{count} {word}" for word, count in counts.items() if ImageStatus(word).is_failure]
    return f", of which could not be predicted: {', '.join(failed)} (see their messages)" if failed else ""


def _find_pictures(arguments: argparse.Namespace) -> PictureSet:
    from dto_pipeline.train.prediction_files import find_pictures, manifest_pictures

    fov = None if arguments.fov is None else math.radians(arguments.fov)
    if fov is not None and not 0 < arguments.fov < _LARGEST_FOV:
        raise DtoError(f"--fov is {arguments.fov}; expected a field of view between 0 and 180 degrees")
    is_manifest = arguments.images.endswith(".parquet")
    _refuse_misplaced(arguments, is_manifest)
    if is_manifest:
        return manifest_pictures(arguments.images, arguments.image_root, arguments.keep_camera, fov)
    return find_pictures(arguments.images, arguments.subset, arguments.depth, fov)


def _refuse_misplaced(arguments: argparse.Namespace, is_manifest: bool) -> None:
    """Options that would say nothing are refused, not overheard."""
    names = ("subset", "depth") if is_manifest else ("image_root", "keep_camera")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name)]
    if given:
        found, other = ("a manifest", "a folder of images") if is_manifest else ("a folder", "a manifest")
        raise DtoError(f"IMAGES is {found}, and {' and '.join(given)} would need {other}; leave it out")
