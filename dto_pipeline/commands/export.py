"""`dto export`: labels of finished runs in the formats other tools read."""

from __future__ import annotations

import argparse
from dataclasses import replace

from dto_pipeline.commands.options import measure, not_negative
from dto_pipeline.commands.output import local_place
from dto_pipeline.errors import DtoError

_FORMATS = ("parquet", "persons", "ma-hmr", "camerahmr", "webdataset", "hf")
_PERSONS = ("all", "valid", "moved")


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "export",
        help="write the labels of finished runs for other tools",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Writes the labels of one or several runs to a new folder, with sizes and sha256 in export.json.\n"
        "\n"
        "  parquet     label rows in few large files per subset; everything, failures too\n"
        "  persons     one row per person, Parquet\n"
        "  ma-hmr      {AIC,COCO,INSTA,MPII}_CHMR_SMPL_OPT.npz for MA-HMR; accepted images\n"
        "  camerahmr   flat npz in CameraHMR's layout; accepted images\n"
        "  webdataset  tars of KEY.json and, with --images, KEY.jpg; accepted images\n"
        "  hf          a folder for datasets.load_dataset, with card and Croissant; everything\n"
        "\n"
        "The folder appears when it is complete. docs/exports.md shows how to read each format.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folders of finished runs")
    parser.add_argument("--format", required=True, choices=_FORMATS, help="see above")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="folder to make")
    images = parser.add_mutually_exclusive_group()
    images.add_argument("--accepted-only", action="store_true", help="only images that were optimised and score well")
    images.add_argument("--all", action="store_true", help="every image, failures too")
    parser.add_argument("--persons", choices=_PERSONS, help="valid: without unusable labels; moved: placed by a fit")
    parser.add_argument("--min-persons", type=not_negative, metavar="N", help="images with at least N such persons")
    parser.add_argument(
        "--max-height-dev", type=measure, metavar="X", help="accepted: a score below X sigma, in place of the run's own"
    )
    parser.add_argument(
        "--max-error",
        type=measure,
        metavar="M",
        help="only images whose expected error of z is at most M metres (joint)",
    )
    parser.add_argument(
        "--max-z-sigma", type=measure, metavar="M", help="only persons whose sigma of z is at most M metres (joint)"
    )
    parser.add_argument(
        "--images",
        action="append",
        default=[],
        metavar="[SUBSET=]DIR",
        help="folder or URI of images to write with the labels (webdataset), for all or, repeated, for each subset",
    )
    parser.add_argument("--own-images", action="store_true", help="images from where the runs' manifests say they are")
    parser.add_argument(
        "--manifest", action="append", default=[], metavar="FILE", help="manifest of a run that was moved; repeatable"
    )
    parser.add_argument(
        "--labels", action="append", default=[], metavar="NPZ", help="released label file (camerahmr); repeatable"
    )
    parser.add_argument("--mixed", action="store_true", help="runs may differ in solver, depth, body and configuration")
    parser.add_argument("--partial", action="store_true", help="take what is done of runs that are not finished")
    parser.add_argument("--quiet", action="store_true", help="no progress line")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dto_pipeline.data.exports.formats import FORMATS, export_labels
    from dto_pipeline.data.label_files import Limits
    from dto_pipeline.run.folder import read_run_labels

    deviation, least = arguments.max_height_dev, arguments.min_persons
    if arguments.all and deviation is not None:
        raise DtoError("--max-height-dev says which images are accepted, --all takes the others too; leave one out")
    default = FORMATS[arguments.format].selection
    accepted = arguments.accepted_only or deviation is not None
    selection = replace(
        default,
        accepted_only=accepted or (default.accepted_only and not arguments.all),
        max_deviation=deviation,
        min_persons=default.min_persons if least is None else least,
        persons=arguments.persons or default.persons,
        limits=Limits(arguments.max_error, arguments.max_z_sigma),
    )
    out = local_place(arguments.out)
    runs = [read_run_labels(run, arguments.partial, arguments.manifest) for run in arguments.runs]
    report = export_labels(
        *(runs, arguments.format, out, selection, _image_places(arguments, {run.subset for run in runs})),
        progress=not arguments.quiet,
        mixed=arguments.mixed,
        labels=arguments.labels,
    )
    print(report.as_table())
    return report.exit_code


def _image_places(arguments: argparse.Namespace, subsets: set[str]) -> dict[str, str] | None:
    """Subset -> folder of images, "" = the manifest's, from `--images` and `--own-images`; None = no images."""
    if arguments.own_images:
        if arguments.images:
            raise DtoError("--own-images and --images name two places; leave one out")
        return dict.fromkeys(subsets, "")
    places = {}
    for text in arguments.images:
        subset, sign, place = text.partition("=")
        if not text or (sign and not place):  # an empty place would mean the pictures that the run was made of
            raise DtoError(f"--images {text!r} names no folder; name one, or say --own-images")
        if sign and subset in subsets:
            places[subset] = place
        elif len(arguments.images) == 1:
            return dict.fromkeys(subsets, text)
        else:
            raise DtoError(f"--images {text}: several places are given as SUBSET=DIR, of subsets {sorted(subsets)}")
    return places or None
